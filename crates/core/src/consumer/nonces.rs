//! Nonces, by which a claim that is asked for again is known from another one.

use std::collections::{HashMap, VecDeque};

use crate::ports::{Fingerprint, IdempotencyKey};
use crate::sync::Mutex;

/// What tells two messages of one key apart, as far as claims are concerned: fingerprint and redrives.
type Content = (Option<Fingerprint>, u32);

/// Hands out nonces, and again those whose claims were given up without an answer.
#[derive(Default)]
pub(crate) struct Nonces {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: u64,
    given_up: HashMap<IdempotencyKey, GivenUp>,
    /// What was given up, the oldest first, by key and time; some of it was drawn again meanwhile, and
    /// given up once more.
    order: VecDeque<(IdempotencyKey, u64)>,
    /// How often anything was given up.
    times: u64,
}

/// A claim that may have been made.
struct GivenUp {
    content: Content,
    number: u64,
    time: u64,
}

/// One nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nonce {
    pub(crate) number: u64,
    /// Whether a claim was asked for by it before.
    pub(crate) is_drawn_again: bool,
}

/// How many are remembered; the claim of what is forgotten may count as an attempt that never was.
const MOST: usize = 10_000;

impl Nonces {
    /// The nonce of a claim: that of an earlier one for the same message, or a new one.
    pub(crate) fn draw(&self, key: &IdempotencyKey, content: Content) -> Nonce {
        let mut state = self.state.lock();
        let is_of = |given_up: &GivenUp| given_up.content == content;
        if state.given_up.get(key).is_some_and(is_of)
            && let Some(GivenUp { number, .. }) = state.given_up.remove(key)
        {
            return Nonce {
                number,
                is_drawn_again: true,
            };
        }
        state.last += 1;
        Nonce {
            number: state.last,
            is_drawn_again: false,
        }
    }

    /// Remembers a claim that was given up without an answer.
    pub(crate) fn give_up(&self, key: IdempotencyKey, content: Content, number: u64) {
        let mut state = self.state.lock();
        while state.order.len() >= MOST
            && let Some((oldest, time)) = state.order.pop_front()
        {
            let is_still_there = |known: &GivenUp| known.time == time;
            if state.given_up.get(&oldest).is_some_and(is_still_there) {
                state.given_up.remove(&oldest);
            }
        }
        state.times += 1;
        let time = state.times;
        state.order.push_back((key.clone(), time));
        let given_up = GivenUp {
            content,
            number,
            time,
        };
        state.given_up.insert(key, given_up);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> IdempotencyKey {
        IdempotencyKey::new("orders", text)
    }

    #[test]
    fn what_was_given_up_is_drawn_again_once_and_for_the_same_content_only() {
        let nonces = Nonces::default();
        let (plain, redriven) = ((Some(Fingerprint(7)), 0), (Some(Fingerprint(7)), 1));
        let first = nonces.draw(&key("a"), plain);
        assert!(!first.is_drawn_again);
        nonces.give_up(key("a"), plain, first.number);
        assert!(!nonces.draw(&key("b"), plain).is_drawn_again);
        assert!(!nonces.draw(&key("a"), redriven).is_drawn_again);
        assert!(!nonces.draw(&key("a"), (None, 0)).is_drawn_again);
        let again = nonces.draw(&key("a"), plain);
        assert_eq!(again.number, first.number);
        assert!(again.is_drawn_again);
        assert!(!nonces.draw(&key("a"), plain).is_drawn_again);
    }

    #[test]
    fn no_more_is_remembered_than_is_said() {
        let nonces = Nonces::default();
        let content = (None, 0);
        for round in 0..2 {
            for n in 0..=MOST as u64 {
                nonces.give_up(key(&n.to_string()), content, round * 1_000_000 + n);
            }
        }
        let state = nonces.state.lock();
        assert_eq!((state.order.len(), state.given_up.len()), (MOST, MOST));
        drop(state);
        assert!(!nonces.draw(&key("0"), content).is_drawn_again);
        assert!(nonces.draw(&key("1"), content).is_drawn_again);
    }

    #[test]
    fn what_is_given_up_again_and_again_is_not_forgotten() {
        let nonces = Nonces::default();
        let content = (None, 0);
        let first = nonces.draw(&key("a"), content).number;
        nonces.give_up(key("a"), content, first);
        for _ in 0..2 * MOST {
            let nonce = nonces.draw(&key("a"), content);
            assert_eq!((nonce.number, nonce.is_drawn_again), (first, true));
            nonces.give_up(key("a"), content, first);
            nonces.give_up(key("b"), content, 0);
        }
    }
}
