//! What a run says about itself.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use backstop::{Monitor, Stats};
use serde_json::{Value, json};

use super::target::Target;
use crate::output;

/// How often readiness is looked at.
const GLANCE: Duration = Duration::from_millis(20);

/// Says when the consumer is ready, and what it has done.
pub(super) struct Report {
    json: bool,
    queue: String,
    monitor: Monitor,
    begun: Instant,
    announced: AtomicBool,
}

impl Report {
    pub(super) fn new(json: bool, queue: &str, monitor: Monitor) -> Self {
        Self {
            json,
            queue: queue.to_owned(),
            monitor,
            begun: Instant::now(),
            announced: AtomicBool::new(false),
        }
    }

    /// Says once that the consumer is ready; then waits.
    pub(super) async fn announce_readiness(&self, target: &Target) -> Infallible {
        while !self.monitor.is_ready() {
            tokio::time::sleep(GLANCE).await;
        }
        self.ready(target);
        std::future::pending().await
    }

    fn ready(&self, target: &Target) {
        if self.announced.swap(true, Ordering::Relaxed) {
            return;
        }
        let queue = &self.queue;
        if self.json {
            // A reader that went away shows at the summary.
            let _ = output::print_json(&json!({"event": "ready", "queue": queue}));
        } else {
            output::note(&format!("ready: messages of {queue:?} go to {target}"));
        }
    }

    /// Says what was done.
    ///
    /// # Errors
    ///
    /// When stdout cannot be written to.
    pub(super) fn summary(&self, target: &Target) -> io::Result<()> {
        let stats = self.monitor.stats();
        if stats.received > 0 {
            // A short run may be over before anybody looked.
            self.ready(target);
        }
        if self.json {
            return output::print_json(&self.as_json(&stats, target));
        }
        output::note(&self.as_text(&stats, target));
        Ok(())
    }

    fn as_json(&self, stats: &Stats, target: &Target) -> Value {
        json!({
            "event": "summary",
            "queue": self.queue,
            "seconds": self.begun.elapsed().as_secs_f64(),
            "received": stats.received,
            "started": stats.started,
            "completed": stats.completed,
            "repeats": stats.repeats,
            "retried": stats.retried,
            "dead_lettered": stats.dead_lettered,
            "released": stats.released,
            "abandoned": stats.abandoned,
            "failed": stats.failed,
            "timed_out": stats.timed_out + target.timed_out(),
            "conflicts": stats.conflicts,
            "lost_leases": stats.lost_leases,
            "fenced": stats.fenced,
            "renewal_errors": stats.renewal_errors,
            "settle_errors": stats.settle_errors,
            "store_errors": stats.store_errors,
            "breaker_opened": stats.breaker_opened,
        })
    }

    fn as_text(&self, stats: &Stats, target: &Target) -> String {
        let mut text = format!(
            "stopped after {}: {} completed, {} absorbed, {} retried, {} dead-lettered, {} given back",
            output::brief(self.begun.elapsed()),
            output::thousands(stats.completed),
            output::counted(stats.repeats, "repeat"),
            output::thousands(stats.retried),
            output::thousands(stats.dead_lettered),
            output::thousands(stats.released),
        );
        // Only what a person should look into.
        for (count, what) in [
            (stats.timed_out + target.timed_out(), "attempts timed out"),
            (stats.conflicts, "messages had the key of another body"),
            (
                stats.abandoned,
                "deliveries were lost before they were settled, and come again",
            ),
            (
                stats.fenced,
                "claims had been taken over by another process",
            ),
            (
                stats.settle_errors,
                "settlements were not taken by the broker",
            ),
            (stats.store_errors, "calls to the idempotency store failed"),
            (
                stats.breaker_opened,
                "times everything failed and intake stopped",
            ),
        ] {
            if count > 0 {
                let _ = write!(text, "\n  {} {what}", output::thousands(count));
            }
        }
        text
    }
}
