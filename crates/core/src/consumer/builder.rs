//! Building a consumer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::breaker::BreakerSettings;
use super::key::{Fingerprints, KeySource, MissingKey};
use super::settings::{Idempotency, Wishes};
use super::{Consumer, Randomness};
use crate::codec::{Codec, Json, Raw};
use crate::error::ConfigError;
use crate::handler::Handler;
use crate::policy::Backoff;
use crate::ports::{BrokerHandle, StoreHandle, SubscriptionOrder};

/// Builds a [`Consumer`]. Settings are checked together, when the handler is named.
#[must_use]
pub struct ConsumerBuilder {
    broker: BrokerHandle,
    wishes: Wishes,
    randomness: Randomness,
}

impl ConsumerBuilder {
    pub(super) fn new(broker: BrokerHandle) -> Self {
        Self {
            broker,
            wishes: Wishes::default(),
            randomness: Arc::new(rand::random::<f64>),
        }
    }

    /// Names the consumer: the namespace of its idempotency keys, and its name in logs, metrics and
    /// dead letters. Processes that share the work share the name; consumers that each want every
    /// message have names of their own. Default: the queue's name.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.wishes.name = Some(name.into());
        self
    }

    /// Makes repeats harmless by this store.
    pub fn store(mut self, store: impl Into<StoreHandle>) -> Self {
        self.wishes.idempotency = Some(Idempotency::Store(store.into()));
        self
    }

    /// Says that the handler may run twice for one message without harm, so that no store is
    /// needed. The broker's own count then gives the attempt, with the exactness that the broker has.
    pub fn idempotent_by_nature(mut self) -> Self {
        self.wishes.idempotency = Some(Idempotency::ByNature);
        self
    }

    /// Chooses the idempotency key. Default: the message's id.
    pub fn key(mut self, source: KeySource) -> Self {
        self.wishes.key = source;
        self
    }

    /// Chooses what becomes of a message without the key. Default: the dead-letter queue.
    pub fn missing_key(mut self, missing: MissingKey) -> Self {
        self.wishes.missing_key = missing;
        self
    }

    /// Chooses whether one key with two bodies is noticed. Default: checked.
    pub fn fingerprints(mut self, fingerprints: Fingerprints) -> Self {
        self.wishes.fingerprints = fingerprints;
        self
    }

    /// Handles messages of one partition key one at a time and in order. Messages without a key are
    /// in no order. Default: unordered.
    pub fn ordered(mut self) -> Self {
        self.wishes.order = SubscriptionOrder::ByPartitionKey;
        self
    }

    /// Starts a message's handler at most this often; 1 to 1,000. Default 5.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.wishes.max_attempts = attempts;
        self
    }

    /// Waits like this between attempts. Default: 1 s doubling to 5 min, with additive jitter.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.wishes.policy.backoff = backoff;
        self
    }

    /// Runs at most this many handlers at once; 1 to 10,000. Default 64.
    pub fn max_in_flight(mut self, handlers: usize) -> Self {
        self.wishes.max_in_flight = handlers;
        self
    }

    /// Holds at most this many deliveries in lanes, running ones included; 1 to 100,000. Only for
    /// ordered consumers. Default: four times `max_in_flight`.
    pub fn max_buffered(mut self, deliveries: usize) -> Self {
        self.wishes.max_buffered = Some(deliveries);
        self
    }

    /// Dead-letters bodies larger than this many bytes unread; 1 to the broker's own limit, which is
    /// the default.
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.wishes.max_body = Some(bytes);
        self
    }

    /// Cancels a handler that runs longer, and counts it as failed; 1 ms to 24 h. Default 60 s.
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.wishes.handler_timeout = timeout;
        self
    }

    /// Lets a claim last this long without renewal: after a crash, its message waits that long at
    /// most. Renewed at a third of it. 100 ms to 24 h; default 30 s.
    pub fn claim_lease(mut self, lease: Duration) -> Self {
        self.wishes.claim_lease = lease;
        self
    }

    /// Keeps idempotency records this long after their last change: a repeat that comes later is
    /// handled again. Longer than the attempts and the waits between them can take, and at most 366
    /// days; default 24 h.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.wishes.retention = retention;
        self
    }

    /// Gives running handlers this long to finish at shutdown; up to 24 h. Default 30 s.
    pub fn shutdown_grace(mut self, grace: Duration) -> Self {
        self.wishes.shutdown_grace = grace;
        self
    }

    /// Chooses when intake stops because handling fails across the board.
    pub fn breaker(mut self, settings: BreakerSettings) -> Self {
        self.wishes.breaker = settings;
        self
    }

    /// Takes jitter from here, uniform in `0.0..1.0`; for tests that must repeat. Default: the
    /// thread's random generator.
    pub fn randomness(mut self, source: Randomness) -> Self {
        self.randomness = source;
        self
    }

    /// Handles bodies as bytes.
    ///
    /// # Errors
    ///
    /// When a setting is missing, out of its range, or at odds with another one or the broker.
    pub fn raw<H: Handler<Bytes>>(self, handler: H) -> Result<Consumer<Raw, H>, ConfigError> {
        self.codec(Raw, handler)
    }

    /// Handles bodies as JSON of a `T`.
    ///
    /// # Errors
    ///
    /// As [`ConsumerBuilder::raw`].
    pub fn json<T, H>(self, handler: H) -> Result<Consumer<Json<T>, H>, ConfigError>
    where
        T: DeserializeOwned + Send + 'static,
        H: Handler<T>,
    {
        self.codec(Json::new(), handler)
    }

    /// Handles bodies that a codec decodes.
    ///
    /// # Errors
    ///
    /// As [`ConsumerBuilder::raw`].
    pub fn codec<C, H>(self, codec: C, handler: H) -> Result<Consumer<C, H>, ConfigError>
    where
        C: Codec,
        H: Handler<C::Payload>,
    {
        let settings = self.wishes.check(&self.broker)?;
        Ok(Consumer::new(
            self.broker,
            settings,
            self.randomness,
            codec,
            handler,
        ))
    }
}

impl fmt::Debug for ConsumerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerBuilder")
            .field("queue", &self.broker.queue())
            .field("name", &self.wishes.name)
            .finish_non_exhaustive()
    }
}
