//! Worlds: what runs, on what, and what may go wrong there.

use std::time::Duration;

use backstop_core::{BreakerSettings, OrderedRetry, ReleaseCost};

use crate::choices::Choices;

/// What may go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A call fails without effect.
    CallFails,
    /// A call takes effect and fails.
    AnswerLost,
    /// A call takes effect, and its answer comes later.
    AnswerLate,
    /// A call is carried out late.
    CallSlow,
    /// A process dies.
    Crash,
    /// A process is told to shut down, or has its grace cut short.
    Shutdown,
    /// A connection to the broker is cut, or all are.
    ConnectionCut,
    /// Leases end early.
    LeaseLost,
    /// The store does not answer, for one process or for all.
    StoreDown,
    /// The broker does not answer.
    BrokerDown,
    /// The store loses its last writes.
    WritesLost,
    /// The store's clock jumps ahead.
    ClockJumps,
    /// A handler fails, panics or hangs.
    HandlerFails,
    /// A handler's work goes on after it was cancelled.
    HandlerIgnoresCancellation,
    /// A dead letter is redriven.
    Redrive,
    /// A run's future is dropped, in a process that lives on.
    RunDropped,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 16] = [
        Self::CallFails,
        Self::AnswerLost,
        Self::AnswerLate,
        Self::CallSlow,
        Self::Crash,
        Self::Shutdown,
        Self::ConnectionCut,
        Self::LeaseLost,
        Self::StoreDown,
        Self::BrokerDown,
        Self::WritesLost,
        Self::ClockJumps,
        Self::HandlerFails,
        Self::HandlerIgnoresCancellation,
        Self::Redrive,
        Self::RunDropped,
    ];
}

/// How handlers end where no fault says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// All succeed.
    Succeed,
    /// Those of the first message's id fail, always.
    OneFails,
    /// All fail until the faults are over.
    AllFailForAWhile,
}

/// Whether repeats are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dedupe {
    /// By a store that outlives the processes.
    Store,
    /// Not at all: the broker counts attempts.
    None,
}

/// Whether order is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// No.
    Unordered,
    /// Within a partition key.
    ByKey(OrderedRetry),
}

/// How long there are faults and odd schedules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chaos {
    /// For this many steps.
    Steps(u64),
    /// Until the queue is drained. Messages are published before anything else, and a process that is
    /// gone is followed by the next at once, so that every schedule can be enumerated.
    UntilDrained,
}

/// One message that is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publication {
    /// The number of its id, which another one may have, too.
    pub id: usize,
    /// The number of its partition key.
    pub key: usize,
    /// Which of the id's bodies it has.
    pub body: usize,
    /// How often it was redriven.
    pub redrives: u32,
}

/// What runs, on what, and what may go wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct World {
    /// Whether order is kept.
    pub order: Order,
    /// Whether repeats are recognised.
    pub dedupe: Dedupe,
    /// What a release costs.
    pub release: ReleaseCost,
    /// How many processes consume.
    pub processes: usize,
    /// What is published, in this order.
    pub publications: Vec<Publication>,
    /// The cap on attempts.
    pub max_attempts: u32,
    /// Handlers at once in a process.
    pub max_in_flight: usize,
    /// The broker's lease.
    pub delivery_lease: Duration,
    /// The store's.
    pub claim_lease: Duration,
    /// The handler timeout.
    pub handler_timeout: Duration,
    /// The shutdown grace.
    pub grace: Duration,
    /// The first wait between attempts; the longest is four times it.
    pub backoff: Duration,
    /// The breaker.
    pub breaker: BreakerSettings,
    /// How handlers end.
    pub plan: Plan,
    /// What may go wrong.
    pub faults: Vec<Fault>,
    /// How many faults there may be.
    pub fault_budget: u32,
    /// How long there are faults and odd schedules; then all is well until the end.
    pub chaos: Chaos,
    /// Whether time may pass while calls are pending, without that being a fault.
    pub calls_take_time: bool,
    /// Seeds the jitter; zero is no jitter.
    pub jitter: u64,
}

const SECOND: Duration = Duration::from_secs(1);

impl World {
    /// A plain world: two processes with a store, and two messages; no faults.
    pub fn plain() -> Self {
        Self {
            order: Order::Unordered,
            dedupe: Dedupe::Store,
            release: ReleaseCost::Free,
            processes: 2,
            publications: (0..2)
                .map(|id| Publication {
                    id,
                    key: id,
                    body: 0,
                    redrives: 0,
                })
                .collect(),
            max_attempts: 3,
            max_in_flight: 4,
            delivery_lease: 6 * SECOND,
            claim_lease: 6 * SECOND,
            handler_timeout: 10 * SECOND,
            grace: 5 * SECOND,
            backoff: SECOND,
            breaker: BreakerSettings {
                longest_pause: 4 * SECOND,
                ..BreakerSettings::default()
            },
            plan: Plan::Succeed,
            faults: Vec::new(),
            fault_budget: 0,
            chaos: Chaos::Steps(0),
            calls_take_time: false,
            jitter: 0,
        }
    }

    /// Whether all its schedules are run.
    pub(crate) fn is_enumerated(&self) -> bool {
        self.chaos == Chaos::UntilDrained
    }

    /// Whether a fault may happen here.
    pub fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    /// A world of its own for every seed.
    pub(crate) fn random(choices: &mut Choices) -> Self {
        let order = match choices.uniform(4) {
            0 | 1 => Order::Unordered,
            2 => Order::ByKey(OrderedRetry::HeldInLane),
            _ => Order::ByKey(OrderedRetry::Native),
        };
        let dedupe = match choices.pick(&[4, 1]) {
            0 => Dedupe::Store,
            _ => Dedupe::None,
        };
        let release = match choices.pick(&[4, 1]) {
            0 => ReleaseCost::Free,
            _ => ReleaseCost::Counted,
        };
        let seconds = |choices: &mut Choices, of: [u32; 3]| of[choices.uniform(3)] * SECOND;
        let window = [20, 3, 1][choices.uniform(3)];
        Self {
            order,
            dedupe,
            release,
            processes: 1 + choices.uniform(3),
            publications: publications(choices),
            max_attempts: [3, 1, 2, 4][choices.uniform(4)],
            max_in_flight: [4, 1, 2][choices.uniform(3)],
            delivery_lease: seconds(choices, [6, 2, 12]),
            claim_lease: seconds(choices, [6, 2, 12]),
            handler_timeout: seconds(choices, [10, 3, 60]),
            grace: seconds(choices, [5, 0, 20]),
            backoff: [SECOND, SECOND / 4][choices.uniform(2)],
            breaker: BreakerSettings {
                window,
                longest_pause: 4 * SECOND,
                ..BreakerSettings::default()
            },
            plan: [Plan::Succeed, Plan::OneFails, Plan::AllFailForAWhile][choices.pick(&[4, 2, 1])],
            faults: Fault::ALL
                .into_iter()
                .filter(|fault| choices.pick(&fault_odds(*fault)) == 1)
                .collect(),
            fault_budget: [0, 1, 2, 4, 8][choices.pick(&[1, 2, 3, 3, 2])],
            chaos: Chaos::Steps([40, 80, 160][choices.uniform(3)]),
            calls_take_time: choices.uniform(2) == 1,
            jitter: choices.uniform(8) as u64,
        }
    }
}

/// Two faults void most promises, so they are rare.
const fn fault_odds(fault: Fault) -> [u32; 2] {
    match fault {
        Fault::WritesLost | Fault::ClockJumps => [15, 1],
        Fault::Redrive | Fault::RunDropped | Fault::HandlerIgnoresCancellation => [5, 1],
        _ => [3, 2],
    }
}

fn publications(choices: &mut Choices) -> Vec<Publication> {
    let keys = 1 + choices.uniform(3);
    let count = 1 + choices.uniform(6);
    let mut all: Vec<Publication> = Vec::with_capacity(count);
    for n in 0..count {
        let fresh = Publication {
            id: n,
            key: n % keys,
            body: 0,
            redrives: 0,
        };
        let sent_before = all.first().copied().unwrap_or(fresh);
        all.push(match choices.pick(&[10, 2, 1]) {
            0 => fresh,
            1 => sent_before,
            _ => Publication {
                body: 1,
                ..sent_before
            },
        });
    }
    all
}
