//! A subscription to an in-process queue.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::broker_faults::{BrokerOperation, SettleFault, injected};
use super::connection::{Answer, Connection, Shared, again, closed, time_comes};
use super::queue::{DeadLettering, Queue};
use super::ready::Owner;
use crate::delivery::{Delivery, LeaseId};
use crate::error::{BrokerError, BrokerErrorKind};
use crate::ports::{LeaseState, ReleaseCost, SettleError, Subscription};
use crate::verdict::{Settlement, Verdict};

pub(super) struct InProcessSubscription {
    connection: Arc<Connection>,
    owner: Owner,
    consumer: Arc<str>,
    stopped: CancellationToken,
    // The cuts that a receive has reported.
    cuts_seen: AtomicU64,
    // Whether the last receive failed, and none has shown since that it works again.
    failed: AtomicBool,
}

/// What a look into the queue brought.
enum Look {
    Taken(Vec<Delivery>),
    Nothing { next_change: Option<Instant> },
}

impl InProcessSubscription {
    pub(super) fn new(connection: Arc<Connection>, consumer: Arc<str>) -> Self {
        let cuts_seen = connection.cuts(&connection.shared.queue.lock());
        Self {
            owner: connection.owner(),
            consumer,
            stopped: connection.closed.child_token(),
            cuts_seen: AtomicU64::new(cuts_seen),
            failed: AtomicBool::new(false),
            connection,
        }
    }

    fn shared(&self) -> &Shared {
        &self.connection.shared
    }

    async fn begin(&self, operation: BrokerOperation, size: usize) -> Result<Answer, BrokerError> {
        self.connection
            .meet_faults(operation, &self.consumer, size)
            .await
    }

    /// Takes what is there, and tells others if more is there now.
    fn look(&self, max: NonZeroUsize, answer: Answer) -> Result<Look, BrokerError> {
        let (seen, news) = {
            let mut queue = self.shared().queue.lock();
            let seen = self.look_into(&mut queue, max, answer);
            (seen, queue.take_news())
        };
        if news {
            self.shared().arrived.notify_waiters();
        }
        self.shared().counted.notify_waiters();
        seen
    }

    /// Whether anything may be taken is judged under the queue's lock: nothing is handed out to a
    /// subscription behind its end.
    fn look_into(
        &self,
        queue: &mut Queue,
        max: NonZeroUsize,
        answer: Answer,
    ) -> Result<Look, BrokerError> {
        if self.stopped.is_cancelled() {
            return Err(closed());
        }
        let cuts = self.connection.cuts(queue);
        if self.cuts_seen.swap(cuts, Ordering::Relaxed) != cuts {
            let text = "the connection to the in-process broker was cut";
            return Err(BrokerError::new(BrokerErrorKind::Unreachable, text));
        }
        self.shared().faults.check(BrokerOperation::Receive)?;
        let now = Instant::now();
        let taken = queue.take(self.owner, max.get(), now);
        if taken.is_empty() {
            let next_change = queue.next_change();
            return Ok(Look::Nothing { next_change });
        }
        if answer == Answer::Lost {
            for delivery in &taken {
                queue.lose(delivery.receipt.lease(), now);
            }
            return Err(injected(BrokerErrorKind::Unreachable));
        }
        let repeats = self.shared().faults.repeats(taken.len());
        for delivery in &taken[..repeats] {
            queue.repeat(delivery.receipt.lease(), now);
        }
        Ok(Look::Taken(taken))
    }

    fn settle_one(
        &self,
        queue: &mut Queue,
        settlement: Settlement,
        now: Instant,
        answer: Answer,
    ) -> Result<(), SettleError> {
        let lease = settlement.delivery.receipt.lease();
        if !queue.holds(lease, now) {
            return Err(lost());
        }
        match self.shared().faults.of_settlement() {
            SettleFault::Fail(kind) => Err(kept(settlement, injected(kind))),
            SettleFault::AckLost => {
                queue.lose(lease, now);
                Ok(())
            }
            SettleFault::AnswerLost => {
                self.carry_out(queue, settlement, now)?;
                Err(unanswered())
            }
            SettleFault::None => {
                self.carry_out(queue, settlement, now)?;
                answer.give(()).map_err(|_| unanswered())
            }
        }
    }

    fn carry_out(
        &self,
        queue: &mut Queue,
        settlement: Settlement,
        now: Instant,
    ) -> Result<(), SettleError> {
        let lease = settlement.delivery.receipt.lease();
        let done = match &settlement.verdict {
            Verdict::Complete => queue.complete(lease, now),
            Verdict::Retry {
                after,
                attempts_used,
            } => queue.retry(lease, *after, *attempts_used, now),
            Verdict::Release { after } => {
                let cost = match self.shared().capabilities.release {
                    ReleaseCost::Free => 0,
                    ReleaseCost::Counted => 1,
                };
                queue.release(lease, *after, cost, now)
            }
            Verdict::DeadLetter(letter) => {
                if let Err(error) = self.check_dead_letter_queue() {
                    return Err(kept(settlement, error));
                }
                if self.shared().faults.keeps_original() {
                    queue.repeat(lease, now);
                }
                queue.dead_letter(lease, (**letter).clone(), now)
            }
        };
        done.ok_or_else(lost)
    }

    fn check_dead_letter_queue(&self) -> Result<(), BrokerError> {
        if self.shared().settings.dead_lettering == DeadLettering::Absent {
            let text = "the queue has no dead-letter queue";
            return Err(BrokerError::new(BrokerErrorKind::NotFound, text));
        }
        self.shared().faults.check(BrokerOperation::DeadLetter)
    }

    async fn wait_for_deliveries(&self, max: NonZeroUsize) -> Result<Vec<Delivery>, BrokerError> {
        let answer = tokio::select! {
            biased;
            begun = self.begin(BrokerOperation::Receive, max.get()) => begun?,
            () = self.stopped.cancelled() => return Err(closed()),
        };
        loop {
            let arrived = self.shared().arrived.notified();
            let next_change = match self.look(max, answer)? {
                Look::Taken(taken) => {
                    self.failed.store(false, Ordering::Relaxed);
                    return Ok(taken);
                }
                Look::Nothing { .. } if self.failed.swap(false, Ordering::Relaxed) => {
                    return Ok(Vec::new());
                }
                Look::Nothing { next_change } => next_change,
            };
            tokio::select! {
                biased;
                () = arrived => {}
                () = time_comes(next_change) => {}
                () = self.stopped.cancelled() => {}
            }
        }
    }

    fn end(&self) {
        self.stopped.cancel();
        self.shared()
            .change(|queue, _| queue.end_subscription(self.owner));
    }
}

#[async_trait]
impl Subscription for InProcessSubscription {
    async fn receive(&self, max: NonZeroUsize) -> Result<Vec<Delivery>, BrokerError> {
        let received = self.wait_for_deliveries(max).await;
        if received.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        received
    }

    async fn settle(&self, batch: Vec<Settlement>) -> Vec<Result<(), SettleError>> {
        let answer = match self.begin(BrokerOperation::Settle, batch.len()).await {
            Ok(answer) => answer,
            Err(error) => {
                let refuse = |settlement| Err(kept(settlement, again(&error)));
                return batch.into_iter().map(refuse).collect();
            }
        };
        let delay = self.shared().faults.settle_delay();
        if delay > Duration::ZERO {
            tokio::time::sleep(delay).await;
        }
        let (answers, arrived) = {
            let mut queue = self.shared().queue.lock();
            let now = Instant::now();
            let settle = |settlement| self.settle_one(&mut queue, settlement, now, answer);
            let answers = batch.into_iter().map(settle).collect();
            (answers, queue.take_news())
        };
        if arrived {
            self.shared().arrived.notify_waiters();
        }
        self.shared().counted.notify_waiters();
        answers
    }

    async fn extend(&self, leases: &[LeaseId]) -> Vec<Result<LeaseState, BrokerError>> {
        let answer = match self.begin(BrokerOperation::Extend, leases.len()).await {
            Ok(answer) => answer,
            Err(error) => return leases.iter().map(|_| Err(again(&error))).collect(),
        };
        let mut queue = self.shared().queue.lock();
        let now = Instant::now();
        let extend = |lease: &LeaseId| {
            self.shared().faults.check(BrokerOperation::Extend)?;
            let extended = queue.extend(*lease, now);
            answer.give(extended.map_or(LeaseState::Lost, |lasts| LeaseState::Held(Some(lasts))))
        };
        leases.iter().map(extend).collect()
    }

    async fn stop(&self) {
        self.stopped.cancel();
    }

    async fn close(&self) {
        self.end();
    }
}

impl Drop for InProcessSubscription {
    fn drop(&mut self) {
        self.end();
    }
}

fn kept(settlement: Settlement, cause: BrokerError) -> SettleError {
    SettleError {
        cause,
        kept: Some(Box::new(settlement)),
    }
}

fn lost() -> SettleError {
    let text = "the lease ended before the delivery was settled";
    SettleError {
        cause: BrokerError::new(BrokerErrorKind::LeaseLost, text),
        kept: None,
    }
}

fn unanswered() -> SettleError {
    SettleError {
        cause: injected(BrokerErrorKind::Unreachable),
        kept: None,
    }
}
