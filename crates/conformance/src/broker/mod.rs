//! The suite for brokers.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use backstop_conformance::broker::{BrokerHarness, run_all};
//! # async fn test(harness: impl BrokerHarness) {
//! // In a test of the adapter, on a runtime with several threads. Its deliveries are held by their
//! // connection, say, so there is no renewal whose end E4 could be about:
//! run_all(Arc::new(harness)).await.assert_passed_but(&["E4"]);
//! # }
//! ```
//!
//! # What is asked
//!
//! | group | ids | what it is about |
//! |---|---|---|
//! | delivery | D1 to D10 | bytes, competing consumers, restarts, stale settlements, cancelled receives, confirms |
//! | retry | R1 to R13 | delays, exact caps (also across processes), panics, timeouts, unchanged messages |
//! | dead letter | L1 to L4, L10 | annotations, crashes on the way, an unreachable dead-letter queue, the broker's own cap |
//! | idempotency | I1 to I12 | repeats, copies at once, claims, fences, an unreachable store, redrives |
//! | lease | E1 to E5 | long handlers, buffered deliveries, lost leases and claims, renewal |
//! | order | O1 to O7 | keys in order and in parallel, through retries, crashes and several processes |
//! | flow | F1 to F7 | limits, drain, grace, flushed acks, the breaker, long polls |
//!
//! A case's name is its claim. Left out, and reported as such, is only what
//! [`Capabilities`] declare: order where the broker keeps it within one process, R12 where delays
//! have no maximum, E4 where deliveries are held by their connection, and D7 where a handle to a
//! queue makes the queue; and what an emulator of the broker gets wrong, as its harness says
//! ([`BrokerHarness::beyond_the_server`]). The adapter's test names what it expects to be left out
//! ([`Report::assert_passed_but`]): what a capability leaves out by mistake is a failure there.
//!
//! # What a harness brings
//!
//! [`BrokerHarness`] makes queues, each with a name and a dead-letter queue of its own, and gives a
//! store; [`TestQueue`] connects to one, and does what a test may do to it: cut connections, restart
//! the broker, take the dead-letter queue away, break dead-lettering off, wear out the broker's own cap
//! ([`receive_and_drop`] helps), and name the command of a worker process (see [`worker`]).
//!
//! All waits and leases are multiples of [`BrokerHarness::tick`]: 100 ms suits a server on a busy
//! machine, 20 ms a broker in the process under tokio's paused time. A case fails at once when it
//! sees what must not be, and after [`BrokerHarness::patience`] when it does not see what must be;
//! what comes, but later than [`BrokerHarness::tolerance`] allows, fails it too. It is stopped after
//! 10 minutes. Eight cases run beside each other, and those that restart the
//! broker alone, after the others. With a tick of 100 ms everything takes about a minute, and what
//! the broker's restarts take: two of them.
//!
//! Where leases are timed, [`QueueSpec::lease`] is what a case wants of the queue: thirty ticks, or
//! more than the case takes. Where a delivery is held by its connection it means nothing; the cases
//! about leases cut the connection there, and use the claim's lease.

mod crew;
mod dead_letter;
mod delay;
mod delivery;
mod failing_store;
mod flow;
mod harness;
mod idempotency;
mod journal;
mod lease;
mod order;
mod processes;
mod retry;
mod stage;
mod watched;
pub mod worker;

use std::sync::Arc;

use backstop_core::{Capabilities, DeliveryLease, OrderScope, Survival};

pub use self::harness::{BrokerHarness, Interruptions, QueueSpec, Reach, TestQueue, WorkerStore};

use self::stage::Stage;
pub use self::stage::receive_and_drop;
use crate::report::Report;
use crate::runner::{self, Case, Selection};

/// Runs every case on a broker, or those that `BACKSTOP_CASE` names.
///
/// # Panics
///
/// When the harness cannot make a queue.
///
/// # Cancel safety
///
/// Not cancel-safe: cases that are under way when a call is dropped go on until the runtime ends, and what
/// they find is told to nobody.
pub async fn run_all(harness: Arc<dyn BrokerHarness>) -> Report {
    run_selection(harness, &Selection::from_environment()).await
}

/// Runs named cases on a broker: ids such as `R4`, or letters of groups, separated by commas.
///
/// # Panics
///
/// When the harness cannot make a queue.
///
/// # Cancel safety
///
/// Not cancel-safe: cases that are under way when a call is dropped go on until the runtime ends, and what
/// they find is told to nobody.
pub async fn run(harness: Arc<dyn BrokerHarness>, cases: &str) -> Report {
    run_selection(harness, &Selection::named(cases)).await
}

async fn run_selection(harness: Arc<dyn BrokerHarness>, selection: &Selection) -> Report {
    let declared = Declared::ask(&*harness)
        .await
        .unwrap_or_else(|error| panic!("{}: {error:#}", harness.name()));
    let name = format!("brokers' suite on {}", harness.name());
    let stage = Stage::new(Arc::clone(&harness));
    let left_out = |case: &Case<Stage>| {
        let by_broker = declared.leaves_out(case.id);
        by_broker.or_else(|| harness.beyond_the_server(case.id))
    };
    runner::run(name, stage, selection, cases(), left_out).await
}

fn cases() -> Vec<Case<Stage>> {
    let groups = [
        delivery::cases(),
        delay::cases(),
        retry::cases(),
        dead_letter::cases(),
        idempotency::cases(),
        lease::cases(),
        order::cases(),
        flow::cases(),
        processes::cases(),
    ];
    groups.into_iter().flatten().collect()
}

/// What the broker declares of a queue, and of an ordered one.
struct Declared {
    plain: Capabilities,
    ordered: Capabilities,
}

impl Declared {
    async fn ask(harness: &dyn BrokerHarness) -> anyhow::Result<Self> {
        let mut declared = Vec::new();
        for spec in [QueueSpec::default(), QueueSpec::default().ordered()] {
            let broker = harness.queue(spec).await?.connect().await?;
            declared.push(broker.capabilities());
            broker.close().await;
        }
        Ok(Self {
            plain: declared[0],
            ordered: declared[1],
        })
    }

    /// Why a case does not apply to this broker.
    fn leaves_out(&self, case: &str) -> Option<&'static str> {
        let lives_here = self.plain.survival == Survival::Process;
        match case {
            "D7" if lives_here => {
                Some("the broker lives in this process: a handle to a queue makes the queue")
            }
            "R12"
                if self.plain.max_delay.is_none() && self.plain.max_publication_delay.is_none() =>
            {
                Some("the broker's delays have no maximum")
            }
            "E4" if self.plain.lease == DeliveryLease::Connection => {
                Some("a delivery is held by its connection: there is no renewal to end")
            }
            _ if case.starts_with('O') && self.ordered.order == OrderScope::WithinProcess => {
                Some("the broker keeps order within one process only")
            }
            _ => None,
        }
    }
}
