//! Faults heal: servers that restart, pause or are absent, and connections that break (CONFORMANCE, X1
//! to X6).

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use backstop_rabbitmq::RabbitMq;
use backstop_redis_dedupe::RedisStore;
use integration::{Mode, start_redis};
use tokio::sync::Semaphore;

use super::world::{Ledger, Running, World, builder, until};

const WORK: Duration = Duration::from_millis(5);
const PACE: Duration = Duration::from_millis(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x1_two_restarts_of_the_broker_under_load_lose_nothing() -> Result<()> {
    let (world, ledger) = (World::new().await?, Ledger::default());
    let publishing = world.publish(3000, PACE)?;
    let mut consumers = Vec::new();
    for _ in 0..2 {
        let builder = builder(world.broker()?, world.store().await?);
        consumers.push(Running::start(builder, &ledger, WORK)?);
    }
    for handled in [200, 1000] {
        until("some are handled", || async { Ok(ledger.len() >= handled) }).await?;
        world.queue.server().restart().await?;
    }
    let ids = publishing.await?;
    until("all are handled", || async {
        Ok(ledger.len() >= ids.len())
    })
    .await?;
    for consumer in consumers {
        consumer.drain().await?;
    }
    ledger.must_have_once(&ids)?;
    world.must_be_empty().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x2_after_a_cut_connection_stale_settles_are_revoked_and_consumption_resumes() -> Result<()>
{
    let (world, ledger) = (World::new().await?, Ledger::default());
    let builder = builder(world.broker()?, world.store().await?);
    // Long enough for some to be under way at each cut, also where publishing is slow.
    let consumer = Running::start(builder, &ledger, Duration::from_millis(200))?;
    let publishing = world.publish(600, PACE)?;
    for cut in 1..=5 {
        until("some are handled", || async {
            Ok(ledger.len() >= 60 * cut)
        })
        .await?;
        world.queue.proxy().cut();
    }
    let ids = publishing.await?;
    until("all are handled", || async {
        Ok(ledger.len() >= ids.len())
    })
    .await?;
    until("the queue is empty", || async {
        Ok(consumer.monitor.stats().received > 600)
    })
    .await?;
    world.must_be_empty().await?;
    let stats = consumer.drain().await?;
    anyhow::ensure!(
        stats.lost_leases + stats.settle_errors > 0,
        "nothing was under way when the connection was cut: {stats:?}"
    );
    // A handler that loses its lease is cancelled: here, before its effect.
    ledger.must_have_once(&ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x3_a_half_open_connection_is_noticed_and_replaced() -> Result<()> {
    let (world, ledger) = (World::new().await?, Ledger::default());
    let builder = builder(world.broker()?, world.store().await?);
    let consumer = Running::start(builder, &ledger, WORK)?;
    let ids = world.publish(50, PACE)?.await?;
    until("all are handled", || async {
        Ok(ledger.len() >= ids.len())
    })
    .await?;

    world.queue.proxy().set_mode(Mode::BlackHole);
    consumer
        .until("the silence is noticed", |consumer| {
            !consumer.monitor.is_ready()
        })
        .await?;
    world.queue.proxy().set_mode(Mode::Forward);
    consumer
        .until("it receives again", |consumer| consumer.monitor.is_ready())
        .await?;

    world.queue.server().pause().await?;
    consumer
        .until("the pause is noticed", |consumer| {
            !consumer.monitor.is_ready()
        })
        .await?;
    world.queue.server().unpause().await?;
    consumer
        .until("it receives again", |consumer| consumer.monitor.is_ready())
        .await?;

    consumer.drain().await?;
    ledger.must_have_once(&ids)?;
    world.must_be_empty().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x4_the_repeat_of_a_message_whose_ack_was_lost_is_absorbed() -> Result<()> {
    let (world, ledger) = (World::new().await?, Ledger::default());
    let ids = world.publish(20, Duration::ZERO)?.await?;
    // Nobody may miss a heartbeat before the acks have gone astray.
    let broker = RabbitMq::open(&format!("{}&heartbeat=60", world.queue.url()))?;
    let door = Arc::new(Semaphore::new(0));
    let waiting = Arc::clone(&door);
    let work = move || {
        let door = Arc::clone(&waiting);
        // It has no permit: this ends when the door is closed for good.
        async move { drop(door.acquire().await) }
    };
    let consumer = Running::working(builder(broker, world.store().await?), &ledger, work)?;
    // All in flight have been received when the way to the server is lost.
    consumer
        .until("handlers run", |consumer| {
            consumer.monitor.stats().started >= 16
        })
        .await?;
    world.queue.proxy().set_mode(Mode::DropToServer);
    door.close();
    until("they are handled", || async { Ok(ledger.len() >= 16) }).await?;
    consumer
        .until("they are settled", |consumer| {
            consumer.monitor.stats().completed >= 16
        })
        .await?;
    world.queue.proxy().set_mode(Mode::Forward);
    world.queue.proxy().cut();
    until("all are handled", || async {
        Ok(ledger.len() >= ids.len())
    })
    .await?;
    consumer
        .until("the repeats are absorbed", |consumer| {
            consumer.monitor.stats().repeats >= 16
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
    let publishing = world.publish(1500, PACE)?;
    for handled in [100, 600] {
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
    world.queue.server().stop().await?;
    let builder = builder(world.broker()?, world.store().await?);
    let consumer = Running::start(builder, &ledger, WORK)?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    anyhow::ensure!(!consumer.monitor.is_ready(), "ready without a broker");
    world.queue.server().start().await?;
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
