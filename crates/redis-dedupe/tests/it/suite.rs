//! The stores' suite on each way to run Redis.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backstop_conformance::store::{StoreHarness, run_all};
use backstop_core::StoreHandle;
use backstop_redis_dedupe::RedisStoreConfig;

use crate::setup::{config, shared_cluster, shared_sentinels};

struct Redis {
    name: &'static str,
    config: RedisStoreConfig,
}

#[async_trait]
impl StoreHarness for Redis {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn tick(&self) -> Duration {
        Duration::from_secs(2)
    }

    async fn connect(&self) -> anyhow::Result<StoreHandle> {
        Ok(self.config.clone().connect().await?.into())
    }
}

async fn passes(name: &'static str, config: RedisStoreConfig) {
    let harness = Arc::new(Redis { name, config });
    run_all(harness).await.assert_passed();
}

const ONE: NonZeroU32 = NonZeroU32::MIN;

#[tokio::test(flavor = "multi_thread")]
async fn one_server_passes_the_suite() {
    passes("Redis", config(integration::redis().await)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_passes_the_suite() {
    let cluster = shared_cluster().await;
    let waits = config(cluster.url()).wait_for_replicas(ONE, Duration::from_secs(20));
    tokio::join!(
        passes("Redis Cluster", config(cluster.url())),
        passes("Redis Cluster with replicas waited for", waits),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_under_sentinel_passes_the_suite() {
    let sentinels = shared_sentinels().await;
    let waits = config(sentinels.url()).wait_for_replicas(ONE, Duration::from_secs(20));
    tokio::join!(
        passes("Redis under Sentinel", config(sentinels.url())),
        passes("Redis under Sentinel with replicas waited for", waits),
    );
}
