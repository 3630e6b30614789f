//! Counting what is handled.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use backstop_core::Shutdown;

/// Counts what is handled.
pub(crate) struct Tally {
    wanted: u32,
    handled: AtomicU32,
    first: OnceLock<Instant>,
    full: Shutdown,
    latencies: Option<Latencies>,
}

/// How long messages were on their way; their bodies begin with their time of sending.
struct Latencies {
    origin: Instant,
    seen: Mutex<Vec<Duration>>,
}

impl Tally {
    pub(crate) fn new(wanted: u32) -> Self {
        Self {
            wanted,
            handled: AtomicU32::new(0),
            first: OnceLock::new(),
            full: Shutdown::new(),
            latencies: None,
        }
    }

    /// One that also takes the time from sending to handling.
    pub(crate) fn with_latencies(wanted: u32) -> Self {
        let latencies = Latencies {
            origin: Instant::now(),
            seen: Mutex::default(),
        };
        Self {
            latencies: Some(latencies),
            ..Self::new(wanted)
        }
    }

    /// How many messages fill it.
    pub(crate) const fn wanted(&self) -> u32 {
        self.wanted
    }

    /// Begins when it is full.
    pub(crate) const fn full(&self) -> &Shutdown {
        &self.full
    }

    /// The time since the first message was handled.
    pub(crate) fn since_first(&self) -> Result<Duration> {
        let first = self.first.get().context("nothing was handled")?;
        Ok(first.elapsed())
    }

    /// The begin of the body of a message that is sent now.
    pub(crate) fn stamp(&self) -> [u8; 8] {
        let origin = self.latencies.as_ref().map(|latencies| latencies.origin);
        let nanos = origin.map_or(0, |origin| origin.elapsed().as_nanos());
        u64::try_from(nanos).unwrap_or(u64::MAX).to_le_bytes()
    }

    /// Handles a message.
    pub(crate) fn handle(&self, body: &[u8]) {
        self.first.get_or_init(Instant::now);
        if let (Some(latencies), Some(stamp)) = (&self.latencies, body.first_chunk()) {
            let sent = Duration::from_nanos(u64::from_le_bytes(*stamp));
            let latency = latencies.origin.elapsed().saturating_sub(sent);
            let mut seen = latencies
                .seen
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            seen.push(latency);
        }
        if self.handled.fetch_add(1, Ordering::Relaxed) + 1 == self.wanted {
            self.full.begin();
        }
    }

    /// The latencies in their order of handling.
    pub(crate) fn latencies(&self) -> Vec<Duration> {
        let Some(latencies) = &self.latencies else {
            return Vec::new();
        };
        let seen = latencies.seen.lock();
        seen.unwrap_or_else(PoisonError::into_inner).clone()
    }
}
