//! Settings of the in-process broker.

use std::sync::Arc;
use std::time::Duration;

use super::broker::InProcessBroker;
use super::queue::{DeadLettering, QueueSettings};
use crate::ports::{Capabilities, DeliveryLease, OrderScope, OrderedRetry, ReleaseCost, Survival};

/// Builds an [`InProcessBroker`].
#[derive(Clone, Debug)]
#[must_use]
pub struct InProcessBrokerBuilder {
    queue: QueueSettings,
    max_body: usize,
    ordered_retry: OrderedRetry,
    release: ReleaseCost,
    max_delay: Option<Duration>,
}

impl InProcessBrokerBuilder {
    pub(super) const fn new(name: Arc<str>) -> Self {
        Self {
            queue: QueueSettings {
                name,
                lease: Duration::from_secs(30),
                delivery_limit: 100,
                dead_lettering: DeadLettering::Present,
            },
            max_body: 16 << 20,
            ordered_retry: OrderedRetry::HeldInLane,
            release: ReleaseCost::Free,
            max_delay: None,
        }
    }

    /// Leases deliveries for this long; default 30 s. A consumer is refused if it is zero.
    pub const fn lease(mut self, lease: Duration) -> Self {
        self.queue.lease = lease;
        self
    }

    /// Dead-letters by itself what used more than this many attempts; default 100. A consumer whose
    /// own cap is not below it is refused.
    pub const fn delivery_limit(mut self, attempts: u32) -> Self {
        self.queue.delivery_limit = attempts;
        self
    }

    /// Takes bodies of at most this many bytes; default 16 MiB.
    pub const fn max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    /// Behaves like a broker where ordered retries wait here; default: in the consumer's lane.
    pub const fn ordered_retry(mut self, retry: OrderedRetry) -> Self {
        self.ordered_retry = retry;
        self
    }

    /// Behaves like a broker where a release costs this; default: nothing.
    pub const fn release_cost(mut self, cost: ReleaseCost) -> Self {
        self.release = cost;
        self
    }

    /// Behaves like a broker that delays by at most this; default: no limit. A longer delay of a
    /// publication is refused.
    pub const fn max_delay(mut self, limit: Duration) -> Self {
        self.max_delay = Some(limit);
        self
    }

    /// Has no dead-letter queue: consumers are refused.
    pub const fn without_dead_letter_queue(mut self) -> Self {
        self.queue.dead_lettering = DeadLettering::Absent;
        self
    }

    /// Builds the broker.
    pub fn build(self) -> InProcessBroker {
        let capabilities = Capabilities {
            order: OrderScope::AcrossProcesses,
            ordered_retry: self.ordered_retry,
            release: self.release,
            lease: DeliveryLease::Timed { max_total: None },
            max_delay: self.max_delay,
            max_publication_delay: self.max_delay,
            max_body: self.max_body,
            survival: Survival::Process,
        };
        InProcessBroker::with_settings(self.queue, capabilities)
    }
}
