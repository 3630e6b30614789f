//! Publishing to a queue.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{BrokerError, BrokerErrorKind};
use crate::message::{Message, MessageId};
use crate::ports::{BrokerHandle, Outgoing};

/// Publishes to one queue; every publication is confirmed by the broker.
///
/// Cloning is cheap, and clones share the connection.
#[derive(Clone)]
pub struct Publisher {
    broker: BrokerHandle,
}

impl Publisher {
    /// A publisher to the broker's queue.
    pub fn new(broker: impl Into<BrokerHandle>) -> Self {
        Self {
            broker: broker.into(),
        }
    }

    /// Publishes a message, and gives it an id if it has none. Returns when the broker has it
    /// safely.
    ///
    /// # Errors
    ///
    /// After a transient error the message may have arrived: publish it again with the same id, and
    /// an idempotent consumer absorbs the repeat.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may have published.
    pub async fn publish(&self, message: Message) -> Result<MessageId, BrokerError> {
        self.publish_after(message, Duration::ZERO).await
    }

    /// Publishes a message that is delivered not before `delay` from now.
    ///
    /// # Errors
    ///
    /// As [`Publisher::publish`]; also a delay longer than the broker can do.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may have published.
    pub async fn publish_after(
        &self,
        message: Message,
        delay: Duration,
    ) -> Result<MessageId, BrokerError> {
        let mut answers = self.publish_batch([(message, delay)]).await;
        answers.pop().unwrap_or_else(|| Err(no_answer()))
    }

    /// Publishes several messages, each with its delay, in their order and in as few round trips as
    /// the broker allows. Each has its own answer.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may have published some of them.
    pub async fn publish_batch(
        &self,
        messages: impl IntoIterator<Item = (Message, Duration)>,
    ) -> Vec<Result<MessageId, BrokerError>> {
        let mut ids = Vec::new();
        let mut outgoing = Vec::new();
        for (mut message, delay) in messages {
            ids.push(message.id.get_or_insert_with(MessageId::random).clone());
            let message = Arc::new(message);
            outgoing.push(Outgoing { message, delay });
        }
        let limit = self.broker.capabilities().max_publication_delay;
        if let Some(limit) = limit
            && let Some(outgoing) = outgoing.iter().find(|outgoing| outgoing.delay > limit)
        {
            let delay = outgoing.delay;
            return ids.iter().map(|_| Err(too_late(delay, limit))).collect();
        }
        let answers = self.broker.publish(&outgoing).await;
        let mut answers = answers.into_iter();
        ids.into_iter()
            .map(|id| {
                answers
                    .next()
                    .unwrap_or_else(|| Err(no_answer()))
                    .map(|()| id)
            })
            .collect()
    }
}

fn no_answer() -> BrokerError {
    BrokerError::new(
        BrokerErrorKind::Other,
        "the adapter gave no answer for a message",
    )
}

fn too_late(delay: Duration, limit: Duration) -> BrokerError {
    let text = format!("delay cannot be {delay:?}: this broker delays by at most {limit:?}");
    BrokerError::new(BrokerErrorKind::Unsupported, text)
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("queue", &self.broker.queue())
            .finish()
    }
}
