//! What an in-process queue counts.

/// How many messages are where, and what became of them since the queue was made.
///
/// Each message is in one place: `published + repeated` is always
/// `ready + delayed + in_flight + dead + completed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueCounts {
    /// Messages to be delivered now, those that follow an unsettled one of their partition key
    /// included.
    pub ready: usize,
    /// Messages that wait for their time.
    pub delayed: usize,
    /// Messages that are delivered and not settled.
    pub in_flight: usize,
    /// Messages in the dead-letter queue.
    pub dead: usize,
    /// Messages published.
    pub published: u64,
    /// Copies made by [`BrokerFaults::repeat_deliveries`](crate::BrokerFaults::repeat_deliveries) and
    /// [`BrokerFaults::keep_originals`](crate::BrokerFaults::keep_originals).
    pub repeated: u64,
    /// Deliveries.
    pub delivered: u64,
    /// Messages completed.
    pub completed: u64,
    /// Retries asked for.
    pub retried: u64,
    /// Deliveries released.
    pub released: u64,
    /// Messages dead-lettered, by a consumer or by the broker itself.
    pub dead_lettered: u64,
    /// Deliveries that ended without a verdict: the lease ran out, the connection was cut, the
    /// subscription ended, or the settlement was lost.
    pub lost_leases: u64,
}

impl QueueCounts {
    /// Whether nothing is left to do: every message was completed or dead-lettered.
    pub const fn is_drained(&self) -> bool {
        self.ready == 0 && self.delayed == 0 && self.in_flight == 0
    }
}

#[derive(Default)]
pub(super) struct Totals {
    pub(super) published: u64,
    pub(super) repeated: u64,
    pub(super) delivered: u64,
    pub(super) completed: u64,
    pub(super) retried: u64,
    pub(super) released: u64,
    pub(super) dead_lettered: u64,
    pub(super) lost_leases: u64,
}
