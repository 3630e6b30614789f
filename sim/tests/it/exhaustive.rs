//! Every schedule of the small worlds.

use backstop_sim::{Merging, Small, encode, exhaust, small_worlds};

/// Schedules that are run by chance, to see that none was missed.
const STROLLS: u64 = 200;

fn jobs() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn run_all(faults: u32) -> u128 {
    let mut schedules = 0;
    for Small { name, world } in small_worlds(faults) {
        let again = |list: &[u32]| {
            let list = encode(list);
            format!("cargo xtask sim --world {name} --faults {faults} --replay {list}")
        };
        let exhausted = exhaust(&world, jobs(), Merging::On, |_| {});
        let exhausted = exhausted
            .unwrap_or_else(|failed| panic!("{:?}: {}", failed.violation, again(&failed.choices)));
        println!("{name}, up to {faults} faults: {:?}", exhausted.count);
        let Some(of_world) = exhausted.count.schedules else {
            panic!("{name}: a schedule goes round in a circle, and never ends");
        };
        schedules += of_world;
        let checked = exhausted.check(jobs(), 1, |_| {});
        if let Err(astray) = checked.and_then(|_| exhausted.stroll(STROLLS)) {
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

/// That states were merged that go on differently would show in their number.
#[test]
fn merging_loses_no_schedule() {
    // With a fault, or in this world, they are too many for a debug build: see the command's `--unmerged`.
    let few = small_worlds(0)
        .into_iter()
        .filter(|small| small.name != "poison");
    for Small { name, world } in few {
        let count = |merging| exhaust(&world, jobs(), merging, |_| {}).map(|all| all.count);
        let whole = count(Merging::Off).unwrap();
        let merged = count(Merging::On).unwrap();
        assert_eq!(merged.schedules, whole.schedules, "{name}");
        assert_eq!(whole.schedules, Some(u128::from(whole.runs)), "{name}");
    }
}
