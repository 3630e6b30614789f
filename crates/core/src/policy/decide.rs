//! From what happened to what is to be done.

use std::time::Duration;

use super::{Backoff, Policy};
use crate::error::Failure;
use crate::verdict::{DeadLetterReason, Failed, Outcome};

/// What policy decides; the pipeline adds the annotations that a verdict carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The message is done with.
    Complete,
    /// Another attempt, not before this wait.
    Retry {
        /// The wait.
        after: Duration,
        /// Attempts used so far.
        attempts_used: u32,
    },
    /// No further attempt.
    DeadLetter {
        /// Why.
        reason: DeadLetterReason,
        /// Attempts used.
        attempts: u32,
    },
    /// Given back; no attempt is used.
    Release {
        /// The wait.
        after: Duration,
    },
}

/// Decides what becomes of a delivery. `random` is uniform in `0.0..1.0`.
///
/// A wait that the handler asked for ([`Failure::RetryAfter`]) is kept, up to [`Backoff::MAX_CAP`],
/// and lengthened only by the backoff's own wait where that is longer.
pub fn decide(outcome: &Outcome, policy: &Policy, random: f64) -> Decision {
    match *outcome {
        Outcome::Succeeded | Outcome::Repeat => Decision::Complete,
        Outcome::InProgress { remaining } => Decision::Release { after: remaining },
        Outcome::GivenBack { after } => Decision::Release { after },
        Outcome::Refused {
            reason,
            attempts_used,
            ..
        } => Decision::DeadLetter {
            reason,
            attempts: attempts_used,
        },
        Outcome::Failed {
            attempt,
            ref failure,
        } => {
            let asked = match failure {
                Failed::Error(error) => error.failure(),
                Failed::TimedOut(_) | Failed::Panicked(_) => Failure::Transient,
            };
            let attempts = attempt.get();
            if asked == Failure::Permanent {
                return Decision::DeadLetter {
                    reason: DeadLetterReason::PermanentError,
                    attempts,
                };
            }
            if attempts >= policy.max_attempts.get() + u32::from(planted!(CapOffByOne)) {
                return Decision::DeadLetter {
                    reason: DeadLetterReason::AttemptsExhausted,
                    attempts,
                };
            }
            let backoff = policy.backoff.delay_after(attempt, random);
            let after = match asked {
                Failure::RetryAfter(wait) => wait.min(Backoff::MAX_CAP).max(backoff),
                Failure::Transient | Failure::Permanent => backoff,
            };
            Decision::Retry {
                after,
                attempts_used: attempts,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::Attempt;
    use crate::error::HandlerError;
    use proptest::prelude::*;

    fn failed(attempt: u32, error: HandlerError) -> Decision {
        let outcome = Outcome::Failed {
            attempt: Attempt::after(attempt - 1),
            failure: Failed::Error(error),
        };
        decide(&outcome, &Policy::default(), 0.0)
    }

    #[test]
    fn the_last_attempt_dead_letters_and_no_other() {
        let error = || HandlerError::transient("nope");
        for attempt in 1..5 {
            assert!(matches!(failed(attempt, error()), Decision::Retry { .. }));
        }
        for attempt in [5, 6, u32::MAX] {
            let reason = DeadLetterReason::AttemptsExhausted;
            assert_eq!(
                failed(attempt, error()),
                Decision::DeadLetter {
                    reason,
                    attempts: attempt
                }
            );
        }
    }

    #[test]
    fn a_permanent_error_takes_one_attempt() {
        let reason = DeadLetterReason::PermanentError;
        let error = HandlerError::permanent("nope");
        assert_eq!(
            failed(1, error),
            Decision::DeadLetter {
                reason,
                attempts: 1
            }
        );
    }

    #[test]
    fn a_wait_that_was_asked_for_is_kept_but_the_cap_on_attempts_holds() {
        let error = || HandlerError::retry_after("busy", Duration::from_secs(90));
        let after = Duration::from_secs(90);
        assert_eq!(
            failed(1, error()),
            Decision::Retry {
                after,
                attempts_used: 1
            }
        );
        assert!(matches!(failed(5, error()), Decision::DeadLetter { .. }));
    }

    #[test]
    fn a_wait_without_end_is_cut_to_seven_days() {
        let decision = failed(1, HandlerError::retry_after("busy", Duration::MAX));
        let after = Duration::from_hours(7 * 24);
        let attempts_used = 1;
        assert_eq!(
            decision,
            Decision::Retry {
                after,
                attempts_used
            }
        );
    }

    proptest! {
        #[test]
        fn no_retry_at_or_past_the_cap(attempt in 1_u32.., max in 1_u32.., random in 0.0_f64..1.0) {
            let policy = Policy { max_attempts: max.try_into().unwrap(), ..Policy::default() };
            let outcome = Outcome::Failed {
                attempt: Attempt::after(attempt - 1),
                failure: Failed::TimedOut(Duration::from_secs(1)),
            };
            let decision = decide(&outcome, &policy, random);
            prop_assert_eq!(matches!(decision, Decision::Retry { .. }), attempt < max);
        }
    }
}
