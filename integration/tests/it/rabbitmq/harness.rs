//! RabbitMQ and Redis, for the brokers' suite.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use backstop_conformance::broker::{BrokerHarness, QueueSpec, Reach, TestQueue, WorkerStore};
use backstop_core::{Broker as _, BrokerHandle, StoreHandle, SubscriptionOrder};
use backstop_rabbitmq::RabbitMq;
use backstop_redis_dedupe::RedisStore;
use integration::{Plugins, Proxy, Server, redis, start_rabbitmq};
use lapin::options::{BasicGetOptions, BasicRejectOptions, QueueDeleteOptions};
use lapin::{Connection, ConnectionProperties};
use tokio::process::Command;

/// The environment of a worker process: its queue, and its store if it has one.
pub(crate) const WORKER_BROKER: &str = "BACKSTOP_TEST_WORKER_BROKER";
pub(crate) const WORKER_STORE: &str = "BACKSTOP_TEST_WORKER_STORE";

/// A server of its own: the suite restarts it.
pub(crate) struct Harness {
    server: Arc<Server>,
    store: StoreHandle,
    store_url: &'static str,
}

pub(crate) struct Queue {
    server: Arc<Server>,
    proxy: Proxy,
    name: String,
    parameters: String,
    delivery_limit: u32,
    store_url: &'static str,
}

impl Harness {
    pub(crate) async fn start(plugins: Plugins) -> Result<Self> {
        // Shown with a test that fails. lapin's own warnings quote returned messages.
        let log = tracing_subscriber::fmt()
            .with_test_writer()
            .with_env_filter("info,lapin=error");
        let _ = log.try_init();
        let store_url = redis().await;
        let store = RedisStore::connect(store_url).await?;
        let server = Arc::new(start_rabbitmq(plugins).await?);
        Ok(Self {
            server,
            store: store.into(),
            store_url,
        })
    }

    pub(crate) const fn store_url(&self) -> &'static str {
        self.store_url
    }

    pub(crate) async fn make(&self, spec: QueueSpec) -> Result<Queue> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let partitions = match spec.order {
            SubscriptionOrder::Unordered => "",
            SubscriptionOrder::ByPartitionKey => "&partitions=4",
        };
        let name = format!("queue-{}-{number}", std::process::id());
        let limit = spec.delivery_limit;
        let queue = Queue {
            server: Arc::clone(&self.server),
            proxy: Proxy::start(self.server.url()).await?,
            parameters: format!(
                "/?queue={name}&delivery_limit={limit}{partitions}&connect_timeout=30"
            ),
            name,
            delivery_limit: limit,
            store_url: self.store_url,
        };
        queue.declare().await?;
        Ok(queue)
    }
}

impl Queue {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// The URL that goes through the proxy.
    pub(crate) fn url(&self) -> String {
        format!("{}{}", self.proxy.url(), self.parameters)
    }

    /// The URL that goes to the server at once.
    pub(crate) fn direct_url(&self) -> String {
        format!("{}{}", self.server.url(), self.parameters)
    }

    async fn declare(&self) -> Result<()> {
        let broker = RabbitMq::connect(&format!("{}&declare=true", self.direct_url())).await?;
        broker.close().await;
        Ok(())
    }

    /// A connection behind the adapter's back.
    pub(crate) async fn native(&self) -> Result<Connection> {
        let connection = Connection::connect(self.server.url(), ConnectionProperties::default());
        connection.await.context("connecting by lapin")
    }
}

#[async_trait]
impl BrokerHarness for Harness {
    fn name(&self) -> String {
        format!("RabbitMQ {} and Redis", integration::rabbitmq_version())
    }

    fn tick(&self) -> Duration {
        Duration::from_millis(100)
    }

    fn patience(&self) -> Duration {
        Duration::from_mins(3)
    }

    async fn queue(&self, spec: QueueSpec) -> Result<Arc<dyn TestQueue>> {
        Ok(Arc::new(self.make(spec).await?))
    }

    async fn missing_queue(&self) -> Result<BrokerHandle> {
        let url = format!("{}/?queue=nowhere", self.server.url());
        Ok(RabbitMq::open(&url)?.into())
    }

    async fn store(&self) -> Result<StoreHandle> {
        Ok(Arc::clone(&self.store))
    }
}

#[async_trait]
impl TestQueue for Queue {
    async fn connect(&self) -> Result<BrokerHandle> {
        Ok(RabbitMq::open(&self.url())?.into())
    }

    async fn cut_connections(&self) -> Result<()> {
        self.proxy.cut();
        Ok(())
    }

    async fn restart_broker(&self) -> Result<()> {
        self.server.restart().await
    }

    async fn reach_dead_letters(&self, reach: Reach) -> Result<()> {
        if reach == Reach::Reachable {
            return self.declare().await;
        }
        let channel = self.native().await?.create_channel().await?;
        let name = format!("{}.dead-letters", self.name);
        channel
            .queue_delete(name.into(), QueueDeleteOptions::default())
            .await?;
        Ok(())
    }

    async fn exhaust_delivery_limit(&self) -> Result<()> {
        let connection = self.native().await?;
        let channel = connection.create_channel().await?;
        for _ in 0..=self.delivery_limit {
            let got = loop {
                let options = BasicGetOptions { no_ack: false };
                if let Some(got) = channel
                    .basic_get(self.name.as_str().into(), options)
                    .await?
                {
                    break got;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            };
            channel
                .basic_reject(
                    got.delivery.delivery_tag,
                    BasicRejectOptions { requeue: true },
                )
                .await?;
        }
        Ok(())
    }

    fn worker(&self, store: WorkerStore) -> Option<Command> {
        let mut command = Command::new(std::env::current_exe().ok()?);
        command.args(["--exact", "rabbitmq::suite::a_worker_serves", "--nocapture"]);
        command.env(WORKER_BROKER, self.url());
        if store == WorkerStore::Shared {
            command.env(WORKER_STORE, self.store_url);
        }
        Some(command)
    }
}
