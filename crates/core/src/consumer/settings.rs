//! A consumer's settings, checked.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use super::breaker::BreakerSettings;
use super::key::{Fingerprints, KeySource, MissingKey};
use crate::error::ConfigError;
use crate::policy::Policy;
use crate::ports::{
    BrokerHandle, Capabilities, OrderScope, StoreHandle, SubscribeOptions, SubscriptionOrder,
};

/// How repeats are dealt with.
#[derive(Clone)]
pub(crate) enum Idempotency {
    /// By a store.
    Store(StoreHandle),
    /// The handler does not mind repeats.
    ByNature,
}

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) name: Arc<str>,
    pub(crate) idempotency: Idempotency,
    pub(crate) key: KeySource,
    pub(crate) missing_key: MissingKey,
    pub(crate) fingerprints: Fingerprints,
    pub(crate) order: SubscriptionOrder,
    pub(crate) policy: Policy,
    pub(crate) max_in_flight: NonZeroUsize,
    pub(crate) max_buffered: NonZeroUsize,
    pub(crate) max_body: usize,
    pub(crate) handler_timeout: Duration,
    pub(crate) claim_lease: Duration,
    pub(crate) retention: Duration,
    pub(crate) shutdown_grace: Duration,
    pub(crate) breaker: BreakerSettings,
}

/// What the builder has been told.
pub(super) struct Wishes {
    pub(super) name: Option<Arc<str>>,
    pub(super) idempotency: Option<Idempotency>,
    pub(super) key: KeySource,
    pub(super) missing_key: MissingKey,
    pub(super) fingerprints: Fingerprints,
    pub(super) order: SubscriptionOrder,
    pub(super) max_attempts: u32,
    pub(super) policy: Policy,
    pub(super) max_in_flight: usize,
    pub(super) max_buffered: Option<usize>,
    pub(super) max_body: Option<usize>,
    pub(super) handler_timeout: Duration,
    pub(super) claim_lease: Duration,
    pub(super) retention: Duration,
    pub(super) shutdown_grace: Duration,
    pub(super) breaker: BreakerSettings,
}

impl Default for Wishes {
    fn default() -> Self {
        let policy = Policy::default();
        Self {
            name: None,
            idempotency: None,
            key: KeySource::default(),
            missing_key: MissingKey::default(),
            fingerprints: Fingerprints::default(),
            order: SubscriptionOrder::Unordered,
            max_attempts: policy.max_attempts.get(),
            policy,
            max_in_flight: 64,
            max_buffered: None,
            max_body: None,
            handler_timeout: Duration::from_mins(1),
            claim_lease: Duration::from_secs(30),
            retention: Duration::from_hours(24),
            shutdown_grace: Duration::from_secs(30),
            breaker: BreakerSettings::default(),
        }
    }
}

const MAX_IN_FLIGHT: usize = 10_000;
const MAX_BUFFERED: usize = 100_000;
const MAX_ATTEMPTS: u32 = 1_000;
const MAX_NAME_BYTES: usize = 128;
const MAX_TIME: Duration = Duration::from_hours(24);
const MAX_RETENTION: Duration = Duration::from_hours(366 * 24);

impl Wishes {
    pub(super) fn check(self, broker: &BrokerHandle) -> Result<Settings, ConfigError> {
        let capabilities = broker.capabilities();
        self.check_times()?;
        let idempotency = self.idempotency.ok_or_else(|| {
            let allowed = "name one with store(), or say that the handler may be repeated with \
                           idempotent_by_nature()";
            ConfigError::new("store", "absent", allowed)
        })?;
        let name = self.name.unwrap_or_else(|| broker.queue().into());
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            let allowed = format!("1 to {MAX_NAME_BYTES} bytes");
            return Err(ConfigError::new("name", format!("{name:?}"), allowed));
        }
        let max_in_flight = within("max_in_flight", self.max_in_flight, MAX_IN_FLIGHT)?;
        let buffered = self.max_buffered.unwrap_or(max_in_flight.get() * 4);
        let max_buffered = match self.order {
            SubscriptionOrder::Unordered => max_in_flight,
            SubscriptionOrder::ByPartitionKey => within("max_buffered", buffered, MAX_BUFFERED)?,
        };
        let attempts = NonZeroU32::new(self.max_attempts).filter(|n| n.get() <= MAX_ATTEMPTS);
        let max_attempts = attempts.ok_or_else(|| {
            let allowed = format!("1 to {MAX_ATTEMPTS}");
            ConfigError::new("max_attempts", self.max_attempts, allowed)
        })?;
        self.key.validate()?;
        self.breaker.validate()?;
        let policy = Policy {
            max_attempts,
            ..self.policy
        };
        check_delay(&policy, &capabilities)?;
        check_order(self.order, broker)?;
        if let Idempotency::Store(_) = idempotency {
            let life = longest_life(&policy, self.handler_timeout).max(self.claim_lease);
            check_retention(self.retention, life)?;
        }
        Ok(Settings {
            name,
            idempotency,
            key: self.key,
            missing_key: self.missing_key,
            fingerprints: self.fingerprints,
            order: self.order,
            policy,
            max_in_flight,
            max_buffered,
            max_body: check_body(self.max_body, capabilities.max_body)?,
            handler_timeout: self.handler_timeout,
            claim_lease: self.claim_lease,
            retention: self.retention,
            shutdown_grace: self.shutdown_grace,
            breaker: self.breaker,
        })
    }

    fn check_times(&self) -> Result<(), ConfigError> {
        const MILLISECOND: Duration = Duration::from_millis(1);
        lasts("handler_timeout", self.handler_timeout, MILLISECOND)?;
        lasts("claim_lease", self.claim_lease, 100 * MILLISECOND)?;
        lasts("shutdown_grace", self.shutdown_grace, Duration::ZERO)
    }
}

fn check_body(wanted: Option<usize>, limit: usize) -> Result<usize, ConfigError> {
    let size = wanted.unwrap_or(limit);
    if !(1..=limit).contains(&size) {
        let allowed = format!("1 to {limit}, the broker's own limit, in bytes");
        return Err(ConfigError::new("max_body", size, allowed));
    }
    Ok(size)
}

fn check_delay(policy: &Policy, capabilities: &Capabilities) -> Result<(), ConfigError> {
    let longest = policy.backoff.longest_wait();
    match capabilities.max_delay {
        Some(limit) if longest > limit => {
            let allowed = format!("with its jitter at most {limit:?}, the broker's longest delay");
            let value = format!("{longest:?} with jitter");
            Err(ConfigError::new("backoff_cap", value, allowed))
        }
        _ => Ok(()),
    }
}

fn check_order(order: SubscriptionOrder, broker: &BrokerHandle) -> Result<(), ConfigError> {
    let wanted = order == SubscriptionOrder::ByPartitionKey;
    if wanted && broker.capabilities().order == OrderScope::WithinProcess {
        let allowed = format!(
            "the queue {:?} keeps order within one process only; see the adapter's documentation \
             for a queue that keeps it across processes",
            broker.queue()
        );
        return Err(ConfigError::new("ordered", true, allowed));
    }
    Ok(())
}

fn check_retention(retention: Duration, life: Duration) -> Result<(), ConfigError> {
    if retention > life && retention <= MAX_RETENTION {
        return Ok(());
    }
    let allowed = format!(
        "longer than {life:?}, the longest that max_attempts, handler_timeout and the backoff can \
         keep a message under way, and longer than claim_lease; and at most {MAX_RETENTION:?}"
    );
    Err(ConfigError::new(
        "retention",
        format!("{retention:?}"),
        allowed,
    ))
}

/// The longest that the attempts and the waits between them can take.
fn longest_life(policy: &Policy, handler_timeout: Duration) -> Duration {
    let attempts = policy.max_attempts.get();
    let waits = policy.backoff.longest_span(attempts);
    waits.saturating_add(handler_timeout.saturating_mul(attempts))
}

fn within(setting: &'static str, value: usize, limit: usize) -> Result<NonZeroUsize, ConfigError> {
    NonZeroUsize::new(value)
        .filter(|n| n.get() <= limit)
        .ok_or_else(|| ConfigError::new(setting, value, format!("1 to {limit}")))
}

fn lasts(setting: &'static str, value: Duration, least: Duration) -> Result<(), ConfigError> {
    if value < least || value > MAX_TIME {
        let allowed = format!("{least:?} to {MAX_TIME:?}");
        return Err(ConfigError::new(setting, format!("{value:?}"), allowed));
    }
    Ok(())
}

impl Settings {
    pub(crate) fn subscribe_options(&self) -> SubscribeOptions {
        SubscribeOptions {
            consumer: Arc::clone(&self.name),
            order: self.order,
            max_buffered: self.max_buffered,
            max_attempts: self.policy.max_attempts,
            handler_timeout: self.handler_timeout,
            longest_wait: self.policy.backoff.longest_wait(),
        }
    }

    /// The longest wait that a handler may ask for: the record of the attempts has to outlive it.
    pub(crate) fn longest_wait(&self) -> Duration {
        match self.idempotency {
            Idempotency::Store(_) => (self.retention / 2).max(self.policy.backoff.longest_wait()),
            Idempotency::ByNature => Duration::MAX,
        }
    }

    pub(crate) fn store(&self) -> Option<&StoreHandle> {
        match &self.idempotency {
            Idempotency::Store(store) => Some(store),
            Idempotency::ByNature => None,
        }
    }
}
