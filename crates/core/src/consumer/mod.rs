//! The consumer: from a queue to a handler and back.

mod batcher;
mod breaker;
mod builder;
mod cancellation;
mod claims;
mod drivers;
mod engine;
mod gate;
mod intake;
mod keeper;
mod key;
mod lanes;
mod monitor;
mod nonces;
mod pipeline;
mod run_error;
mod settings;
mod settlements;
mod shutdown;
mod stats;
#[cfg(test)]
mod tests;
#[cfg(all(test, shuttle))]
mod threads;
mod workers;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

pub use self::breaker::BreakerSettings;
pub use self::builder::ConsumerBuilder;
pub use self::key::{Fingerprints, KeySource, MissingKey};
pub use self::monitor::Monitor;
pub use self::run_error::{RunError, RunErrorKind};
pub use self::shutdown::Shutdown;
pub use self::stats::Stats;

pub(crate) use self::cancellation::Cancellation;
use self::claims::{ClaimSettings, Claims};
use self::drivers::Drivers;
use self::engine::Engine;
use self::gate::Gate;
use self::intake::Intake;
use self::keeper::{Keeper, KeeperSettings};
use self::lanes::Lanes;
use self::settings::Settings;
use self::settlements::Settlements;
use self::stats::Counters;
use self::workers::Workers;
use crate::causes::with_causes;
use crate::codec::Codec;
use crate::delivery::Attempt;
use crate::error::BrokerError;
use crate::handler::Handler;
use crate::policy::{Backoff, Jitter};
use crate::ports::{BrokerHandle, Finding, Severity, Subscription};

/// Gives numbers that are uniform in `0.0..1.0`.
pub type Randomness = Arc<dyn Fn() -> f64 + Send + Sync>;

/// How long claims that are under way when the shutdown grace is over are waited for.
const LAST_CLAIMS: Duration = Duration::from_secs(1);

/// How long what is left may take to settle after the shutdown grace is over.
const LAST_SETTLEMENTS: Duration = Duration::from_secs(5);

/// Hands the messages of a queue to a handler, reliably.
///
/// ```
/// use backstop_core::{Consumer, Context, HandlerError, InProcessBroker, InProcessStore};
/// use backstop_core::{Message, Publisher, Shutdown};
///
/// #[derive(serde::Deserialize)]
/// struct Order {
///     amount: u32,
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let broker = InProcessBroker::new("orders");
/// Publisher::new(broker.clone()).publish(Message::new(r#"{"amount": 7}"#)).await?;
///
/// let shutdown = Shutdown::new();
/// let done = shutdown.clone();
/// let consumer = Consumer::builder(broker)
///     .store(InProcessStore::default())
///     .json(move |order: Order, context: Context| {
///         let done = done.clone();
///         async move {
///             assert_eq!((order.amount, context.attempt().get()), (7, 1));
///             done.begin();
///             Ok::<_, HandlerError>(())
///         }
///     })?;
/// let stats = consumer.run(&shutdown).await?;
/// assert_eq!(stats.completed, 1);
/// # Ok(())
/// # }
/// ```
pub struct Consumer<C, H> {
    broker: BrokerHandle,
    settings: Settings,
    randomness: Randomness,
    codec: C,
    handler: H,
    monitor: Monitor,
}

impl Consumer<(), ()> {
    /// Builds a consumer of the broker's queue.
    pub fn builder(broker: impl Into<BrokerHandle>) -> ConsumerBuilder {
        ConsumerBuilder::new(broker.into())
    }
}

impl<C: Codec, H: Handler<C::Payload>> Consumer<C, H> {
    fn new(
        broker: BrokerHandle,
        settings: Settings,
        randomness: Randomness,
        codec: C,
        handler: H,
    ) -> Self {
        let counters = Arc::new(Counters::new(&settings.name));
        let gate = Arc::new(Gate::new(settings.breaker, Arc::clone(&counters)));
        let readiness = Arc::default();
        Self {
            broker,
            settings,
            randomness,
            codec,
            handler,
            monitor: Monitor {
                counters,
                readiness,
                gate,
            },
        }
    }

    /// Looks at the consumer while it runs.
    pub fn monitor(&self) -> Monitor {
        self.monitor.clone()
    }

    /// Receives and handles until the shutdown, then drains: intake stops, running handlers have
    /// the grace period to finish, what was not started is given back, settlements are flushed.
    ///
    /// A broker that cannot be reached is waited for; [`Monitor::is_ready`] says so meanwhile.
    ///
    /// # Errors
    ///
    /// When the set-up is unsafe, the queue does not exist, credentials are wrong, or the
    /// subscription ends for good. What was received has been drained then, too.
    ///
    /// # Cancel safety
    ///
    /// A dropped run abandons what it holds: the broker delivers it again, and its claims run out.
    pub async fn run(self, shutdown: &Shutdown) -> Result<Stats, RunError> {
        let monitor = self.monitor.clone();
        // Its own, so that its end is not that of others.
        let shutdown = shutdown.child();
        let Some(subscription) = self.subscribe(&shutdown).await? else {
            return Ok(monitor.stats());
        };
        monitor.readiness.set_receiving(true);
        let mut grace = self.settings.shutdown_grace;
        if planted!(GraceWithoutEnd) {
            grace += Duration::from_hours(1);
        }
        let places = Arc::new(Semaphore::new(as_allowed(self.settings.max_buffered.get())));
        let engine = Arc::new(self.engine(subscription, shutdown.clone()));
        let drivers = Drivers::start(&engine);
        let tasks = TaskTracker::new();
        let intake = Intake {
            engine: Arc::clone(&engine),
            places,
            workers: Workers::new(Arc::clone(&engine), tasks.clone()),
            tasks,
            readiness: Arc::clone(&monitor.readiness),
        };
        let end = intake.run().await;
        monitor.readiness.set_receiving(false);
        // Also after a broker's error: whatever waits for the shutdown must not wait for ever.
        shutdown.begin();
        within(LAST_SETTLEMENTS, engine.subscription.stop()).await;
        intake.tasks.close();
        intake.workers.close();
        tokio::select! {
            biased;
            () = intake.tasks.wait() => {}
            () = tokio::time::sleep(grace) => {}
            () = shutdown.cut_short() => {}
        }
        engine.stop_handling();
        // A claim that is made and never heard of would use an attempt.
        if !within(LAST_CLAIMS, intake.tasks.wait()).await {
            engine.stop_asking();
        }
        if !within(LAST_SETTLEMENTS, intake.tasks.wait()).await {
            let left = intake.tasks.len();
            tracing::error!(
                left,
                "some messages did not come to an end in time; the broker delivers them again"
            );
        }
        drivers.finish().await;
        within(LAST_SETTLEMENTS, engine.subscription.close()).await;
        end.map_err(RunError::broker)?;
        Ok(monitor.stats())
    }

    /// Checks the set-up and subscribes; waits for a broker that cannot be reached.
    async fn subscribe(
        &self,
        shutdown: &Shutdown,
    ) -> Result<Option<Box<dyn Subscription>>, RunError> {
        let pauses = Backoff::new(
            Duration::from_millis(200),
            Duration::from_secs(10),
            Jitter::Equal,
        )
        .unwrap_or_default();
        let mut failures = 0;
        loop {
            let tried = tokio::select! {
                biased;
                () = shutdown.begun() => return Ok(None),
                tried = self.try_subscribe() => tried,
            };
            let error = match tried {
                Ok(subscription) => return Ok(Some(subscription)),
                Err(error) => error,
            };
            let Some(cause) = error.transient() else {
                return Err(error);
            };
            let pause = pauses.delay_after(Attempt::after(failures), (self.randomness)());
            failures += 1;
            tracing::warn!(error = %with_causes(cause), ?pause, "not ready: the queue cannot be subscribed to yet");
            tokio::select! {
                biased;
                () = shutdown.begun() => return Ok(None),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn try_subscribe(&self) -> Result<Box<dyn Subscription>, RunError> {
        let options = self.settings.subscribe_options();
        let broker = |error: BrokerError| RunError::broker(error);
        let findings = self.broker.inspect(&options).await.map_err(broker)?;
        let (refusals, warnings): (Vec<_>, Vec<_>) = findings
            .into_iter()
            .partition(|finding| finding.severity == Severity::Refusal);
        warnings.iter().for_each(warn);
        if !refusals.is_empty() {
            return Err(RunError::refused(refusals));
        }
        self.look_at_store().await;
        self.broker.subscribe(&options).await.map_err(broker)
    }

    /// A store that cannot be looked at keeps nobody from consuming: whether it works, claims show.
    async fn look_at_store(&self) {
        let Some(store) = self.settings.store() else {
            return;
        };
        match store.inspect().await {
            Ok(findings) => findings.iter().for_each(warn),
            Err(error) => {
                tracing::warn!(error = %with_causes(&error), "the store's set-up cannot be looked at");
            }
        }
    }

    fn engine(self, subscription: Box<dyn Subscription>, shutdown: Shutdown) -> Engine<C, H> {
        let Monitor { counters, gate, .. } = self.monitor;
        let capabilities = self.broker.capabilities();
        let settings = self.settings;
        let keeper = KeeperSettings {
            claim_lease: settings.claim_lease,
            delivery_lease: capabilities.lease,
        };
        let claims = settings.store().map(|store| {
            let times = ClaimSettings {
                lease: settings.claim_lease,
                retention: settings.retention,
                release: capabilities.release,
                survival: store.survival(),
            };
            Claims::new(
                Arc::clone(store),
                times,
                Arc::clone(&gate),
                Arc::clone(&counters),
                shutdown.clone(),
                Arc::clone(&self.randomness),
            )
        });
        Engine {
            codec: self.codec,
            handler: self.handler,
            queue: self.broker.queue().into(),
            ordered_retry: capabilities.ordered_retry,
            max_delay: capabilities.max_delay.unwrap_or(Duration::MAX),
            longest_wait: settings.longest_wait(),
            subscription,
            claims,
            settlements: Settlements::new(Arc::clone(&counters), Arc::clone(&self.randomness)),
            keeper: Arc::new(Keeper::new(keeper, Arc::clone(&counters))),
            gate,
            lanes: Lanes::default(),
            slots: Semaphore::new(as_allowed(settings.max_in_flight.get())),
            counters,
            shutdown,
            randomness: self.randomness,
            settings,
        }
    }
}

fn warn(finding: &Finding) {
    tracing::warn!(
        setting = finding.setting,
        fix = finding.fix,
        "{}",
        finding.problem
    );
}

/// As many, unless a bug is planted.
fn as_allowed(limit: usize) -> usize {
    if planted!(SlotsDoubled) {
        limit * 2
    } else {
        limit
    }
}

/// Waits for something, but not for ever; says whether it has ended.
async fn within(limit: Duration, work: impl Future) -> bool {
    tokio::time::timeout(limit, work).await.is_ok()
}

impl<C, H> fmt::Debug for Consumer<C, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("queue", &self.broker.queue())
            .field("name", &self.settings.name)
            .finish_non_exhaustive()
    }
}
