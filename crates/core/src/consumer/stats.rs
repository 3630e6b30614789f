//! What a consumer counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::Counter;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident => $metric:literal $({ $label:literal => $value:literal })?),+ $(,)?) => {
        /// A consumer's counts since it started.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)+
        }

        pub(crate) struct Counters {
            $(pub(crate) $name: Count,)+
        }

        impl Counters {
            pub(crate) fn new(consumer: &Arc<str>) -> Self {
                Self {
                    $($name: Count::new(metrics::counter!(
                        $metric, "consumer" => consumer.to_string() $(, $label => $value)?
                    )),)+
                }
            }

            pub(crate) fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.get(),)+ }
            }
        }
    };
}

counters! {
    /// Deliveries received from the broker.
    received => "backstop_deliveries_received_total",
    /// Attempts: handlers started.
    started => "backstop_attempts_started_total",
    /// Deliveries whose handler succeeded and whose completion was settled.
    completed => "backstop_deliveries_settled_total" { "verdict" => "complete" },
    /// Repeats of completed or dead-lettered messages, absorbed.
    repeats => "backstop_deliveries_settled_total" { "verdict" => "repeat" },
    /// Deliveries settled as a retry, or held in their lane for one.
    retried => "backstop_deliveries_settled_total" { "verdict" => "retry" },
    /// Deliveries moved to the dead-letter queue.
    dead_lettered => "backstop_deliveries_settled_total" { "verdict" => "dead-letter" },
    /// Deliveries given back without using an attempt.
    released => "backstop_deliveries_settled_total" { "verdict" => "release" },
    /// Deliveries that were not settled because lease or claim was lost.
    abandoned => "backstop_deliveries_settled_total" { "verdict" => "none" },
    /// Attempts that failed: errors, timeouts and panics.
    failed => "backstop_attempts_failed_total",
    /// Attempts that ran into the handler timeout.
    timed_out => "backstop_attempts_timed_out_total",
    /// Attempts that panicked.
    panicked => "backstop_attempts_panicked_total",
    /// Messages with the key of another body.
    conflicts => "backstop_key_conflicts_total",
    /// Broker leases that were lost.
    lost_leases => "backstop_leases_lost_total",
    /// Claims that another consumer had taken over.
    fenced => "backstop_claims_fenced_total",
    /// Renewals of leases or claims that failed.
    renewal_errors => "backstop_renewal_errors_total",
    /// Settlements that the broker did not take.
    settle_errors => "backstop_settle_errors_total",
    /// Calls to the idempotency store that failed.
    store_errors => "backstop_store_errors_total",
    /// How often the breaker opened, or stayed open after a probe.
    breaker_opened => "backstop_breaker_opened_total",
}

/// One count, kept here and told to the metrics recorder, if there is one.
pub(crate) struct Count {
    value: AtomicU64,
    metric: Counter,
}

impl Count {
    fn new(metric: Counter) -> Self {
        Self {
            value: AtomicU64::new(0),
            metric,
        }
    }

    pub(crate) fn raise(&self) {
        self.add(1);
    }

    pub(crate) fn add(&self, count: u64) {
        self.value.fetch_add(count, Ordering::Relaxed);
        self.metric.increment(count);
    }

    fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}
