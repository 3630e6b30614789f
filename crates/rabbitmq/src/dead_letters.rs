//! The dead-letter queue.

use std::num::NonZeroUsize;
use std::sync::Arc;

use async_trait::async_trait;
use backstop_core::{BrokerError, DeadLetterQueue, DeadLetterRecord};
use lapin::Channel;
use lapin::options::{BasicGetOptions, BasicNackOptions};

use crate::broker::Shared;
use crate::decode;
use crate::error::failed;
use crate::topology;

pub(crate) struct DeadLetters {
    shared: Arc<Shared>,
}

impl DeadLetters {
    pub(crate) async fn open(shared: Arc<Shared>) -> Result<Self, BrokerError> {
        let dead_letters = Self { shared };
        dead_letters.depth().await?;
        Ok(dead_letters)
    }

    fn queue(&self) -> &str {
        self.shared.link.config.dead_letter_queue()
    }

    async fn look(
        &self,
        channel: &Channel,
        max: NonZeroUsize,
    ) -> Result<Vec<DeadLetterRecord>, BrokerError> {
        let config = &self.shared.link.config;
        let mut records = Vec::new();
        let mut last = None;
        while records.len() < max.get() {
            let got = channel
                .basic_get(self.queue().into(), BasicGetOptions { no_ack: false })
                .await;
            let got = got.map_err(|error| failed("the dead-letter queue cannot be read", error))?;
            let Some(got) = got else { break };
            let native = got.delivery;
            last = Some(native.delivery_tag);
            records.push(decode::dead_letter(&native.properties, native.data, config));
        }
        if let Some(last) = last {
            let options = BasicNackOptions {
                multiple: true,
                requeue: true,
            };
            let back = channel.basic_nack(last, options).await;
            back.map_err(|error| {
                failed(
                    "the dead letters that were looked at come back when the connection ends",
                    error,
                )
            })?;
        }
        Ok(records)
    }
}

#[async_trait]
impl DeadLetterQueue for DeadLetters {
    async fn depth(&self) -> Result<u64, BrokerError> {
        let live = self.shared.link.live().await?;
        topology::depth(&live, self.queue()).await
    }

    async fn browse(&self, max: NonZeroUsize) -> Result<Vec<DeadLetterRecord>, BrokerError> {
        let channel = self.shared.link.live().await?.channel().await?;
        let records = self.look(&channel, max).await;
        // Whatever is still with the channel goes back.
        let _ = channel.close(200, "done".into()).await;
        records
    }
}
