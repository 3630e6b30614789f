//! The gate in front of intake: a breaker for handling and one for the idempotency store.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::breaker::{Breaker, BreakerSettings, Change, Width};
use super::stats::Counters;
use crate::causes::with_causes;
use crate::error::StoreError;
use crate::sync::{AtomicBool, Mutex};

/// Stops and resumes intake.
pub(crate) struct Gate {
    handling: Mutex<Breaker>,
    store: Mutex<Breaker>,
    store_down: AtomicBool,
    shut: AtomicBool,
    changed: Notify,
    counters: Arc<Counters>,
}

impl Gate {
    pub(crate) fn new(settings: BreakerSettings, counters: Arc<Counters>) -> Self {
        let store = BreakerSettings {
            window: 1,
            failure_ratio: 1.0,
            first_pause: settings.first_pause.min(Duration::from_millis(100)),
            longest_pause: settings.longest_pause.min(Duration::from_secs(5)),
        };
        Self {
            handling: Mutex::new(Breaker::new(settings)),
            store: Mutex::new(Breaker::new(store)),
            store_down: AtomicBool::new(false),
            shut: AtomicBool::new(false),
            changed: Notify::new(),
            counters,
        }
    }

    /// Waits until intake may go on, and says how widely.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub(crate) async fn opening(&self) -> Width {
        loop {
            let changed = self.changed.notified();
            match self.width() {
                Width::Shut(until) => {
                    tokio::select! {
                        biased;
                        () = tokio::time::sleep_until(until) => {}
                        () = changed => {}
                    }
                }
                width => return width,
            }
        }
    }

    /// Waits until intake may no longer go on as widely as this, or may go on more widely.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub(crate) async fn other_than(&self, width: Width) {
        loop {
            let changed = self.changed.notified();
            if self.width() != width {
                return;
            }
            changed.await;
        }
    }

    fn width(&self) -> Width {
        if !self.shut.load(Ordering::Relaxed) && !self.store_down.load(Ordering::Relaxed) {
            return Width::Full;
        }
        let now = Instant::now();
        let widths = (
            self.handling.lock().width(now),
            self.store.lock().width(now),
        );
        match widths {
            (Width::Shut(one), Width::Shut(other)) => Width::Shut(one.max(other)),
            (shut @ Width::Shut(_), _) | (_, shut @ Width::Shut(_)) => shut,
            (Width::Probe, _) | (_, Width::Probe) => Width::Probe,
            (Width::Full, Width::Full) => Width::Full,
        }
    }

    /// Whether handling fails across the board: nothing more is to be started but a probe.
    pub(crate) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Relaxed)
            && matches!(self.handling.lock().width(Instant::now()), Width::Shut(_))
    }

    /// Whether the breaker is anything but closed.
    pub(crate) fn is_tripped(&self) -> bool {
        self.shut.load(Ordering::Relaxed)
    }

    /// Whether a probe on its last attempt should be spared, and for how long.
    pub(crate) fn spares_last_attempt(&self) -> Option<Duration> {
        if !self.is_tripped() {
            return None;
        }
        self.handling.lock().spares_last_attempt(Instant::now())
    }

    // The flags change under the breakers' locks, so that they never say another thing for long.

    pub(crate) fn handling_succeeded(&self) {
        let mut breaker = self.handling.lock();
        if breaker.succeeded() == Change::Closed {
            self.shut.store(false, Ordering::Relaxed);
            drop(breaker);
            tracing::info!("handling works again; intake resumes");
            self.changed.notify_waiters();
        }
    }

    pub(crate) fn handling_failed(&self) {
        let mut breaker = self.handling.lock();
        if let Change::Opened(pause) = breaker.failed(Instant::now()) {
            self.shut.store(true, Ordering::Relaxed);
            drop(breaker);
            self.counters.breaker_opened.raise();
            tracing::error!(
                ?pause,
                "handling fails across the board; intake stops and then probes"
            );
            self.changed.notify_waiters();
        }
    }

    pub(crate) fn store_answered(&self) {
        if self.is_store_up() {
            return;
        }
        let mut breaker = self.store.lock();
        if breaker.succeeded() == Change::Closed {
            self.store_down.store(false, Ordering::Relaxed);
            drop(breaker);
            tracing::info!("the idempotency store answers again; intake resumes");
            self.changed.notify_waiters();
        }
    }

    pub(crate) fn store_failed(&self, error: &StoreError) {
        let mut breaker = self.store.lock();
        if let Change::Opened(_) = breaker.failed(Instant::now())
            && !self.store_down.swap(true, Ordering::Relaxed)
        {
            drop(breaker);
            tracing::error!(error = %with_causes(error), "the idempotency store fails; nothing is handled until it answers");
            self.changed.notify_waiters();
        }
    }

    /// Whether the store answered when it was last asked.
    pub(crate) fn is_store_up(&self) -> bool {
        !self.store_down.load(Ordering::Relaxed)
    }
}
