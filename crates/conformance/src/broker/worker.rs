//! Consumers in processes of their own.
//!
//! Some promises hold across processes: an exact cap, order within a key. Their cases start real
//! ones, by the command that [`TestQueue::worker`](super::TestQueue::worker) gives, and kill them.
//! Such a process calls [`serve`] with a connection to the queue. The suite tells it what to do in
//! the environment variable `BACKSTOP_WORKER`; it reports what its handlers do as lines of JSON on
//! its standard output, and drains when its standard input ends.
//!
//! The command may be the test binary itself, started again for one test:
//!
//! ```no_run
//! # use tokio::process::Command;
//! fn worker(url: &str) -> std::io::Result<Command> {
//!     let mut command = Command::new(std::env::current_exe()?);
//!     command.args(["--exact", "suite::a_worker_serves", "--nocapture"]);
//!     command.env("MY_BROKER_URL", url);
//!     Ok(command)
//! }
//! ```
//!
//! Without the suite's variable [`serve`] is an error; so the test that serves can, when it is run
//! as one of many, assert just that.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use backstop_core::{
    BrokerHandle, Consumer, ConsumerBuilder, Context, HandlerError, Monitor, Shutdown, Stats,
    StoreHandle,
};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::journal::{Entry, What};
use super::stage::{backoff, calm_breaker, id_of};

/// The environment variable that says what to do.
pub(super) const DUTY: &str = "BACKSTOP_WORKER";

/// Consumes from the broker's queue as the suite asks, until the suite has enough.
///
/// Hand over the harness's store if, and only if, the worker was asked for with
/// [`WorkerStore::Shared`](super::WorkerStore::Shared).
///
/// # Errors
///
/// When the suite has not started this process, or the consumer ends by itself.
///
/// # Cancel safety
///
/// As [`Consumer::run`]: a dropped call abandons what its consumer holds.
pub async fn serve(broker: impl Into<BrokerHandle>, store: Option<StoreHandle>) -> Result<()> {
    let duty = std::env::var(DUTY)
        .with_context(|| format!("{DUTY} is not set: the suite did not start this process"))?;
    let duty: Duty = serde_json::from_str(&duty).with_context(|| format!("reading {DUTY}"))?;
    let shutdown = Shutdown::new();
    let told = shutdown.clone();
    let ended = input_ends();
    tokio::spawn(async move {
        let _ = ended.await;
        told.begin();
    });
    duty.run(broker.into(), store, &shutdown, Arc::new(print))
        .await?;
    Ok(())
}

/// A thread of its own reads: a runtime would wait for its reading at the end.
fn input_ends() -> oneshot::Receiver<()> {
    let (end, ended) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = end.send(());
    });
    ended
}

/// Prints one line in one write, so that the lines of several processes keep their order in a file
/// that they share. It begins with a line break: a test runner may have begun a line.
fn print(entry: &Entry) {
    if let Ok(json) = serde_json::to_string(entry) {
        let line = format!("\n{json}\n");
        let _ = std::io::stdout().lock().write_all(line.as_bytes());
    }
}

/// Where entries go.
pub(super) type Report = Arc<dyn Fn(&Entry) + Send + Sync>;

/// What a handler does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Act {
    Succeed,
    Fail,
    Hang,
}

/// The body of a worker's message: what its handler does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Task {
    /// How long each attempt works.
    pub(super) work: Duration,
    /// What the first attempts come to; later ones succeed.
    pub(super) acts: Vec<Act>,
}

/// What a worker is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Duty {
    pub(super) number: u32,
    pub(super) ordered: bool,
    pub(super) max_attempts: u32,
    pub(super) max_in_flight: usize,
    pub(super) wait: Duration,
    pub(super) claim_lease: Duration,
    /// What handlers do, whatever their messages ask for.
    pub(super) act: Option<Act>,
}

impl Duty {
    /// Consumes until the shutdown.
    pub(super) async fn run(
        self,
        broker: BrokerHandle,
        store: Option<StoreHandle>,
        shutdown: &Shutdown,
        report: Report,
    ) -> Result<Stats> {
        let (number, act) = (self.number, self.act);
        let reporting = Arc::clone(&report);
        let handler = move |task: Task, context: Context| {
            let (id, attempt) = (id_of(context.message()), context.attempt().get());
            let mut handling = Handling {
                report: Arc::clone(&reporting),
                entry: Entry {
                    worker: number,
                    id,
                    attempt,
                    what: What::Dropped,
                },
            };
            handling.begin();
            async move {
                let result = task.act(attempt, act).await;
                handling.end(&result);
                result
            }
        };
        let consumer = self.builder(broker, store).json(handler)?;
        let readiness = tokio::spawn(report_ready(consumer.monitor(), number, report));
        let stats = consumer.run(shutdown).await;
        readiness.abort();
        stats.context("running a worker's consumer")
    }

    fn builder(&self, broker: BrokerHandle, store: Option<StoreHandle>) -> ConsumerBuilder {
        let builder = Consumer::builder(broker)
            .backoff(backoff(self.wait, self.wait))
            .breaker(calm_breaker())
            .max_attempts(self.max_attempts)
            .max_in_flight(self.max_in_flight)
            .claim_lease(self.claim_lease)
            .handler_timeout(Duration::from_mins(1))
            .shutdown_grace(Duration::from_secs(10));
        let builder = match store {
            Some(store) => builder.store(store),
            None => builder.idempotent_by_nature(),
        };
        if self.ordered {
            builder.ordered()
        } else {
            builder
        }
    }
}

impl Task {
    async fn act(&self, attempt: u32, instead: Option<Act>) -> Result<(), HandlerError> {
        tokio::time::sleep(self.work).await;
        let asked = self.acts.iter().zip(1..).find(|(_, nth)| *nth == attempt);
        let asked = asked.map_or(Act::Succeed, |(act, _)| *act);
        match instead.unwrap_or(asked) {
            Act::Succeed => Ok(()),
            Act::Fail => Err(HandlerError::transient("the downstream is away")),
            Act::Hang => std::future::pending().await,
        }
    }
}

/// Reports the end of a handler, also when its future is dropped.
struct Handling {
    report: Report,
    entry: Entry,
}

impl Handling {
    fn begin(&self) {
        (self.report)(&Entry {
            what: What::Started,
            ..self.entry.clone()
        });
    }

    const fn end(&mut self, result: &Result<(), HandlerError>) {
        self.entry.what = match result {
            Ok(()) => What::Succeeded,
            Err(_) => What::Failed,
        };
    }
}

impl Drop for Handling {
    fn drop(&mut self) {
        (self.report)(&self.entry);
    }
}

async fn report_ready(monitor: Monitor, worker: u32, report: Report) {
    while !monitor.is_ready() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    report(&Entry {
        worker,
        id: String::new(),
        attempt: 0,
        what: What::Ready,
    });
}
