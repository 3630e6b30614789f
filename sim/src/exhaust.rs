//! Every schedule of a small world.
//!
//! States are merged: of schedules that lead to the same one, only the first goes on from there. What
//! makes two states the same is in `digest.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::choices::Choices;
use crate::explorer::{Explorer, Merging};
use crate::graph::{Arrival, Graph};
use crate::run::{Outcome, Setting, Tracing, run};
use crate::world::{Fault, World};

/// What came of running every schedule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Different states in which something was to be decided.
    pub states: u64,
    /// Decisions that lead from one of them to another, or to the end.
    pub transitions: u64,
    /// Different ways through them; none if one goes round in a circle and never ends.
    pub schedules: Option<u128>,
    /// How often the world was run, up to its end or to a state that was known.
    pub runs: u64,
    /// Steps of these runs.
    pub steps: u64,
}

/// All schedules of a world, run.
pub struct Exhausted {
    world: World,
    graph: Arc<Graph>,
    /// What came of it.
    pub count: Count,
}

/// What states are merged by knows these only.
const KNOWN: [Fault; 4] = [
    Fault::CallFails,
    Fault::AnswerLost,
    Fault::Crash,
    Fault::HandlerFails,
];

fn on_threads(jobs: usize, work: impl Fn() + Sync) {
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(&work);
        }
    });
}

/// Runs every schedule of a world whose chaos lasts until it is drained, on so many threads; `seen` is
/// told of the number of runs now and then.
///
/// # Errors
///
/// A schedule that breaks an invariant.
///
/// # Panics
///
/// If the world has faults, or leases, that the merging of states knows nothing of.
pub fn exhaust(
    world: &World,
    jobs: usize,
    merging: Merging,
    seen: impl Fn(u64) + Sync,
) -> Result<Exhausted, Box<Outcome>> {
    assert!(
        world.is_enumerated() && world.faults.iter().all(|fault| KNOWN.contains(fault)),
        "only these can be enumerated: {KNOWN:?}"
    );
    assert!(
        world.delivery_lease <= world.claim_lease,
        "a keeper has to extend a lease before it renews a claim: that tells who renews"
    );
    let setting = Setting::Fixed(Box::new(world.clone()));
    let graph = Arc::new(Graph::new());
    let (runs, steps) = (AtomicU64::new(0), AtomicU64::new(0));
    let failed: Mutex<Option<Outcome>> = Mutex::new(None);
    let work = || {
        while let Some((way, under_way)) = graph.next() {
            let explorer = Explorer::explore(Arc::clone(&graph), way, merging);
            let (outcome, _) = run(&setting, Choices::all(explorer), Tracing::Off);
            steps.fetch_add(outcome.steps, Ordering::Relaxed);
            let nth = runs.fetch_add(1, Ordering::Relaxed) + 1;
            if nth.is_multiple_of(256) {
                seen(nth);
            }
            if outcome.violation.is_some() {
                graph.give_up();
                failed.lock().get_or_insert(outcome);
            }
            drop(under_way);
        }
    };
    on_threads(jobs, work);
    if let Some(failed) = failed.into_inner() {
        return Err(Box::new(failed));
    }
    let sum = graph.sum();
    let count = Count {
        states: sum.states,
        transitions: sum.transitions,
        schedules: sum.schedules,
        runs: runs.into_inner(),
        steps: steps.into_inner(),
    };
    Ok(Exhausted {
        world: world.clone(),
        graph,
        count,
    })
}

impl Exhausted {
    /// Goes every way that ended in a known state so many steps further, with every option, and compares
    /// where each leads with where the first way to the same state has led. If states were merged that go
    /// on differently within these steps, it is somewhere else. Gives the number of ways.
    ///
    /// # Errors
    ///
    /// A way that leads somewhere else, or breaks an invariant.
    pub fn check(
        &self,
        jobs: usize,
        steps: u32,
        seen: impl Fn(u64) + Sync,
    ) -> Result<u64, Box<Outcome>> {
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<Box<Outcome>>> = Mutex::new(None);
        let work = || {
            loop {
                let nth = next.fetch_add(1, Ordering::Relaxed);
                let Some(repeat) = self.graph.repeat(nth) else {
                    return;
                };
                seen(nth as u64 + 1);
                if let Err(astray) = self.look_on(&repeat, steps) {
                    next.store(usize::MAX / 2, Ordering::Relaxed);
                    failed.lock().get_or_insert(astray);
                }
            }
        };
        on_threads(jobs, work);
        match failed.into_inner() {
            Some(failed) => Err(failed),
            None => Ok(self.graph.repeats() as u64),
        }
    }

    fn look_on(&self, from: &Arrival, steps: u32) -> Result<(), Box<Outcome>> {
        if steps == 0 {
            return Ok(());
        }
        let setting = Setting::Fixed(Box::new(self.world.clone()));
        let mut led_to = Vec::with_capacity(from.options);
        let mut last = None;
        for option in 0..from.options {
            let option = u32::try_from(option).unwrap_or(0);
            let path = from.path.iter().copied().chain([option]).collect();
            let explorer = Explorer::look(Arc::clone(&self.graph), path);
            let (outcome, choices) = run(&setting, Choices::all(explorer), Tracing::Off);
            if outcome.violation.is_some() {
                return Err(Box::new(outcome));
            }
            led_to.extend(choices.into_explorer().and_then(Explorer::came_to));
            last = Some(outcome);
        }
        let states = led_to.iter().map(|to| to.state).collect();
        if let Some(last) = last.filter(|_| !self.graph.leads_exactly(from.state, states)) {
            return Err(Box::new(last));
        }
        led_to.iter().try_for_each(|to| self.look_on(to, steps - 1))
    }

    /// Runs this many schedules from their beginning to their end, by chance and without merging, and
    /// looks at every step whether it is among those that were found. If states were merged that go on
    /// differently, it is not.
    ///
    /// # Errors
    ///
    /// A schedule that leaves what was found, or breaks an invariant.
    pub fn stroll(&self, schedules: u64) -> Result<(), Box<Outcome>> {
        let setting = Setting::Fixed(Box::new(self.world.clone()));
        for seed in 0..schedules {
            let explorer = Explorer::stroll(Arc::clone(&self.graph), seed);
            let (outcome, choices) = run(&setting, Choices::all(explorer), Tracing::Off);
            let is_astray = choices.into_explorer().is_none_or(|one| one.is_astray());
            if is_astray || outcome.violation.is_some() {
                return Err(Box::new(outcome));
            }
        }
        Ok(())
    }
}
