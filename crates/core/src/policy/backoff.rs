//! How long to wait before the next attempt.

use std::time::Duration;

use crate::delivery::Attempt;
use crate::error::ConfigError;

/// How randomness spreads the waits, so that what failed together does not return together.
///
/// Source of the three: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015; the additive
/// form is the one whose wait is never shorter than the exponential one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Jitter {
    /// `wait + random(0, wait / 2)`: never earlier than the backoff.
    #[default]
    Additive,
    /// `random(0, wait)`: the widest spread, but possibly at once.
    Full,
    /// `wait / 2 + random(0, wait / 2)`: a spread with a floor.
    Equal,
    /// The bare backoff.
    None,
}

/// Exponential backoff: `min(cap, base * 2^(attempt - 1))`, then jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    jitter: Jitter,
}

impl Backoff {
    /// The longest cap that is accepted: 7 days.
    pub const MAX_CAP: Duration = Duration::from_hours(7 * 24);

    /// A backoff from `base` to `cap`.
    ///
    /// # Errors
    ///
    /// Refuses a `cap` shorter than `base` or longer than [`Backoff::MAX_CAP`].
    pub fn new(base: Duration, cap: Duration, jitter: Jitter) -> Result<Self, ConfigError> {
        if cap < base {
            let allowed = format!("at least the base of {base:?}");
            return Err(ConfigError::new("backoff_cap", format!("{cap:?}"), allowed));
        }
        if cap > Self::MAX_CAP {
            let allowed = format!("at most {:?} (7 days)", Self::MAX_CAP);
            return Err(ConfigError::new("backoff_cap", format!("{cap:?}"), allowed));
        }
        Ok(Self { base, cap, jitter })
    }

    /// The wait after this failed attempt; `random` is uniform in `0.0..1.0`.
    pub fn delay_after(&self, attempt: Attempt, random: f64) -> Duration {
        let doublings = attempt.get().saturating_sub(1).min(63);
        let wait = self
            .base
            .as_nanos()
            .saturating_mul(1 << doublings)
            .min(self.cap.as_nanos());
        let wait = Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX));
        let random = random.clamp(0.0, 1.0);
        match self.jitter {
            Jitter::Additive => wait + (wait / 2).mul_f64(random),
            Jitter::Full => wait.mul_f64(random),
            Jitter::Equal => wait / 2 + (wait / 2).mul_f64(random),
            Jitter::None => wait,
        }
    }

    /// The longest single wait that can come out, jitter included.
    pub fn longest_wait(&self) -> Duration {
        match self.jitter {
            Jitter::Additive => self.cap + self.cap / 2,
            Jitter::Full | Jitter::Equal | Jitter::None => self.cap,
        }
    }

    /// The longest that `attempts` attempts can spend waiting between them, jitter included.
    pub fn longest_span(&self, attempts: u32) -> Duration {
        (1..attempts)
            .map(|n| self.delay_after(Attempt::after(n - 1), 1.0))
            .fold(Duration::ZERO, Duration::saturating_add)
    }
}

/// Base 1 s, cap 5 min, additive jitter.
impl Default for Backoff {
    fn default() -> Self {
        Self {
            base: Duration::from_secs(1),
            cap: Duration::from_mins(5),
            jitter: Jitter::Additive,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attempt(n: u32) -> Attempt {
        Attempt::after(n - 1)
    }

    #[test]
    fn waits_double_up_to_the_cap() {
        let backoff = Backoff {
            jitter: Jitter::None,
            ..Backoff::default()
        };
        let seconds = |n| backoff.delay_after(attempt(n), 0.9).as_secs();
        assert_eq!(
            [1, 2, 3, 9, 10, 4_000_000].map(seconds),
            [1, 2, 4, 256, 300, 300]
        );
    }

    #[test]
    fn a_cap_below_the_base_is_refused() {
        let error = Backoff::new(Duration::from_secs(2), Duration::from_secs(1), Jitter::None);
        let text = error.unwrap_err().to_string();
        assert_eq!(text, "backoff_cap cannot be 1s: at least the base of 2s");
    }

    fn jitters() -> impl Strategy<Value = Jitter> {
        prop_oneof![
            Just(Jitter::Additive),
            Just(Jitter::Full),
            Just(Jitter::Equal),
            Just(Jitter::None)
        ]
    }

    proptest! {
        #[test]
        fn every_wait_keeps_to_its_bounds(
            base in 0_u64..100_000, extra in 0_u64..10_000_000, jitter in jitters(),
            n in 1_u32..10_000, random in 0.0_f64..1.0,
        ) {
            let base = Duration::from_millis(base);
            let cap = base + Duration::from_millis(extra);
            let backoff = Backoff::new(base, cap, jitter).unwrap();
            let bare = Backoff { jitter: Jitter::None, ..backoff }.delay_after(attempt(n), 0.0);
            let wait = backoff.delay_after(attempt(n), random);
            prop_assert!(wait <= backoff.longest_wait());
            match jitter {
                Jitter::Additive => prop_assert!(wait >= bare && wait <= bare + bare / 2),
                Jitter::Full => prop_assert!(wait <= bare),
                Jitter::Equal => prop_assert!(wait >= bare / 2 && wait <= bare),
                Jitter::None => prop_assert!(wait == bare && bare >= base.min(cap)),
            }
        }
    }
}
