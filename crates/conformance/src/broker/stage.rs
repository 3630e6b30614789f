//! What the cases have in common: a queue, consumers of it, and patience.

use std::future::Future;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use backstop_core::{
    Backoff, BreakerSettings, Broker, BrokerHandle, Consumer, ConsumerBuilder, DeadLetterRecord,
    Delivery, Jitter, Message, Outgoing, Settlement, StoreHandle, SubscribeOptions, Subscription,
    SubscriptionOrder, Verdict,
};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::harness::{BrokerHarness, QueueSpec, TestQueue};

/// Where a case runs.
#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) harness: Arc<dyn BrokerHarness>,
}

/// A queue, with a connection to publish by.
pub(crate) struct Scene {
    pub(crate) stage: Stage,
    pub(crate) queue: Arc<dyn TestQueue>,
    pub(crate) broker: BrokerHandle,
    pub(crate) spec: QueueSpec,
}

impl Stage {
    pub(crate) fn new(harness: Arc<dyn BrokerHarness>) -> Self {
        Self { harness }
    }

    pub(crate) fn ticks(&self, n: u32) -> Duration {
        self.harness.tick() * n
    }

    /// A lease that is short, and can be renewed in time on a busy machine.
    pub(crate) fn short_lease(&self) -> Duration {
        self.ticks(30).max(Duration::from_millis(200))
    }

    pub(crate) async fn scene(&self) -> Result<Scene> {
        self.scene_with(QueueSpec::default()).await
    }

    pub(crate) async fn ordered_scene(&self) -> Result<Scene> {
        self.scene_with(QueueSpec::default().ordered()).await
    }

    pub(crate) async fn scene_with(&self, spec: QueueSpec) -> Result<Scene> {
        let queue = self.harness.queue(spec).await.context("making a queue")?;
        let broker = queue.connect().await.context("connecting to the queue")?;
        Ok(Scene {
            stage: self.clone(),
            queue,
            broker,
            spec,
        })
    }

    pub(crate) async fn store(&self) -> Result<StoreHandle> {
        self.harness.store().await.context("opening the store")
    }

    /// Makes sure that what was due after `wait` came not before that, and soon after it.
    pub(crate) fn must_be_on_time(&self, what: &str, wait: Duration, took: Duration) -> Result<()> {
        ensure!(took >= wait, "{what} after {wait:?} came after {took:?}");
        let most = wait + self.harness.tolerance(wait);
        ensure!(
            took <= most,
            "{what} after {wait:?} came after {took:?}, which is later than {most:?}"
        );
        Ok(())
    }

    /// Waits for what must come.
    pub(crate) async fn must<T>(&self, what: &str, comes: impl Future<Output = T>) -> Result<T> {
        let patience = self.harness.patience();
        let Ok(come) = timeout(patience, comes).await else {
            bail!("within {patience:?} it did not come to this: {what}");
        };
        Ok(come)
    }

    /// Asks again and again for what must come true.
    pub(crate) async fn until<F>(&self, what: &str, mut is_so: impl FnMut() -> F) -> Result<()>
    where
        F: Future<Output = Result<bool>>,
    {
        let end = Instant::now() + self.harness.patience();
        while !is_so().await? {
            ensure!(Instant::now() < end, "it did not come to this: {what}");
            tokio::time::sleep(self.ticks(1)).await;
        }
        Ok(())
    }
}

impl Scene {
    pub(crate) fn ticks(&self, n: u32) -> Duration {
        self.stage.ticks(n)
    }

    /// Publishes; each message has to be confirmed.
    pub(crate) async fn publish(&self, messages: impl IntoIterator<Item = Message>) -> Result<()> {
        let outgoing: Vec<_> = messages
            .into_iter()
            .map(|message| Outgoing {
                message: Arc::new(message),
                delay: Duration::ZERO,
            })
            .collect();
        let answers = self.broker.publish(&outgoing).await;
        ensure!(
            answers.len() == outgoing.len(),
            "{} answers to {} publications",
            answers.len(),
            outgoing.len()
        );
        for answer in answers {
            answer.context("publishing")?;
        }
        Ok(())
    }

    /// How a consumer without policy receives.
    pub(crate) fn options(&self, max_buffered: usize) -> SubscribeOptions {
        SubscribeOptions {
            consumer: "conformance".into(),
            order: self.spec.order,
            max_buffered: NonZeroUsize::new(max_buffered).unwrap_or(NonZeroUsize::MIN),
            max_attempts: const { std::num::NonZeroU32::new(5).expect("five is not zero") },
            handler_timeout: Duration::from_mins(1),
            longest_wait: Duration::from_mins(1),
        }
    }

    pub(crate) async fn subscribe(&self, broker: &BrokerHandle, max: usize) -> Result<Inbox> {
        let subscription = broker
            .subscribe(&self.options(max))
            .await
            .context("subscribing")?;
        Ok(Inbox {
            subscription,
            stage: self.stage.clone(),
        })
    }

    /// A consumer with short waits, a breaker that a few failures do not open, and a store.
    pub(crate) async fn consumer(&self) -> Result<ConsumerBuilder> {
        let broker = self.queue.connect().await?;
        Ok(self.consumer_on(broker).store(self.stage.store().await?))
    }

    /// The same, without a store.
    pub(crate) async fn storeless_consumer(&self) -> Result<ConsumerBuilder> {
        let broker = self.queue.connect().await?;
        Ok(self.consumer_on(broker).idempotent_by_nature())
    }

    /// The same, on this connection, with repeats left to be decided on.
    pub(crate) fn consumer_on(&self, broker: BrokerHandle) -> ConsumerBuilder {
        let builder = Consumer::builder(broker)
            .backoff(backoff(self.ticks(1), self.ticks(4)))
            .breaker(calm_breaker())
            .claim_lease(Duration::from_secs(30))
            .handler_timeout(Duration::from_mins(1))
            .shutdown_grace(Duration::from_secs(10));
        match self.spec.order {
            SubscriptionOrder::Unordered => builder,
            SubscriptionOrder::ByPartitionKey => builder.ordered(),
        }
    }

    /// Waits until so many are in the dead-letter queue, and reads them.
    pub(crate) async fn dead_letters(&self, count: u64) -> Result<Vec<DeadLetterRecord>> {
        let queue = self.broker.dead_letters().await?;
        let what = format!("{count} messages in the dead-letter queue");
        self.stage
            .until(&what, || async { Ok(queue.depth().await? >= count) })
            .await?;
        let depth = queue.depth().await?;
        ensure!(
            depth == count,
            "{depth} messages are in the dead-letter queue instead of {count}"
        );
        let most = usize::try_from(count)?.saturating_add(10);
        let records = queue.browse(most.try_into()?).await?;
        ensure!(
            records.len() as u64 == count,
            "browsing shows {} of {count} dead letters",
            records.len()
        );
        Ok(records)
    }

    /// Makes sure that the queue delivers nothing.
    pub(crate) async fn must_be_empty(&self) -> Result<()> {
        let broker = self.queue.connect().await?;
        let inbox = self.subscribe(&broker, 10).await?;
        let left = inbox.nothing_for(self.stage.harness.quiet()).await;
        inbox.subscription.close().await;
        broker.close().await;
        left
    }
}

/// Keeps handlers until it is opened. Clones are the same door.
#[derive(Clone)]
pub(crate) struct Door(Arc<Semaphore>);

impl Default for Door {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }
}

impl Door {
    /// Lets everyone pass, now and later.
    pub(crate) fn open(&self) {
        self.0.close();
    }

    /// Waits until it is open.
    pub(crate) async fn pass(&self) {
        // It never has a permit: this ends when the door opens.
        let _ = self.0.acquire().await;
    }
}

/// A backoff without jitter.
pub(crate) fn backoff(base: Duration, cap: Duration) -> Backoff {
    Backoff::new(base, cap, Jitter::None).unwrap_or_default()
}

/// A breaker that opens after 64 failures in a row only.
pub(crate) const fn calm_breaker() -> BreakerSettings {
    BreakerSettings {
        window: 64,
        failure_ratio: 1.0,
        first_pause: Duration::from_millis(50),
        longest_pause: Duration::from_millis(50),
    }
}

/// A text that no other call gives, for ids.
pub(crate) fn unique(prefix: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}-{}-{number}", std::process::id())
}

/// Messages with ids of their own, which are also their bodies.
pub(crate) fn messages(count: usize) -> Vec<Message> {
    let prefix = unique("m");
    (0..count)
        .map(|n| {
            let id = format!("{prefix}-{n}");
            Message::new(id.clone()).with_id(id)
        })
        .collect()
}

/// The id of a message of ours.
pub(crate) fn id_of(message: &Message) -> String {
    message
        .id
        .as_ref()
        .map_or_else(String::new, |id| id.as_str().to_owned())
}

/// A subscription, used without a consumer.
pub(crate) struct Inbox {
    pub(crate) subscription: Box<dyn Subscription>,
    stage: Stage,
}

impl Inbox {
    /// Receives until it has so many.
    pub(crate) async fn receive(&self, count: usize) -> Result<Vec<Delivery>> {
        let mut received = Vec::new();
        let receiving = async {
            while let Some(room) = NonZeroUsize::new(count - received.len()) {
                match self.subscription.receive(room).await {
                    Ok(deliveries) => {
                        ensure!(
                            deliveries.len() <= room.get(),
                            "a receive of at most {room} gave {}",
                            deliveries.len()
                        );
                        received.extend(deliveries);
                    }
                    Err(error) if error.is_transient() => {
                        tokio::time::sleep(self.stage.ticks(1)).await;
                    }
                    Err(error) => return Err(error).context("receiving"),
                }
            }
            Ok(())
        };
        let what = format!("{count} deliveries");
        let done = self.stage.must(&what, receiving).await;
        let got = received.len();
        done.with_context(|| format!("after {got} of {count} deliveries"))??;
        Ok(received)
    }

    /// Receives one.
    pub(crate) async fn next(&self) -> Result<Delivery> {
        self.receive(1).await?.pop().context("no delivery")
    }

    /// Makes sure that nothing comes for a while.
    pub(crate) async fn nothing_for(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            match timeout(left, self.subscription.receive(NonZeroUsize::MIN)).await {
                Err(_) => return Ok(()),
                // Allowed, see `Subscription::receive`.
                Ok(Ok(deliveries)) if deliveries.is_empty() => {}
                Ok(Ok(deliveries)) => {
                    let ids: Vec<_> = deliveries.iter().map(|d| id_of(&d.message)).collect();
                    bail!("{ids:?} came, and nothing should have come");
                }
                Ok(Err(error)) if error.is_transient() => {
                    tokio::time::sleep(self.stage.ticks(1)).await;
                }
                Ok(Err(error)) => return Err(error).context("receiving"),
            }
        }
        Ok(())
    }

    /// Settles one, and demands that the broker takes it.
    pub(crate) async fn settle(&self, delivery: Delivery, verdict: Verdict) -> Result<()> {
        let batch = vec![Settlement { delivery, verdict }];
        let mut answers = self.subscription.settle(batch).await;
        let answer = answers.pop().context("no answer to a settlement")?;
        answer.map_err(|error| error.cause).context("settling")
    }

    pub(crate) async fn complete(&self, deliveries: Vec<Delivery>) -> Result<()> {
        let count = deliveries.len();
        let batch = deliveries
            .into_iter()
            .map(|delivery| Settlement {
                delivery,
                verdict: Verdict::Complete,
            })
            .collect();
        let answers = self.subscription.settle(batch).await;
        ensure!(
            answers.len() == count,
            "{} answers to {count} settlements",
            answers.len()
        );
        for answer in answers {
            answer.map_err(|error| error.cause).context("completing")?;
        }
        Ok(())
    }

    pub(crate) async fn close(self) {
        self.subscription.close().await;
    }
}

/// The ids of deliveries, in order.
pub(crate) fn ids_of(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(|d| id_of(&d.message)).collect()
}

/// Closes connections as a process does that ends.
pub(crate) async fn close(broker: &dyn Broker) {
    broker.close().await;
}

/// Receives one message and loses it, as a process does that dies: for harnesses that wear out a
/// delivery limit so.
///
/// # Errors
///
/// When the broker refuses, or nothing comes for 2 minutes.
///
/// # Cancel safety
///
/// Cancel-safe: losing what it receives is what it is for.
pub async fn receive_and_drop(broker: &BrokerHandle) -> Result<()> {
    let options = SubscribeOptions {
        consumer: "conformance".into(),
        order: SubscriptionOrder::Unordered,
        max_buffered: NonZeroUsize::MIN,
        max_attempts: NonZeroU32::MIN,
        handler_timeout: Duration::from_mins(1),
        longest_wait: Duration::ZERO,
    };
    let subscription = broker.subscribe(&options).await?;
    let receiving = subscription.receive(NonZeroUsize::MIN);
    let received = timeout(Duration::from_mins(2), receiving).await??;
    subscription.close().await;
    drop(received);
    Ok(())
}
