//! Faults heal: a server that is away, paused or absent, connections that break, answers that are lost, and
//! throttling (CONFORMANCE, X1 to X7).

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use backstop_conformance::broker::TestQueue as _;
use backstop_redis_dedupe::RedisStore;
use integration::{Mode, Throttle, sqs, start_redis, start_sqs};
use tokio::sync::Semaphore;

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

/// Twenty messages, of which sixteen are handled while nothing comes through in one direction. Then it is
/// left until the consumer has given up on all sixteen deletions.
async fn lose_acks(world: World, mode: Mode) -> Result<(World, Ledger, Vec<String>, Running)> {
    let ledger = Ledger::default();
    let ids = world.publish(20, Duration::ZERO)?.await?;
    let broker = connect(&world.queue.url_of_the_impatient())?;
    let door = Arc::new(Semaphore::new(0));
    let waiting = Arc::clone(&door);
    let work = move || {
        let door = Arc::clone(&waiting);
        // It has no permit: this ends when the door is closed for good.
        async move { drop(door.acquire().await) }
    };
    let consumer = Running::working(builder(broker, world.store().await?), &ledger, work)?;
    consumer
        .until("all slots are in use", |consumer| {
            consumer.monitor.stats().started >= 16
        })
        .await?;
    world.queue.proxy()?.set_mode(mode);
    door.close();
    until("they are handled", || async { Ok(ledger.len() >= 16) }).await?;
    consumer
        .until("their settlements have failed", |consumer| {
            consumer.monitor.stats().settle_errors >= 16
        })
        .await?;
    Ok((world, ledger, ids, consumer))
}

fn find_again(world: &World) -> Result<()> {
    world.queue.proxy()?.set_mode(Mode::Forward);
    world.queue.proxy()?.cut();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x4_the_repeats_of_messages_whose_deletions_were_lost_are_absorbed() -> Result<()> {
    let (world, ledger, ids, consumer) = lose_acks(World::new().await?, Mode::DropToServer).await?;
    find_again(&world)?;
    consumer
        .until("the repeats are absorbed", |consumer| {
            consumer.monitor.stats().repeats >= 16
        })
        .await?;
    until("all are handled", || async { Ok(ledger.len() >= 20) }).await?;
    world.must_be_empty().await?;
    consumer.drain().await?;
    ledger.must_have_once(&ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x4_messages_whose_deletions_were_not_answered_are_gone_and_are_not_repeated() -> Result<()>
{
    // So long that each is still ours when it is to be deleted, however busy this machine is.
    let world = World::leased(Harness::start().await?, Duration::from_secs(30)).await?;
    let (world, ledger, ids, consumer) = lose_acks(world, Mode::DropToClient).await?;
    let left = world.depth(&world.queue.native.url).await?;
    ensure!(
        left == 4,
        "{left} are left of 20, and 16 were to be deleted"
    );
    find_again(&world)?;
    until("all are handled", || async { Ok(ledger.len() >= 20) }).await?;
    world.must_be_empty().await?;
    let stats = consumer.drain().await?;
    ensure!(stats.repeats == 0, "{stats:?}");
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
