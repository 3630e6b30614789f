//! What a broker brings to the suite.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backstop_core::{BrokerHandle, StoreHandle, SubscriptionOrder};
use tokio::process::Command;

/// Makes queues of one kind of broker, and a store beside them.
///
/// # Cancel safety
///
/// The suite drops a call only together with its case, which it does when a case hangs for 10 minutes:
/// nothing is asked of what is left behind then.
#[async_trait]
pub trait BrokerHarness: Send + Sync + 'static {
    /// The broker and the store, for the report.
    fn name(&self) -> String;

    /// The shortest delay that the broker keeps well; delays and leases of the cases are multiples
    /// of it. A handler's scheduling must fit into it easily.
    fn tick(&self) -> Duration;

    /// How long to wait for what must come before calling it lost; generous.
    fn patience(&self) -> Duration;

    /// How long to wait for what must not come.
    fn quiet(&self) -> Duration {
        self.tick() * 15
    }

    /// How much later than after `wait` something may come that is due then, or be over that is to be over
    /// at once: how coarse the broker's times are, and what a busy machine adds. Generous by default; where
    /// time is paused it is next to nothing, and only there a delay that is late by little is noticed.
    fn tolerance(&self, wait: Duration) -> Duration {
        wait / 4 + self.patience() / 4
    }

    /// Why this server, an emulator, cannot pass a case that its broker passes: the case is left out and
    /// reported as such. Each such reason has a test that fails when the emulator is mended.
    fn beyond_the_server(&self, case: &str) -> Option<&'static str> {
        let _ = case;
        None
    }

    /// An empty queue with a name of its own and a dead-letter queue.
    ///
    /// # Errors
    ///
    /// When the server refuses; the case fails.
    async fn queue(&self, spec: QueueSpec) -> anyhow::Result<Arc<dyn TestQueue>>;

    /// A handle to a queue that does not exist. Never asked of a broker that lives in its process.
    ///
    /// # Errors
    ///
    /// When there is no server.
    async fn missing_queue(&self) -> anyhow::Result<BrokerHandle>;

    /// A store that all consumers of the suite may share.
    ///
    /// # Errors
    ///
    /// When there is no server.
    async fn store(&self) -> anyhow::Result<StoreHandle>;
}

/// What a case wants of its queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueSpec {
    /// Whether ordered consumers will use it.
    pub order: SubscriptionOrder,
    /// How long deliveries are leased, where the broker leases for a time. A broker may round it up.
    pub lease: Duration,
    /// The broker's own cap on attempts.
    pub delivery_limit: u32,
}

impl Default for QueueSpec {
    fn default() -> Self {
        Self {
            order: SubscriptionOrder::Unordered,
            lease: Duration::from_secs(30),
            delivery_limit: 50,
        }
    }
}

impl QueueSpec {
    /// Ordered consumers will use the queue.
    #[must_use]
    pub const fn ordered(mut self) -> Self {
        self.order = SubscriptionOrder::ByPartitionKey;
        self
    }

    /// Deliveries are leased for this long.
    #[must_use]
    pub const fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// The broker itself dead-letters what was attempted more often.
    #[must_use]
    pub const fn delivery_limit(mut self, attempts: u32) -> Self {
        self.delivery_limit = attempts;
        self
    }
}

/// Whether the dead-letter queue takes messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It takes none: it is gone, or the broker refuses.
    Unreachable,
    /// It is as usual.
    Reachable,
}

/// Whether a harness can make something break off at a chosen moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruptions {
    /// It has: so it must show.
    Planned,
    /// It cannot.
    ByChance,
}

/// How a worker process is to treat repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerStore {
    /// By the harness's store, shared with the other workers.
    Shared,
    /// Not at all: the handler is idempotent by nature.
    None,
}

/// One queue of a test, and what can be done to it.
///
/// # Cancel safety
///
/// As [`BrokerHarness`].
#[async_trait]
pub trait TestQueue: Send + Sync + 'static {
    /// Connects as another process would.
    ///
    /// # Errors
    ///
    /// When the broker refuses.
    async fn connect(&self) -> anyhow::Result<BrokerHandle>;

    /// Cuts every connection to the queue, without warning.
    ///
    /// # Errors
    ///
    /// When that cannot be done; the case fails.
    async fn cut_connections(&self) -> anyhow::Result<()>;

    /// Restarts the broker, and returns when it is up again. A broker that lives in this process
    /// cuts connections instead.
    ///
    /// # Errors
    ///
    /// When that cannot be done; the case fails.
    async fn restart_broker(&self) -> anyhow::Result<()>;

    /// Makes the dead-letter queue refuse messages, or take them again. What was in it may be lost.
    ///
    /// # Errors
    ///
    /// When that cannot be done; the case fails.
    async fn reach_dead_letters(&self, reach: Reach) -> anyhow::Result<()>;

    /// Makes the next `count` dead letters be interrupted behind their copies: these are in the dead-letter
    /// queue, and the originals are delivered again. Says whether that can be done; by default it cannot.
    /// Then nothing but chance makes a crash meet that moment.
    ///
    /// # Errors
    ///
    /// When that can be done, and fails; the case fails.
    async fn interrupt_dead_lettering(&self, count: u32) -> anyhow::Result<Interruptions> {
        let _ = count;
        Ok(Interruptions::ByChance)
    }

    /// Makes the broker dead-letter the oldest message by its own delivery limit.
    ///
    /// # Errors
    ///
    /// When that cannot be done; the case fails.
    async fn exhaust_delivery_limit(&self) -> anyhow::Result<()>;

    /// A command whose process calls [`worker::serve`](super::worker::serve) with a connection to
    /// this queue and, if asked for, the harness's store; the suite adds environment variables to
    /// it. `None` if no process can reach the queue or the store: the consumers then run as tasks.
    fn worker(&self, store: WorkerStore) -> Option<Command>;
}
