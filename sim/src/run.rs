//! One run of a world: from its first step to its end.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::{InProcessBroker, OrderedRetry};
use tokio::runtime::Builder;

use crate::choices::Choices;
use crate::sim::Sim;
use crate::state::Violation;
use crate::world::{Order, World};

/// Which world a run is of.
#[derive(Clone, Debug)]
pub enum Setting {
    /// One that the decisions choose, too.
    Random,
    /// This one.
    Fixed(Box<World>),
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The world.
    pub world: World,
    /// Every decision.
    pub choices: Vec<u32>,
    /// How many steps it took.
    pub steps: u64,
    /// The invariant that was broken, if one was.
    pub violation: Option<Violation>,
    /// Whether it was ended early, because other schedules show the same.
    pub is_cut_off: bool,
    /// What happened, in words; only if it was asked for.
    pub trace: Vec<String>,
}

/// Whether a run is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracing {
    /// It is.
    On,
    /// It is not.
    Off,
}

const HEARTBEAT: Duration = Duration::from_secs(5);

/// Runs a world that is chosen by a seed.
pub fn by_seed(setting: &Setting, seed: u64, tracing: Tracing) -> Outcome {
    run(setting, Choices::random(seed), tracing).0
}

/// Runs a world by a list of decisions; what is missing is zero.
pub fn by_list(setting: &Setting, list: &[u32], tracing: Tracing) -> Outcome {
    run(setting, Choices::list(list.to_vec()), tracing).0
}

pub(crate) fn run(setting: &Setting, mut choices: Choices, tracing: Tracing) -> (Outcome, Choices) {
    let world = match setting {
        Setting::Random => World::random(&mut choices),
        Setting::Fixed(world) => World::clone(world),
    };
    let sim: Arc<std::sync::OnceLock<Arc<Sim>>> = Arc::default();
    let hook = Arc::clone(&sim);
    let mut builder = Builder::new_current_thread();
    if world.is_enumerated() {
        // A process must not act differently because another one has been busy: tasks that yield go on
        // when all others are idle, never after so many polls.
        builder.event_interval(u32::MAX);
    }
    let runtime = builder
        .enable_time()
        .start_paused(true)
        .on_thread_park(move || {
            if let Some(sim) = hook.get() {
                sim.step();
            }
        })
        .build()
        .expect("a runtime without I/O needs nothing");
    let outcome = runtime.block_on(async {
        let broker = broker(&world);
        let sim = sim.get_or_init(|| {
            let traced = tracing == Tracing::On;
            Arc::new(Sim::new(world.clone(), choices, broker, traced))
        });
        {
            let mut state = sim.lock();
            for slot in 0..world.processes {
                sim.spawn(&mut state, slot);
            }
        }
        // Time always goes on, also where nothing else waits for it.
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        while !sim.is_over() {
            tokio::select! {
                biased;
                () = sim.nudged.notified() => {}
                _ = heartbeat.tick() => {}
            }
        }
        let mut state = sim.lock();
        let outcome = Outcome {
            world,
            choices: state.choices.taken().to_vec(),
            steps: state.steps,
            violation: state.violation.take(),
            is_cut_off: state.is_cut_off,
            trace: state.trace.take().unwrap_or_default(),
        };
        let spent = Choices::list(Vec::new());
        let mut choices = std::mem::replace(&mut state.choices, spent);
        if !outcome.is_cut_off {
            choices.end();
        }
        (outcome, choices)
    });
    drop(runtime);
    // The handles of its tasks hold the runtime, which holds the run.
    let slots = sim.get().map(|sim| std::mem::take(&mut sim.lock().slots));
    drop(slots);
    outcome
}

fn broker(world: &World) -> InProcessBroker {
    let retry = match world.order {
        Order::ByKey(retry) => retry,
        Order::Unordered => OrderedRetry::Native,
    };
    InProcessBroker::builder("queue")
        .lease(world.delivery_lease)
        .delivery_limit(1_000_000)
        .ordered_retry(retry)
        .release_cost(world.release)
        .build()
}
