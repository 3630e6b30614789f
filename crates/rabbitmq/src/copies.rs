//! Copies: what leaves the queue by way of another one is copied there, confirmed, and then
//! acknowledged.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::{BrokerError, BrokerErrorKind, Settlement, Verdict, with_causes};

use crate::broker::Shared;
use crate::decode::Native;
use crate::delay::Grain;
use crate::desk::{Answer, Desk, kept};
use crate::encode;
use crate::frames::Frame;
use crate::publish::Parcel;
use crate::source::{channel_of, tag_of};

/// The longest that a delivery waits here for want of a delay queue: RabbitMQ takes back what is not
/// settled within `consumer_timeout`, 30 minutes by default, and all else that its channel has with it.
const LONGEST_STAY: Duration = Duration::from_mins(10);

impl Desk {
    /// A copy for a delivery that nobody waits for any more; if it cannot be made, the delivery goes
    /// back to the queue by this frame.
    pub(crate) async fn copy_alone(self: &Arc<Self>, settlement: Settlement, frame: Frame) {
        let lease = settlement.delivery.receipt.lease();
        let mut answers = [None];
        self.copy_and_acknowledge(vec![(0, settlement)], &mut answers)
            .await;
        if let [Some(Err(error))] = answers {
            tracing::warn!(error = %with_causes(&error.cause), "a message that waits for its retry could not be put into a delay queue; it comes back at once");
            let _ = self.send(channel_of(lease), vec![frame]).await;
        }
    }

    pub(crate) async fn copy_and_acknowledge(
        self: &Arc<Self>,
        copies: Vec<(usize, Settlement)>,
        answers: &mut [Option<Answer>],
    ) {
        let mut ready = Vec::with_capacity(copies.len());
        let mut parcels = Vec::with_capacity(copies.len());
        let mut frames = Vec::with_capacity(copies.len());
        let mut dead = Vec::new();
        for (at, settlement) in copies {
            match self.parcel(&settlement).await {
                Ok(parcel) => {
                    parcels.push(parcel);
                    ready.push((at, settlement));
                }
                Err(cause) => answers[at] = Some(self.not_copied(settlement, cause)),
            }
        }
        let targets: Vec<_> = parcels
            .iter()
            .map(|parcel| parcel.routing_key.to_string())
            .collect();
        let published = self.shared.press.publish(parcels).await;
        for (((at, settlement), target), published) in ready.into_iter().zip(targets).zip(published)
        {
            match published {
                Ok(()) => {
                    let lease = settlement.delivery.receipt.lease();
                    frames.push((at, lease, Frame::Ack(tag_of(lease))));
                    if matches!(settlement.verdict, Verdict::DeadLetter(_)) {
                        dead.push(at);
                    }
                }
                Err(cause) => {
                    let cause = self.unpublished(&settlement, &target, cause).await;
                    answers[at] = Some(self.not_copied(settlement, cause));
                }
            }
        }
        self.carry(&frames, answers).await;
        // A dead letter is in its queue, even if the channel broke before the acknowledgement. What
        // comes back then is a repeat, which the store absorbs if it is told of the dead letter.
        for at in dead {
            answers[at] = Some(Ok(()));
        }
    }

    /// What becomes of a delivery that could not be copied. If it never will be, as the user may not
    /// declare delay queues or publish to them, say, it waits here: left alone it would stay unsettled
    /// for ever, and in the end nothing would be received any more.
    fn not_copied(self: &Arc<Self>, settlement: Settlement, cause: BrokerError) -> Answer {
        let Settlement { delivery, verdict } = &settlement;
        let tag = tag_of(delivery.receipt.lease());
        let (after, frame) = match verdict {
            // A rejection is what RabbitMQ counts: an attempt that was used is not forgotten.
            Verdict::Retry {
                after,
                attempts_used,
            } if *attempts_used > delivery.attempts_used => (*after, Frame::Reject(tag)),
            Verdict::Release { after } | Verdict::Retry { after, .. } => (*after, Frame::Nack(tag)),
            Verdict::Complete | Verdict::DeadLetter(_) => return Err(kept(settlement, cause)),
        };
        if cause.is_transient() || self.closing.is_cancelled() {
            return Err(kept(settlement, cause));
        }
        tracing::error!(error = %with_causes(&cause), "a message cannot wait in a delay queue; it waits unsettled in this process");
        self.wait_here(settlement, after.min(LONGEST_STAY), frame, None);
        Ok(())
    }

    async fn parcel(&self, settlement: &Settlement) -> Result<Parcel, BrokerError> {
        let Settlement { delivery, verdict } = settlement;
        let native = delivery.receipt.native::<Native>();
        let native = native.ok_or_else(|| {
            BrokerError::new(BrokerErrorKind::Other, "a delivery of another adapter")
        })?;
        let config = &self.shared.link.config;
        let (queue, properties) = match verdict {
            Verdict::DeadLetter(letter) => (
                config.dead_letter_queue.to_string(),
                encode::dead_letter(&native.properties, letter),
            ),
            Verdict::Retry {
                after,
                attempts_used,
            } => (
                self.queue_after(*after).await?,
                encode::retry(&native.properties, *attempts_used),
            ),
            Verdict::Release { after } => (
                self.queue_after(*after).await?,
                encode::retry(&native.properties, delivery.attempts_used),
            ),
            Verdict::Complete => {
                return Err(BrokerError::new(
                    BrokerErrorKind::Other,
                    "a completed message is not copied",
                ));
            }
        };
        Ok(Parcel {
            exchange: "".into(),
            routing_key: queue.into(),
            properties,
            body: delivery.message.body.clone(),
        })
    }

    async fn queue_after(&self, wait: Duration) -> Result<String, BrokerError> {
        let Shared { link, delays, .. } = &*self.shared;
        let queue = &link.config.queue;
        if wait.is_zero() {
            return Ok(queue.to_string());
        }
        delays.queue(link, queue, wait, Grain::Coarse).await
    }

    /// A delay queue that has gone is declared anew by the next try.
    async fn unpublished(
        &self,
        settlement: &Settlement,
        target: &str,
        cause: BrokerError,
    ) -> BrokerError {
        let is_ours = !matches!(settlement.verdict, Verdict::DeadLetter(_));
        if is_ours && cause.kind() == BrokerErrorKind::Unroutable {
            self.shared.delays.forget(target).await;
            let text = format!("the delay queue {target:?} has gone; it is declared anew");
            return BrokerError::new(BrokerErrorKind::Other, text);
        }
        cause
    }
}
