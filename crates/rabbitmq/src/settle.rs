//! From a verdict to what RabbitMQ does about it.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::{
    BrokerError, BrokerErrorKind, Delivery, LeaseId, LeaseState, SettleError, Settlement, Verdict,
};
use futures_util::future::join_all;
use parking_lot::RwLock;
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::acks::Window;
use crate::broker::Shared;
use crate::decode::Native;
use crate::delay::Grain;
use crate::encode;
use crate::error::failed;
use crate::frames::{Begun, Frame, Sending};
use crate::publish::Parcel;
use crate::shelf::Shelf;
use crate::source::{Source, channel_of, tag_of};

/// The longest wait that is spent with the delivery unsettled in this process; longer ones are spent
/// in a queue.
const LONGEST_HOLD: Duration = Duration::from_secs(2);

/// Where deliveries are settled.
pub(crate) struct Desk {
    shared: Arc<Shared>,
    source: RwLock<Option<Source>>,
    /// Held while the frames of a settlement are put in line: an acknowledgement that covers several
    /// deliveries must not overtake the rejection of one of them.
    window: Mutex<(u64, Window)>,
    /// How many more deliveries may wait here, unsettled.
    holds: Arc<Semaphore>,
    waiting: TaskTracker,
    closing: CancellationToken,
    abandoned: CancellationToken,
    /// Where the deliveries of an ordered subscription wait.
    shelf: Option<Arc<Shelf>>,
}

type Answer = Result<(), SettleError>;

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
    pub(crate) fn new(shared: Arc<Shared>, holds: usize, shelf: Option<Arc<Shelf>>) -> Self {
        Self {
            shared,
            source: RwLock::new(None),
            window: Mutex::new((0, Window::new())),
            holds: Arc::new(Semaphore::new(holds)),
            waiting: TaskTracker::new(),
            closing: CancellationToken::new(),
            abandoned: CancellationToken::new(),
            shelf,
        }
    }

    /// From now on deliveries come from this channel; those of the last one are lost to us.
    pub(crate) async fn open(&self, source: Source) {
        *self.window.lock().await = (source.number, Window::new());
        *self.source.write() = Some(source);
    }

    pub(crate) fn shut(&self) {
        *self.source.write() = None;
    }

    /// The channel, if the delivery came from it and it still stands.
    fn source_of(&self, lease: LeaseId) -> Option<Source> {
        let source = self.source.read();
        let source = source
            .as_ref()
            .filter(|source| source.number == channel_of(lease))?;
        source.stands().then(|| source.clone())
    }

    /// Whether the channel still stands.
    pub(crate) fn is_open(&self) -> bool {
        let source = self.source.read();
        source.as_ref().is_some_and(Source::stands)
    }

    pub(crate) fn state(&self, lease: LeaseId) -> LeaseState {
        self.source_of(lease)
            .map_or(LeaseState::Lost, |_| LeaseState::Held(None))
    }

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

    /// Sends frames, and answers for them.
    async fn carry(&self, frames: &[(usize, LeaseId, Frame)], answers: &mut [Option<Answer>]) {
        if frames.is_empty() {
            return;
        }
        let channels = frames.iter().map(|(_, lease, _)| channel_of(*lease));
        let newest = channels.max().unwrap_or_default();
        let of_newest = frames
            .iter()
            .filter(|(_, lease, _)| channel_of(*lease) == newest);
        let sent = self
            .send(newest, of_newest.map(|(_, _, frame)| *frame).collect())
            .await;
        for (at, lease, _) in frames {
            self.forget(*lease);
            let is_lost = channel_of(*lease) != newest;
            answers[*at] = Some(match &sent {
                Ok(()) if !is_lost => Ok(()),
                _ => Err(lost()),
            });
        }
    }

    /// Puts frames in line, and waits until they are written.
    async fn send(&self, channel_number: u64, frames: Vec<Frame>) -> Result<(), BrokerError> {
        let mut writing = Vec::with_capacity(frames.len());
        {
            let mut window = self.window.lock().await;
            let source = self.source.read().clone();
            let source = source
                .filter(|source| source.number == channel_number && window.0 == channel_number);
            let Some(Source { channel, .. }) = source else {
                return Err(lost().cause);
            };
            let mut acks = Vec::new();
            for frame in frames {
                let (tag, sending) = match frame {
                    Frame::Ack(tag) => {
                        acks.push(tag);
                        continue;
                    }
                    Frame::Nack(tag) => (tag, Sending::nack(channel.clone(), tag)),
                    Frame::Reject(tag) => (tag, Sending::reject(channel.clone(), tag)),
                };
                writing.push(sending.begin().await);
                window.1.settle(tag);
            }
            for ack in window.1.acknowledge(&mut acks) {
                let sending = Sending::ack(channel.clone(), ack);
                writing.push(sending.begin().await);
            }
        }
        for written in join_all(writing.into_iter().map(Begun::end)).await {
            written.map_err(|error| failed("the channel broke while settling", error))?;
        }
        Ok(())
    }

    /// Waits here with the delivery unsettled, if there is room: if the process dies meanwhile,
    /// RabbitMQ counts that as the failure that it was.
    fn hold(
        self: &Arc<Self>,
        settlement: Settlement,
        after: Duration,
        frame: Frame,
    ) -> Option<Settlement> {
        let Ok(place) = Arc::clone(&self.holds).try_acquire_owned() else {
            return Some(settlement);
        };
        let desk = Arc::clone(self);
        let until = tokio::time::Instant::now() + after;
        self.waiting.spawn(async move {
            let _place = place;
            tokio::select! {
                biased;
                () = desk.abandoned.cancelled() => {}
                () = tokio::time::sleep_until(until) => {
                    let channel = channel_of(settlement.delivery.receipt.lease());
                    // If the channel is gone, RabbitMQ has taken the delivery back by itself.
                    let _ = desk.send(channel, vec![frame]).await;
                }
                () = desk.closing.cancelled() => {
                    let left = until.saturating_duration_since(tokio::time::Instant::now());
                    desk.copy_alone(with_wait(settlement, left), frame).await;
                }
            }
        });
        None
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

    fn forget(&self, lease: LeaseId) {
        if let Some(shelf) = &self.shelf {
            shelf.settled(lease);
        }
    }

    /// A copy for a delivery that nobody waits for any more; if it cannot be made, the delivery goes
    /// back to the queue by this frame.
    async fn copy_alone(self: &Arc<Self>, settlement: Settlement, frame: Frame) {
        let lease = settlement.delivery.receipt.lease();
        let mut answers = [None];
        self.copy_and_acknowledge(vec![(0, settlement)], &mut answers)
            .await;
        if let [Some(Err(error))] = answers {
            tracing::warn!(error = %error.cause, "a message that waits for its retry could not be put into a delay queue; it comes back at once");
            let _ = self.send(channel_of(lease), vec![frame]).await;
        }
    }

    async fn copy_and_acknowledge(
        self: &Arc<Self>,
        copies: Vec<(usize, Settlement)>,
        answers: &mut [Option<Answer>],
    ) {
        let mut ready = Vec::with_capacity(copies.len());
        let mut parcels = Vec::with_capacity(copies.len());
        let mut frames = Vec::with_capacity(copies.len());
        for (at, settlement) in copies {
            match self.parcel(&settlement).await {
                Ok(parcel) => {
                    parcels.push(parcel);
                    ready.push((at, settlement));
                }
                Err(cause) => match self.not_copied(settlement, cause) {
                    NotCopied::Answer(answer) => answers[at] = Some(answer),
                    NotCopied::Nack(lease) => frames.push((at, lease, Frame::Nack(tag_of(lease)))),
                },
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
                }
                Err(cause) => {
                    let cause = self.unpublished(&settlement, &target, cause).await;
                    answers[at] = Some(Err(kept(settlement, cause)));
                }
            }
        }
        self.carry(&frames, answers).await;
    }

    /// What becomes of a delivery for which there is no delay queue. If there will be none, as the
    /// user must not declare it, say, the delivery waits here for as long as it has to: left alone it
    /// would stay unsettled for ever, and in the end nothing would be received any more.
    fn not_copied(self: &Arc<Self>, settlement: Settlement, cause: BrokerError) -> NotCopied {
        let lease = settlement.delivery.receipt.lease();
        let used = settlement.delivery.attempts_used.saturating_add(1);
        let (after, frame) = match settlement.verdict {
            Verdict::Release { after } => (after, Frame::Nack(tag_of(lease))),
            Verdict::Retry {
                after,
                attempts_used,
            } if attempts_used == used => (after, Frame::Reject(tag_of(lease))),
            _ => return NotCopied::Answer(Err(kept(settlement, cause))),
        };
        if cause.is_transient() || self.closing.is_cancelled() {
            return NotCopied::Answer(Err(kept(settlement, cause)));
        }
        tracing::error!(error = %cause, "a message cannot wait in a delay queue; it waits unsettled in this process");
        match self.hold(settlement, after, frame) {
            None => NotCopied::Answer(Ok(())),
            // No room: better too early than never.
            Some(Settlement {
                verdict: Verdict::Release { .. },
                ..
            }) => NotCopied::Nack(lease),
            Some(settlement) => NotCopied::Answer(Err(kept(settlement, cause))),
        }
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

    /// Sends on its way all that waits here, and takes nothing more to wait.
    pub(crate) async fn finish(&self) {
        const LIMIT: Duration = Duration::from_secs(5);
        self.closing.cancel();
        self.waiting.close();
        if tokio::time::timeout(LIMIT, self.waiting.wait())
            .await
            .is_err()
        {
            let left = self.waiting.len();
            tracing::warn!(
                left,
                "some messages could not be put into delay queues in time; they come back at once"
            );
        }
        self.abandoned.cancel();
    }

    /// Closes the channel; the frames before the close have reached the server when it answers.
    pub(crate) async fn close_channel(&self) {
        const LIMIT: Duration = Duration::from_secs(5);
        let source = self.source.write().take();
        if let Some(Source { channel, .. }) = source
            && channel.status().connected()
        {
            let _ = tokio::time::timeout(LIMIT, channel.close(200, "done".into())).await;
        }
    }

    /// Lets go of everything at once.
    pub(crate) fn abandon(&self) {
        self.abandoned.cancel();
        self.shut();
    }
}

/// What becomes of a settlement without its copy.
enum NotCopied {
    Answer(Answer),
    /// Goes back at once.
    Nack(LeaseId),
}

fn with_wait(settlement: Settlement, wait: Duration) -> Settlement {
    let Settlement { delivery, verdict } = settlement;
    let verdict = match verdict {
        Verdict::Retry { attempts_used, .. } => Verdict::Retry {
            after: wait,
            attempts_used,
        },
        Verdict::Release { .. } => Verdict::Release { after: wait },
        other => other,
    };
    Settlement { delivery, verdict }
}

fn kept(settlement: Settlement, cause: BrokerError) -> SettleError {
    SettleError {
        cause,
        kept: Some(Box::new(settlement)),
    }
}

fn lost() -> SettleError {
    let text = "the channel that the delivery came by is gone; RabbitMQ delivers it again";
    SettleError {
        cause: BrokerError::new(BrokerErrorKind::LeaseLost, text),
        kept: None,
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
