//! Dead letters that come back by other means than backstop's are handled again, and large messages are
//! not lost on either way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use aws_sdk_sqs::types::QueueAttributeName;
use backstop_conformance::broker::{BrokerHarness as _, QueueSpec};
use backstop_core::{
    Broker as _, Consumer, Context, DeadLetterReason, DeadLetterRecord, HandlerError, Message,
    Monitor, Publisher, RunError, Shutdown, Stats,
};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::harness::{Harness, Queue, connect};
use super::peer;
use crate::rabbitmq::world::until;

/// What a handler saw: sizes of bodies, redrives and attempts.
type Seen = Arc<Mutex<Vec<(usize, u32, u32)>>>;

/// A consumer with a store whose handler refuses everything, until it is mended.
struct Shop {
    queue: Queue,
    broken: Arc<AtomicBool>,
    handled: Seen,
    monitor: Monitor,
    shutdown: Shutdown,
    run: JoinHandle<Result<Stats, RunError>>,
}

impl Shop {
    async fn open(spec: QueueSpec) -> Result<Self> {
        let harness = Harness::start().await?;
        let is_ordered = spec.order == backstop_core::SubscriptionOrder::ByPartitionKey;
        let queue = harness.make(spec).await?;
        let builder = Consumer::builder(connect(&queue.url())?).store(harness.store().await?);
        let builder = if is_ordered {
            builder.ordered()
        } else {
            builder
        };
        let (broken, handled) = (Arc::new(AtomicBool::new(true)), Seen::default());
        let (is_broken, seen) = (Arc::clone(&broken), Arc::clone(&handled));
        let consumer = builder.raw(move |body: Bytes, context: Context| {
            let failed = is_broken.load(Ordering::Relaxed);
            if !failed {
                let (redrives, attempt) = (context.redrives(), context.attempt().get());
                seen.lock().push((body.len(), redrives, attempt));
            }
            std::future::ready(if failed {
                Err(HandlerError::permanent("the shop is broken"))
            } else {
                Ok(())
            })
        })?;
        let (monitor, shutdown) = (consumer.monitor(), Shutdown::new());
        let told = shutdown.clone();
        let run = tokio::spawn(async move { consumer.run(&told).await });
        Ok(Self {
            queue,
            broken,
            handled,
            monitor,
            shutdown,
            run,
        })
    }

    /// Waits for the dead letter that makes `count`, and gives it.
    async fn letter(&self, count: u64) -> Result<DeadLetterRecord> {
        until("it is dead-lettered", || async {
            Ok(self.monitor.stats().dead_lettered == count)
        })
        .await?;
        let dead_letters = connect(&self.queue.url())?.dead_letters().await?;
        let mut records = dead_letters.browse(10.try_into()?).await?;
        ensure!(records.len() == 1, "{} dead letters", records.len());
        records.pop().context("no dead letter")
    }

    /// Has SQS move everything out of the dead-letter queue, back to where it came from.
    async fn move_back(&self) -> Result<()> {
        let client = self.queue.client();
        let arn = async |url: &str| {
            let asked = client.get_queue_attributes().queue_url(url);
            let asked = asked.attribute_names(QueueAttributeName::QueueArn);
            let attributes = asked.send().await?.attributes.unwrap_or_default();
            let arn = attributes.get(&QueueAttributeName::QueueArn).cloned();
            arn.context("a queue without an ARN")
        };
        let native = &self.queue.native;
        client
            .start_message_move_task()
            .source_arn(arn(&native.dead_letters_url).await?)
            .destination_arn(arn(&native.url).await?)
            .send()
            .await?;
        Ok(())
    }

    fn mend(&self) {
        self.broken.store(false, Ordering::Relaxed);
    }

    /// Waits until what came back is handled; nothing is left then.
    async fn close(self) -> Result<Vec<(usize, u32, u32)>> {
        until("it is handled", || async {
            Ok(!self.handled.lock().is_empty())
        })
        .await?;
        until("it is completed", || async {
            Ok(self.monitor.stats().completed == 1)
        })
        .await?;
        self.shutdown.begin();
        let stats = self.run.await??;
        ensure!(stats.repeats == 0, "taken for a repeat: {stats:?}");
        let dead = connect(&self.queue.url())?.dead_letters().await?;
        ensure!(dead.depth().await? == 0, "a dead letter is left");
        Ok(self.handled.lock().clone())
    }
}

async fn sqs_moves_it_back(spec: QueueSpec) -> Result<()> {
    let shop = Shop::open(spec).await?;
    let message = Message::new("order").with_id("m").with_partition_key("k");
    Publisher::new(connect(&shop.queue.url())?)
        .publish(message)
        .await?;
    shop.letter(1).await?;
    // Once more in vain: it is a dead letter again, and not a repeat of the first.
    shop.move_back().await?;
    let letter = shop.letter(2).await?;
    ensure!(letter.dead_letter.reason == DeadLetterReason::PermanentError);
    ensure!(letter.message.id == Some("m".into()));
    shop.mend();
    shop.move_back().await?;
    let handled = shop.close().await?;
    ensure!(handled == [(5, 2, 1)], "{handled:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_sqs_itself_moves_back_is_handled_again() -> Result<()> {
    sqs_moves_it_back(QueueSpec::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_sqs_itself_moves_back_to_a_fifo_queue_is_handled_again() -> Result<()> {
    sqs_moves_it_back(QueueSpec::default().ordered()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_boto3_sends_back_is_handled_again() -> Result<()> {
    let shop = Shop::open(QueueSpec::default()).await?;
    peer::fill(&shop.queue.native.url, 1, 0).await;
    shop.letter(1).await?;
    shop.mend();
    let native = &shop.queue.native;
    peer::send_back(&native.dead_letters_url, &native.url, 1).await;
    let handled = shop.close().await?;
    ensure!(handled == [(4, 1, 1)], "{handled:?}");
    Ok(())
}

/// All that SQS takes: nothing fits beside it, neither annotations nor an id.
const MEBIBYTE: usize = 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_message_that_fills_the_mebibyte_is_handled_and_survives_dead_lettering()
-> Result<()> {
    let shop = Shop::open(QueueSpec::default()).await?;
    let client = shop.queue.client();
    let sending = client.send_message().queue_url(&shop.queue.native.url);
    sending.message_body("7".repeat(MEBIBYTE)).send().await?;
    let letter = shop.letter(1).await?;
    ensure!(letter.message.body.len() == MEBIBYTE);
    ensure!(letter.dead_letter.reason == DeadLetterReason::Other);
    shop.mend();
    shop.move_back().await?;
    let handled = shop.close().await?;
    ensure!(matches!(handled[..], [(MEBIBYTE, _, 1)]), "{handled:?}");
    Ok(())
}
