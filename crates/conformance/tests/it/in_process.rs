//! The in-process broker, for the suite.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use backstop_conformance::broker::{
    BrokerHarness, Interruptions, QueueSpec, Reach, TestQueue, WorkerStore,
};
use backstop_core::{
    BrokerHandle, InProcessBroker, InProcessStore, OrderedRetry, ReleaseCost, StoreHandle,
};
use tokio::process::Command;

/// How the in-process broker is dressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dress {
    /// As it is.
    Own,
    /// As a broker that keeps ordered retries, counts releases and has a longest delay.
    Hosted,
}

/// By which clock a test waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Time {
    /// By tokio's paused one: nothing is late.
    Paused,
    /// By that of a machine that may be busy.
    Real,
}

pub(crate) struct InProcess {
    dress: Dress,
    time: Time,
    store: StoreHandle,
}

impl InProcess {
    pub(crate) fn new(dress: Dress, time: Time) -> Self {
        let store = InProcessStore::new().into();
        Self { dress, time, store }
    }
}

pub(crate) struct Queue {
    pub(crate) broker: InProcessBroker,
    delivery_limit: u32,
}

impl InProcess {
    pub(crate) fn make(&self, spec: QueueSpec) -> Queue {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let builder = InProcessBroker::builder(format!("queue-{number}"))
            .lease(spec.lease)
            .max_body(1 << 20)
            .delivery_limit(spec.delivery_limit);
        let builder = match self.dress {
            Dress::Own => builder,
            Dress::Hosted => builder
                .ordered_retry(OrderedRetry::Native)
                .release_cost(ReleaseCost::Counted)
                .max_delay(Duration::from_mins(15)),
        };
        Queue {
            broker: builder.build(),
            delivery_limit: spec.delivery_limit,
        }
    }
}

#[async_trait]
impl BrokerHarness for InProcess {
    fn name(&self) -> String {
        format!("the in-process broker, dress {:?}", self.dress)
    }

    fn tick(&self) -> Duration {
        Duration::from_millis(match self.time {
            Time::Paused => 20,
            Time::Real => 100,
        })
    }

    fn patience(&self) -> Duration {
        Duration::from_mins(1)
    }

    fn tolerance(&self, wait: Duration) -> Duration {
        match self.time {
            // Tokio's timers count milliseconds.
            Time::Paused => Duration::from_millis(5),
            Time::Real => wait / 4 + self.patience() / 4,
        }
    }

    async fn queue(&self, spec: QueueSpec) -> anyhow::Result<Arc<dyn TestQueue>> {
        Ok(Arc::new(self.make(spec)))
    }

    async fn missing_queue(&self) -> anyhow::Result<BrokerHandle> {
        anyhow::bail!("an in-process queue is made by its handle")
    }

    async fn store(&self) -> anyhow::Result<StoreHandle> {
        Ok(Arc::clone(&self.store))
    }
}

#[async_trait]
impl TestQueue for Queue {
    async fn connect(&self) -> anyhow::Result<BrokerHandle> {
        Ok(self.broker.clone().into())
    }

    async fn cut_connections(&self) -> anyhow::Result<()> {
        self.broker.drop_connections();
        Ok(())
    }

    async fn restart_broker(&self) -> anyhow::Result<()> {
        self.broker.drop_connections();
        Ok(())
    }

    async fn reach_dead_letters(&self, reach: Reach) -> anyhow::Result<()> {
        let refusals = match reach {
            Reach::Unreachable => u32::MAX,
            Reach::Reachable => 0,
        };
        self.broker.faults().refuse_dead_letters(refusals);
        Ok(())
    }

    async fn interrupt_dead_lettering(&self, count: u32) -> anyhow::Result<Interruptions> {
        self.broker.faults().keep_originals(count);
        Ok(Interruptions::Planned)
    }

    async fn exhaust_delivery_limit(&self) -> anyhow::Result<()> {
        let broker: BrokerHandle = self.broker.clone().into();
        for _ in 0..=self.delivery_limit {
            backstop_conformance::broker::receive_and_drop(&broker).await?;
        }
        Ok(())
    }

    fn worker(&self, _: WorkerStore) -> Option<Command> {
        None
    }
}
