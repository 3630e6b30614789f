//! The consumers that are compared.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use backstop_core::{Consumer, Context, HandlerError, InProcessStore, StoreHandle};
use backstop_rabbitmq::RabbitMq;
use backstop_redis_dedupe::RedisStore;
use bytes::Bytes;
use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use redis::aio::MultiplexedConnection;
use tokio_util::task::TaskTracker;

use crate::rabbit::Queue;
use crate::tally::Tally;

/// How many messages are handled at once.
const IN_FLIGHT: u16 = 256;

/// Who consumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contestant {
    /// lapin: a task for each message, which acknowledges it.
    Raw,
    /// backstop with the in-process store.
    InProcess,
    /// backstop with Redis.
    Redis,
    /// The raw one with `SET NX` before and `SET` after the handling.
    Naive,
}

impl Contestant {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw lapin",
            Self::InProcess => "backstop, in-process store",
            Self::Redis => "backstop, Redis",
            Self::Naive => "naive loop, Redis",
        }
    }

    /// Consumes until the tally is full; returns the time from the first message handled to the end,
    /// when all acknowledgements have reached RabbitMQ.
    pub(crate) async fn consume(
        self,
        queue: &Queue,
        redis: &str,
        tally: &Arc<Tally>,
    ) -> Result<Duration> {
        match self {
            Self::Raw => raw(queue, tally, Dedupe::None).await?,
            Self::Naive => {
                let client = redis::Client::open(redis)?;
                let connection = client.get_multiplexed_async_connection().await?;
                raw(queue, tally, Dedupe::Naive(connection)).await?;
            }
            Self::InProcess => backstop(queue, InProcessStore::new(), tally).await?,
            Self::Redis => backstop(queue, RedisStore::connect(redis).await?, tally).await?,
        }
        tally.since_first()
    }
}

/// What a task does beside acknowledging.
#[derive(Clone)]
enum Dedupe {
    None,
    Naive(MultiplexedConnection),
}

async fn raw(queue: &Queue, tally: &Arc<Tally>, dedupe: Dedupe) -> Result<()> {
    let connection = queue.connect().await?;
    let channel = connection.create_channel().await?;
    channel
        .basic_qos(IN_FLIGHT, BasicQosOptions::default())
        .await?;
    let mut consumer = channel
        .basic_consume(
            queue.name.as_str().into(),
            "bench".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    let tasks = TaskTracker::new();
    let acknowledged = Arc::new(AtomicU32::new(0));
    for _ in 0..tally.wanted() {
        let delivery = consumer.next().await.context("the queue has gone")??;
        let (dedupe, tally) = (dedupe.clone(), Arc::clone(tally));
        let acknowledged = Arc::clone(&acknowledged);
        tasks.spawn(async move {
            match handle(dedupe, &delivery, &tally).await {
                Ok(()) => {
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => eprintln!("a message was not handled: {error:#}"),
            }
        });
    }
    tasks.close();
    tasks.wait().await;
    // What RabbitMQ answers comes after all that it was told.
    channel.close(200, "done".into()).await?;
    let acknowledged = acknowledged.load(Ordering::Relaxed);
    let wanted = tally.wanted();
    ensure!(acknowledged == wanted, "{acknowledged} of {wanted} handled");
    connection.close(200, "done".into()).await?;
    Ok(())
}

async fn handle(dedupe: Dedupe, delivery: &Delivery, tally: &Tally) -> Result<()> {
    match dedupe {
        Dedupe::None => tally.handle(&delivery.data),
        Dedupe::Naive(connection) => once(connection, delivery, tally).await?,
    }
    delivery.ack(BasicAckOptions::default()).await?;
    Ok(())
}

/// Two calls a message: what a first try at idempotency looks like.
async fn once(
    mut connection: MultiplexedConnection,
    delivery: &Delivery,
    tally: &Tally,
) -> Result<()> {
    let id = delivery.properties.message_id().as_ref();
    let key = format!("naive:{}", id.context("a message without an id")?);
    let mut claim = redis::cmd("SET");
    claim
        .arg(&key)
        .arg("in-progress")
        .arg(&["NX", "EX", "86400"]);
    let is_new: bool = claim.query_async(&mut connection).await?;
    if is_new {
        tally.handle(&delivery.data);
    }
    let mut complete = redis::cmd("SET");
    complete.arg(&key).arg("completed").arg(&["EX", "86400"]);
    complete.exec_async(&mut connection).await?;
    Ok(())
}

async fn backstop(queue: &Queue, store: impl Into<StoreHandle>, tally: &Arc<Tally>) -> Result<()> {
    let broker = RabbitMq::connect(&queue.url).await?;
    let (handled, wanted) = (Arc::clone(tally), u64::from(tally.wanted()));
    let consumer = Consumer::builder(broker)
        .store(store)
        .max_in_flight(IN_FLIGHT.into())
        .raw(move |body: Bytes, _: Context| {
            handled.handle(&body);
            std::future::ready(Ok::<_, HandlerError>(()))
        })?;
    let stats = consumer.run(tally.full()).await?;
    let completed = stats.completed;
    ensure!(
        completed == wanted,
        "{completed} of {wanted} handled: {stats:?}"
    );
    Ok(())
}
