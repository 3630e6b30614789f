//! A consumer that can crash.

use std::sync::Arc;
use std::time::Duration;

use backstop::{
    Backoff, BreakerSettings, BrokerHandle, Capabilities, Consumer, DeliveryLease, Jitter, Monitor,
    RunError, Shutdown, Stats, Survival,
};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use super::place::Place;
use super::shop::{BASE, Shop, handler};
use crate::exit::{Code, CommandError};

/// The most orders in hand at once.
pub(super) const MAX_IN_FLIGHT: usize = 64;
/// The longest wait between two attempts.
const CAP: Duration = Duration::from_secs(1);

/// How long a handler may take to come to its next await, generously.
const DYING: Duration = Duration::from_secs(5);
/// How long the operating system takes to close the connections of a killed process, generously.
const CLOSING: Duration = Duration::from_millis(100);

/// A consumer in a runtime of its own, so that it can end as a killed process does: its tasks stop at
/// their next await, and none of its code runs any more.
pub(super) struct Worker {
    runtime: Option<Runtime>,
    broker: BrokerHandle,
    monitor: Monitor,
    shutdown: Shutdown,
    run: JoinHandle<Result<Stats, RunError>>,
}

impl Worker {
    /// Connects and consumes.
    pub(super) async fn start(
        number: u64,
        shop: &Arc<Shop>,
        place: &Arc<Place>,
    ) -> Result<Self, CommandError> {
        let software = |text: String| CommandError::new(Code::Software, text);
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(format!("worker-{number}"))
            .enable_all()
            .build()
            .map_err(|error| software(format!("cannot start a worker: {error}")))?;
        let shutdown = Shutdown::new();
        let starting = consume(
            number,
            Arc::clone(shop),
            Arc::clone(place),
            shutdown.clone(),
        );
        let started = runtime.spawn(starting).await;
        let runtime = Crashing(Some(runtime));
        let started = started.map_err(|_| software("a worker panicked".to_owned()))?;
        let (broker, monitor, run) = started?;
        Ok(Self {
            runtime: runtime.keep(),
            broker,
            monitor,
            shutdown,
            run,
        })
    }

    /// Ends it as a killed process ends. Its connection is closed by the operating system, so to say, where
    /// that means anything to the broker.
    pub(super) async fn crash(mut self) -> Stats {
        if let Some(runtime) = self.runtime.take() {
            // Nothing of it may run when the ledger hears of the crash.
            let dying = move || runtime.shutdown_timeout(DYING);
            let _ = tokio::task::spawn_blocking(dying).await;
        }
        let stats = self.monitor.stats();
        if outlives_connections(&self.broker.capabilities()) {
            return stats;
        }
        let broker = Arc::clone(&self.broker);
        // A client whose runtime is gone has nobody to say goodbye with, and waits a while for that.
        let closing = tokio::spawn(async move { broker.close().await });
        let _ = tokio::time::timeout(CLOSING, closing).await;
        stats
    }

    /// What it has counted so far.
    pub(super) fn stats(&self) -> Stats {
        self.monitor.stats()
    }

    /// Whether it ended although nobody asked it to.
    pub(super) fn has_ended(&self) -> bool {
        self.run.is_finished()
    }

    /// Shuts it down, and says what it has counted.
    pub(super) async fn stop(mut self) -> Result<Stats, CommandError> {
        self.shutdown.begin();
        let ended = (&mut self.run).await;
        self.broker.close().await;
        match ended {
            Ok(Ok(stats)) => Ok(stats),
            Ok(Err(error)) => Err(CommandError::run(&error)),
            Err(_) => Err(CommandError::new(Code::Software, "a worker panicked")),
        }
    }
}

/// Whether what a killed process had comes back when its lease ends, and no sooner.
fn outlives_connections(capabilities: &Capabilities) -> bool {
    let is_timed = matches!(capabilities.lease, DeliveryLease::Timed { .. });
    is_timed && capabilities.survival == Survival::Durable
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(Crashing(self.runtime.take()));
    }
}

/// A runtime that is left without waiting for anything when it is dropped.
struct Crashing(Option<Runtime>);

impl Crashing {
    fn keep(mut self) -> Option<Runtime> {
        self.0.take()
    }
}

impl Drop for Crashing {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

type Running = (BrokerHandle, Monitor, JoinHandle<Result<Stats, RunError>>);

async fn consume(
    number: u64,
    shop: Arc<Shop>,
    place: Arc<Place>,
    shutdown: Shutdown,
) -> Result<Running, CommandError> {
    let refused = |error: &backstop::ConfigError| {
        CommandError::new(
            Code::Config,
            format!("this broker cannot play the demo: {error}"),
        )
    };
    let broker = place.connect().await?;
    let store = place.connect_store().await?;
    let backoff = Backoff::new(BASE, CAP, Jitter::Additive).map_err(|error| refused(&error))?;
    let consumer = Consumer::builder(Arc::clone(&broker))
        .name(place.consumer.as_str())
        .store(store)
        .ordered()
        .max_attempts(5)
        .backoff(backoff)
        .max_in_flight(MAX_IN_FLIGHT)
        .max_buffered(256)
        .handler_timeout(Duration::from_secs(5))
        .claim_lease(Duration::from_secs(3))
        .retention(Duration::from_hours(1))
        .shutdown_grace(Duration::from_secs(5))
        .breaker(BreakerSettings {
            first_pause: Duration::from_millis(250),
            longest_pause: Duration::from_secs(2),
            ..BreakerSettings::default()
        })
        .randomness(shop.randomness(number))
        .json(handler(Arc::clone(&shop)))
        .map_err(|error| refused(&error))?;
    let monitor = consumer.monitor();
    let run = tokio::spawn(async move { consumer.run(&shutdown).await });
    Ok((broker, monitor, run))
}
