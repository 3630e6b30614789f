//! The in-process store passes the stores' suite.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backstop_conformance::store::{StoreHarness, run_all};
use backstop_core::{InProcessStore, StoreHandle};

/// Hands out one store.
pub(crate) struct One {
    pub(crate) name: &'static str,
    pub(crate) store: StoreHandle,
    pub(crate) tick: Duration,
}

#[async_trait]
impl StoreHarness for One {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn tick(&self) -> Duration {
        self.tick
    }

    async fn connect(&self) -> anyhow::Result<StoreHandle> {
        Ok(Arc::clone(&self.store))
    }
}

fn in_process(tick: Duration) -> Arc<One> {
    Arc::new(One {
        name: "the in-process store",
        store: InProcessStore::new().into(),
        tick,
    })
}

#[tokio::test(start_paused = true)]
async fn the_in_process_store_passes_the_stores_suite() {
    let harness = in_process(Duration::from_millis(20));
    run_all(harness).await.assert_passed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_in_process_store_passes_the_stores_suite_in_real_time() {
    let harness = in_process(Duration::from_millis(200));
    run_all(harness).await.assert_passed();
}
