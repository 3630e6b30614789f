//! What handlers did, and consumers that write it down.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use backstop_core::{
    ConsumerBuilder, Context, HandlerError, Message, Monitor, RunError, Shutdown, Stats,
};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::stage::{Stage, id_of};

/// How a handler ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Succeeded,
    Failed,
    /// It was cancelled, timed out or panicked: its future was dropped.
    Dropped,
}

/// One start of a handler.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub(crate) id: String,
    pub(crate) message: Arc<Message>,
    pub(crate) attempt: u32,
    pub(crate) fence: Option<u64>,
    pub(crate) at: Instant,
    pub(crate) end: Option<End>,
    // Its place among all starts and ends.
    serial: u64,
    /// How many were started before.
    pub(crate) number: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) ending: Ending,
    pub(crate) at: Instant,
    serial: u64,
}

impl Start {
    pub(crate) fn ended(&self, ending: Ending) -> bool {
        self.end.is_some_and(|end| end.ending == ending)
    }
}

/// What a handler did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum What {
    /// The consumer receives.
    Ready,
    Started,
    Succeeded,
    Failed,
    Dropped,
}

/// One thing that a handler did, among those of several consumers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) worker: u32,
    pub(crate) id: String,
    pub(crate) attempt: u32,
    pub(crate) what: What,
}

/// What handlers did, in order. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Journal {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    starts: Mutex<Vec<Start>>,
    serials: AtomicU64,
    changed: Notify,
}

impl Journal {
    pub(crate) fn starts(&self) -> Vec<Start> {
        self.shared.starts.lock().clone()
    }

    pub(crate) fn starts_of(&self, id: &str) -> Vec<Start> {
        let starts = self.shared.starts.lock();
        starts
            .iter()
            .filter(|start| start.id == id)
            .cloned()
            .collect()
    }

    /// The attempts that were started for a message.
    pub(crate) fn attempts_of(&self, id: &str) -> Vec<u32> {
        self.starts_of(id)
            .iter()
            .map(|start| start.attempt)
            .collect()
    }

    /// Starts and ends, in order.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        for start in self.shared.starts.lock().iter() {
            let entry = |what| Entry {
                worker: 0,
                id: start.id.clone(),
                attempt: start.attempt,
                what,
            };
            entries.push((start.serial, entry(What::Started)));
            if let Some(end) = start.end {
                let what = match end.ending {
                    Ending::Succeeded => What::Succeeded,
                    Ending::Failed => What::Failed,
                    Ending::Dropped => What::Dropped,
                };
                entries.push((end.serial, entry(what)));
            }
        }
        entries.sort_by_key(|(serial, _)| *serial);
        entries.into_iter().map(|(_, entry)| entry).collect()
    }

    /// Waits until it says so.
    pub(crate) async fn until(
        &self,
        stage: &Stage,
        what: &str,
        mut is_so: impl FnMut(&[Start]) -> bool,
    ) -> Result<()> {
        let waiting = async {
            loop {
                let changed = self.shared.changed.notified();
                if is_so(&self.shared.starts.lock()) {
                    return;
                }
                changed.await;
            }
        };
        let done = stage.must(what, waiting).await;
        done.with_context(|| format!("handlers were started {} times", self.starts().len()))
    }

    pub(crate) async fn until_started(&self, stage: &Stage, count: usize) -> Result<()> {
        let what = format!("{count} starts of handlers");
        self.until(stage, &what, |starts| starts.len() >= count)
            .await
    }

    pub(crate) async fn until_succeeded(&self, stage: &Stage, count: usize) -> Result<()> {
        let what = format!("{count} successes of handlers");
        let succeeded = |starts: &[Start]| {
            starts
                .iter()
                .filter(|start| start.ended(Ending::Succeeded))
                .count()
                >= count
        };
        self.until(stage, &what, succeeded).await
    }

    fn start(&self, context: &Context) -> Start {
        let mut starts = self.shared.starts.lock();
        let start = Start {
            id: id_of(context.message()),
            message: Arc::clone(context.message()),
            attempt: context.attempt().get(),
            fence: context.fence().map(|fence| fence.0),
            at: Instant::now(),
            end: None,
            serial: self.shared.serials.fetch_add(1, Ordering::Relaxed),
            number: starts.len(),
        };
        starts.push(start.clone());
        drop(starts);
        self.shared.changed.notify_waiters();
        start
    }

    fn end(&self, number: usize, ending: Ending) {
        let mut starts = self.shared.starts.lock();
        if let Some(start) = starts.get_mut(number) {
            start.end = Some(End {
                ending,
                at: Instant::now(),
                serial: self.shared.serials.fetch_add(1, Ordering::Relaxed),
            });
        }
        drop(starts);
        self.shared.changed.notify_waiters();
    }
}

/// Writes the end of a handler, also when its future is dropped.
struct Ended<'a> {
    journal: &'a Journal,
    number: usize,
    ending: Ending,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.journal.end(self.number, self.ending);
    }
}

/// A consumer that runs, and is aborted when this is dropped.
pub(crate) struct Running {
    pub(crate) monitor: Monitor,
    pub(crate) shutdown: Shutdown,
    run: Option<JoinHandle<Result<Stats, RunError>>>,
    stage: Stage,
}

impl Running {
    /// Runs a consumer whose handler is written down.
    pub(crate) fn start<F, Fut>(
        stage: &Stage,
        builder: ConsumerBuilder,
        journal: &Journal,
        handler: F,
    ) -> Result<Self>
    where
        F: Fn(Start) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let journal = journal.clone();
        let consumer = builder.raw(move |_: Bytes, context: Context| {
            let journal = journal.clone();
            let start = journal.start(&context);
            let number = start.number;
            let handling = handler(start);
            async move {
                let mut ended = Ended {
                    journal: &journal,
                    number,
                    ending: Ending::Dropped,
                };
                let result = handling.await;
                ended.ending = match result {
                    Ok(()) => Ending::Succeeded,
                    Err(_) => Ending::Failed,
                };
                result
            }
        })?;
        let (monitor, shutdown) = (consumer.monitor(), Shutdown::new());
        let told = shutdown.clone();
        let run = tokio::spawn(async move { consumer.run(&told).await });
        Ok(Self {
            monitor,
            shutdown,
            run: Some(run),
            stage: stage.clone(),
        })
    }

    pub(crate) fn stats(&self) -> Stats {
        self.monitor.stats()
    }

    /// Waits until it has counted so much.
    pub(crate) async fn until(
        &self,
        what: &str,
        mut is_so: impl FnMut(&Stats) -> bool,
    ) -> Result<()> {
        let counted = self
            .stage
            .until(what, || {
                let so = is_so(&self.stats());
                async move { Ok(so) }
            })
            .await;
        counted.with_context(|| format!("{:?}", self.stats()))
    }

    /// Waits until it receives.
    pub(crate) async fn until_ready(&self) -> Result<()> {
        let ready = || async { Ok(self.monitor.is_ready()) };
        self.stage.until("the consumer is ready", ready).await
    }

    /// Waits for the end of a run that somebody has told to end.
    pub(crate) async fn end(mut self) -> Result<Stats> {
        let run = self.run.take().context("the consumer was crashed")?;
        let stats = self.stage.must("the end of a run", run).await??;
        stats.context("running a consumer")
    }

    /// Drains it, and gives its counts.
    pub(crate) async fn drain(self) -> Result<Stats> {
        let early = self.run.as_ref().is_some_and(JoinHandle::is_finished);
        self.shutdown.begin();
        let stats = self.end().await?;
        ensure!(!early, "the run had ended by itself, with {stats:?}");
        Ok(stats)
    }

    /// Ends it as a crash does: nothing is settled, given back or released.
    pub(crate) async fn crash(mut self) {
        if let Some(run) = self.run.take() {
            run.abort();
            let _ = run.await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(run) = &self.run {
            run.abort();
        }
    }
}
