//! Small worlds, of which every schedule is run.

use backstop_core::OrderedRetry;

use crate::world::{Chaos, Dedupe, Fault, Order, Plan, Publication, World};

/// A world by name.
pub struct Small {
    /// Its name.
    pub name: &'static str,
    /// The world.
    pub world: World,
}

/// Two processes and two messages, in the ways that matter, with up to so many faults.
pub fn small_worlds(fault_budget: u32) -> Vec<Small> {
    let base = World {
        fault_budget,
        chaos: Chaos::UntilDrained,
        faults: vec![
            Fault::CallFails,
            Fault::AnswerLost,
            Fault::Crash,
            Fault::HandlerFails,
        ],
        max_attempts: 2,
        max_in_flight: 1,
        ..World::plain()
    };
    let message = |id, key| Publication {
        id,
        key,
        body: 0,
        redrives: 0,
    };
    let ordered = |retry| World {
        order: Order::ByKey(retry),
        publications: vec![message(0, 0), message(1, 0)],
        ..base.clone()
    };
    let small = |name, world| Small { name, world };
    vec![
        small("two-keys", base.clone()),
        small("held-in-lane", ordered(OrderedRetry::HeldInLane)),
        small("native-retry", ordered(OrderedRetry::Native)),
        small(
            "two-lanes",
            World {
                publications: vec![message(0, 0), message(1, 1)],
                ..ordered(OrderedRetry::HeldInLane)
            },
        ),
        small(
            "no-store",
            World {
                dedupe: Dedupe::None,
                ..base.clone()
            },
        ),
        small(
            "poison",
            World {
                plan: Plan::OneFails,
                ..base.clone()
            },
        ),
        // Last, for it has by far the most schedules.
        small(
            "one-id",
            World {
                publications: vec![message(0, 0), message(0, 0)],
                ..base
            },
        ),
    ]
}
