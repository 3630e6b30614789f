//! What became of everything, and whether each promise was kept.

use std::collections::HashSet;
use std::time::Duration;

use backstop::{DeadLetterRecord, Stats};
use serde_json::{Value, json};

use super::ledger::Entries;
use super::plan::{Fate, Plan};
use super::story::Told;
use super::worker::MAX_IN_FLIGHT;
use crate::exit::{Code, CommandError};

/// What became of everything.
pub(super) struct Outcome {
    pub(super) ledger: Entries,
    pub(super) told: Told,
    pub(super) took: Duration,
    pub(super) orders: u64,
    pub(super) good: u64,
    pub(super) repeats_sent: u64,
    pub(super) lost: u64,
    pub(super) promises: Vec<Promise>,
    seed: u64,
}

/// A promise, and whether it was kept.
pub(super) struct Promise {
    pub(super) text: &'static str,
    pub(super) kept: bool,
}

impl Outcome {
    /// Compares the ledger with the plan.
    pub(super) fn find(plan: &Plan, ledger: Entries, told: Told, took: Duration) -> Self {
        let lost = lost(plan, &ledger, &told.dead_letters);
        let promises = promises(plan, &ledger, &told, lost);
        Self {
            orders: plan.orders.len() as u64,
            good: plan.good(),
            repeats_sent: plan.repeats(),
            seed: plan.seed,
            lost,
            promises,
            ledger,
            told,
            took,
        }
    }

    /// The promises that were broken.
    pub(super) fn broken(&self) -> Vec<&'static str> {
        let broken = self.promises.iter().filter(|promise| !promise.kept);
        broken.map(|promise| promise.text).collect()
    }

    /// What the demo ends with: a broken promise is a failure.
    pub(super) fn verdict(&self) -> Result<(), CommandError> {
        match self.broken() {
            broken if broken.is_empty() => Ok(()),
            broken => {
                let text = format!("a promise was broken: {}", broken.join("; "));
                Err(CommandError::new(Code::Data, text))
            }
        }
    }

    /// A count of both workers.
    pub(super) fn count(&self, of: impl Fn(&Stats) -> u64) -> u64 {
        self.told.stats.iter().map(of).sum()
    }

    /// Retries that were made.
    pub(super) fn retries(&self) -> u64 {
        self.ledger.waits.values().map(|waits| waits.count).sum()
    }

    pub(super) fn json(&self) -> Value {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let waits = self.ledger.waits.iter().map(|(attempt, waits)| {
            json!({
                "attempt": attempt,
                "count": waits.count,
                "shortest_wait_ms": millis(waits.shortest),
                "longest_wait_ms": millis(waits.longest),
            })
        });
        let dead_letters = self.told.dead_letters.iter().map(|record| {
            json!({
                "id": record.message.id.as_ref().map(ToString::to_string),
                "reason": record.dead_letter.reason.as_str(),
                "error": record.dead_letter.error,
                "attempts": record.dead_letter.attempts,
            })
        });
        let promises = self.promises.iter();
        json!({
            "seed": self.seed,
            "place": self.told.place,
            "seconds": self.took.as_secs_f64(),
            "orders": self.orders,
            "repeats_sent": self.repeats_sent,
            "published": self.ledger.published,
            "delivered": self.count(|stats| stats.received),
            "handled_once": self.ledger.charged.len(),
            "repeats_absorbed": self.count(|stats| stats.repeats),
            "repeats_after_crash_refused": self.ledger.refused,
            "retries": waits.collect::<Vec<_>>(),
            "failed_by_the_bank": self.ledger.bank_failures,
            "breaker_opened": self.count(|stats| stats.breaker_opened),
            "in_hand_at_crash": self.ledger.in_hand_at_crash,
            "takeover_ms": millis(self.told.takeover),
            "order_violations": self.ledger.violations,
            "lost": self.lost,
            "dead_letters": dead_letters.collect::<Vec<_>>(),
            "promises": promises
                .map(|promise| json!({"promise": promise.text, "kept": promise.kept}))
                .collect::<Vec<_>>(),
            "passed": self.broken().is_empty(),
        })
    }
}

/// Orders that are nowhere: neither charged nor dead-lettered.
fn lost(plan: &Plan, ledger: &Entries, dead: &[DeadLetterRecord]) -> u64 {
    let dead: HashSet<usize> = dead
        .iter()
        .filter_map(|record| order_of(plan, record))
        .collect();
    let missing = |order: &usize| !ledger.charged.contains_key(order) && !dead.contains(order);
    (0..plan.orders.len()).filter(missing).count() as u64
}

fn order_of(plan: &Plan, record: &DeadLetterRecord) -> Option<usize> {
    plan.find(record.message.id.as_ref()?.as_str())
}

fn promises(plan: &Plan, ledger: &Entries, told: &Told, lost: u64) -> Vec<Promise> {
    let is_good = |order: &usize| plan.orders[*order].fate == Fate::Charged;
    let charged = ledger.charged.keys().filter(|order| is_good(order)).count() as u64;
    let only_good = ledger.charged.len() as u64 == charged;
    let promise = |text, kept| Promise { text, kept };
    vec![
        promise(
            "everything was published",
            ledger.published == plan.sequence.len() as u64,
        ),
        promise(
            "every order was handled once",
            charged == plan.good() && only_good,
        ),
        promise(
            "repeats were absorbed",
            ledger.inexcusable == 0 && ledger.refused <= MAX_IN_FLIGHT as u64,
        ),
        promise("no retry came before its time", ledger.early == 0),
        promise(
            "order was kept within each customer",
            ledger.violations == 0,
        ),
        promise("nothing was lost", lost == 0),
        promise(
            "the outage cost no order",
            !costs_an_order(plan, ledger, &told.dead_letters),
        ),
        promise(
            "exactly what cannot be handled is in the dead-letter queue, with its reason",
            dead_as_planned(plan, &told.dead_letters),
        ),
    ]
}

/// Whether an order that the bank failed is missing, or was given up though the bank alone failed it.
fn costs_an_order(plan: &Plan, ledger: &Entries, dead: &[DeadLetterRecord]) -> bool {
    let given_up: HashSet<usize> = dead
        .iter()
        .filter_map(|record| order_of(plan, record))
        .collect();
    let is_cost = |order: &usize| {
        let is_good = plan.orders[*order].fate == Fate::Charged;
        let was_charged = ledger.charged.contains_key(order);
        is_good && (!was_charged || given_up.contains(order))
    };
    ledger.failed_by_bank.iter().any(is_cost)
}

fn dead_as_planned(plan: &Plan, dead: &[DeadLetterRecord]) -> bool {
    let has_its_reason = |record: &DeadLetterRecord| {
        let order = order_of(plan, record).map(|order| &plan.orders[order]);
        order.is_some_and(|order| order.fate == Fate::DeadLettered(record.dead_letter.reason))
    };
    let distinct: HashSet<_> = dead.iter().map(|record| order_of(plan, record)).collect();
    let count = dead.len() as u64;
    count == plan.poison() && distinct.len() == dead.len() && dead.iter().all(has_its_reason)
}

#[cfg(test)]
mod tests;
