//! The policy: data and pure functions. No clock, no randomness and no I/O; they are handed in.

mod backoff;
mod decide;

use std::num::NonZeroU32;

pub use backoff::{Backoff, Jitter};
pub use decide::{Decision, decide};

/// How failures are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How often a message's handler is started at most; default 5.
    pub max_attempts: NonZeroU32,
    /// How long to wait between attempts; default 1 s doubling to 5 min, additive jitter.
    pub backoff: Backoff,
}

impl Default for Policy {
    fn default() -> Self {
        const FIVE: NonZeroU32 = NonZeroU32::new(5).expect("five is not zero");
        Self {
            max_attempts: FIVE,
            backoff: Backoff::default(),
        }
    }
}
