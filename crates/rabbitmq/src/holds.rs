//! Short waits: the delivery stays unsettled in this process.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::{Settlement, Verdict};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::desk::Desk;
use crate::frames::Frame;
use crate::source::channel_of;

/// The longest wait that is spent with the delivery unsettled in this process; longer ones are spent
/// in a queue.
pub(crate) const LONGEST_HOLD: Duration = Duration::from_secs(2);

impl Desk {
    /// Waits here with the delivery unsettled, if there is room: if the process dies meanwhile,
    /// RabbitMQ counts that as the failure that it was.
    pub(crate) fn hold(
        self: &Arc<Self>,
        settlement: Settlement,
        after: Duration,
        frame: Frame,
    ) -> Option<Settlement> {
        let Ok(place) = Arc::clone(&self.holds).try_acquire_owned() else {
            return Some(settlement);
        };
        self.wait_here(settlement, after, frame, Some(place));
        None
    }

    /// Waits here, room or not; the prefetch limit bounds how many can.
    pub(crate) fn wait_here(
        self: &Arc<Self>,
        settlement: Settlement,
        after: Duration,
        frame: Frame,
        place: Option<OwnedSemaphorePermit>,
    ) {
        let desk = Arc::clone(self);
        let until = Instant::now() + after;
        self.waiting.spawn(async move {
            let _place = place;
            tokio::select! {
                biased;
                () = desk.abandoned.cancelled() => {}
                () = tokio::time::sleep_until(until) => {
                    let channel = channel_of(settlement.delivery.receipt.lease());
                    // If the channel is gone, RabbitMQ has taken the delivery back by itself.
                    let _ = desk.send(channel, vec![frame]).await;
                }
                () = desk.closing.cancelled() => {
                    let left = until.saturating_duration_since(Instant::now());
                    desk.copy_alone(with_wait(settlement, left), frame).await;
                }
            }
        });
    }

    /// Sends on its way all that waits here, and takes nothing more to wait.
    pub(crate) async fn finish(&self) {
        const LIMIT: Duration = Duration::from_secs(5);
        self.closing.cancel();
        self.waiting.close();
        if tokio::time::timeout(LIMIT, self.waiting.wait())
            .await
            .is_err()
        {
            let left = self.waiting.len();
            tracing::warn!(
                left,
                "some messages could not be put into delay queues in time; they come back at once"
            );
        }
        self.abandoned.cancel();
    }
}

fn with_wait(settlement: Settlement, wait: Duration) -> Settlement {
    let Settlement { delivery, verdict } = settlement;
    let verdict = match verdict {
        Verdict::Retry { attempts_used, .. } => Verdict::Retry {
            after: wait,
            attempts_used,
        },
        Verdict::Release { .. } => Verdict::Release { after: wait },
        other => other,
    };
    Settlement { delivery, verdict }
}
