use std::sync::Arc;
use std::time::SystemTime;

use backstop::{DeadLetter, DeadLetterReason, Fence};

use super::*;
use crate::demo::ledger::Ledger;
use crate::demo::plan::Planned;

/// A story whose end can be changed.
struct Story {
    plan: Arc<Plan>,
    ledger: Ledger,
    dead_letters: Vec<DeadLetterRecord>,
}

impl Story {
    /// In which the orders that are not left out become what they should.
    fn without(left_out: impl Fn(usize) -> bool) -> Self {
        let plan = Arc::new(Plan::new(100, 1, ""));
        let ledger = Ledger::new(Arc::clone(&plan), Duration::from_hours(1));
        ledger.published(plan.sequence.len() as u64);
        let mut story = Self {
            plan: Arc::clone(&plan),
            ledger,
            dead_letters: Vec::new(),
        };
        for (index, order) in plan.orders.iter().enumerate() {
            match order.fate {
                _ if left_out(index) => {}
                Fate::Charged => story.ledger.charge(index, Fence(1)),
                Fate::DeadLettered(reason) => story.dead_letter(index, reason),
            }
        }
        story
    }

    fn as_planned() -> Self {
        Self::without(|_| false)
    }

    fn dead_letter(&mut self, order: usize, reason: DeadLetterReason) {
        self.dead_letters.push(DeadLetterRecord {
            message: Arc::new(self.plan.message(order)),
            dead_letter: DeadLetter {
                reason,
                error: String::new(),
                attempts: 1,
                origin: "orders".to_owned(),
                consumer: "demo".to_owned(),
                at: SystemTime::UNIX_EPOCH,
            },
        });
    }

    fn orders(&self, is_wanted: impl Fn(Fate) -> bool) -> Vec<usize> {
        let orders = self.plan.orders.iter().enumerate();
        let wanted = orders.filter(|(_, order)| is_wanted(order.fate));
        wanted.map(|(index, _)| index).collect()
    }

    fn good(&self) -> usize {
        self.orders(|fate| fate == Fate::Charged)[0]
    }

    fn poison(&self) -> usize {
        self.orders(|fate| fate != Fate::Charged)[0]
    }

    fn end(self) -> Outcome {
        let told = Told {
            stats: Vec::new(),
            dead_letters: self.dead_letters,
            takeover: Duration::ZERO,
            place: String::new(),
        };
        Outcome::find(&self.plan, self.ledger.read(), told, Duration::ZERO)
    }

    /// Asserts that these promises are broken and no others, and that the command fails for it.
    #[track_caller]
    fn breaks(self, promises: &[&str]) {
        let outcome = self.end();
        assert_eq!(outcome.broken(), promises);
        assert_eq!(outcome.json()["passed"], false);
        match outcome.verdict() {
            Err(CommandError::Failed(code, text)) => {
                assert_eq!(code as u8, 65);
                assert!(text.contains(promises[0]), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }
}

const PUBLISHED: &str = "everything was published";
const ONCE: &str = "every order was handled once";
const ABSORBED: &str = "repeats were absorbed";
const IN_TIME: &str = "no retry came before its time";
const ORDER: &str = "order was kept within each customer";
const LOST: &str = "nothing was lost";
const OUTAGE: &str = "the outage cost no order";
const DEAD: &str = "exactly what cannot be handled is in the dead-letter queue, with its reason";

#[test]
fn a_story_that_goes_as_planned_keeps_every_promise() {
    let outcome = Story::as_planned().end();
    assert!(outcome.verdict().is_ok(), "{:?}", outcome.broken());
    assert_eq!((outcome.lost, outcome.good), (0, 100));
    let promises: Vec<_> = outcome
        .promises
        .iter()
        .map(|promise| promise.text)
        .collect();
    let known = [
        PUBLISHED, ONCE, ABSORBED, IN_TIME, ORDER, LOST, OUTAGE, DEAD,
    ];
    assert_eq!(promises, known, "each has a test here");
    assert_eq!(outcome.json()["passed"], true);
}

#[test]
fn a_message_too_few_or_too_many_is_noticed() {
    let story = Story::as_planned();
    story.ledger.published(1);
    story.breaks(&[PUBLISHED]);
}

#[test]
fn an_order_that_is_nowhere_is_lost() {
    let good = Story::as_planned().good();
    let story = Story::without(|order| order == good);
    story.breaks(&[ONCE, LOST]);
}

#[test]
fn poison_that_is_nowhere_is_lost() {
    let poison = Story::as_planned().poison();
    let story = Story::without(|order| order == poison);
    story.breaks(&[LOST, DEAD]);
}

#[test]
fn poison_that_was_handled_is_noticed() {
    let story = Story::as_planned();
    story.ledger.charge(story.poison(), Fence(1));
    // Others of its customer may have been charged before, which is a violation of order as well.
    let broken = story.end().broken();
    assert!(broken.contains(&ONCE), "{broken:?}");
}

#[test]
fn an_order_that_was_charged_twice_is_noticed() {
    let story = Story::as_planned();
    story.ledger.charge(story.good(), Fence(2));
    story.breaks(&[ABSORBED]);
}

#[test]
fn a_crash_excuses_no_more_repeats_than_were_in_hand() {
    let story = Story::as_planned();
    story.ledger.crashed();
    let good = story.orders(|fate| fate == Fate::Charged);
    for order in &good[..MAX_IN_FLIGHT] {
        story.ledger.charge(*order, Fence(2));
    }
    assert_eq!(story.end().broken(), [""; 0]);

    let story = Story::as_planned();
    story.ledger.crashed();
    for order in &good[..=MAX_IN_FLIGHT] {
        story.ledger.charge(*order, Fence(2));
    }
    story.breaks(&[ABSORBED]);
}

#[test]
fn a_retry_before_its_time_is_noticed() {
    let story = Story::as_planned();
    let order = story.good();
    story.ledger.started(order, 1);
    story.ledger.failed(order, 1);
    story.ledger.started(order, 2);
    story.breaks(&[IN_TIME]);
}

#[test]
fn an_order_behind_a_later_one_is_noticed() {
    let plan = Story::as_planned().plan;
    let is_good = |order: &Planned| order.fate == Fate::Charged;
    let is_followed = |order: &usize| {
        let planned = &plan.orders[*order];
        let mut behind = plan.orders[order + 1..].iter();
        let follows = |other: &Planned| other.customer == planned.customer && is_good(other);
        is_good(planned) && behind.any(follows)
    };
    let first = (0..plan.orders.len()).find(is_followed).unwrap();
    let story = Story::without(|order| order == first);
    story.ledger.charge(first, Fence(1));
    story.breaks(&[ORDER]);
}

#[test]
fn an_order_that_the_outage_used_up_is_noticed() {
    let good = Story::as_planned().good();
    let mut story = Story::without(|order| order == good);
    story.ledger.failed_by_bank(good, 5);
    story.dead_letter(good, DeadLetterReason::AttemptsExhausted);
    story.breaks(&[ONCE, OUTAGE, DEAD]);
}

#[test]
fn an_outage_that_is_got_over_costs_nothing() {
    let story = Story::as_planned();
    story.ledger.failed_by_bank(story.good(), 1);
    story.ledger.failed_by_bank(story.poison(), 1);
    assert_eq!(story.end().broken(), [""; 0]);
}

#[test]
fn a_dead_letter_with_another_reason_or_a_second_copy_is_noticed() {
    let mut story = Story::as_planned();
    story.dead_letters[0].dead_letter.reason = DeadLetterReason::KeyConflict;
    story.breaks(&[DEAD]);

    let mut story = Story::as_planned();
    story.dead_letters[1] = story.dead_letters[0].clone();
    story.breaks(&[LOST, DEAD]);

    let mut story = Story::as_planned();
    let copy = story.dead_letters[0].clone();
    story.dead_letters.push(copy);
    story.breaks(&[DEAD]);
}
