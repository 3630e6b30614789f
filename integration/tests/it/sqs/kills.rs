//! kill -9 of consumer processes at random moments (CONFORMANCE, X8).

use std::time::Duration;

use anyhow::Result;
use backstop_core::StoreHandle;
use backstop_redis_dedupe::RedisStore;

use super::harness::connect;
use super::world::{World, builder};
use crate::rabbitmq::kills::{BROKER, Victims, consume, duty};
use crate::rabbitmq::world::until;

/// What a victim held comes back when its lease ends; the others go on meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x8_a_hundred_kills_lose_nothing_and_repeat_nothing_under_one_fence() -> Result<()> {
    let world = World::new().await?;
    let publishing = world.publish(2000, Duration::from_millis(10))?;
    let (name, url) = ("sqs::kills::a_victim_consumes", world.queue.url());
    let victims = Victims::start(name, &url, world.harness.store_url())?;
    let victims = victims.kill_at_random_moments().await?;
    let ids = publishing.await?;
    let ledger = victims.ledger.clone();
    until("all are handled", || async {
        Ok(ledger.len() >= ids.len())
    })
    .await?;
    world.must_be_empty().await?;
    drop(victims);
    ledger.must_have(&ids)
}

/// The test above starts this one in processes of its own. By itself it has nothing to consume, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_victim_consumes() -> Result<()> {
    if std::env::var(BROKER).is_err() {
        let error = duty().unwrap_err();
        assert!(error.to_string().contains(BROKER), "{error}");
        return Ok(());
    }
    let (broker, store) = duty()?;
    let store: StoreHandle = RedisStore::connect(&store).await?.into();
    consume(builder(connect(&broker)?, store)).await
}
