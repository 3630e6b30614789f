//! The messages that are with us, and for how long.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use backstop_core::LeaseId;
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use crate::config::SqsConfig;

/// Leases by their numbers.
pub(crate) struct Leases {
    seconds: u32,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    next: u64,
    by_id: HashMap<LeaseId, Lease>,
    /// How many there were, doubled, when it was last looked for those that ended unnoticed.
    look_at: usize,
}

/// So few are not worth a look.
const FEW: usize = 64;

/// One message's lease.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    /// SQS's name for this hand-over.
    pub(crate) handle: Arc<str>,
    received: Instant,
    ends: Instant,
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// The right to change a message's visibility, until it is dropped. Calls go by connections of their own,
/// and one that is throttled is tried again: an extension could land behind the wait of a retry.
pub(crate) type Turn = OwnedMutexGuard<()>;

impl Leases {
    pub(crate) fn new(seconds: u32) -> Self {
        Self {
            seconds,
            held: Mutex::default(),
        }
    }

    pub(crate) const fn seconds(&self) -> u32 {
        self.seconds
    }

    /// How long a lease counts as ours from when its message or the answer arrived: less than SQS gave,
    /// whose time began earlier.
    fn lasts(seconds: u32) -> Duration {
        let given = Duration::from_secs(seconds.into());
        given.saturating_sub((given / 10).min(Duration::from_millis(500)))
    }

    pub(crate) fn begin(&self, handle: Arc<str>, received: Instant) -> LeaseId {
        let lease = Lease {
            handle,
            received,
            ends: received + Self::lasts(self.seconds),
            turn: Arc::default(),
        };
        let mut held = self.held.lock();
        if held.by_id.len() >= held.look_at.max(FEW) {
            held.by_id.retain(|_, lease| lease.ends > received);
            held.look_at = held.by_id.len() * 2;
        }
        held.next += 1;
        let id = LeaseId(held.next);
        held.by_id.insert(id, lease);
        id
    }

    /// The lease, if it is ours.
    pub(crate) fn get(&self, id: LeaseId, now: Instant) -> Option<Lease> {
        let mut held = self.held.lock();
        let lease = held.by_id.get(&id)?;
        if lease.ends <= now {
            held.by_id.remove(&id);
            return None;
        }
        Some(lease.clone())
    }

    pub(crate) fn end(&self, id: LeaseId) {
        self.held.lock().by_id.remove(&id);
    }

    /// Ends all that are ours.
    pub(crate) fn end_all(&self, now: Instant) -> Vec<Lease> {
        let all = std::mem::take(&mut self.held.lock().by_id);
        all.into_values().filter(|lease| lease.ends > now).collect()
    }

    /// Notes an extension by so many seconds, asked for at `asked`, and says how long it lasts.
    pub(crate) fn extended(&self, id: LeaseId, asked: Instant, seconds: u32) -> Option<Duration> {
        let lasts = Self::lasts(seconds);
        let mut held = self.held.lock();
        held.by_id.get_mut(&id)?.ends = asked + lasts;
        Some(lasts)
    }
}

impl Lease {
    /// Waits until no extension is under way; none begins until the turn is dropped.
    pub(crate) async fn turn(&self) -> Turn {
        Arc::clone(&self.turn).lock_owned().await
    }

    /// A turn, unless somebody has it or waits for it.
    pub(crate) fn try_turn(&self) -> Option<Turn> {
        Arc::clone(&self.turn).try_lock_owned().ok()
    }

    /// What is left of it.
    pub(crate) fn left(&self, now: Instant) -> Duration {
        self.ends.saturating_duration_since(now)
    }

    /// The visibility that gives a wait, in whole seconds and never shorter. SQS allows 12 hours from
    /// the receipt in all.
    pub(crate) fn visibility(&self, wait: Duration, now: Instant) -> u32 {
        let wait = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let wait = u32::try_from(wait).unwrap_or(u32::MAX);
        wait.min(self.seconds_left_in_all(now))
    }

    fn seconds_left_in_all(&self, now: Instant) -> u32 {
        let used = now.saturating_duration_since(self.received) + Duration::from_secs(2);
        let left = SqsConfig::MAX_LEASE.saturating_sub(used).as_secs();
        u32::try_from(left).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_ours_until_a_little_before_its_end() {
        let (leases, now) = (Leases::new(30), Instant::now());
        let id = leases.begin("handle".into(), now);
        let left = leases.get(id, now).unwrap().left(now);
        assert_eq!(left, Duration::from_millis(29_500));
        assert!(
            leases
                .get(id, now + Duration::from_millis(29_499))
                .is_some()
        );
        assert!(leases.get(id, now + left).is_none());
        assert!(leases.get(id, now).is_none(), "what is lost stays lost");
    }

    /// The consumer's keeper has a clock of its own: it asks for nothing that it takes for lost.
    #[tokio::test(start_paused = true)]
    async fn leases_that_end_unnoticed_do_not_pile_up() {
        let (leases, begun) = (Leases::new(30), Instant::now());
        let begin = |number: u32| {
            let received = begun + number * SECOND;
            (leases.begin("handle".into(), received), received)
        };
        for number in 0..10_000 {
            begin(number);
            assert!(leases.held.lock().by_id.len() <= 2 * FEW, "{number}");
        }
        let (last, received) = begin(10_000);
        assert!(leases.get(last, received).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_extension_counts_from_when_it_was_asked_for() {
        let (leases, now) = (Leases::new(10), Instant::now());
        let id = leases.begin("handle".into(), now);
        let lasts = leases.extended(id, now + 8 * SECOND, 10).unwrap();
        assert!(leases.get(id, now + 8 * SECOND + lasts - SECOND).is_some());
        assert_eq!(leases.extended(LeaseId(99), now, 10), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_is_never_shorter_and_never_past_twelve_hours_in_all() {
        let (leases, now) = (Leases::new(43_200), Instant::now());
        let id = leases.begin("handle".into(), now);
        let lease = leases.get(id, now).unwrap();
        assert_eq!(lease.visibility(Duration::ZERO, now), 0);
        assert_eq!(lease.visibility(Duration::from_millis(1), now), 1);
        assert_eq!(lease.visibility(Duration::from_millis(1001), now), 2);
        let later = now + 40_000 * SECOND;
        assert_eq!(lease.visibility(Duration::from_hours(12), later), 3_198);
    }
}
