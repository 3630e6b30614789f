//! A standard queue: it hands each message out once until its visibility runs out.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

/// What was sent, and what became of it.
#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    visible: VecDeque<Sent>,
    in_flight: HashMap<Receipt, Held>,
    /// When messages become visible again, earliest first.
    ends: BTreeSet<(Instant, Receipt)>,
    receipts: u64,
    deleted: u64,
}

/// The number of a hand-over.
pub(crate) type Receipt = u64;

/// A message. Times are milliseconds since 1970.
#[derive(Clone)]
pub(crate) struct Sent {
    pub(crate) id: Arc<str>,
    pub(crate) body: Arc<str>,
    pub(crate) md5: Arc<str>,
    pub(crate) at: u64,
    pub(crate) receives: u32,
    pub(crate) first_received: u64,
}

struct Held {
    message: Sent,
    ends: Instant,
}

impl Queue {
    /// Takes a message; gives its id.
    pub(crate) fn send(&self, body: String, md5: &str) -> Arc<str> {
        let id: Arc<str> = Uuid::now_v7().to_string().into();
        let message = Sent {
            id: Arc::clone(&id),
            body: body.into(),
            md5: md5.into(),
            at: since_1970(),
            receives: 0,
            first_received: 0,
        };
        self.state().visible.push_back(message);
        self.changed.notify_waiters();
        id
    }

    /// Hands out at most `max` messages; waits for the first as long as it may.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: nothing is handed out before it answers.
    pub(crate) async fn receive(
        &self,
        max: usize,
        visibility: Duration,
        wait: Duration,
    ) -> Vec<(Receipt, Sent)> {
        let until = Instant::now() + wait;
        loop {
            let changed = self.changed.notified();
            let (handed, next) = self.state().hand_out(max, visibility);
            if !handed.is_empty() || Instant::now() >= until {
                return handed;
            }
            let wake = next.map_or(until, |next| next.min(until));
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Deletes what is in flight by this receipt, if anything is.
    pub(crate) fn delete(&self, receipt: Receipt) -> bool {
        let mut state = self.state();
        let is_held = state.take(receipt).is_some();
        state.deleted += u64::from(is_held);
        is_held
    }

    /// Makes what is in flight by this receipt visible at another time, if anything is.
    pub(crate) fn change_visibility(&self, receipt: Receipt, visibility: Duration) -> bool {
        let mut state = self.state();
        let Some(message) = state.take(receipt) else {
            return false;
        };
        state.hold(receipt, message, visibility);
        drop(state);
        self.changed.notify_waiters();
        true
    }

    /// How many are visible, and how many in flight.
    pub(crate) fn depth(&self) -> (usize, usize) {
        let mut state = self.state();
        state.end_leases();
        (state.visible.len(), state.in_flight.len())
    }

    /// How many were deleted.
    pub(crate) fn deleted(&self) -> u64 {
        self.state().deleted
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Also tells when the next one becomes visible again.
    fn hand_out(
        &mut self,
        max: usize,
        visibility: Duration,
    ) -> (Vec<(Receipt, Sent)>, Option<Instant>) {
        self.end_leases();
        let count = self.visible.len().min(max);
        let taken: Vec<_> = self.visible.drain(..count).collect();
        let hand_out = |mut message: Sent| {
            message.receives += 1;
            if message.receives == 1 {
                message.first_received = since_1970();
            }
            self.receipts += 1;
            let receipt = self.receipts;
            self.hold(receipt, message.clone(), visibility);
            (receipt, message)
        };
        let handed = taken.into_iter().map(hand_out).collect();
        let next = self.ends.first().map(|(ends, _)| *ends);
        (handed, next)
    }

    fn hold(&mut self, receipt: Receipt, message: Sent, visibility: Duration) {
        let ends = Instant::now() + visibility;
        self.ends.insert((ends, receipt));
        self.in_flight.insert(receipt, Held { message, ends });
        if visibility.is_zero() {
            self.end_leases();
        }
    }

    fn take(&mut self, receipt: Receipt) -> Option<Sent> {
        self.end_leases();
        let held = self.in_flight.remove(&receipt)?;
        self.ends.remove(&(held.ends, receipt));
        Some(held.message)
    }

    fn end_leases(&mut self) {
        let now = Instant::now();
        while let Some((_, receipt)) = self.ends.first().filter(|(ends, _)| *ends <= now) {
            let held = self.in_flight.remove(receipt);
            self.visible.extend(held.map(|held| held.message));
            self.ends.pop_first();
        }
    }
}

fn since_1970() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn filled(bodies: &[&str]) -> Queue {
        let queue = Queue::default();
        for body in bodies {
            queue.send((*body).to_owned(), "md5");
        }
        queue
    }

    fn bodies(handed: &[(Receipt, Sent)]) -> Vec<&str> {
        handed.iter().map(|(_, message)| &*message.body).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_is_handed_out_once_until_its_visibility_runs_out() {
        let queue = filled(&["a", "b", "c"]);
        let first = queue.receive(2, 30 * SECOND, SECOND).await;
        assert_eq!(bodies(&first), ["a", "b"]);
        let rest = queue.receive(10, 60 * SECOND, SECOND).await;
        assert_eq!(bodies(&rest), ["c"]);
        assert!(queue.receive(10, SECOND, 29 * SECOND).await.is_empty());
        let again = queue.receive(10, 30 * SECOND, 5 * SECOND).await;
        assert_eq!(bodies(&again), ["a", "b"]);
        assert!(again.iter().all(|(_, message)| message.receives == 2));
        assert!(
            !queue.delete(first[0].0),
            "its receipt is of an earlier time"
        );
        assert!(queue.delete(again[0].0));
        assert_eq!((queue.deleted(), queue.depth()), (1, (0, 2)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_receipt_deletes_once() {
        let queue = filled(&["a"]);
        let handed = queue.receive(1, SECOND, SECOND).await;
        assert!(queue.delete(handed[0].0));
        assert!(!queue.delete(handed[0].0));
        assert!(!queue.delete(99));
        assert_eq!((queue.deleted(), queue.depth()), (1, (0, 0)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_queue_is_waited_at_for_all_of_the_wait() {
        let (queue, begun) = (Queue::default(), Instant::now());
        assert!(queue.receive(10, SECOND, 20 * SECOND).await.is_empty());
        assert_eq!(begun.elapsed(), 20 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_what_is_sent_or_given_back_meanwhile() {
        let (queue, begun) = (Queue::default(), Instant::now());
        let send = async {
            tokio::time::sleep(SECOND).await;
            queue.send("late".to_owned(), "md5");
        };
        let (handed, ()) = tokio::join!(queue.receive(10, 30 * SECOND, 20 * SECOND), send);
        assert_eq!(bodies(&handed), ["late"]);
        let give_back = async {
            tokio::time::sleep(SECOND).await;
            assert!(queue.change_visibility(handed[0].0, Duration::ZERO));
        };
        let (again, ()) = tokio::join!(queue.receive(10, 30 * SECOND, 20 * SECOND), give_back);
        assert_eq!(bodies(&again), ["late"]);
        assert_eq!(begun.elapsed(), 2 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_visibility_that_is_extended_runs_out_later() {
        let queue = filled(&["a"]);
        let handed = queue.receive(1, 5 * SECOND, SECOND).await;
        assert!(queue.change_visibility(handed[0].0, 30 * SECOND));
        assert!(queue.receive(1, SECOND, 29 * SECOND).await.is_empty());
        assert_eq!(queue.receive(1, SECOND, 2 * SECOND).await.len(), 1);
        assert!(!queue.change_visibility(handed[0].0, SECOND));
    }
}
