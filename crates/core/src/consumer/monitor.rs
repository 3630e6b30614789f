//! Looking at a running consumer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::gate::Gate;
use super::stats::{Counters, Stats};

/// Looks at a consumer from outside, before, while and after it runs. Cloning is cheap.
#[derive(Clone)]
pub struct Monitor {
    pub(super) counters: Arc<Counters>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) gate: Arc<Gate>,
}

impl Monitor {
    /// What was counted since the consumer was built.
    pub fn stats(&self) -> Stats {
        self.counters.snapshot()
    }

    /// Whether the consumer can handle messages now: it receives, its store answers, and handling
    /// does not fail across the board.
    pub fn is_ready(&self) -> bool {
        self.readiness.receiving.load(Ordering::Relaxed)
            && self.gate.is_store_up()
            && !self.gate.is_tripped()
    }
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor")
            .field("stats", &self.stats())
            .field("is_ready", &self.is_ready())
            .finish_non_exhaustive()
    }
}

/// Whether the broker delivers to us.
#[derive(Default)]
pub(crate) struct Readiness {
    receiving: AtomicBool,
}

impl Readiness {
    pub(crate) fn set_receiving(&self, receiving: bool) {
        self.receiving.store(receiving, Ordering::Relaxed);
    }
}
