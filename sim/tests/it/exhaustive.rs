//! Every schedule of the small worlds.

use backstop_sim::{Small, encode, exhaust, small_worlds};

/// Schedules that are run by chance, to see that none was missed.
const STROLLS: u64 = 200;

fn run_all(faults: u32) -> u128 {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut schedules = 0;
    for Small { name, world } in small_worlds(faults) {
        let again = |list: &[u32]| {
            let list = encode(list);
            format!("cargo xtask sim --world {name} --faults {faults} --replay {list}")
        };
        let exhausted = exhaust(&world, jobs, |_| {});
        let exhausted = exhausted
            .unwrap_or_else(|failed| panic!("{:?}: {}", failed.violation, again(&failed.choices)));
        println!("{name}, up to {faults} faults: {:?}", exhausted.count);
        let Some(of_world) = exhausted.count.schedules else {
            panic!("{name}: a schedule goes round in a circle, and never ends");
        };
        schedules += of_world;
        if let Err(astray) = exhausted.stroll(STROLLS) {
            panic!(
                "{name}: this is not among what was found: {}",
                again(&astray.choices)
            );
        }
    }
    schedules
}

#[test]
fn every_order_of_calls_keeps_every_invariant() {
    assert!(
        run_all(0) > 1_000,
        "the worlds have more schedules than that"
    );
}

#[test]
fn every_point_of_one_fault_in_every_order_keeps_every_invariant() {
    assert!(
        run_all(1) > 1_000_000,
        "the worlds have more schedules than that"
    );
}
