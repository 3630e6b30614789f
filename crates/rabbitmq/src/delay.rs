//! Fixed-delay queues.
//!
//! A message that waits lies in a queue whose messages all wait equally long, so that a short wait is
//! never behind a long one; when its time is up RabbitMQ moves it back. The waits are the rungs of a
//! ladder, so that there are few queues. A queue takes messages for a week, and vanishes a week after
//! the last of them has left at the latest; its name says which week.
//!
//! RabbitMQ deletes a queue that nobody consumes when `x-expires` is over, with what is in it. Neither
//! publishing nor declaring it anew counts as use (measured on 3.10.8, 4.0.5 and 4.3.6, quorum queues):
//! so a queue that is in use for ever would take messages with it.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backstop_core::{BrokerError, BrokerErrorKind};
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use tokio::sync::Mutex;

use crate::connection::Link;
use crate::error::failed;

/// How finely waits are told apart: a message comes at most this much later than asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grain {
    /// Four rungs an octave, up to 19 % late: for retries, whose waits are random anyway.
    Coarse,
    /// Thirty-two an octave, up to 2.2 % late: for delays that somebody chose.
    Fine,
}

/// The lowest rung.
const SHORTEST: Duration = Duration::from_millis(125);

/// How long messages are put into a queue, by the clock of who puts them there.
const WEEK: Duration = Duration::from_hours(7 * 24);

/// How long a queue is kept beyond the last message's delay. It must outlast every outage in which
/// a message cannot be moved back to its queue, and every clock that is wrong.
const SPARE: Duration = WEEK;

/// The longest delay. RabbitMQ's times are at most 2^32 - 1 ms, and a queue has to outlast its delay.
pub(crate) const LONGEST: Duration = Duration::from_hours(35 * 24);

/// The rung for a wait: not shorter than it.
pub(crate) fn rung(wait: Duration, grain: Grain) -> Duration {
    let per_octave = match grain {
        Grain::Coarse => 4.0,
        Grain::Fine => 32.0,
    };
    let octaves = (wait.as_secs_f64() / SHORTEST.as_secs_f64())
        .log2()
        .max(0.0);
    let step = (octaves * per_octave).ceil();
    let at = |step: f64| {
        let seconds = SHORTEST.as_secs_f64() * (step.max(0.0) / per_octave).exp2();
        let micros = Duration::from_secs_f64(seconds).as_micros();
        Duration::from_millis(u64::try_from(micros.div_ceil(1000)).unwrap_or(u64::MAX))
    };
    // Rungs are whole milliseconds, so the one below may do.
    let below = at(step - 1.0);
    let rung = if below >= wait { below } else { at(step) };
    rung.max(whole_millis(wait)).min(LONGEST)
}

fn whole_millis(wait: Duration) -> Duration {
    let millis = wait.as_nanos().div_ceil(1_000_000);
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

/// Numbers the weeks.
fn week(now: SystemTime) -> u64 {
    let since_1970 = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    since_1970.as_secs() / WEEK.as_secs()
}

/// How long a queue lives that is declared at the begin of its week.
fn lifetime(delay: Duration) -> Duration {
    WEEK + delay + SPARE
}

/// The delay queues that this process has seen to.
#[derive(Default)]
pub(crate) struct Delays {
    declared: Mutex<Declared>,
}

#[derive(Default)]
struct Declared {
    week: u64,
    names: HashSet<String>,
}

impl Delays {
    /// The name of the queue that moves its messages to `target` after `wait`; it exists.
    pub(crate) async fn queue(
        &self,
        link: &Link,
        target: &str,
        wait: Duration,
        grain: Grain,
    ) -> Result<String, BrokerError> {
        if wait > LONGEST {
            let text = format!("delay cannot be {wait:?}: RabbitMQ delays by at most {LONGEST:?}");
            return Err(BrokerError::new(BrokerErrorKind::Unsupported, text));
        }
        let delay = rung(wait, grain);
        let week = week(SystemTime::now());
        let name = format!("{target}.retry.{}ms.week-{week}", delay.as_millis());
        // Held while declaring, so that each queue is declared once.
        let mut declared = self.declared.lock().await;
        if declared.week != week {
            *declared = Declared {
                week,
                names: HashSet::new(),
            };
        }
        if !declared.names.contains(&name) {
            declare(link, &name, target, delay).await?;
            declared.names.insert(name.clone());
        }
        Ok(name)
    }

    /// Forgets every queue: one of them turned out not to be there.
    pub(crate) async fn forget_all(&self) {
        self.declared.lock().await.names.clear();
    }

    /// Forgets a queue that turned out not to be there.
    pub(crate) async fn forget(&self, name: &str) {
        self.declared.lock().await.names.remove(name);
    }
}

async fn declare(
    link: &Link,
    name: &str,
    target: &str,
    delay: Duration,
) -> Result<(), BrokerError> {
    let channel = link.live().await?.channel().await?;
    let declared = channel
        .queue_declare(
            name.into(),
            QueueDeclareOptions::durable(),
            arguments(target, delay),
        )
        .await;
    declared.map_err(|error| {
        let text = format!("the queue {name:?} for waiting messages cannot be declared: this user needs the right to configure it");
        failed(&text, error)
    })?;
    let _ = channel.close(200, "done".into()).await;
    Ok(())
}

/// At-least-once dead-lettering is what keeps a message from getting lost on its way back
/// (<https://www.rabbitmq.com/docs/quorum-queues#dead-lettering>); it needs `reject-publish`.
fn arguments(target: &str, delay: Duration) -> FieldTable {
    let millis = |time: Duration| {
        AMQPValue::LongLongInt(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
    };
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    arguments.insert("x-message-ttl".into(), millis(delay));
    arguments.insert("x-expires".into(), millis(lifetime(delay)));
    arguments.insert("x-dead-letter-exchange".into(), text(""));
    arguments.insert("x-dead-letter-routing-key".into(), text(target));
    arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
    arguments.insert("x-overflow".into(), text("reject-publish"));
    arguments
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_rung_is_never_early_and_never_very_late(millis in 125_u64..3_024_000_000) {
            let wait = Duration::from_millis(millis);
            for (grain, late) in [(Grain::Coarse, 1.1893), (Grain::Fine, 1.0220)] {
                let rung = rung(wait, grain);
                prop_assert!(rung >= wait);
                prop_assert!(rung <= wait.mul_f64(late) + Duration::from_millis(1), "{rung:?}");
            }
        }
    }

    #[test]
    fn a_queue_outlasts_its_messages_by_a_week_whenever_they_come() {
        let start = UNIX_EPOCH + WEEK * 2960;
        let last = start + WEEK - Duration::from_nanos(1);
        assert_eq!(week(start), week(last));
        assert_ne!(week(last), week(start + WEEK));
        for delay in [SHORTEST, LONGEST] {
            let gone = start + lifetime(delay);
            assert!(gone >= last + delay + Duration::from_hours(7 * 24));
            assert!(
                u32::try_from(lifetime(delay).as_millis()).is_ok(),
                "{delay:?}"
            );
        }
    }

    #[test]
    fn the_usual_backoff_needs_few_queues() {
        let waits = (1000..=450_000).map(Duration::from_millis);
        let rungs: BTreeSet<_> = waits.map(|wait| rung(wait, Grain::Coarse)).collect();
        assert!(rungs.len() <= 37, "{}", rungs.len());
    }

    #[test]
    fn a_rung_is_its_own_rung() {
        for grain in [Grain::Coarse, Grain::Fine] {
            for millis in [0, 1, 125, 1000, 30_000] {
                let once = rung(Duration::from_millis(millis), grain);
                assert_eq!(rung(once, grain), once);
            }
        }
    }
}
