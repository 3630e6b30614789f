//! Faults heal: a server that is away, paused or absent, connections that break, and throttling
//! (CONFORMANCE, X1 to X3 and X5 to X7).

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use backstop_conformance::broker::TestQueue as _;
use backstop_redis_dedupe::RedisStore;
use integration::{Mode, Throttle, sqs, start_redis, start_sqs};

use super::harness::{Harness, connect};
use super::world::{World, builder};
use crate::rabbitmq::world::{Ledger, Running, until};

const WORK: Duration = Duration::from_millis(5);
const PACE: Duration = Duration::from_millis(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x1_two_outages_of_the_broker_under_load_lose_nothing() -> Result<()> {
    let (world, ledger) = (World::new().await?, Ledger::default());
    let publishing = world.publish(1000, PACE)?;
    let mut consumers = Vec::new();
    for _ in 0..2 {
        let builder = builder(world.broker()?, world.store().await?);
        consumers.push(Running::start(builder, &ledger, WORK)?);
    }
    for handled in [100, 400] {
        until("some are handled", || async { Ok(ledger.len() >= handled) }).await?;
        world.queue.restart_broker().await?;
    }
    let ids = publishing.await?;
    until("all are handled", || async {
        Ok(ledger.len() >= ids.len())
    })
    .await?;
    world.must_be_empty().await?;
    for consumer in consumers {
        consumer.drain().await?;
    }
    ledger.must_have(&ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x2_after_cut_connections_consumption_resumes() -> Result<()> {
    let (world, ledger) = (World::new().await?, Ledger::default());
    let builder = builder(world.broker()?, world.store().await?);
    let consumer = Running::start(builder, &ledger, Duration::from_millis(30))?;
    let publishing = world.publish(600, PACE)?;
    for cut in 1..=5 {
        until("some are handled", || async {
            Ok(ledger.len() >= 60 * cut)
        })
        .await?;
        world.queue.proxy()?.cut();
    }
    let ids = publishing.await?;
    until("all are handled", || async {
        Ok(ledger.len() >= ids.len())
    })
    .await?;
    world.must_be_empty().await?;
    consumer.drain().await?;
    ledger.must_have(&ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x3_a_half_open_connection_and_a_pause_are_noticed() -> Result<()> {
    let server = start_sqs().await?;
    let harness = Harness::at(server.url()).await?;
    let (world, ledger) = (World::of(harness).await?, Ledger::default());
    let builder = builder(world.broker()?, world.store().await?);
    let consumer = Running::start(builder, &ledger, WORK)?;
    let mut ids = world.publish(50, PACE)?.await?;
    until("all are handled", || async {
        Ok(ledger.len() >= ids.len())
    })
    .await?;

    world.queue.proxy()?.set_mode(Mode::BlackHole);
    consumer
        .until("the silence is noticed", |consumer| {
            !consumer.monitor.is_ready()
        })
        .await?;
    world.queue.proxy()?.set_mode(Mode::Forward);
    consumer
        .until("it receives again", |consumer| consumer.monitor.is_ready())
        .await?;

    server.pause().await?;
    consumer
        .until("the pause is noticed", |consumer| {
            !consumer.monitor.is_ready()
        })
        .await?;
    server.unpause().await?;
    consumer
        .until("it receives again", |consumer| consumer.monitor.is_ready())
        .await?;

    ids.extend(world.publish(100, PACE)?.await?.split_off(50));
    until("all are handled", || async {
        Ok(ledger.len() >= ids.len())
    })
    .await?;
    world.must_be_empty().await?;
    consumer.drain().await?;
    ledger.must_have_once(&ids)
}

/// What was handled and could not be recorded before its claim ran out is handled again, under a higher
/// fence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x5_a_restart_of_the_store_loses_nothing_and_repeats_nothing_under_one_fence() -> Result<()>
{
    let (world, ledger) = (World::new().await?, Ledger::default());
    let redis = start_redis(&[]).await?;
    let store = RedisStore::connect(redis.url()).await?;
    let consumer = Running::start(builder(world.broker()?, store.into()), &ledger, WORK)?;
    let publishing = world.publish(600, PACE)?;
    for handled in [100, 300] {
        until("some are handled", || async { Ok(ledger.len() >= handled) }).await?;
        redis.restart().await?;
    }
    let ids = publishing.await?;
    until("all are handled", || async {
        Ok(ledger.len() >= ids.len())
    })
    .await?;
    world.must_be_empty().await?;
    consumer.drain().await?;
    ledger.must_have(&ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x6_a_broker_that_is_absent_at_the_start_is_waited_for() -> Result<()> {
    let (world, ledger) = (World::new().await?, Ledger::default());
    let ids = world.publish(20, Duration::ZERO)?.await?;
    world.queue.proxy()?.set_mode(Mode::Refuse);
    world.queue.proxy()?.cut();
    let builder = builder(world.broker()?, world.store().await?);
    let consumer = Running::start(builder, &ledger, WORK)?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(!consumer.monitor.is_ready(), "ready without a broker");
    world.queue.proxy()?.set_mode(Mode::Forward);
    consumer
        .until("it is ready", |consumer| consumer.monitor.is_ready())
        .await?;
    until("all are handled", || async {
        Ok(ledger.len() >= ids.len())
    })
    .await?;
    world.must_be_empty().await?;
    consumer.drain().await?;
    ledger.must_have_once(&ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x7_throttling_is_backed_off_and_loses_nothing() -> Result<()> {
    let (world, ledger) = (World::new().await?, Ledger::default());
    let throttle = Throttle::start(sqs().await).await?;
    let host = throttle.url().strip_prefix("http://");
    let url = world
        .queue
        .url_at(host.context("a throttle without a host")?);
    let consumer = Running::start(builder(connect(&url)?, world.store().await?), &ledger, WORK)?;
    let publishing = world.publish(600, PACE)?;
    until("some are handled", || async { Ok(ledger.len() >= 100) }).await?;
    throttle.refuse(300);
    until("more are handled", || async { Ok(ledger.len() >= 300) }).await?;
    ensure!(throttle.refused() > 0, "nothing was throttled");

    throttle.refuse(1000);
    consumer
        .until("the throttling is noticed", |consumer| {
            !consumer.monitor.is_ready()
        })
        .await?;
    let before = throttle.refused();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let asked = throttle.refused() - before;
    ensure!(asked < 500, "{asked} requests in 5 s of throttling");

    throttle.refuse(0);
    let ids = publishing.await?;
    until("all are handled", || async {
        Ok(ledger.len() >= ids.len())
    })
    .await?;
    world.must_be_empty().await?;
    consumer.drain().await?;
    ledger.must_have(&ids)
}
