//! A queue under load, with a ledger of what was done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use backstop_conformance::broker::{BrokerHarness, QueueSpec};
use backstop_core::{
    Backoff, Broker as _, BrokerHandle, Consumer, ConsumerBuilder, Context, HandlerError, Jitter,
    Message, Monitor, Publisher, RunError, Shutdown, Stats, StoreHandle,
};
use backstop_rabbitmq::RabbitMq;
use bytes::Bytes;
use integration::Plugins;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::harness::{Harness, Queue};

/// How long to wait for what must come.
const PATIENCE: Duration = Duration::from_mins(5);

/// A server of its own with a queue.
pub(crate) struct World {
    pub(crate) harness: Harness,
    pub(crate) queue: Queue,
}

impl World {
    pub(crate) async fn new() -> Result<Self> {
        Self::with(QueueSpec::default().delivery_limit(2000)).await
    }

    pub(crate) async fn with(spec: QueueSpec) -> Result<Self> {
        let harness = Harness::start(Plugins::ConsistentHash).await?;
        let queue = harness.make(spec).await?;
        Ok(Self { harness, queue })
    }

    /// The queue through the proxy, with a heartbeat that notices a dead connection soon.
    pub(crate) fn broker(&self) -> Result<RabbitMq> {
        Ok(RabbitMq::open(&format!(
            "{}&heartbeat=2&confirm_timeout=5",
            self.queue.url()
        ))?)
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
                publish(&publisher, id).await;
                sleep(pause).await;
            }
            ids
        }))
    }

    /// The same without an end, until it is told to stop.
    pub(crate) fn publish_until_told(&self, pause: Duration) -> Result<Publishing> {
        let publisher = Publisher::new(self.broker()?);
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let run = tokio::spawn(async move {
            let mut ids = Vec::new();
            while !told.load(Ordering::Relaxed) {
                let id = format!("m{}", ids.len());
                publish(&publisher, &id).await;
                ids.push(id);
                sleep(pause).await;
            }
            ids
        });
        Ok(Publishing { run, stop })
    }

    /// Nothing is left in the queue, and nothing in the dead-letter queue.
    pub(crate) async fn must_be_empty(&self) -> Result<()> {
        let broker = RabbitMq::open(&self.queue.direct_url())?;
        let dead = broker.dead_letters().await?.depth().await?;
        ensure!(dead == 0, "{dead} messages were dead-lettered");
        until("the queue is empty", || async {
            Ok(self.depth().await? == 0)
        })
        .await
    }

    async fn depth(&self) -> Result<u32> {
        use lapin::options::QueueDeclareOptions;
        let channel = self.queue.native().await?.create_channel().await?;
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::durable()
        };
        let name = self.queue.name().into();
        let queue = channel
            .queue_declare(name, options, lapin::types::FieldTable::default())
            .await?;
        Ok(queue.message_count())
    }
}

async fn publish(publisher: &Publisher, id: &str) {
    while publisher
        .publish(Message::new("work").with_id(id))
        .await
        .is_err()
    {
        sleep(Duration::from_millis(100)).await;
    }
}

/// A publisher in the background.
pub(crate) struct Publishing {
    run: JoinHandle<Vec<String>>,
    stop: Arc<AtomicBool>,
}

impl Publishing {
    /// Stops it, and gives the ids of what it has published.
    pub(crate) async fn stop(self) -> Result<Vec<String>> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.run.await?)
    }
}

/// What handlers did: each message with the fences of its effects.
#[derive(Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<BTreeMap<String, Vec<u64>>>>);

impl Ledger {
    pub(crate) fn write(&self, id: &str, fence: u64) {
        self.0.lock().entry(id.to_owned()).or_default().push(fence);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// Every message was handled, and never twice under one fence.
    pub(crate) fn must_have(&self, ids: &[String]) -> Result<()> {
        let ledger = self.0.lock();
        let missing: Vec<_> = ids.iter().filter(|id| !ledger.contains_key(*id)).collect();
        ensure!(
            missing.is_empty(),
            "{} messages were lost: {missing:?}",
            missing.len()
        );
        for (id, fences) in &*ledger {
            let different: BTreeSet<_> = fences.iter().collect();
            ensure!(
                different.len() == fences.len(),
                "{id} took effect twice under a fence: {fences:?}"
            );
        }
        Ok(())
    }

    /// Every message was handled once.
    pub(crate) fn must_have_once(&self, ids: &[String]) -> Result<()> {
        self.must_have(ids)?;
        let ledger = self.0.lock();
        let twice: Vec<_> = ledger
            .iter()
            .filter(|(_, fences)| fences.len() > 1)
            .collect();
        ensure!(twice.is_empty(), "handled more than once: {twice:?}");
        Ok(())
    }
}

/// A consumer that runs.
pub(crate) struct Running {
    pub(crate) monitor: Monitor,
    shutdown: Shutdown,
    run: JoinHandle<Result<Stats, RunError>>,
}

pub(crate) fn builder(broker: impl Into<BrokerHandle>, store: StoreHandle) -> ConsumerBuilder {
    let backoff = Backoff::new(
        Duration::from_millis(200),
        Duration::from_secs(1),
        Jitter::Additive,
    );
    Consumer::builder(broker)
        .store(store)
        .backoff(backoff.unwrap_or_default())
        .claim_lease(Duration::from_secs(2))
        .max_attempts(1000)
        .max_in_flight(16)
}

impl Running {
    /// Starts a consumer that works on each message for `work`.
    pub(crate) fn start(builder: ConsumerBuilder, ledger: &Ledger, work: Duration) -> Result<Self> {
        Self::working(builder, ledger, move || sleep(work))
    }

    /// Starts a consumer whose work on each message is this.
    pub(crate) fn working<F>(
        builder: ConsumerBuilder,
        ledger: &Ledger,
        work: impl Fn() -> F + Send + Sync + 'static,
    ) -> Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let ledger = ledger.clone();
        let consumer = builder.raw(move |_: Bytes, context: Context| {
            let (ledger, work) = (ledger.clone(), work());
            async move {
                work.await;
                let id = context.id().map(ToString::to_string).unwrap_or_default();
                ledger.write(&id, context.fence().map_or(0, |fence| fence.0));
                Ok::<_, HandlerError>(())
            }
        })?;
        let (monitor, shutdown) = (consumer.monitor(), Shutdown::new());
        let told = shutdown.clone();
        let run = tokio::spawn(async move { consumer.run(&told).await });
        Ok(Self {
            monitor,
            shutdown,
            run,
        })
    }

    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) -> Result<()> {
        let waited = until(what, || async { Ok(is_so(self)) }).await;
        waited.with_context(|| format!("{:?}", self.monitor.stats()))
    }

    pub(crate) async fn drain(self) -> Result<Stats> {
        ensure!(!self.run.is_finished(), "the consumer ended by itself");
        self.shutdown.begin();
        Ok(self.run.await??)
    }
}

/// Waits for what must come.
pub(crate) async fn until<F>(what: &str, mut is_so: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = Result<bool>>,
{
    let end = Instant::now() + PATIENCE;
    while !is_so().await? {
        ensure!(
            Instant::now() < end,
            "within {PATIENCE:?} it did not come to this: {what}"
        );
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
