//! The shop's own book: what was published, what was charged, in what order and how often.
//!
//! It knows nothing of backstop's counters, so that it can be held against them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop::Fence;
use parking_lot::Mutex;

use super::plan::Plan;

/// The waits before the second attempts, the third ones and so on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waits {
    pub(super) count: u64,
    pub(super) shortest: Duration,
    pub(super) longest: Duration,
}

/// What the ledger says.
#[derive(Clone, Debug, Default)]
pub(super) struct Entries {
    /// Messages that the broker has confirmed.
    pub(super) published: u64,
    /// Handlers started.
    pub(super) started: u64,
    /// Orders charged.
    pub(super) charged: HashMap<usize, Charge>,
    /// Charges that were refused because the order was charged already.
    pub(super) refused: u64,
    /// Those of them that no crash excuses.
    pub(super) inexcusable: u64,
    /// Orders that were charged after a later one of the same customer.
    pub(super) violations: u64,
    /// Attempts that the bank failed.
    pub(super) bank_failures: u64,
    /// The orders of those attempts.
    pub(super) failed_by_bank: HashSet<usize>,
    /// Waits by the attempt that they led to.
    pub(super) waits: BTreeMap<u32, Waits>,
    /// Retries that came before their time.
    pub(super) early: u64,
    /// Messages that were not ours.
    pub(super) foreign: u64,
    /// What was in hand at the crash.
    pub(super) in_hand_at_crash: u64,
    crashes: u32,
    last_numbers: HashMap<u32, u32>,
    failures: HashMap<usize, Failed>,
    in_hand: HashMap<usize, u32>,
}

/// How an order was charged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Charge {
    fence: Fence,
    crashes_before: u32,
}

#[derive(Clone, Copy, Debug)]
struct Failed {
    attempt: u32,
    at: Instant,
}

/// The ledger.
pub(super) struct Ledger {
    plan: Arc<Plan>,
    base: Duration,
    entries: Mutex<Entries>,
}

impl Ledger {
    /// A ledger for retries that wait `base`, twice that, and so on.
    pub(super) fn new(plan: Arc<Plan>, base: Duration) -> Self {
        Self {
            plan,
            base,
            entries: Mutex::default(),
        }
    }

    pub(super) fn published(&self, messages: u64) {
        self.entries.lock().published += messages;
    }

    pub(super) fn foreign(&self) {
        self.entries.lock().foreign += 1;
    }

    pub(super) fn started(&self, order: usize, attempt: u32) {
        let mut entries = self.entries.lock();
        entries.started += 1;
        entries.in_hand.insert(order, attempt);
        let Some(failed) = entries.failures.remove(&order) else {
            return;
        };
        let waited = failed.at.elapsed();
        // What a crash or a probe came between has no wait of its own.
        if failed.attempt + 1 == attempt {
            let doubled = self.base * 2_u32.saturating_pow(failed.attempt - 1);
            entries.early += u64::from(waited < doubled);
            let waits = entries.waits.entry(attempt).or_insert(Waits {
                count: 0,
                shortest: waited,
                longest: waited,
            });
            waits.count += 1;
            waits.shortest = waits.shortest.min(waited);
            waits.longest = waits.longest.max(waited);
        }
    }

    /// An attempt failed.
    pub(super) fn failed(&self, order: usize, attempt: u32) {
        let at = Instant::now();
        let mut entries = self.entries.lock();
        entries.failures.insert(order, Failed { attempt, at });
        entries.in_hand.remove(&order);
    }

    /// An attempt failed because of the bank.
    pub(super) fn failed_by_bank(&self, order: usize, attempt: u32) {
        let mut entries = self.entries.lock();
        entries.bank_failures += 1;
        entries.failed_by_bank.insert(order);
        drop(entries);
        self.failed(order, attempt);
    }

    /// Charges an order, unless it has been charged: as a database does whose rows are unique by the
    /// order's id.
    pub(super) fn charge(&self, order: usize, fence: Fence) {
        let mut entries = self.entries.lock();
        entries.in_hand.remove(&order);
        let crashes_before = entries.crashes;
        if let Some(first) = entries.charged.get(&order).copied() {
            // A process that dies between a charge and its completion leaves it to be repeated, under
            // a higher fence. Nothing else does.
            let is_excused = first.crashes_before < crashes_before && first.fence < fence;
            entries.refused += 1;
            entries.inexcusable += u64::from(!is_excused);
            return;
        }
        let charge = Charge {
            fence,
            crashes_before,
        };
        entries.charged.insert(order, charge);
        let planned = &self.plan.orders[order];
        let last = entries.last_numbers.entry(planned.customer).or_default();
        let in_order = planned.number > *last;
        *last = planned.number.max(*last);
        entries.violations += u64::from(!in_order);
    }

    /// A worker crashed: whatever it had in hand is nobody's now. Says how much that was.
    pub(super) fn crashed(&self) -> u64 {
        let mut entries = self.entries.lock();
        entries.crashes += 1;
        entries.in_hand_at_crash = entries.in_hand.len() as u64;
        entries.in_hand.clear();
        // Its waits ended with it.
        entries.failures.clear();
        entries.in_hand_at_crash
    }

    /// How many orders were charged.
    pub(super) fn charged(&self) -> u64 {
        self.entries.lock().charged.len() as u64
    }

    /// Something that changes whenever anything happens.
    pub(super) fn pulse(&self) -> u64 {
        let entries = self.entries.lock();
        entries.published + entries.started + entries.charged.len() as u64 + entries.refused
    }

    /// All that was written down.
    pub(super) fn read(&self) -> Entries {
        self.entries.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(base: Duration) -> Ledger {
        Ledger::new(Arc::new(Plan::new(100, 1, "")), base)
    }

    /// Two orders of one customer, the earlier one first.
    fn neighbours(ledger: &Ledger) -> (usize, usize) {
        let orders = &ledger.plan.orders;
        let same = |n: &usize| orders[*n].customer == orders[0].customer;
        (0, (1..orders.len()).find(same).unwrap())
    }

    #[test]
    fn a_second_charge_is_refused_and_counted() {
        let ledger = ledger(Duration::ZERO);
        ledger.charge(3, Fence(1));
        ledger.charge(3, Fence(2));
        let entries = ledger.read();
        assert_eq!((ledger.charged(), entries.refused), (1, 1));
        assert_eq!(entries.inexcusable, 1);
    }

    #[test]
    fn a_crash_excuses_a_second_charge_under_a_higher_fence_only() {
        let ledger = ledger(Duration::ZERO);
        ledger.charge(3, Fence(1));
        ledger.crashed();
        ledger.charge(3, Fence(2));
        assert_eq!(ledger.read().inexcusable, 0);
        ledger.charge(3, Fence(1));
        assert_eq!(ledger.read().inexcusable, 1);
    }

    #[test]
    fn an_order_behind_a_later_one_is_a_violation() {
        let ledger = ledger(Duration::ZERO);
        let (earlier, later) = neighbours(&ledger);
        ledger.charge(later, Fence(1));
        assert_eq!(ledger.read().violations, 0);
        ledger.charge(earlier, Fence(1));
        assert_eq!(ledger.read().violations, 1);
    }

    #[test]
    fn a_retry_before_its_time_is_noticed() {
        let ledger = ledger(Duration::from_hours(1));
        ledger.started(0, 1);
        ledger.failed(0, 1);
        ledger.started(0, 2);
        assert_eq!((ledger.read().early, ledger.read().waits[&2].count), (1, 1));
    }

    #[test]
    fn a_crash_takes_what_was_in_hand_and_its_waits() {
        let ledger = ledger(Duration::from_hours(1));
        ledger.started(0, 1);
        ledger.failed(0, 1);
        ledger.started(1, 1);
        assert_eq!(ledger.crashed(), 1);
        ledger.started(0, 2);
        assert_eq!(ledger.read().early, 0);
    }
}
