//! A queue under load.

use std::time::Duration;

use anyhow::{Result, ensure};
use aws_sdk_sqs::types::QueueAttributeName;
use backstop_conformance::broker::{BrokerHarness as _, QueueSpec};
use backstop_core::{BrokerHandle, ConsumerBuilder, Message, Publisher, StoreHandle};
use backstop_sqs::Sqs;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::harness::{Harness, Queue, connect};
use crate::rabbitmq::world::{self, until};

/// How long deliveries are leased: short, so that what was lost comes back soon.
const LEASE: Duration = Duration::from_secs(5);

/// A consumer whose cap stays below the highest `maxReceiveCount` that SQS takes, which is 1000.
pub(crate) fn builder(broker: impl Into<BrokerHandle>, store: StoreHandle) -> ConsumerBuilder {
    world::builder(broker, store).max_attempts(100)
}

/// A queue behind a proxy of its own.
pub(crate) struct World {
    pub(crate) harness: Harness,
    pub(crate) queue: Queue,
}

impl World {
    pub(crate) async fn new() -> Result<Self> {
        Self::of(Harness::start().await?).await
    }

    pub(crate) async fn of(harness: Harness) -> Result<Self> {
        Self::leased(harness, LEASE).await
    }

    /// Whose deliveries are leased for this long.
    pub(crate) async fn leased(harness: Harness, lease: Duration) -> Result<Self> {
        let spec = QueueSpec::default().lease(lease).delivery_limit(1000);
        let queue = harness.make(spec).await?;
        Ok(Self { harness, queue })
    }

    pub(crate) fn broker(&self) -> Result<Sqs> {
        connect(&self.queue.url())
    }

    pub(crate) async fn store(&self) -> Result<StoreHandle> {
        self.harness.store().await
    }

    /// Publishes `count` messages in the background; what fails is published again with its id.
    pub(crate) fn publish(&self, count: usize, pause: Duration) -> Result<JoinHandle<Vec<String>>> {
        let publisher = Publisher::new(self.broker()?);
        let ids: Vec<String> = (0..count).map(|number| format!("m{number}")).collect();
        Ok(tokio::spawn(async move {
            for id in &ids {
                while publisher
                    .publish(Message::new("work").with_id(id.as_str()))
                    .await
                    .is_err()
                {
                    sleep(Duration::from_millis(100)).await;
                }
                sleep(pause).await;
            }
            ids
        }))
    }

    /// Nothing is left in the queue, and nothing in the dead-letter queue.
    pub(crate) async fn must_be_empty(&self) -> Result<()> {
        let dead = self.depth(&self.queue.native.dead_letters_url).await?;
        ensure!(dead == 0, "{dead} messages were dead-lettered");
        until("the queue is empty", || async {
            Ok(self.depth(&self.queue.native.url).await? == 0)
        })
        .await
    }

    /// How many messages a queue holds, in flight or not.
    pub(crate) async fn depth(&self, url: &str) -> Result<u64> {
        let names = [
            QueueAttributeName::ApproximateNumberOfMessages,
            QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
            QueueAttributeName::ApproximateNumberOfMessagesDelayed,
        ];
        let request = self.queue.client().get_queue_attributes().queue_url(url);
        let names = request.set_attribute_names(Some(names.to_vec()));
        let attributes = names.send().await?.attributes.unwrap_or_default();
        let mut depth = 0;
        for number in attributes.values() {
            depth += number.parse::<u64>()?;
        }
        Ok(depth)
    }
}
