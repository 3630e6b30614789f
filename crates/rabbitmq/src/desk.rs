//! The desk: the channel that deliveries came by, and the frames that settle them on it.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::{BrokerError, BrokerErrorKind, LeaseId, LeaseState, SettleError, Settlement};
use futures_util::future::join_all;
use parking_lot::RwLock;
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::acks::Window;
use crate::broker::Shared;
use crate::error::failed;
use crate::frames::{Begun, Frame, Sending};
use crate::shelf::Shelf;
use crate::source::{Source, channel_of};

/// Where deliveries are settled: `settle` decides how, `holds` has them wait, `copies` has them copied.
pub(crate) struct Desk {
    pub(crate) shared: Arc<Shared>,
    source: RwLock<Option<Source>>,
    /// Held while the frames of a settlement are put in line: an acknowledgement that covers several
    /// deliveries must not overtake the rejection of one of them.
    window: Mutex<(u64, Window)>,
    /// How many more deliveries may wait here, unsettled.
    pub(crate) holds: Arc<Semaphore>,
    pub(crate) waiting: TaskTracker,
    pub(crate) closing: CancellationToken,
    pub(crate) abandoned: CancellationToken,
    /// Where the deliveries of an ordered subscription wait.
    pub(crate) shelf: Option<Arc<Shelf>>,
}

/// What becomes of a settlement.
pub(crate) type Answer = Result<(), SettleError>;

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
    pub(crate) fn source_of(&self, lease: LeaseId) -> Option<Source> {
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

    /// Sends frames, and answers for them.
    pub(crate) async fn carry(
        &self,
        frames: &[(usize, LeaseId, Frame)],
        answers: &mut [Option<Answer>],
    ) {
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
    pub(crate) async fn send(
        &self,
        channel_number: u64,
        frames: Vec<Frame>,
    ) -> Result<(), BrokerError> {
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

    pub(crate) fn forget(&self, lease: LeaseId) {
        if let Some(shelf) = &self.shelf {
            shelf.settled(lease);
        }
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

pub(crate) fn kept(settlement: Settlement, cause: BrokerError) -> SettleError {
    SettleError {
        cause,
        kept: Some(Box::new(settlement)),
    }
}

pub(crate) fn lost() -> SettleError {
    let text = "the channel that the delivery came by is gone; RabbitMQ delivers it again";
    SettleError {
        cause: BrokerError::new(BrokerErrorKind::LeaseLost, text),
        kept: None,
    }
}
