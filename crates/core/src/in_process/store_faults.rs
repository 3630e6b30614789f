//! Faults of the in-process store, for tests.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Makes an [`InProcessStore`](crate::InProcessStore) fail, for tests of what happens then.
#[derive(Clone, Default)]
pub struct StoreFaults {
    plan: Arc<Mutex<Plan>>,
}

#[derive(Default)]
struct Plan {
    down: Outage,
    answers_to_lose: u32,
    delay: Duration,
    answer_delay: Duration,
    clock_ahead: Duration,
}

#[derive(Default, PartialEq, Eq)]
enum Outage {
    #[default]
    Up,
    Down,
}

/// What happens to one call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    Down,
    AnswerLost,
}

impl StoreFaults {
    /// Makes every call fail, without effect, until [`StoreFaults::come_back`].
    pub fn go_down(&self) {
        self.plan.lock().down = Outage::Down;
    }

    /// Ends an outage.
    pub fn come_back(&self) {
        self.plan.lock().down = Outage::Up;
    }

    /// Makes the next `calls` calls take effect and fail all the same.
    pub fn lose_answers(&self, calls: u32) {
        self.plan.lock().answers_to_lose = calls;
    }

    /// Makes every call take this long.
    pub fn delay_calls(&self, delay: Duration) {
        self.plan.lock().delay = delay;
    }

    /// Makes every call take effect at once, and its answer come this much later.
    pub fn delay_answers(&self, delay: Duration) {
        self.plan.lock().answer_delay = delay;
    }

    /// Puts the store's clock ahead by this much more, as a failover to a server with another clock can:
    /// every claim is that much older at once.
    pub fn jump_clock(&self, ahead: Duration) {
        self.plan.lock().clock_ahead += ahead;
    }

    /// What the store's clock shows.
    pub(super) fn now(&self) -> Instant {
        Instant::now() + self.plan.lock().clock_ahead
    }

    pub(super) async fn next(&self) -> Fault {
        let (fault, delay) = {
            let mut plan = self.plan.lock();
            let fault = if plan.down == Outage::Down {
                Fault::Down
            } else if plan.answers_to_lose > 0 {
                plan.answers_to_lose -= 1;
                Fault::AnswerLost
            } else {
                Fault::None
            };
            (fault, plan.delay)
        };
        pause(delay).await;
        fault
    }

    pub(super) async fn answer(&self) {
        let delay = self.plan.lock().answer_delay;
        pause(delay).await;
    }
}

async fn pause(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}

impl fmt::Debug for StoreFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreFaults").finish_non_exhaustive()
    }
}
