//! Every schedule of the small worlds.

use backstop_sim::{Small, encode, exhaust, small_worlds};

fn run_all(faults: u32, names: &[&str]) -> u64 {
    let mut schedules = 0;
    let is_wanted = |small: &Small| names.contains(&small.name);
    for Small { name, world } in small_worlds(faults).into_iter().filter(is_wanted) {
        match exhaust(&world, |_| {}) {
            Ok(count) => {
                println!("{name}, up to {faults} faults: {count:?}");
                schedules += count.schedules;
            }
            Err(failed) => {
                let list = encode(&failed.choices);
                let again =
                    format!("cargo xtask sim --world {name} --faults {faults} --replay {list}");
                panic!("{:?}: {again}", failed.violation);
            }
        }
    }
    schedules
}

#[test]
fn every_order_of_calls_keeps_every_invariant() {
    let all = [
        "two-keys",
        "one-id",
        "held-in-lane",
        "native-retry",
        "no-store",
        "poison",
    ];
    assert!(
        run_all(0, &all) > 100,
        "the worlds have more schedules than that"
    );
}

#[test]
fn every_point_of_one_fault_in_every_order_keeps_every_invariant() {
    let small = ["held-in-lane", "no-store"];
    assert!(
        run_all(1, &small) > 1_000,
        "the worlds have more schedules than that"
    );
}
