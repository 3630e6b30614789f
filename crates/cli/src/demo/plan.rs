//! What will be published: decided before the story begins, so that the ledger can tell what is
//! missing at its end.

use std::collections::HashMap;

use backstop::{DeadLetterReason, Message};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// A message body.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct Order {
    pub(super) customer: u32,
    /// Counts the customer's orders, from 1.
    pub(super) number: u32,
    pub(super) amount: u32,
    pub(super) currency: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) card: Option<String>,
}

/// What is to become of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It can be charged.
    Charged,
    /// It cannot, and has to end in the dead-letter queue for this reason.
    DeadLettered(DeadLetterReason),
}

/// One order, as published.
pub(super) struct Planned {
    pub(super) id: String,
    pub(super) customer: u32,
    pub(super) number: u32,
    pub(super) fate: Fate,
    /// Milliseconds of work.
    pub(super) work: u64,
    body: String,
}

/// All orders, and the sequence in which they and their repeats are published.
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) orders: Vec<Planned>,
    pub(super) sequence: Vec<usize>,
    pub(super) customers: u32,
    by_id: HashMap<String, usize>,
}

/// The currency that no exchange rate is known for, so that its order fails every time.
pub(super) const UNKNOWN_CURRENCY: &str = "XTS";

impl Plan {
    pub(super) fn new(messages: u32, seed: u64, run: &str) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let customers = (messages / 50).clamp(10, 500);
        let poison = poison(messages, &mut random);
        let mut numbers = HashMap::new();
        let mut orders = Vec::new();
        for index in 0..messages + 3 {
            let customer = random.random_range(1..=customers);
            let number = numbers.entry(customer).or_insert(0);
            *number += 1;
            let fate = poison.get(&index).copied().unwrap_or(Fate::Charged);
            orders.push(Planned {
                id: format!("{run}order-{:05}", index + 1),
                customer,
                number: *number,
                fate,
                work: random.random_range(15..55),
                body: body(customer, *number, fate, &mut random),
            });
        }
        let sequence = sequence(&orders, &mut random);
        let by_id = orders.iter().enumerate();
        let by_id = by_id.map(|(index, order)| (order.id.clone(), index));
        Self {
            seed,
            customers,
            by_id: by_id.collect(),
            sequence,
            orders,
        }
    }

    /// The order that an id names.
    pub(super) fn find(&self, id: &str) -> Option<usize> {
        self.by_id.get(id).copied()
    }

    /// The message of an order; the same every time, as a publisher sends it that has lost an answer.
    pub(super) fn message(&self, index: usize) -> Message {
        let order = &self.orders[index];
        Message::new(order.body.clone())
            .with_id(order.id.as_str())
            .with_partition_key(format!("customer-{}", order.customer))
            .with_header("content-type", "application/json")
    }

    /// How many orders can be charged.
    pub(super) fn good(&self) -> u64 {
        let good = self.orders.iter().filter(|o| o.fate == Fate::Charged);
        good.count() as u64
    }

    /// How many orders cannot.
    pub(super) fn poison(&self) -> u64 {
        self.orders.len() as u64 - self.good()
    }

    /// How many messages are sent a second time.
    pub(super) fn repeats(&self) -> u64 {
        (self.sequence.len() - self.orders.len()) as u64
    }
}

/// Three different orders that nobody can handle, each of another kind.
fn poison(messages: u32, random: &mut StdRng) -> HashMap<u32, Fate> {
    let reasons = [
        DeadLetterReason::Undecodable,
        DeadLetterReason::PermanentError,
        DeadLetterReason::AttemptsExhausted,
    ];
    // In the second half, far behind the crash: one between the copy into the dead-letter queue and
    // its settlement makes a second copy, which no queue can prevent.
    let part = messages / 6;
    let place = |(n, reason)| {
        let from = messages / 2 + u32::try_from(n).unwrap_or(0) * part;
        let index = from + random.random_range(0..part);
        (index, Fate::DeadLettered(reason))
    };
    reasons.into_iter().enumerate().map(place).collect()
}

fn body(customer: u32, number: u32, fate: Fate, random: &mut StdRng) -> String {
    let mut order = Order {
        customer,
        number,
        amount: random.random_range(100..50_000),
        currency: "EUR".to_owned(),
        card: None,
    };
    match fate {
        Fate::DeadLettered(DeadLetterReason::PermanentError) => {
            order.card = Some("closed".to_owned());
        }
        Fate::DeadLettered(DeadLetterReason::AttemptsExhausted) => {
            UNKNOWN_CURRENCY.clone_into(&mut order.currency);
        }
        _ => {}
    }
    let mut body = serde_json::to_string(&order).unwrap_or_default();
    if fate == Fate::DeadLettered(DeadLetterReason::Undecodable) {
        body.truncate(body.len() / 2);
    }
    body
}

/// All orders in their order, and one in ten of them again a little later.
fn sequence(orders: &[Planned], random: &mut StdRng) -> Vec<usize> {
    let mut places: Vec<(usize, usize)> = (0..orders.len()).map(|index| (index, index)).collect();
    for (index, order) in orders.iter().enumerate() {
        if order.fate == Fate::Charged && random.random_ratio(1, 10) {
            places.push((index + random.random_range(1..200), index));
        }
    }
    // Stable: an order stands before its repeat, and before the repeats of earlier ones.
    places.sort_by_key(|(place, _)| *place);
    places.into_iter().map(|(_, index)| index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_same_plan() {
        let (one, other) = (Plan::new(500, 7, ""), Plan::new(500, 7, ""));
        assert_eq!(one.sequence, other.sequence);
        assert!((0..500).all(|n| one.message(n).body == other.message(n).body));
        assert_ne!(one.sequence, Plan::new(500, 8, "").sequence);
    }

    #[test]
    fn every_plan_has_three_different_poisons_and_some_repeats() {
        for seed in 0..200 {
            let plan = Plan::new(100, seed, "");
            assert_eq!((plan.good(), plan.poison()), (100, 3), "seed {seed}");
            assert!(plan.repeats() > 0, "seed {seed}");
        }
    }

    #[test]
    fn a_customers_orders_are_published_in_order_and_repeats_follow() {
        let plan = Plan::new(2_000, 3, "");
        let mut highest: HashMap<u32, u32> = HashMap::new();
        let mut seen = std::collections::HashSet::new();
        for index in &plan.sequence {
            let order = &plan.orders[*index];
            if seen.insert(*index) {
                let before = highest.insert(order.customer, order.number).unwrap_or(0);
                assert_eq!(order.number, before + 1);
            }
        }
        assert_eq!(seen.len(), plan.orders.len());
    }
}
