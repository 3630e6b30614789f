//! What becomes of a delivery, and why.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime};

use crate::delivery::{Attempt, Delivery};
use crate::error::HandlerError;

/// What is to happen to a delivery; an adapter carries it out natively.
#[derive(Debug)]
pub enum Verdict {
    /// Done: the message leaves the queue.
    Complete,
    /// Deliver it again, not before `after` from now, with `attempts_used` known to every later
    /// delivery.
    Retry {
        /// The wait.
        after: Duration,
        /// Attempts used so far.
        attempts_used: u32,
    },
    /// Move it to the dead-letter queue. It leaves its own queue only after the dead-letter queue
    /// has confirmed it.
    DeadLetter(Box<DeadLetter>),
    /// Give it back without using an attempt; deliver it again after `after`, to anyone.
    Release {
        /// The wait; zero gives it back at once.
        after: Duration,
    },
}

/// A delivery with its verdict; settling consumes both.
#[derive(Debug)]
pub struct Settlement {
    /// What is settled.
    pub delivery: Delivery,
    /// How.
    pub verdict: Verdict,
}

/// Why a message was dead-lettered: a fixed, searchable, countable set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeadLetterReason {
    /// The handler failed on the last allowed attempt.
    AttemptsExhausted,
    /// The handler said that no attempt can succeed.
    PermanentError,
    /// The body could not be decoded.
    Undecodable,
    /// The same idempotency key was seen with another body.
    KeyConflict,
    /// The idempotency key that the consumer chose is missing.
    KeyMissing,
    /// The body is larger than the consumer allows.
    BodyTooLarge,
    /// The broker moved it there by itself, at its own delivery limit.
    BrokerLimit,
    /// The broker moved it there by itself because it expired.
    Expired,
    /// The broker moved it there for a reason of its own.
    Other,
}

impl DeadLetterReason {
    /// Every reason.
    pub const ALL: [Self; 9] = [
        Self::AttemptsExhausted,
        Self::PermanentError,
        Self::Undecodable,
        Self::KeyConflict,
        Self::KeyMissing,
        Self::BodyTooLarge,
        Self::BrokerLimit,
        Self::Expired,
        Self::Other,
    ];

    /// The name on the wire, in logs and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AttemptsExhausted => "attempts-exhausted",
            Self::PermanentError => "permanent-error",
            Self::Undecodable => "undecodable",
            Self::KeyConflict => "key-conflict",
            Self::KeyMissing => "key-missing",
            Self::BodyTooLarge => "body-too-large",
            Self::BrokerLimit => "broker-limit",
            Self::Expired => "expired",
            Self::Other => "other",
        }
    }

    /// Reads the name on the wire; an unknown one is [`DeadLetterReason::Other`].
    pub fn from_wire(name: &str) -> Self {
        Self::ALL
            .into_iter()
            .find(|reason| reason.as_str() == name)
            .unwrap_or(Self::Other)
    }
}

impl fmt::Display for DeadLetterReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The annotations that a dead letter carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Why.
    pub reason: DeadLetterReason,
    /// The last error with its causes, cut to the limit of [`DeadLetter::MAX_ERROR_BYTES`].
    pub error: String,
    /// How many times the handler was started.
    pub attempts: u32,
    /// The queue that it came from.
    pub origin: String,
    /// The consumer's name.
    pub consumer: String,
    /// When it was dead-lettered.
    pub at: SystemTime,
}

impl DeadLetter {
    /// The most that an error's text takes, in bytes of UTF-8; an adapter may cut it further.
    pub const MAX_ERROR_BYTES: usize = 4096;
}

/// Cuts a text to at most `limit` bytes at a character's boundary, and says how much is missing.
pub fn truncate_visibly(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let mark = format!("… [{} bytes in all]", text.len());
    let room = text.floor_char_boundary(limit.saturating_sub(mark.len()));
    let mut cut = text[..room].to_owned();
    cut.push_str(&mark);
    cut.truncate(cut.floor_char_boundary(limit));
    cut
}

/// What happened to a delivery, as far as policy cares.
#[derive(Debug)]
pub enum Outcome {
    /// The handler succeeded.
    Succeeded,
    /// The handler failed, on this attempt.
    Failed {
        /// Which attempt it was.
        attempt: Attempt,
        /// How it failed.
        failure: Failed,
    },
    /// The message was completed or dead-lettered before: a repeat, to be absorbed.
    Repeat,
    /// Another delivery of the same key is being handled, for about this long.
    InProgress {
        /// What is left of the other's claim.
        remaining: Duration,
    },
    /// The handler was not started, because no attempt could succeed or none is left.
    Refused {
        /// Why.
        reason: DeadLetterReason,
        /// Attempts used before.
        attempts_used: u32,
        /// A sentence for the person who looks at the dead letter.
        detail: Cow<'static, str>,
    },
    /// The handler was not started, or was cancelled without its fault: shutdown, an open breaker,
    /// a store that cannot be reached.
    GivenBack {
        /// When it may be delivered again.
        after: Duration,
    },
}

/// How a handler failed.
#[derive(Debug)]
pub enum Failed {
    /// It returned an error.
    Error(HandlerError),
    /// It ran longer than the handler timeout.
    TimedOut(Duration),
    /// It panicked; with the panic's message where it has one.
    Panicked(String),
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(error) => fmt::Display::fmt(error, f),
            Self::TimedOut(limit) => write!(f, "the handler timed out after {limit:?}"),
            Self::Panicked(message) => write!(f, "the handler panicked: {message}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_text_says_so_and_keeps_to_its_limit() {
        let cut = truncate_visibly(&"é".repeat(100), 60);
        assert!(
            cut.len() <= 60 && cut.ends_with("[200 bytes in all]"),
            "{cut}"
        );
        assert_eq!(truncate_visibly("short", 60), "short");
        assert!(truncate_visibly(&"x".repeat(100), 5).len() <= 5);
    }

    #[test]
    fn every_reason_survives_the_wire() {
        for reason in DeadLetterReason::ALL {
            assert_eq!(DeadLetterReason::from_wire(reason.as_str()), reason);
        }
        assert_eq!(
            DeadLetterReason::from_wire("nonsense"),
            DeadLetterReason::Other
        );
    }
}
