//! The consumer's promises on the in-process broker and store, under paused time.

mod breaker;
mod chaos;
mod flow;
mod idempotency;
mod lease;
mod logs;
mod order;
mod retry;
mod settings;
mod shutdown;
mod stubborn;
mod workers;

use std::future::{Ready, ready};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Consumer, ConsumerBuilder, Monitor, RunError, Shutdown, Stats};
use crate::codec::Codec;
use crate::handler::{Context, Handler};
use crate::in_process::{InProcessBroker, InProcessStore, QueueCounts};
use crate::message::Message;
use crate::policy::{Backoff, Jitter};
use crate::publisher::Publisher;
use crate::{DeadLetterReason, HandlerError};

const SECOND: Duration = Duration::from_secs(1);

/// A queue, a store and what the handlers on them saw.
#[derive(Clone)]
struct Scene {
    broker: InProcessBroker,
    store: InProcessStore,
    shutdown: Shutdown,
    seen: Seen,
}

/// What handlers saw, in order.
#[derive(Clone, Default)]
struct Seen {
    starts: Arc<Mutex<Vec<Start>>>,
}

/// One start of a handler.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Start {
    name: String,
    attempt: u32,
    fence: Option<u64>,
    at: Instant,
}

/// A consumer that runs in a task of its own.
struct Running {
    monitor: Monitor,
    task: JoinHandle<Result<Stats, RunError>>,
}

fn succeeds() -> Ready<Result<(), HandlerError>> {
    ready(Ok(()))
}

fn fails() -> Ready<Result<(), HandlerError>> {
    ready(Err("no".into()))
}

impl Scene {
    fn new() -> Self {
        Self::on(InProcessBroker::new("orders"))
    }

    fn on(broker: InProcessBroker) -> Self {
        Self {
            broker,
            store: InProcessStore::new(),
            shutdown: Shutdown::new(),
            seen: Seen::default(),
        }
    }

    /// Publishes messages whose id and body are their name; what stands before a `-` is the
    /// partition key.
    async fn publish(&self, names: &[&str]) {
        for name in names {
            let mut message = Message::new((*name).to_owned()).with_id(*name);
            if let Some((key, _)) = name.split_once('-') {
                message = message.with_partition_key(key);
            }
            self.publish_message(message).await;
        }
    }

    async fn publish_message(&self, message: Message) {
        let publisher = Publisher::new(self.broker.clone());
        publisher.publish(message).await.unwrap();
    }

    /// A builder on this queue and store, with waits of 1, 2, 4 … seconds up to a minute.
    fn builder(&self) -> ConsumerBuilder {
        Consumer::builder(self.broker.clone())
            .store(self.store.clone())
            .backoff(Backoff::new(SECOND, 60 * SECOND, Jitter::None).unwrap())
    }

    fn builder_in(&self, ordered: bool) -> ConsumerBuilder {
        if ordered {
            self.builder().ordered()
        } else {
            self.builder()
        }
    }

    /// Starts a consumer whose handler is noted and then does `work`.
    fn start<F, Fut>(&self, builder: ConsumerBuilder, work: F) -> Running
    where
        F: Fn(String, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let seen = self.seen.clone();
        self.start_handler(builder, move |body: Bytes, context: Context| {
            let name = String::from_utf8_lossy(&body).into_owned();
            seen.note(&name, &context);
            work(name, context)
        })
    }

    fn start_handler<H: Handler<Bytes>>(&self, builder: ConsumerBuilder, handler: H) -> Running {
        self.run(builder.raw(handler).unwrap())
    }

    fn run<C: Codec, H: Handler<C::Payload>>(&self, consumer: Consumer<C, H>) -> Running {
        let shutdown = self.shutdown.clone();
        Running {
            monitor: consumer.monitor(),
            task: tokio::spawn(async move { consumer.run(&shutdown).await }),
        }
    }

    /// Waits until every message has come to its end.
    async fn drained(&self) -> QueueCounts {
        let drained = self.broker.wait_for(QueueCounts::is_drained);
        let limit = Duration::from_hours(1);
        tokio::time::timeout(limit, drained)
            .await
            .unwrap_or_else(|_| {
                panic!(
                    "not drained: {:?}, {:?}",
                    self.broker.counts(),
                    self.seen.names()
                )
            })
    }

    /// Waits until every message has come to its end, and ends the consumer.
    async fn finish(&self, running: Running) -> Stats {
        self.drained().await;
        self.end(running).await
    }

    /// Ends the consumer, and lets others start after it.
    async fn restart(&mut self, running: Running) -> Stats {
        let stats = self.end(running).await;
        self.shutdown = Shutdown::new();
        stats
    }

    /// The only message in the dead-letter queue: its reason, attempts and error.
    fn dead(&self) -> (DeadLetterReason, u32, String) {
        let mut dead = self.broker.dead_letter_records();
        assert_eq!(dead.len(), 1, "{dead:?}");
        let letter = dead.remove(0).dead_letter;
        (letter.reason, letter.attempts, letter.error)
    }

    async fn end(&self, running: Running) -> Stats {
        self.shutdown.begin();
        running.task.await.unwrap().unwrap()
    }
}

impl Seen {
    fn note(&self, name: &str, context: &Context) {
        self.starts.lock().push(Start {
            name: name.to_owned(),
            attempt: context.attempt().get(),
            fence: context.fence().map(|fence| fence.0),
            at: Instant::now(),
        });
    }

    fn all(&self) -> Vec<Start> {
        self.starts.lock().clone()
    }

    /// When handlers started, in seconds after the first.
    fn seconds(&self) -> Vec<f64> {
        let starts = self.all();
        let since = |start: &Start| (start.at - starts[0].at).as_secs_f64();
        // Timers are exact to the millisecond.
        starts
            .iter()
            .map(|s| (since(s) * 100.0).round() / 100.0)
            .collect()
    }

    fn attempts(&self) -> Vec<u32> {
        self.all().into_iter().map(|start| start.attempt).collect()
    }

    fn names(&self) -> Vec<String> {
        self.all().into_iter().map(|start| start.name).collect()
    }
}
