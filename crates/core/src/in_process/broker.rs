//! The in-process broker.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use tokio::time::Instant;

use super::broker_builder::InProcessBrokerBuilder;
use super::broker_faults::{BrokerFaults, BrokerOperation};
use super::connection::{Connection, Shared, again, time_comes};
use super::counts::QueueCounts;
use super::dead_letters::DeadLetters;
use super::findings::findings;
use super::queue::{DeadLettering, QueueSettings};
use super::subscription::InProcessSubscription;
use crate::error::{BrokerError, BrokerErrorKind};
use crate::message::Message;
use crate::ports::{
    Broker, BrokerHandle, Capabilities, DeadLetterQueue, DeadLetterRecord, Finding, Outgoing,
    SubscribeOptions, Subscription, SubscriptionOrder,
};

/// A broker inside the process, with one queue and its dead-letter queue.
///
/// It keeps the rules that the real ones keep, exactly: leases run out, what is not settled is
/// delivered again at its old position, delays are kept, one partition key is handed out to one
/// subscription at a time and in order. A delivery that ends without a verdict uses an attempt, for
/// its handler may have been started. Its time is tokio's, so that tests can run under paused time.
///
/// Clones share the queue, as several processes would: each has a connection of its own, and closing
/// one gives back only what its own subscriptions hold.
///
/// It can be told to fail, see [`InProcessBroker::faults`], and it says what it has seen:
///
/// ```
/// use backstop_core::{InProcessBroker, Message, Publisher};
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let broker = InProcessBroker::new("orders");
/// Publisher::new(broker.clone()).publish(Message::new("1")).await.unwrap();
/// assert_eq!(broker.counts().ready, 1);
/// # });
/// # Ok::<_, std::io::Error>(())
/// ```
pub struct InProcessBroker {
    connection: Arc<Connection>,
}

impl InProcessBroker {
    /// A broker with an empty queue of this name.
    pub fn new(queue: impl Into<Arc<str>>) -> Self {
        Self::builder(queue).build()
    }

    /// Builds a broker with other settings.
    pub fn builder(queue: impl Into<Arc<str>>) -> InProcessBrokerBuilder {
        InProcessBrokerBuilder::new(queue.into())
    }

    pub(super) fn with_settings(settings: QueueSettings, capabilities: Capabilities) -> Self {
        let shared = Arc::new(Shared::new(settings, capabilities));
        Self {
            connection: Connection::open(shared),
        }
    }

    fn shared(&self) -> &Shared {
        &self.connection.shared
    }

    /// Faults to inject, for tests.
    pub fn faults(&self) -> &BrokerFaults {
        &self.shared().faults
    }

    /// Cuts the connections of every clone, as a restart of the broker would: what is not settled is
    /// delivered again, stale settlements are refused, and each subscription's next receive fails
    /// once.
    pub fn drop_connections(&self) {
        self.shared().change(|queue, _| {
            queue.cut();
            queue.end_deliveries(|_| true);
        });
    }

    /// Cuts the connection of this handle only.
    pub fn drop_own_connection(&self) {
        self.connection.cut();
    }

    /// Ends every lease early.
    pub fn expire_leases(&self) {
        self.shared()
            .change(|queue, _| queue.end_deliveries(|_| true));
    }

    /// How many messages are where.
    pub fn counts(&self) -> QueueCounts {
        self.shared().queue.lock().counts(Instant::now())
    }

    /// Waits until the counts are as wanted, and gives them.
    ///
    /// ```
    /// # use backstop_core::InProcessBroker;
    /// # async fn example(broker: InProcessBroker) {
    /// broker.wait_for(|counts| counts.completed == 3).await;
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn wait_for(
        &self,
        mut wanted: impl FnMut(&QueueCounts) -> bool + Send,
    ) -> QueueCounts {
        loop {
            let counted = self.shared().counted.notified();
            let (counts, next_change) = {
                let mut queue = self.shared().queue.lock();
                (queue.counts(Instant::now()), queue.next_change())
            };
            if wanted(&counts) {
                return counts;
            }
            tokio::select! {
                biased;
                () = counted => {}
                () = time_comes(next_change) => {}
            }
        }
    }

    /// What is in the dead-letter queue, oldest first.
    pub fn dead_letter_records(&self) -> Vec<DeadLetterRecord> {
        self.shared().queue.lock().dead(Instant::now()).to_vec()
    }

    fn accept(&self, outgoing: &Outgoing) -> Result<Arc<Message>, BrokerError> {
        self.shared().faults.check(BrokerOperation::Publish)?;
        let Capabilities {
            max_body,
            max_delay,
            ..
        } = self.shared().capabilities;
        let size = outgoing.message.body.len();
        if size > max_body {
            let text = format!("the body has {size} bytes, and this broker takes {max_body}");
            return Err(BrokerError::new(BrokerErrorKind::TooLarge, text));
        }
        let delay = outgoing.delay;
        if let Some(limit) = max_delay.filter(|limit| delay > *limit) {
            let text =
                format!("delay cannot be {delay:?}: this broker delays by at most {limit:?}");
            return Err(BrokerError::new(BrokerErrorKind::Unsupported, text));
        }
        let mut message = Arc::clone(&outgoing.message);
        if message.published_at.is_none() {
            Arc::make_mut(&mut message).published_at = Some(SystemTime::now());
        }
        Ok(message)
    }
}

#[async_trait]
impl Broker for InProcessBroker {
    fn queue(&self) -> &str {
        &self.shared().settings.name
    }

    fn capabilities(&self) -> Capabilities {
        self.shared().capabilities
    }

    async fn inspect(&self, options: &SubscribeOptions) -> Result<Vec<Finding>, BrokerError> {
        let answer = self
            .connection
            .begin(BrokerOperation::Inspect, &options.consumer)
            .await?;
        answer.give(findings(self.shared(), options))
    }

    async fn subscribe(
        &self,
        options: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>, BrokerError> {
        let answer = self
            .connection
            .begin(BrokerOperation::Subscribe, &options.consumer)
            .await?;
        if options.order == SubscriptionOrder::ByPartitionKey {
            self.shared().queue.lock().keep_order();
        }
        let connection = Arc::clone(&self.connection);
        let consumer = Arc::clone(&options.consumer);
        answer.give(Box::new(InProcessSubscription::new(connection, consumer)))
    }

    async fn publish(&self, messages: &[Outgoing]) -> Vec<Result<(), BrokerError>> {
        let begun = match self.connection.check_open() {
            Ok(()) => {
                let call = BrokerOperation::Publish;
                self.connection.meet_faults(call, "", messages.len()).await
            }
            Err(error) => Err(error),
        };
        let answer = match begun {
            Ok(answer) => answer,
            Err(error) => return messages.iter().map(|_| Err(again(&error))).collect(),
        };
        self.shared().change(|queue, now| {
            let publish = |outgoing: &Outgoing| {
                let message = self.accept(outgoing)?;
                queue.publish(message, outgoing.delay, now);
                answer.give(())
            };
            messages.iter().map(publish).collect()
        })
    }

    async fn dead_letters(&self) -> Result<Box<dyn DeadLetterQueue>, BrokerError> {
        self.connection.check_open()?;
        match self.shared().settings.dead_lettering {
            DeadLettering::Present => Ok(Box::new(DeadLetters {
                connection: Arc::clone(&self.connection),
            })),
            DeadLettering::Absent => {
                let text = "the queue has no dead-letter queue";
                Err(BrokerError::new(BrokerErrorKind::NotFound, text))
            }
        }
    }

    async fn close(&self) {
        self.connection.closed.cancel();
        self.connection.cut();
    }
}

/// Another connection to the same queue.
impl Clone for InProcessBroker {
    fn clone(&self) -> Self {
        Self {
            connection: Connection::open(Arc::clone(&self.connection.shared)),
        }
    }
}

impl From<InProcessBroker> for BrokerHandle {
    fn from(broker: InProcessBroker) -> Self {
        Arc::new(broker)
    }
}

impl fmt::Debug for InProcessBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcessBroker")
            .field("queue", &self.shared().settings.name)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}
