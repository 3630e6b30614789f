//! Beside a publisher and a consumer that are not ours.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use backstop_conformance::broker::{BrokerHarness as _, QueueSpec};
use backstop_core::{
    Broker as _, Consumer, Context, DeadLetterReason, HandlerError, Message, MessageId,
    PartitionKey, Publisher, Shutdown,
};
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;

use super::harness::{Harness, Queue, connect};
use super::peer;
use crate::rabbitmq::world::until;

const GOOD: usize = 30;
const POISON: usize = 6;

/// What a handler saw.
type Seen = Arc<Mutex<Vec<Arc<Message>>>>;

/// Handles messages until so many succeeded and so many are dead letters; poison is never handled.
async fn drain(harness: &Harness, queue: &Queue, order: Order) -> Result<Seen> {
    let seen = Seen::default();
    let (seeing, shutdown) = (Arc::clone(&seen), Shutdown::new());
    let builder = Consumer::builder(connect(&queue.url())?)
        .store(harness.store().await?)
        .max_in_flight(8);
    let builder = match order {
        Order::None => builder,
        Order::ByKey => builder.ordered(),
    };
    let consumer = builder.raw(move |body: Bytes, context: Context| {
        let is_poison = body == "poison";
        if !is_poison {
            seeing.lock().push(Arc::clone(context.message()));
        }
        std::future::ready(if is_poison {
            Err(HandlerError::permanent("no such customer"))
        } else {
            Ok(())
        })
    })?;
    let (monitor, told) = (consumer.monitor(), shutdown.clone());
    let run = tokio::spawn(async move { consumer.run(&told).await });
    until("everything is handled", || async {
        let stats = monitor.stats();
        Ok(stats.completed >= GOOD as u64 && stats.dead_lettered >= POISON as u64)
    })
    .await?;
    shutdown.begin();
    run.await??;
    Ok(seen)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    None,
    ByKey,
}

/// What every message of boto3 has, as our handler sees it.
fn has_its_attributes(message: &Message) -> Result<()> {
    let headers: BTreeMap<_, _> = message.headers.iter().collect();
    let expected = [("bytes", "AP8="), ("number", "5"), ("text", "a b")];
    ensure!(headers == BTreeMap::from(expected), "{headers:?}");
    ensure!(message.body == "fine");
    Ok(())
}

fn letter(taken: &Value) -> Result<Value> {
    ensure!(taken["body"] == "poison", "{taken}");
    let attributes = &taken["attributes"];
    ensure!(
        attributes["text"] == "a b" && attributes["number"] == "5",
        "{taken}"
    );
    ensure!(attributes["bytes"] == "00ff", "{taken}");
    let annotations = attributes["backstop-dead-letter"].as_str();
    Ok(serde_json::from_str(
        annotations.context("no annotations")?,
    )?)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_boto3_sends_is_handled_and_its_poison_is_readable_by_boto3() -> Result<()> {
    let harness = Harness::start().await?;
    let queue = harness.make(QueueSpec::default()).await?;
    let ids = peer::fill(&queue.native.url, GOOD, POISON).await;
    let seen = drain(&harness, &queue, Order::None).await?;
    let mut handled = BTreeSet::new();
    for message in seen.lock().iter() {
        has_its_attributes(message)?;
        let id = message.id.as_ref().context("no id")?;
        ensure!(handled.insert(id.to_string()), "{id} was handled twice");
    }
    // Without an id of ours and without a deduplication's, it is SQS's own.
    ensure!(
        handled == ids[..GOOD].iter().cloned().collect(),
        "{handled:?}"
    );
    for taken in peer::take(&queue.native.dead_letters_url, POISON).await {
        let letter = letter(&taken)?;
        ensure!(letter["reason"] == "permanent-error", "{letter}");
        ensure!(
            letter["error"]
                .as_str()
                .is_some_and(|e| e.contains("no such customer"))
        );
        ensure!(
            letter["attempts"] == 1 && letter["origin"] == queue.native.name,
            "{letter}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_and_deduplication_ids_of_boto3_are_keys_and_ids_and_outlive_dead_lettering()
-> Result<()> {
    let harness = Harness::start().await?;
    let queue = harness.make(QueueSpec::default().ordered()).await?;
    peer::fill(&queue.native.url, GOOD, POISON).await;
    let seen = drain(&harness, &queue, Order::ByKey).await?;
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for message in seen.lock().iter() {
        has_its_attributes(message)?;
        let id = message.id.as_ref().map_or("", MessageId::as_str);
        let number = id.strip_prefix("deduplication-").context("no number")?;
        let key = message.partition_key.as_ref().map(PartitionKey::as_str);
        let group = groups.entry(key.context("no key")?.to_owned()).or_default();
        group.push(number.parse()?);
    }
    let expected = (0..3).map(|group| {
        let numbers = (0..GOOD).filter(move |number| number % 3 == group);
        (format!("group-{group}"), numbers.collect())
    });
    ensure!(groups == expected.collect(), "out of order: {groups:?}");
    let mut dead = BTreeMap::new();
    for taken in peer::take(&queue.native.dead_letters_url, POISON).await {
        // A copy has a deduplication id of its own: SQS would drop one that it knows.
        let letter = letter(&taken)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let group = text(&taken["system"]["MessageGroupId"]);
        dead.insert(text(&letter["deduplication"]), group);
    }
    let expected = (GOOD..GOOD + POISON).map(|number| {
        (
            format!("deduplication-{number}"),
            format!("group-{}", number % 3),
        )
    });
    ensure!(dead == expected.collect(), "{dead:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_we_publish_is_readable_by_boto3() -> Result<()> {
    let harness = Harness::start().await?;
    for order in [Order::None, Order::ByKey] {
        let spec = QueueSpec::default();
        let spec = match order {
            Order::None => spec,
            Order::ByKey => spec.ordered(),
        };
        let queue = harness.make(spec).await?;
        let publisher = Publisher::new(connect(&queue.url())?);
        let message = Message::new("größer 鍵")
            .with_id("order-7")
            .with_partition_key("customer-3")
            .with_header("text", "a b");
        publisher.publish(message).await?;
        let taken = peer::take(&queue.native.url, 1).await;
        let [taken] = &taken[..] else {
            anyhow::bail!("{} messages", taken.len());
        };
        ensure!(taken["body"] == "größer 鍵", "{taken}");
        ensure!(taken["attributes"]["text"] == "a b", "{taken}");
        ensure!(taken["attributes"]["backstop-id"] == "order-7", "{taken}");
        ensure!(taken["system"]["MessageGroupId"] == "customer-3", "{taken}");
        if order == Order::ByKey {
            ensure!(
                taken["system"]["MessageDeduplicationId"] == "order-7",
                "{taken}"
            );
        }
    }
    Ok(())
}

/// A consumer that is not ours and fails leaves its message to SQS, which moves it by its own cap.
#[tokio::test(flavor = "multi_thread")]
async fn what_sqs_dead_letters_by_itself_reads_as_its_own() -> Result<()> {
    use backstop_conformance::broker::TestQueue as _;

    let harness = Harness::start().await?;
    let queue = harness.make(QueueSpec::default().delivery_limit(3)).await?;
    let ids = peer::fill(&queue.native.url, 1, 0).await;
    queue.exhaust_delivery_limit().await?;
    let dead_letters = connect(&queue.url())?.dead_letters().await?;
    until("it is in the dead-letter queue", || async {
        Ok(dead_letters.depth().await? == 1)
    })
    .await?;
    let records = dead_letters.browse(10.try_into()?).await?;
    let [record] = &records[..] else {
        anyhow::bail!("{} dead letters", records.len());
    };
    ensure!(record.dead_letter.reason == DeadLetterReason::BrokerLimit);
    ensure!(record.dead_letter.origin == queue.native.name);
    let id = record.message.id.as_ref().map(MessageId::as_str);
    ensure!(id == Some(ids[0].as_str()), "{id:?}");
    has_its_attributes(&record.message)?;
    // Browsing leaves it there.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    ensure!(dead_letters.depth().await? == 1, "it was taken");
    Ok(())
}
