//! The breaker: stops intake when handling fails across the board. Pure; time is handed in.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::ConfigError;

/// When intake stops because handling fails across the board, and how it resumes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerSettings {
    /// How many of the last outcomes are looked at, 1 to 64; default 20. With fewer than this
    /// since the last closing, the breaker stays closed.
    pub window: u32,
    /// The share of failures among them that stops intake, above 0 and up to 1; default 0.8.
    pub failure_ratio: f64,
    /// The first pause before a probe, at least 1 ms; default 1 s. It doubles with every probe that
    /// fails.
    pub first_pause: Duration,
    /// The longest pause before a probe, at most 24 h; default 60 s.
    pub longest_pause: Duration,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            window: 20,
            failure_ratio: 0.8,
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_mins(1),
        }
    }
}

impl BreakerSettings {
    const MIN_PAUSE: Duration = Duration::from_millis(1);
    const MAX_PAUSE: Duration = Duration::from_hours(24);

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        if !(1..=64).contains(&self.window) {
            return Err(ConfigError::new("breaker.window", self.window, "1 to 64"));
        }
        if !(self.failure_ratio > 0.0 && self.failure_ratio <= 1.0) {
            let allowed = "above 0 and up to 1";
            return Err(ConfigError::new(
                "breaker.failure_ratio",
                self.failure_ratio,
                allowed,
            ));
        }
        let (first, longest) = (self.first_pause, self.longest_pause);
        if longest > Self::MAX_PAUSE {
            let allowed = format!("at most {:?}", Self::MAX_PAUSE);
            let value = format!("{longest:?}");
            return Err(ConfigError::new("breaker.longest_pause", value, allowed));
        }
        if first < Self::MIN_PAUSE || first > longest {
            let allowed = format!("{:?} to the longest_pause of {longest:?}", Self::MIN_PAUSE);
            let value = format!("{first:?}");
            return Err(ConfigError::new("breaker.first_pause", value, allowed));
        }
        Ok(())
    }
}

/// How wide intake is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    /// As wide as there are free slots.
    Full,
    /// One message, to see whether handling works again.
    Probe,
    /// Shut, until then.
    Shut(Instant),
}

/// What an outcome did to the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing that intake has to know.
    None,
    /// It opened, or stays open for another pause.
    Opened(Duration),
    /// It closed.
    Closed,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed,
    Open { until: Instant, pauses: u32 },
}

/// Counts failures, and opens and closes.
#[derive(Clone, Debug)]
pub(crate) struct Breaker {
    settings: BreakerSettings,
    outcomes: u64,
    seen: u32,
    state: State,
    deferred: u32,
}

impl Breaker {
    /// How many probes in a row are passed over at least because they are on their last attempt.
    const DEFERRALS: u32 = 16;
    /// For how many of the longest pauses at least, too.
    const PATIENCE: u32 = 10;

    pub(crate) const fn new(settings: BreakerSettings) -> Self {
        Self {
            settings,
            outcomes: 0,
            seen: 0,
            state: State::Closed,
            deferred: 0,
        }
    }

    pub(crate) fn width(&self, now: Instant) -> Width {
        match self.state {
            State::Closed => Width::Full,
            State::Open { until, .. } if now < until => Width::Shut(until),
            State::Open { .. } => Width::Probe,
        }
    }

    pub(crate) fn succeeded(&mut self) -> Change {
        if let State::Open { .. } = self.state {
            *self = Self::new(self.settings);
            return Change::Closed;
        }
        self.record(0);
        Change::None
    }

    pub(crate) fn failed(&mut self, now: Instant) -> Change {
        match self.state {
            State::Open { until, pauses } if now >= until => {
                self.deferred = 0;
                self.open(now, pauses.saturating_add(1))
            }
            // What was started before the breaker opened says nothing new.
            State::Open { .. } => Change::None,
            State::Closed => {
                self.record(1);
                let failures = f64::from(self.outcomes.count_ones());
                let window = f64::from(self.settings.window);
                if self.seen == self.settings.window
                    && failures >= self.settings.failure_ratio * window
                {
                    self.open(now, 0)
                } else {
                    Change::None
                }
            }
        }
    }

    /// Whether a probe that is on its last attempt should be spared, and for how long, so that an
    /// outage costs no message. As often as there is another message to probe with; but bounded, or
    /// else a queue of nothing but poison would never drain.
    pub(crate) fn spares_last_attempt(&mut self, now: Instant) -> Option<Duration> {
        let State::Open { until, pauses } = self.state else {
            return None;
        };
        let soon = now < until + Self::PATIENCE * self.settings.longest_pause;
        if !soon && self.deferred >= Self::DEFERRALS {
            return None;
        }
        self.deferred = self.deferred.saturating_add(1);
        Some(self.pause(pauses))
    }

    fn record(&mut self, failure: u64) {
        let mask = u64::MAX >> (64 - self.settings.window);
        self.outcomes = ((self.outcomes << 1) | failure) & mask;
        self.seen = (self.seen + 1).min(self.settings.window);
    }

    fn open(&mut self, now: Instant, pauses: u32) -> Change {
        let pause = self.pause(pauses);
        let until = now + pause;
        self.state = State::Open { until, pauses };
        Change::Opened(pause)
    }

    fn pause(&self, pauses: u32) -> Duration {
        let first = self.settings.first_pause;
        let doubled = first.saturating_mul(1 << pauses.min(30));
        doubled.min(self.settings.longest_pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn breaker(window: u32, failure_ratio: f64) -> Breaker {
        Breaker::new(BreakerSettings {
            window,
            failure_ratio,
            ..BreakerSettings::default()
        })
    }

    #[test]
    fn it_opens_on_a_general_failure_only() {
        let now = Instant::now();
        let mut breaker = breaker(10, 0.8);
        for n in 0..100 {
            let change = if n % 2 == 0 {
                breaker.failed(now)
            } else {
                breaker.succeeded()
            };
            assert_eq!(change, Change::None);
        }
        let opened = (0..10)
            .map(|_| breaker.failed(now))
            .find(|c| *c != Change::None);
        assert_eq!(opened, Some(Change::Opened(Duration::from_secs(1))));
    }

    #[test]
    fn a_failed_probe_doubles_the_pause_and_a_good_one_closes() {
        let mut now = Instant::now();
        let mut breaker = breaker(1, 1.0);
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(
                breaker.failed(now),
                Change::Opened(Duration::from_secs(seconds))
            );
            assert_eq!(breaker.failed(now), Change::None, "a straggler");
            now += Duration::from_secs(seconds);
            assert_eq!(breaker.width(now), Width::Probe);
        }
        assert_eq!(breaker.succeeded(), Change::Closed);
        assert_eq!(breaker.width(now), Width::Full);
    }

    #[test]
    fn last_attempts_are_spared_for_long_but_not_for_ever() {
        let mut now = Instant::now();
        let mut breaker = breaker(1, 1.0);
        assert_eq!(breaker.spares_last_attempt(now), None, "closed");
        breaker.failed(now);
        for pause in [1, 2, 4] {
            let pause = Duration::from_secs(pause);
            for _ in 0..100 {
                assert_eq!(breaker.spares_last_attempt(now), Some(pause));
            }
            // Another message was the probe.
            now += pause;
            breaker.failed(now);
        }
        now += Duration::from_mins(11);
        let spared = (0..100)
            .take_while(|_| breaker.spares_last_attempt(now).is_some())
            .count();
        assert_eq!(spared, 16);
    }

    proptest! {
        #[test]
        fn it_never_opens_below_its_ratio(outcomes in prop::collection::vec(any::<bool>(), 0..200)) {
            let now = Instant::now();
            let mut breaker = breaker(16, 0.5);
            for (n, failed) in outcomes.iter().enumerate() {
                let change = if *failed { breaker.failed(now) } else { breaker.succeeded() };
                let from = (n + 1).saturating_sub(16);
                let failures = outcomes[from..=n].iter().filter(|f| **f).count();
                if change != Change::None {
                    prop_assert!(n + 1 >= 16 && failures >= 8);
                    break;
                }
            }
        }
    }
}
