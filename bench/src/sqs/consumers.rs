//! The consumers that are compared.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::{DeleteMessageBatchRequestEntry, Message, MessageSystemAttributeName};
use backstop_core::{Consumer, Context, HandlerError, InProcessStore, Stats};
use backstop_sqs::{Sqs, SqsConfig};
use bytes::Bytes;
use futures_util::future::try_join_all;
use tokio_util::task::TaskTracker;

use super::client::{self, CREDENTIALS};
use super::stub::{ACCOUNT, QUEUE, Stub};
use crate::tally::Tally;

/// How many messages backstop handles at once.
pub(crate) const IN_FLIGHT: usize = 256;

/// How many receives are under way at once; backstop's default.
pub(crate) const RECEIVES: usize = 16;

/// Who consumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contestant {
    /// The SDK: so many loops of a receive, and a task that deletes what it brought.
    Raw,
    /// The same, asking for the attributes that backstop asks for.
    RawAttributes,
    /// backstop with the in-process store.
    Backstop,
}

impl Contestant {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw aws-sdk-sqs",
            Self::RawAttributes => "raw aws-sdk-sqs, with attributes",
            Self::Backstop => "backstop, in-process store",
        }
    }

    /// Consumes until the tally is full; returns the time from the first message handled to the end,
    /// when all deletions were answered.
    pub(crate) async fn consume(self, stub: &Stub, tally: &Arc<Tally>) -> Result<Duration> {
        match self {
            Self::Raw => Raw::start(stub, tally, false).await?.run().await?,
            Self::RawAttributes => Raw::start(stub, tally, true).await?.run().await?,
            Self::Backstop => consume_all(broker(stub)?, tally).await?,
        }
        let took = tally.since_first()?;
        let (deleted, left) = (stub.queue.deleted(), stub.queue.depth());
        let wanted = u64::from(tally.wanted());
        ensure!(
            deleted == wanted && left == (0, 0) && stub.dead_letters.depth() == (0, 0),
            "{deleted} of {wanted} were deleted, {left:?} are left visible and in flight"
        );
        Ok(took)
    }
}

/// backstop's queue.
pub(crate) fn broker(stub: &Stub) -> Result<Sqs> {
    Ok(Sqs::new(config(stub)?))
}

pub(crate) fn config(stub: &Stub) -> Result<SqsConfig> {
    let host = stub.endpoint().trim_start_matches("http://");
    let url = format!("sqs://{host}/{ACCOUNT}/{QUEUE}?receives={RECEIVES}");
    let (id, secret) = CREDENTIALS;
    Ok(SqsConfig::from_url(&url)?.credentials(id, secret))
}

/// Consumes until the tally is full.
pub(crate) async fn consume_all(broker: Sqs, tally: &Arc<Tally>) -> Result<()> {
    let stats = consume(broker, tally).await?;
    let (completed, wanted) = (stats.completed, u64::from(tally.wanted()));
    ensure!(
        completed == wanted,
        "{completed} of {wanted} handled: {stats:?}"
    );
    Ok(())
}

/// Consumes until the tally is full, or is told that it is.
pub(crate) async fn consume(broker: Sqs, tally: &Arc<Tally>) -> Result<Stats> {
    let handled = Arc::clone(tally);
    let consumer = Consumer::builder(broker)
        .store(InProcessStore::new())
        .max_in_flight(IN_FLIGHT)
        .raw(move |body: Bytes, _: Context| {
            handled.handle(&body);
            std::future::ready(Ok::<_, HandlerError>(()))
        })?;
    Ok(consumer.run(tally.full()).await?)
}

/// What the loops of the SDK share.
#[derive(Clone)]
struct Raw {
    client: Client,
    url: Arc<str>,
    tally: Arc<Tally>,
    attributes: &'static [MessageSystemAttributeName],
    deletions: TaskTracker,
}

impl Raw {
    async fn start(stub: &Stub, tally: &Arc<Tally>, has_attributes: bool) -> Result<Self> {
        let client = client::client(stub.endpoint());
        let attributes: &[_] = if has_attributes {
            &[MessageSystemAttributeName::All]
        } else {
            &[]
        };
        Ok(Self {
            url: client::queue_url(&client).await?.into(),
            client,
            tally: Arc::clone(tally),
            attributes,
            deletions: TaskTracker::new(),
        })
    }

    async fn run(self) -> Result<()> {
        let receiving = (0..RECEIVES).map(|_| tokio::spawn(self.clone().receive_all()));
        for ended in try_join_all(receiving).await? {
            ended?;
        }
        self.deletions.close();
        self.deletions.wait().await;
        Ok(())
    }

    async fn receive_all(self) -> Result<()> {
        loop {
            let messages = tokio::select! {
                biased;
                () = self.tally.full().begun() => return Ok(()),
                messages = self.receive() => messages?,
            };
            for message in &messages {
                self.tally
                    .handle(message.body().unwrap_or_default().as_bytes());
            }
            if !messages.is_empty() {
                let deleting = self.clone();
                self.deletions.spawn(async move {
                    if let Err(error) = deleting.delete(messages).await {
                        eprintln!("messages were not deleted: {error:#}");
                    }
                });
            }
        }
    }

    async fn receive(&self) -> Result<Vec<Message>> {
        let mut asked = self
            .client
            .receive_message()
            .queue_url(&*self.url)
            .max_number_of_messages(10)
            .wait_time_seconds(20)
            .visibility_timeout(30);
        if !self.attributes.is_empty() {
            let names = Some(self.attributes.to_vec());
            asked = asked.set_message_system_attribute_names(names);
            asked = asked.message_attribute_names("All");
        }
        Ok(asked.send().await?.messages.unwrap_or_default())
    }

    async fn delete(&self, messages: Vec<Message>) -> Result<()> {
        let entries = messages.into_iter().enumerate().map(|(id, message)| {
            DeleteMessageBatchRequestEntry::builder()
                .id(id.to_string())
                .set_receipt_handle(message.receipt_handle)
                .build()
        });
        let asked = self.client.delete_message_batch().queue_url(&*self.url);
        let entries = entries.collect::<Result<_, _>>()?;
        let answer = asked.set_entries(Some(entries)).send().await?;
        ensure!(answer.failed.is_empty(), "{:?}", answer.failed);
        Ok(())
    }
}
