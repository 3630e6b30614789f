//! Connections to an in-process queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::broker_faults::{BrokerCall, BrokerFault, BrokerFaults, BrokerOperation, injected};
use super::queue::{Queue, QueueSettings};
use super::ready::Owner;
use crate::error::{BrokerError, BrokerErrorKind};
use crate::ports::Capabilities;

/// What all connections share.
pub(super) struct Shared {
    pub(super) settings: QueueSettings,
    pub(super) capabilities: Capabilities,
    pub(super) queue: Mutex<Queue>,
    pub(super) faults: BrokerFaults,
    /// There may be something to receive.
    pub(super) arrived: Notify,
    /// The counts have changed.
    pub(super) counted: Notify,
    connections: AtomicU32,
}

/// What the subscriptions of one process share.
pub(super) struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) closed: CancellationToken,
    number: u32,
    subscriptions: AtomicU32,
    cuts: AtomicU64,
}

impl Shared {
    pub(super) fn new(settings: QueueSettings, capabilities: Capabilities) -> Self {
        Self {
            queue: Mutex::new(Queue::new(settings.clone())),
            settings,
            capabilities,
            faults: BrokerFaults::default(),
            arrived: Notify::new(),
            counted: Notify::new(),
            connections: AtomicU32::new(0),
        }
    }

    /// Changes the queue, and tells those who wait for it.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Queue, Instant) -> T) -> T {
        let (done, news) = {
            let mut queue = self.queue.lock();
            let done = change(&mut queue, Instant::now());
            (done, queue.take_news())
        };
        if news {
            self.arrived.notify_waiters();
        }
        self.counted.notify_waiters();
        done
    }
}

impl Connection {
    pub(super) fn open(shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            number: shared.connections.fetch_add(1, Ordering::Relaxed),
            shared,
            closed: CancellationToken::new(),
            subscriptions: AtomicU32::new(0),
            cuts: AtomicU64::new(0),
        })
    }

    /// A new subscription's name.
    pub(super) fn owner(&self) -> Owner {
        Owner {
            connection: self.number,
            subscription: self.subscriptions.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Cuts it: what its subscriptions hold is delivered again.
    pub(super) fn cut(&self) {
        self.shared.change(|queue, _| {
            self.cuts.fetch_add(1, Ordering::Relaxed);
            queue.wake();
            queue.end_deliveries(|owner| owner.connection == self.number);
        });
    }

    /// How often it was cut, alone or with all others.
    pub(super) fn cuts(&self, queue: &Queue) -> u64 {
        queue.cuts() + self.cuts.load(Ordering::Relaxed)
    }

    pub(super) fn check_open(&self) -> Result<(), BrokerError> {
        if self.closed.is_cancelled() {
            return Err(closed());
        }
        Ok(())
    }

    /// Begins a call that is not a subscription's.
    pub(super) async fn begin(
        &self,
        operation: BrokerOperation,
        consumer: &str,
    ) -> Result<Answer, BrokerError> {
        self.check_open()?;
        let answer = self.meet_faults(operation, consumer, 1).await?;
        self.shared.faults.check(operation)?;
        Ok(answer)
    }

    /// Meets the faults of a call that are not counted. On success, says whether its answer will
    /// arrive.
    pub(super) async fn meet_faults(
        &self,
        operation: BrokerOperation,
        consumer: &str,
        size: usize,
    ) -> Result<Answer, BrokerError> {
        let call = BrokerCall {
            operation,
            consumer,
            size,
        };
        match self.shared.faults.of_call(&call) {
            None => Ok(Answer::Given),
            Some(BrokerFault::LoseAnswer) => Ok(Answer::Lost),
            Some(BrokerFault::Fail(kind)) => Err(injected(kind)),
            Some(BrokerFault::CutConnection) => {
                self.cut();
                // A receive reports cuts by itself, each once.
                if operation == BrokerOperation::Receive {
                    return Ok(Answer::Given);
                }
                Err(injected(BrokerErrorKind::Unreachable))
            }
            Some(BrokerFault::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                Ok(Answer::Given)
            }
        }
    }
}

/// Whether the answer to a call arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Given,
    Lost,
}

impl Answer {
    pub(super) fn give<T>(self, answer: T) -> Result<T, BrokerError> {
        match self {
            Self::Given => Ok(answer),
            Self::Lost => Err(injected(BrokerErrorKind::Unreachable)),
        }
    }
}

pub(super) fn closed() -> BrokerError {
    BrokerError::new(
        BrokerErrorKind::Closed,
        "this handle of the in-process broker was closed",
    )
}

/// Waits for a time; for ever if there is none.
pub(super) async fn time_comes(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The same error, for one more of the things that a call was about.
pub(super) fn again(error: &BrokerError) -> BrokerError {
    BrokerError::new(error.kind(), error.to_string())
}
