//! Carrying verdicts to the broker.

use std::sync::Arc;
use std::time::Duration;

use super::Randomness;
use super::batcher::{Batcher, Limits};
use super::keeper::Hold;
use super::stats::Counters;
use crate::causes::with_causes;
use crate::delivery::{Attempt, Delivery};
use crate::error::{BrokerError, BrokerErrorKind};
use crate::policy::{Backoff, Jitter};
use crate::ports::{SettleError, Subscription};
use crate::verdict::{Settlement, Verdict};

/// What became of a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The broker has carried it out.
    AsDecided,
    /// The broker could not; the message was given back instead, or comes back by itself.
    GivenBack,
}

type Batches = Batcher<Settlement, Result<(), SettleError>>;

/// Settles; many deliveries at once, in batches.
pub(crate) struct Settlements {
    /// What leaves the queue. A broker that takes no publications for a while, as `RabbitMQ` under an
    /// alarm, must not keep these waiting: they are its relief.
    completions: Batches,
    /// What goes back to the queue; by a copy, where the broker has no other way.
    releases: Batches,
    /// What is published elsewhere first.
    copies: Batches,
    counters: Arc<Counters>,
    randomness: Randomness,
}

/// Of each kind. SQS answers a batch when the last of the deletions by tens that it went into is over, up
/// to 20 ms later: few batches at once would wait for each other.
const LIMITS: Limits = Limits {
    batch: 256,
    flights: 32,
};

/// How often a settlement is tried before the message is given back instead.
const TRIES: u32 = 5;

impl Settlements {
    pub(crate) fn new(counters: Arc<Counters>, randomness: Randomness) -> Self {
        Self {
            completions: Batcher::new(refuse, || Err(no_answer())),
            releases: Batcher::new(refuse, || Err(no_answer())),
            copies: Batcher::new(refuse, || Err(no_answer())),
            counters,
            randomness,
        }
    }

    /// Carries the batches to the broker until [`Settlements::close`].
    pub(crate) async fn drive(&self, subscription: &dyn Subscription) {
        let settle = |batch| subscription.settle(batch);
        tokio::join!(
            self.completions.drive(LIMITS, settle),
            self.releases.drive(LIMITS, settle),
            self.copies.drive(LIMITS, settle),
        );
    }

    fn all(&self) -> [&Batches; 3] {
        [&self.completions, &self.releases, &self.copies]
    }

    pub(crate) fn close(&self) {
        self.all().into_iter().for_each(Batcher::close);
    }

    /// Waits for no answer any more, and asks for none.
    pub(crate) fn abandon(&self) {
        self.all().into_iter().for_each(Batcher::abandon);
    }

    async fn ask(&self, settlement: Settlement) -> Result<(), SettleError> {
        let batches = match settlement.verdict {
            Verdict::Complete => &self.completions,
            Verdict::Release { .. } => &self.releases,
            Verdict::Retry { .. } | Verdict::DeadLetter(_) => &self.copies,
        };
        batches.call(settlement).await
    }

    /// Settles. What the broker cannot carry out is tried again while the delivery is ours, and
    /// then given back: the message stays in its queue.
    pub(crate) async fn settle(
        &self,
        delivery: Delivery,
        verdict: Verdict,
        hold: &Hold,
    ) -> Settled {
        hold.settling();
        let mut settlement = Settlement { delivery, verdict };
        for attempt in 1..=TRIES {
            let Err(error) = self.ask(settlement).await else {
                hold.is_gone();
                return Settled::AsDecided;
            };
            self.counters.settle_errors.raise();
            let Some(kept) = error.kept else {
                hold.is_gone();
                tracing::warn!(error = %with_causes(&error.cause), "a delivery was lost before it could be settled; the broker delivers it again");
                return Settled::GivenBack;
            };
            report(&kept, &error.cause);
            settlement = *kept;
            if attempt == TRIES || !error.cause.is_transient() {
                break;
            }
            if !self.pause(attempt, hold).await {
                break;
            }
        }
        self.give_back(settlement, hold).await;
        Settled::GivenBack
    }

    /// Waits after a failure; says whether another try makes sense.
    async fn pause(&self, failures: u32, hold: &Hold) -> bool {
        let pauses = Backoff::new(
            Duration::from_millis(100),
            Duration::from_secs(2),
            Jitter::Equal,
        )
        .unwrap_or_default();
        let pause = pauses.delay_after(Attempt::after(failures - 1), (self.randomness)());
        tokio::select! {
            biased;
            () = hold.cancellation().token().cancelled() => false,
            () = tokio::time::sleep(pause) => true,
        }
    }

    /// Gives a message back for as long as it is ours: a broker that delivers until the connection
    /// ends has no other way to get it back. Attempts that were used stay used: without a store nobody
    /// but the broker counts them. Nor does it come back before the wait that was decided.
    async fn give_back(&self, refused: Settlement, hold: &Hold) {
        let Settlement { delivery, verdict } = refused;
        let (used, wait) = match verdict {
            Verdict::Retry {
                after,
                attempts_used,
            } => (attempts_used, after),
            Verdict::DeadLetter(letter) => (letter.attempts, Duration::ZERO),
            Verdict::Release { after } => (delivery.attempts_used, after),
            Verdict::Complete => (delivery.attempts_used, Duration::ZERO),
        };
        let after = wait.max(Duration::from_secs(5));
        let verdict = if used > delivery.attempts_used {
            Verdict::Retry {
                after,
                attempts_used: used,
            }
        } else {
            Verdict::Release { after }
        };
        let mut settlement = Settlement { delivery, verdict };
        let mut failures = 0;
        loop {
            let Err(error) = self.ask(settlement).await else {
                hold.is_gone();
                return;
            };
            self.counters.settle_errors.raise();
            failures += 1;
            if error.kept.is_none() {
                hold.is_gone();
            }
            match error.kept {
                Some(kept) if error.cause.is_transient() && self.pause(failures, hold).await => {
                    settlement = *kept;
                }
                _ => {
                    tracing::warn!(error = %with_causes(&error.cause), "a delivery could not be given back; it comes back when its lease ends");
                    return;
                }
            }
        }
    }
}

/// A dead-letter queue that does not take a message is worth waking somebody; nothing is lost.
fn report(kept: &Settlement, cause: &BrokerError) {
    let id = kept
        .delivery
        .message
        .id
        .as_ref()
        .map_or("", |id| id.as_str());
    match &kept.verdict {
        Verdict::DeadLetter(letter) => {
            tracing::error!(id, reason = %letter.reason, error = %with_causes(cause), "the dead-letter queue does not take a message; it stays in its queue");
        }
        Verdict::Complete | Verdict::Retry { .. } | Verdict::Release { .. } => {
            tracing::warn!(id, error = %with_causes(cause), "the broker did not take a settlement; the message stays in its queue");
        }
    }
}

fn refuse(settlement: Settlement) -> Result<(), SettleError> {
    Err(SettleError {
        cause: BrokerError::new(BrokerErrorKind::Closed, "the consumer has ended"),
        kept: Some(Box::new(settlement)),
    })
}

fn no_answer() -> SettleError {
    let text = "the adapter gave fewer answers than it was asked";
    SettleError {
        cause: BrokerError::new(BrokerErrorKind::Other, text),
        kept: None,
    }
}
