//! Faults of the in-process broker, for tests.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::error::{BrokerError, BrokerErrorKind};

/// What a broker is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BrokerOperation {
    /// Comparing the set-up with the policy.
    Inspect,
    /// Starting a subscription.
    Subscribe,
    /// Receiving.
    Receive,
    /// Settling, whatever the verdict.
    Settle,
    /// Moving a message to the dead-letter queue, a part of settling.
    DeadLetter,
    /// Extending leases.
    Extend,
    /// Publishing.
    Publish,
    /// Asking for the dead-letter queue, or looking into it.
    DeadLetters,
}

/// A call that is about to be carried out.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct BrokerCall<'a> {
    /// What is asked for.
    pub operation: BrokerOperation,
    /// Whose call it is: the consumer's name, or nothing for calls outside of a subscription.
    pub consumer: &'a str,
    /// How many messages, settlements or leases the call is about, or the most to receive; otherwise 1.
    pub size: usize,
}

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BrokerFault {
    /// It has no effect and fails with an error of this kind.
    Fail(BrokerErrorKind),
    /// It takes effect, and its answer is lost.
    LoseAnswer,
    /// It has no effect; the caller's connection is cut.
    CutConnection,
    /// It is carried out only after this long.
    Delay(Duration),
}

type Hook = dyn Fn(&BrokerCall<'_>) -> Option<BrokerFault> + Send + Sync;

/// Makes an [`InProcessBroker`](crate::InProcessBroker) fail, for tests of what happens then.
///
/// Counted faults meet the next `n` messages, settlements or leases, or calls where a call is about
/// none of these. Planning one again replaces what was left of it. For anything beyond them there is
/// [`BrokerFaults::on_call`].
///
/// ```
/// use backstop_core::{Broker, BrokerErrorKind, InProcessBroker, Message, Publisher};
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let broker = InProcessBroker::new("orders");
/// broker.faults().fail_publishes(1);
/// let publisher = Publisher::new(broker.clone());
/// let error = publisher.publish(Message::new("1")).await.unwrap_err();
/// assert_eq!(error.kind(), BrokerErrorKind::Unreachable);
/// assert!(publisher.publish(Message::new("1")).await.is_ok());
/// # });
/// # Ok::<_, std::io::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct BrokerFaults {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    // Without a plan, faults cost one load a call.
    planned: AtomicBool,
    plan: Mutex<Plan>,
}

#[derive(Default)]
struct Plan {
    failures: HashMap<BrokerOperation, (BrokerErrorKind, u32)>,
    acks_to_lose: u32,
    answers_to_lose: u32,
    deliveries_to_repeat: u32,
    originals_to_keep: u32,
    settle_delay: Duration,
    hook: Option<Arc<Hook>>,
}

/// What happens to one settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SettleFault {
    None,
    Fail(BrokerErrorKind),
    AckLost,
    AnswerLost,
}

impl BrokerFaults {
    /// Fails an operation, with an error of this kind and without effect.
    pub fn fail(&self, operation: BrokerOperation, kind: BrokerErrorKind, n: u32) {
        self.plan(|plan| {
            plan.failures.insert(operation, (kind, n));
        });
    }

    /// Fails calls to receive, as if the broker could not be reached.
    pub fn fail_receives(&self, n: u32) {
        self.fail(BrokerOperation::Receive, BrokerErrorKind::Unreachable, n);
    }

    /// Fails publications, as if the broker could not be reached.
    pub fn fail_publishes(&self, n: u32) {
        self.fail(BrokerOperation::Publish, BrokerErrorKind::Unreachable, n);
    }

    /// Fails settlements, as if the broker could not be reached; the deliveries stay leased.
    pub fn fail_settles(&self, n: u32) {
        self.fail(BrokerOperation::Settle, BrokerErrorKind::Unreachable, n);
    }

    /// Fails extensions of leases, as if the broker could not be reached.
    pub fn fail_extensions(&self, n: u32) {
        self.fail(BrokerOperation::Extend, BrokerErrorKind::Unreachable, n);
    }

    /// Refuses dead letters, as if the dead-letter queue could not be reached; the originals stay.
    pub fn refuse_dead_letters(&self, n: u32) {
        self.fail(BrokerOperation::DeadLetter, BrokerErrorKind::Unreachable, n);
    }

    /// Loses settlements on their way to the broker: they seem to succeed, and the message is
    /// delivered again, at once.
    pub fn lose_acks(&self, n: u32) {
        self.plan(|plan| plan.acks_to_lose = n);
    }

    /// Loses the answers to settlements: they take effect and seem to fail.
    pub fn lose_answers(&self, n: u32) {
        self.plan(|plan| plan.answers_to_lose = n);
    }

    /// Repeats messages: each delivery brings one more copy into the queue, behind its original.
    pub fn repeat_deliveries(&self, n: u32) {
        self.plan(|plan| plan.deliveries_to_repeat = n);
    }

    /// Keeps the originals of dead letters: their copies are in the dead-letter queue, and they are
    /// delivered again, as after a crash between the two steps of a broker that has no transaction for them.
    pub fn keep_originals(&self, n: u32) {
        self.plan(|plan| plan.originals_to_keep = n);
    }

    /// Makes every call to settle take this long, until told otherwise.
    pub fn delay_settles(&self, delay: Duration) {
        self.plan(|plan| plan.settle_delay = delay);
    }

    /// Asks `hook` before each call what goes wrong with it, beside the counted faults. A simulator
    /// can inject whatever it likes here; the hook may use the broker.
    pub fn on_call(
        &self,
        hook: impl Fn(&BrokerCall<'_>) -> Option<BrokerFault> + Send + Sync + 'static,
    ) {
        self.plan(|plan| plan.hook = Some(Arc::new(hook)));
    }

    /// Forgets all that is planned, and the hook.
    pub fn clear(&self) {
        self.plan(|plan| *plan = Plan::default());
        self.shared.planned.store(false, Ordering::Release);
    }

    fn plan(&self, change: impl FnOnce(&mut Plan)) {
        change(&mut self.shared.plan.lock());
        self.shared.planned.store(true, Ordering::Release);
    }

    /// Looks at the plan, if there is one.
    fn planned<T>(&self, look: impl FnOnce(&mut Plan) -> Option<T>) -> Option<T> {
        if !self.shared.planned.load(Ordering::Acquire) {
            return None;
        }
        look(&mut self.shared.plan.lock())
    }

    /// What the hook has for this call.
    pub(super) fn of_call(&self, call: &BrokerCall<'_>) -> Option<BrokerFault> {
        let hook = self.planned(|plan| plan.hook.clone())?;
        hook(call)
    }

    /// Fails one of the counted.
    pub(super) fn failure(&self, operation: BrokerOperation) -> Option<BrokerErrorKind> {
        self.planned(|plan| failure(plan, operation))
    }

    pub(super) fn check(&self, operation: BrokerOperation) -> Result<(), BrokerError> {
        self.failure(operation)
            .map_or(Ok(()), |kind| Err(injected(kind)))
    }

    pub(super) fn of_settlement(&self) -> SettleFault {
        let fault = self.planned(|plan| {
            if let Some(kind) = failure(plan, BrokerOperation::Settle) {
                Some(SettleFault::Fail(kind))
            } else if take(&mut plan.acks_to_lose) {
                Some(SettleFault::AckLost)
            } else if take(&mut plan.answers_to_lose) {
                Some(SettleFault::AnswerLost)
            } else {
                None
            }
        });
        fault.unwrap_or(SettleFault::None)
    }

    /// How many of `deliveries` are repeated.
    pub(super) fn repeats(&self, deliveries: usize) -> usize {
        let repeats = self.planned(|plan| {
            let n = u32::try_from(deliveries).map_or(plan.deliveries_to_repeat, |deliveries| {
                deliveries.min(plan.deliveries_to_repeat)
            });
            plan.deliveries_to_repeat -= n;
            Some(n as usize)
        });
        repeats.unwrap_or(0)
    }

    /// Whether the original of a dead letter is kept.
    pub(super) fn keeps_original(&self) -> bool {
        let kept = self.planned(|plan| Some(take(&mut plan.originals_to_keep)));
        kept.unwrap_or(false)
    }

    pub(super) fn settle_delay(&self) -> Duration {
        self.planned(|plan| Some(plan.settle_delay))
            .unwrap_or_default()
    }
}

fn failure(plan: &mut Plan, operation: BrokerOperation) -> Option<BrokerErrorKind> {
    let (kind, n) = plan.failures.get_mut(&operation)?;
    take(n).then_some(*kind)
}

fn take(count: &mut u32) -> bool {
    let any = *count > 0;
    *count = count.saturating_sub(1);
    any
}

pub(super) fn injected(kind: BrokerErrorKind) -> BrokerError {
    BrokerError::new(kind, "the in-process broker was told to fail")
}

impl fmt::Debug for BrokerFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerFaults").finish_non_exhaustive()
    }
}
