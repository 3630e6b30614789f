//! SQS and Redis, for the brokers' suite.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use aws_sdk_sqs::Client;
use backstop_conformance::broker::{BrokerHarness, QueueSpec, Reach, TestQueue, WorkerStore};
use backstop_core::{BrokerHandle, StoreHandle, SubscriptionOrder};
use backstop_redis_dedupe::RedisStore;
use backstop_sqs::{Sqs, SqsConfig};
use integration::{
    Mode, Proxy, SQS_REGION, SqsKind, SqsQueue, SqsQueueSpec, redis, sqs, sqs_client,
};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::emulator;

/// The environment of a worker process: its queue, and its store if it has one.
pub(crate) const WORKER_BROKER: &str = "BACKSTOP_TEST_WORKER_BROKER";
pub(crate) const WORKER_STORE: &str = "BACKSTOP_TEST_WORKER_STORE";

/// Seconds of a long poll. LocalStack goes on with one whose connection has ended, and hands what then
/// comes up to nobody until its lease ends. That a shutdown waits for no long poll, however long (F7), is a
/// test of `crates/sqs`, with polls that never end.
const WAIT: u32 = 2;

/// How long the server is away when it is restarted: longer than a long poll, which a real restart ends.
const OUTAGE: Duration = Duration::from_secs(3);

/// Queues on the shared server: FIFO queues for ordered consumers, and standard ones for the others.
pub(crate) struct Harness {
    is_localstack: bool,
    endpoint: String,
    client: Client,
    store: StoreHandle,
    store_url: &'static str,
}

pub(crate) struct Queue {
    pub(crate) native: SqsQueue,
    kind: SqsKind,
    client: Client,
    way: Way,
    account: String,
    lease_seconds: u32,
    delivery_limit: u32,
    store_url: &'static str,
}

/// How a queue is reached.
enum Way {
    /// Through a proxy: an emulator.
    Proxy(Proxy),
    /// At once: AWS, whose certificate is not for a proxy of ours.
    Direct { host: String },
}

impl Harness {
    pub(crate) async fn start() -> Result<Self> {
        Self::at(sqs().await).await
    }

    /// Queues on this server.
    pub(crate) async fn at(endpoint: &str) -> Result<Self> {
        // Shown with a test that fails.
        let log = tracing_subscriber::fmt()
            .with_test_writer()
            .with_env_filter("info,aws=error");
        let _ = log.try_init();
        let store_url = redis().await;
        let store = RedisStore::connect(store_url).await?;
        let endpoint = endpoint.trim_end_matches('/');
        Ok(Self {
            is_localstack: emulator::is_localstack(endpoint).await?,
            endpoint: endpoint.to_owned(),
            client: sqs_client(endpoint),
            store: store.into(),
            store_url,
        })
    }

    pub(crate) const fn store_url(&self) -> &'static str {
        self.store_url
    }

    pub(crate) const fn is_localstack(&self) -> bool {
        self.is_localstack
    }

    pub(crate) async fn make(&self, spec: QueueSpec) -> Result<Queue> {
        let kind = match spec.order {
            SubscriptionOrder::Unordered => SqsKind::Standard,
            SubscriptionOrder::ByPartitionKey => SqsKind::Fifo,
        };
        let lease_seconds = u32::try_from(spec.lease.as_millis().div_ceil(1000))?.max(1);
        let native_spec = SqsQueueSpec {
            kind,
            lease_seconds,
            max_receive_count: spec.delivery_limit.min(1000),
        };
        let native = SqsQueue::create(&self.client, native_spec).await?;
        let account = native.url.rsplit('/').nth(1);
        Ok(Queue {
            account: account.context("a URL without an account")?.to_owned(),
            way: match self.endpoint.strip_prefix("https://") {
                Some(host) => Way::Direct {
                    host: host.to_owned(),
                },
                None => Way::Proxy(Proxy::start(&self.endpoint).await?),
            },
            native,
            kind,
            client: self.client.clone(),
            lease_seconds,
            delivery_limit: native_spec.max_receive_count,
            store_url: self.store_url,
        })
    }
}

impl Queue {
    /// Where clients find it.
    pub(crate) fn url(&self) -> String {
        self.url_at(&self.host())
    }

    /// Where clients find it that soon give up waiting for an answer.
    pub(crate) fn url_of_the_impatient(&self) -> String {
        self.url_with(&self.host(), "connect_timeout=1&timeout=2")
    }

    /// Where clients find it, by the address of another proxy.
    pub(crate) fn url_at(&self, host: &str) -> String {
        self.url_with(host, "connect_timeout=5&timeout=10")
    }

    fn host(&self) -> String {
        match &self.way {
            Way::Proxy(proxy) => proxy.address().to_string(),
            Way::Direct { host } => host.clone(),
        }
    }

    fn url_with(&self, host: &str, timeouts: &str) -> String {
        // On AWS the region is part of the host's name.
        let region = match self.way {
            Way::Proxy(_) => format!("region={SQS_REGION}&"),
            Way::Direct { .. } => String::new(),
        };
        let (account, name, lease) = (&self.account, &self.native.name, self.lease_seconds);
        format!("sqs://{host}/{account}/{name}?{region}lease={lease}&wait={WAIT}&{timeouts}")
    }

    /// The proxy before it.
    pub(crate) fn proxy(&self) -> Result<&Proxy> {
        match &self.way {
            Way::Proxy(proxy) => Ok(proxy),
            Way::Direct { host } => anyhow::bail!("{host} is reached without a proxy"),
        }
    }

    /// A client behind the adapter's back.
    pub(crate) const fn client(&self) -> &Client {
        &self.client
    }
}

/// On AWS nothing may stay in the account; an emulator's queues end with it.
impl Drop for Queue {
    fn drop(&mut self) {
        let Way::Direct { host } = &self.way else {
            return;
        };
        let (native, endpoint) = (self.native.clone(), format!("https://{host}"));
        // The test's own runtime may be about to end.
        let deleting = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build()?;
            runtime.block_on(native.delete(&sqs_client(&endpoint)))
        });
        if !matches!(deleting.join(), Ok(Ok(()))) {
            eprintln!(
                "{} or its dead-letter queue was not deleted",
                self.native.name
            );
        }
    }
}

/// Connects with the credentials of the emulators, or of AWS's own chain where the URL names AWS.
pub(crate) fn connect(url: &str) -> Result<Sqs> {
    let config = SqsConfig::from_url(url)?;
    if url.contains("amazonaws.com") {
        return Ok(Sqs::new(config));
    }
    Ok(Sqs::new(config.credentials("test", "test")))
}

#[async_trait]
impl BrokerHarness for Harness {
    fn name(&self) -> String {
        "SQS and Redis".to_owned()
    }

    /// SQS counts in seconds, so that nothing comes too early; a lease of twenty ticks is renewed in
    /// time on a busy machine.
    fn tick(&self) -> Duration {
        Duration::from_millis(200)
    }

    fn patience(&self) -> Duration {
        Duration::from_mins(1)
    }

    /// SQS counts in seconds, and LocalStack may hand a message up to nobody for a lease, which is 30 s here.
    fn tolerance(&self, wait: Duration) -> Duration {
        wait / 4 + Duration::from_secs(45)
    }

    /// SQS hands out nothing of a group that follows a message in flight; LocalStack does, once another of
    /// the group has become visible again. `emulator` notices when LocalStack learns that.
    fn beyond_the_server(&self, case: &str) -> Option<&'static str> {
        let asks_for_it = matches!(case, "O4" | "O7");
        (self.is_localstack && asks_for_it)
            .then_some("LocalStack hands out what follows a message in flight of its FIFO group")
    }

    async fn queue(&self, spec: QueueSpec) -> Result<Arc<dyn TestQueue>> {
        Ok(Arc::new(self.make(spec).await?))
    }

    async fn missing_queue(&self) -> Result<BrokerHandle> {
        let mut queue = self.make(QueueSpec::default()).await?;
        "nowhere".clone_into(&mut queue.native.name);
        let (_, host) = self.endpoint.split_once("://").context("no endpoint")?;
        Ok(connect(&queue.url_at(host))?.into())
    }

    async fn store(&self) -> Result<StoreHandle> {
        Ok(Arc::clone(&self.store))
    }
}

#[async_trait]
impl TestQueue for Queue {
    async fn connect(&self) -> Result<BrokerHandle> {
        Ok(connect(&self.url())?.into())
    }

    /// The connections to AWS cannot be cut from here; to it a connection means nothing.
    async fn cut_connections(&self) -> Result<()> {
        if let Way::Proxy(proxy) = &self.way {
            proxy.cut();
        }
        Ok(())
    }

    /// SQS is durable, and what a client sees of its worst is an outage. The emulators are not (a test
    /// of the servers notices when that changes), so theirs is an outage too: connections are cut and
    /// refused for a while.
    async fn restart_broker(&self) -> Result<()> {
        if let Way::Proxy(proxy) = &self.way {
            proxy.set_mode(Mode::Refuse);
            proxy.cut();
            sleep(OUTAGE).await;
            proxy.set_mode(Mode::Forward);
        }
        Ok(())
    }

    async fn reach_dead_letters(&self, reach: Reach) -> Result<()> {
        if reach == Reach::Unreachable {
            let url = &self.native.dead_letters_url;
            self.client.delete_queue().queue_url(url).send().await?;
            return Ok(());
        }
        // For a minute AWS makes no queue of a name that was deleted.
        let end = Instant::now() + Duration::from_secs(90);
        while let Err(error) = self
            .native
            .create_dead_letters(&self.client, self.kind)
            .await
        {
            ensure!(Instant::now() < end, error.context("after 90 s"));
            sleep(Duration::from_secs(5)).await;
        }
        Ok(())
    }

    async fn exhaust_delivery_limit(&self) -> Result<()> {
        let receive = || {
            let request = self.client.receive_message().queue_url(&self.native.url);
            request.visibility_timeout(0).wait_time_seconds(2).send()
        };
        let mut received = 0;
        while received < self.delivery_limit {
            let came = receive().await?.messages.unwrap_or_default();
            received += u32::from(!came.is_empty());
        }
        // SQS moves it when it is asked for once more.
        receive().await?;
        Ok(())
    }

    fn worker(&self, store: WorkerStore) -> Option<Command> {
        let mut command = Command::new(std::env::current_exe().ok()?);
        command.args(["--exact", "sqs::suite::a_worker_serves", "--nocapture"]);
        command.env(WORKER_BROKER, self.url());
        if store == WorkerStore::Shared {
            command.env(WORKER_STORE, self.store_url);
        }
        Some(command)
    }
}
