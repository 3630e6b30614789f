//! From a verdict to what RabbitMQ does about it.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::{Delivery, Settlement, Verdict};

use crate::desk::{Answer, Desk, lost};
use crate::frames::Frame;
use crate::holds::LONGEST_HOLD;
use crate::source::{Source, tag_of};

/// What is done about a settlement.
enum Plan {
    Frame(Frame),
    /// Waits here, and then goes back to the queue by this frame.
    Hold(Duration, Frame),
    /// Waits on the shelf of an ordered subscription.
    Shelve(Duration),
    /// A copy is published before the original is acknowledged.
    Copy,
}

impl Desk {
    pub(crate) async fn settle(self: &Arc<Self>, batch: Vec<Settlement>) -> Vec<Answer> {
        let mut answers: Vec<Option<Answer>> = Vec::with_capacity(batch.len());
        answers.resize_with(batch.len(), || None);
        let mut frames = Vec::new();
        let mut copies = Vec::new();
        for (at, settlement) in batch.into_iter().enumerate() {
            let lease = settlement.delivery.receipt.lease();
            let Some(source) = self.source_of(lease) else {
                self.forget(lease);
                answers[at] = Some(Err(lost()));
                continue;
            };
            match self.plan(&settlement, &source) {
                Plan::Frame(frame) => frames.push((at, lease, frame)),
                Plan::Hold(after, frame) => match self.hold(settlement, after, frame) {
                    None => answers[at] = Some(Ok(())),
                    // Too many wait here already: this one waits in a queue.
                    Some(settlement) => copies.push((at, settlement)),
                },
                Plan::Shelve(after) => {
                    self.shelve(settlement, after);
                    answers[at] = Some(Ok(()));
                }
                Plan::Copy => copies.push((at, settlement)),
            }
        }
        // What is done does not wait for what has to be published.
        self.carry(&frames, &mut answers).await;
        self.copy_and_acknowledge(copies, &mut answers).await;
        answers
            .into_iter()
            .map(|answer| answer.unwrap_or_else(|| Err(lost())))
            .collect()
    }

    fn plan(&self, settlement: &Settlement, source: &Source) -> Plan {
        let delivery = &settlement.delivery;
        let tag = tag_of(delivery.receipt.lease());
        let is_free = source.live.version.gives_back_for_free();
        let can_wait = |after: Duration| after <= LONGEST_HOLD && !self.closing.is_cancelled();
        match &settlement.verdict {
            Verdict::Complete => Plan::Frame(Frame::Ack(tag)),
            Verdict::Retry { after, .. } | Verdict::Release { after } if self.shelf.is_some() => {
                Plan::Shelve(*after)
            }
            // A rejection raises the broker's count by one. Where that is not the number of attempts
            // that were used, only a copy can carry it.
            Verdict::Retry {
                after,
                attempts_used,
            } if can_wait(*after) && *attempts_used == delivery.attempts_used.saturating_add(1) => {
                Plan::Hold(*after, Frame::Reject(tag))
            }
            Verdict::Release {
                after: Duration::ZERO,
            } if is_free => Plan::Frame(Frame::Nack(tag)),
            Verdict::Release { after } if is_free && can_wait(*after) => {
                Plan::Hold(*after, Frame::Nack(tag))
            }
            Verdict::DeadLetter(_) | Verdict::Retry { .. } | Verdict::Release { .. } => Plan::Copy,
        }
    }

    fn shelve(&self, settlement: Settlement, after: Duration) {
        let Settlement {
            mut delivery,
            verdict,
        } = settlement;
        if let Verdict::Retry { attempts_used, .. } = verdict {
            delivery.attempts_used = attempts_used;
        }
        if let Some(shelf) = &self.shelf {
            shelf.put_back(delivery, after);
        }
    }
}

/// Gives deliveries back that nobody has begun.
pub(crate) fn released(delivery: Delivery) -> Settlement {
    Settlement {
        delivery,
        verdict: Verdict::Release {
            after: Duration::ZERO,
        },
    }
}
