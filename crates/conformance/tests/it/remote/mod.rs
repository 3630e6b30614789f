//! The in-process broker lent to real worker processes: the suite's processes without a server.

mod client;
mod server;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backstop_conformance::broker::{
    BrokerHarness, Interruptions, QueueSpec, Reach, TestQueue, WorkerStore, run, worker,
};
use backstop_core::{BrokerHandle, StoreHandle};
use tokio::process::Command;

use self::client::Remote;
use self::server::Server;
use crate::in_process::{Dress, InProcess, Queue, Time};

/// Where a worker finds its broker.
const ADDRESS: &str = "BACKSTOP_TEST_ADDRESS";
/// Set if it is to use the store.
const STORE: &str = "BACKSTOP_TEST_STORE";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_suite_kills_and_drains_real_processes() {
    let harness = Lending {
        sound: InProcess::new(Dress::Own, Time::Real),
    };
    let report = run(Arc::new(harness), "R4,R5,O6,O7").await;
    report.assert_passed();
    assert_eq!(report.passed.len(), 4, "{report}");
}

/// Is what the worker processes run. Without the suite there is nothing to serve.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_serves_whom_the_suite_has_started() {
    let Ok(address) = std::env::var(ADDRESS) else {
        let nobody = Remote {
            address: ([127, 0, 0, 1], 1).into(),
        };
        let broker: BrokerHandle = Arc::new(nobody);
        let refusal = worker::serve(broker, None).await.unwrap_err();
        assert!(refusal.to_string().contains("BACKSTOP_WORKER"), "{refusal}");
        return;
    };
    let address = address.parse().unwrap();
    let broker: BrokerHandle = Arc::new(Remote { address });
    let store = std::env::var(STORE).is_ok();
    let store = store.then(|| Arc::new(Remote { address }) as StoreHandle);
    worker::serve(broker, store).await.unwrap();
}

/// Lends each queue to processes.
struct Lending {
    sound: InProcess,
}

struct LentQueue {
    sound: Queue,
    server: Server,
}

#[async_trait]
impl BrokerHarness for Lending {
    fn name(&self) -> String {
        "the in-process broker, lent to processes".to_owned()
    }

    fn tick(&self) -> Duration {
        self.sound.tick()
    }

    fn patience(&self) -> Duration {
        self.sound.patience()
    }

    fn tolerance(&self, wait: Duration) -> Duration {
        self.sound.tolerance(wait)
    }

    async fn queue(&self, spec: QueueSpec) -> anyhow::Result<Arc<dyn TestQueue>> {
        let sound = self.sound.make(spec);
        let broker = sound.connect().await?;
        let server = Server::start(broker, self.sound.store().await?).await?;
        Ok(Arc::new(LentQueue { sound, server }))
    }

    async fn missing_queue(&self) -> anyhow::Result<BrokerHandle> {
        self.sound.missing_queue().await
    }

    async fn store(&self) -> anyhow::Result<StoreHandle> {
        self.sound.store().await
    }
}

#[async_trait]
impl TestQueue for LentQueue {
    async fn connect(&self) -> anyhow::Result<BrokerHandle> {
        self.sound.connect().await
    }

    async fn cut_connections(&self) -> anyhow::Result<()> {
        self.sound.cut_connections().await
    }

    async fn restart_broker(&self) -> anyhow::Result<()> {
        self.sound.restart_broker().await
    }

    async fn reach_dead_letters(&self, reach: Reach) -> anyhow::Result<()> {
        self.sound.reach_dead_letters(reach).await
    }

    async fn interrupt_dead_lettering(&self, count: u32) -> anyhow::Result<Interruptions> {
        self.sound.interrupt_dead_lettering(count).await
    }

    async fn exhaust_delivery_limit(&self) -> anyhow::Result<()> {
        self.sound.exhaust_delivery_limit().await
    }

    fn worker(&self, store: WorkerStore) -> Option<Command> {
        let mut command = Command::new(std::env::current_exe().ok()?);
        command
            .args([
                "--exact",
                "remote::a_worker_serves_whom_the_suite_has_started",
            ])
            .arg("--nocapture")
            .env(ADDRESS, self.server.address.to_string());
        if store == WorkerStore::Shared {
            command.env(STORE, "shared");
        }
        Some(command)
    }
}
