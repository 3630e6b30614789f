//! That the simulator finds what is wrong: each planted bug, within a number of seeds.
//!
//! Found so, in a debug build on a busy machine:
//!
//! | bug | seed | seconds | broken |
//! |---|---|---|---|
//! | `AckBeforeComplete` | 0 | 0.0 | completed after success |
//! | `StaleClaimCompletes` | 105 | 2.1 | stale claims are refused |
//! | `ReleaseForgetsCount` | 0 | 0.0 | the cap holds |
//! | `RenewsAfterEnd` | 15 | 0.2 | renewal ends with the handler |
//! | `SettlesAfterLoss` | 106 | 2.2 | lost is not settled |
//! | `DrainDropsBuffer` | 610 | 10.2 | a drain gives back |
//! | `LaneFreedEarly` | 0 | 0.0 | order within a key |
//! | `RetryForgetsAttempts` | 64 | 1.5 | the cap holds |
//! | `CapOffByOne` | 0 | 0.2 | the cap holds |
//! | `BreakerDeadLetters` | 22 | 0.3 | dead letters are justified |
//! | `LossIgnored` | 919 | 14.4 | loss cancels |
//! | `ClaimTakenEarly` | 5 | 0.1 | one at a time |
//! | `SilenceIsConsent` | 990 | 12.7 | completed after success |
//! | `RetriesAtOnce` | 0 | 0.0 | no early retry |
//! | `NeverRenews` | 135 | 1.9 | leases outlive handlers |
//! | `GraceWithoutEnd` | 704 | 9.8 | shutdown in time |
//! | `CompletedIsClaimed` | 1 | 0.0 | completed is final |
//! | `SlotsDoubled` | 32 | 0.5 | in flight bound |
//!
//! `ClaimTakenEarly` breaks no stale effect, too: first with seed 136.

use std::time::{Duration, Instant};

use backstop_core::planted::{Bug, plant};
use backstop_sim::{
    Chaos, Fault, Publication, Setting, Tracing, World, by_list, by_seed, decode, encode, shrink,
};

/// Two copies of a message, two processes, and claims that run out early: what fences are for.
fn contested() -> Setting {
    let copy = Publication {
        id: 0,
        key: 0,
        body: 0,
        redrives: 0,
    };
    Setting::Fixed(Box::new(World {
        publications: vec![copy, copy],
        faults: vec![Fault::ClockJumps, Fault::CallSlow],
        fault_budget: 3,
        handler_timeout: Duration::from_mins(1),
        chaos: Chaos::Steps(80),
        calls_take_time: true,
        ..World::plain()
    }))
}

/// More seeds than any of them takes.
const SEEDS: u64 = 6_000;

#[test]
fn every_planted_bug_is_found() {
    println!("{:<22} {:>6} {:>9}  broken", "bug", "seed", "seconds");
    let settings = [Setting::Random, contested()];
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        let begun = Instant::now();
        plant(Some(bug));
        // In turns: worlds of all kinds, and one in which claims are contested.
        let run = |seed: u64| {
            let setting = &settings[usize::from(seed % 2 == 1)];
            (seed, by_seed(setting, seed, Tracing::Off))
        };
        let found = (0..SEEDS)
            .map(run)
            .find(|(_, outcome)| outcome.violation.is_some());
        plant(None);
        let name = format!("{bug:?}");
        let seconds = begun.elapsed().as_secs_f64();
        match found {
            Some((seed, outcome)) => {
                let broken = outcome.violation.map_or("", |broken| broken.invariant);
                println!("{name:<22} {seed:>6} {seconds:>9.2}  {broken}");
            }
            None => missed.push(bug),
        }
    }
    assert_eq!(missed, [], "the simulator misses these");
}

#[test]
fn what_fails_is_shrunk_to_a_shorter_run_that_fails_so_again() {
    plant(Some(Bug::CapOffByOne));
    let setting = Setting::Random;
    let failed = by_seed(&setting, 0, Tracing::Off);
    let (before, broken) = (failed.steps, failed.violation.clone().unwrap());
    let least = shrink(&setting, failed);
    let list = decode(&encode(&least.choices)).unwrap();
    let again = by_list(&setting, &list, Tracing::On);
    plant(None);
    assert!(least.steps < before, "{} of {before} steps", least.steps);
    assert_eq!(again.violation.unwrap().invariant, broken.invariant);
    assert_eq!(again.world, least.world);
    assert!(!again.trace.is_empty());
}
