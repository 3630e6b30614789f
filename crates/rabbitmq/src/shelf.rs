//! Where the deliveries of an ordered subscription wait, in order.
//!
//! What is given back on an ordered queue does not go back to RabbitMQ: a delivery that returns to a
//! partition comes back behind those that were sent ahead meanwhile. It waits here, in its old place.
//! RabbitMQ gets everything back at once, in order, when the subscription ends.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use backstop_core::{Delivery, LeaseId, PartitionKey};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The deliveries that are with us but not handed out, and which keys are blocked.
#[derive(Default)]
pub(crate) struct Shelf {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// By lease, which is the order of arrival.
    waiting: BTreeMap<LeaseId, Waiting>,
    /// The key of each delivery that is handed out.
    out: HashMap<LeaseId, PartitionKey>,
    keys: HashMap<PartitionKey, Key>,
}

struct Waiting {
    delivery: Delivery,
    due: Option<Instant>,
}

#[derive(Default)]
struct Key {
    out: usize,
    /// One was given back while others are out: nothing is handed out until they are back or done,
    /// or the one would be handled behind them.
    is_returning: bool,
}

/// What a look at the shelf brought.
pub(crate) enum Look {
    Taken(Vec<Delivery>),
    /// Nothing, before this time at the earliest.
    Nothing(Option<Instant>),
}

impl Shelf {
    pub(crate) fn push(&self, delivery: Delivery) {
        let lease = delivery.receipt.lease();
        self.state.lock().waiting.insert(
            lease,
            Waiting {
                delivery,
                due: None,
            },
        );
    }

    /// Takes up to `max` deliveries, in order of arrival, past those that have to wait.
    pub(crate) fn take(&self, max: usize) -> Look {
        let now = Instant::now();
        let state = &mut *self.state.lock();
        let mut skipped: HashSet<&PartitionKey> = HashSet::new();
        let mut next_due: Option<Instant> = None;
        let mut chosen = Vec::new();
        for (lease, waiting) in &state.waiting {
            if chosen.len() == max {
                break;
            }
            let key = waiting.delivery.message.partition_key.as_ref();
            let due = waiting.due.filter(|due| *due > now);
            if let Some(due) = due {
                next_due = Some(next_due.map_or(due, |next| next.min(due)));
            }
            let is_blocked = key.is_some_and(|key| {
                skipped.contains(key)
                    || state
                        .keys
                        .get(key)
                        .is_some_and(|key| key.is_returning && key.out > 0)
            });
            if due.is_none() && !is_blocked {
                chosen.push(*lease);
            } else if let Some(key) = key {
                skipped.insert(key);
            }
        }
        if chosen.is_empty() {
            return Look::Nothing(next_due);
        }
        Look::Taken(
            chosen
                .iter()
                .filter_map(|lease| state.hand_out(*lease))
                .collect(),
        )
    }

    /// Puts a delivery back in its old place, to be handed out again after `after`.
    pub(crate) fn put_back(&self, delivery: Delivery, after: Duration) {
        let lease = delivery.receipt.lease();
        let due = (!after.is_zero()).then(|| Instant::now() + after);
        let mut state = self.state.lock();
        if let Some(key) = state.come_back(lease) {
            key.is_returning = true;
        }
        state.waiting.insert(lease, Waiting { delivery, due });
        drop(state);
        self.changed.notify_one();
    }

    /// Notes that a delivery is settled, or lost.
    pub(crate) fn settled(&self, lease: LeaseId) {
        self.state.lock().come_back(lease);
        self.changed.notify_one();
    }

    /// Forgets everything: the channel is gone.
    pub(crate) fn clear(&self) {
        *self.state.lock() = State::default();
    }

    /// Waits for a change.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl State {
    fn hand_out(&mut self, lease: LeaseId) -> Option<Delivery> {
        let Waiting { delivery, .. } = self.waiting.remove(&lease)?;
        if let Some(name) = &delivery.message.partition_key {
            let key = self.keys.entry(name.clone()).or_default();
            key.out += 1;
            key.is_returning = false;
            self.out.insert(lease, name.clone());
        }
        Some(delivery)
    }

    /// The key of a delivery that was out. A key that has none out is forgotten, unless it is asked for.
    fn come_back(&mut self, lease: LeaseId) -> Option<&mut Key> {
        let name = self.out.remove(&lease)?;
        let key = self.keys.get_mut(&name)?;
        key.out -= 1;
        if key.out == 0 {
            self.keys.remove(&name);
            return None;
        }
        self.keys.get_mut(&name)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use backstop_core::{Message, Receipt};

    use super::*;

    fn delivery(number: u64, key: &str) -> Delivery {
        Delivery {
            message: Arc::new(Message::new("x").with_partition_key(key)),
            attempts_used: 0,
            redrives: 0,
            lease: None,
            receipt: Receipt::new(LeaseId(number)),
        }
    }

    fn shelf(keys: &[&str]) -> Shelf {
        let shelf = Shelf::default();
        for (number, key) in (1..).zip(keys) {
            shelf.push(delivery(number, key));
        }
        shelf
    }

    fn take(shelf: &Shelf, max: usize) -> Vec<Delivery> {
        match shelf.take(max) {
            Look::Taken(taken) => taken,
            Look::Nothing(_) => Vec::new(),
        }
    }

    fn numbers(taken: &[Delivery]) -> Vec<u64> {
        taken
            .iter()
            .map(|delivery| delivery.receipt.lease().0)
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_back_is_handed_out_ahead_of_its_followers() {
        let shelf = shelf(&["a", "a", "b", "a"]);
        let mut taken = take(&shelf, 2);
        assert_eq!(numbers(&taken), [1, 2]);
        shelf.put_back(taken.remove(0), Duration::ZERO);
        assert_eq!(
            numbers(&take(&shelf, 9)),
            [3],
            "2 is still out, so 1 has to wait, and 4 behind it"
        );
        shelf.put_back(taken.remove(0), Duration::ZERO);
        assert_eq!(numbers(&take(&shelf, 9)), [1, 2, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_holds_up_its_key_only() {
        let shelf = shelf(&["a", "b", "a"]);
        let mut taken = take(&shelf, 1);
        shelf.put_back(taken.remove(0), Duration::from_secs(5));
        assert_eq!(numbers(&take(&shelf, 9)), [2]);
        let Look::Nothing(Some(due)) = shelf.take(9) else {
            panic!("nothing is due")
        };
        tokio::time::sleep_until(due).await;
        assert_eq!(numbers(&take(&shelf, 9)), [1, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_settled_lets_the_others_go_on() {
        let shelf = shelf(&["a", "a", "a"]);
        let mut taken = take(&shelf, 2);
        shelf.put_back(taken.remove(0), Duration::ZERO);
        assert!(take(&shelf, 9).is_empty());
        shelf.settled(LeaseId(2));
        assert_eq!(numbers(&take(&shelf, 9)), [1, 3]);
        for lease in [1, 3] {
            shelf.settled(LeaseId(lease));
        }
        assert!(shelf.state.lock().keys.is_empty() && shelf.state.lock().out.is_empty());
    }
}
