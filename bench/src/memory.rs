//! (d) The memory of a consumer while messages wait for their retry in RabbitMQ.

use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use backstop_core::{
    Backoff, BreakerSettings, Consumer, Context, HandlerError, Jitter, Monitor, Shutdown,
};
use backstop_rabbitmq::RabbitMq;
use backstop_redis_dedupe::RedisStore;
use bytes::Bytes;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{ChildStdout, Command};
use tokio::time::{sleep, timeout};

use crate::rabbit::Queue;
use crate::report::{Report, Wanted, number};
use crate::rounds::Progress;
use crate::servers;

/// How long messages wait at least.
const WAIT: Duration = Duration::from_hours(1);

/// One message in so many succeeds, so that the breaker sees no general failure.
const SUCCEEDS: u32 = 16;

/// Without a further message that waits, something is wrong.
const STALL: Duration = Duration::from_mins(2);

/// What the consumer says about itself, twice a second.
#[derive(serde::Serialize, serde::Deserialize)]
struct Said {
    waiting: u64,
    resident_mib: f64,
    highest_mib: f64,
}

/// Measures the memory of a consumer in a process of its own, while it sends messages to their wait.
pub(crate) async fn measure(messages: u32, report: &mut Report) -> Result<()> {
    let (rabbitmq, redis) = servers::running().await;
    let (rabbitmq, redis) = (rabbitmq.as_str(), redis.as_str());
    let progress = Progress::new("d", messages.into());
    let queue = Queue::declare(rabbitmq).await?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["failing", &queue.url, redis])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdout = child.stdout.take().context("the consumer has no stdout")?;
    let said = BufReader::new(stdout).lines();
    progress.doing("messages wait for a retry");
    let begun = Instant::now();
    let published = messages + messages.div_ceil(SUCCEEDS - 1);
    let (resident, ()) = tokio::try_join!(watch(said, messages, &progress), queue.fill(published))?;
    let took = begun.elapsed();
    child.kill().await?;
    drop(progress);
    let unit = "MiB";
    let (tenth, last) = (resident.at_a_tenth, &resident.last);
    let most = Wanted::AtMost(64.0);
    report.target(
        "d",
        "memory of the consumer",
        unit,
        most,
        &[last.highest_mib],
    );
    report.figure("d", "resident, at a tenth", unit, vec![tenth]);
    report.figure("d", "resident, at the end", unit, vec![last.resident_mib]);
    report.figure("d", "resident, highest", unit, vec![last.highest_mib]);
    report.note(format!(
        "(d) {} messages wait for a retry after {} s; a consumer in a process of its own, with Redis, \
         max_in_flight 64. Messages were published meanwhile.",
        number(f64::from(messages)),
        number(took.as_secs_f64())
    ));
    Ok(())
}

struct Resident {
    at_a_tenth: f64,
    last: Said,
}

async fn watch(
    mut said: Lines<BufReader<ChildStdout>>,
    messages: u32,
    progress: &Progress,
) -> Result<Resident> {
    let mut at_a_tenth = f64::NAN;
    let mut progressed = (0, Instant::now());
    loop {
        let line = timeout(STALL, said.next_line()).await;
        let line = line.context("the consumer says nothing")??;
        let line = line.context("the consumer ended before its time")?;
        let now: Said = serde_json::from_str(&line)?;
        progress.reached(now.waiting);
        if now.waiting > progressed.0 {
            progressed = (now.waiting, Instant::now());
        } else if progressed.1.elapsed() > STALL {
            bail!("no further message went to its wait, after {}", now.waiting);
        }
        if at_a_tenth.is_nan() && now.waiting >= u64::from(messages / 10) {
            at_a_tenth = now.resident_mib;
        }
        if now.waiting >= u64::from(messages) {
            return Ok(Resident {
                at_a_tenth,
                last: now,
            });
        }
    }
}

/// The consumer: fails almost everything, and says how it does until it is killed.
pub(crate) async fn consume_and_fail(queue: &str, redis: &str) -> Result<()> {
    let broker = RabbitMq::connect(queue).await?;
    let handled = AtomicU64::new(0);
    let consumer = Consumer::builder(broker)
        .store(RedisStore::connect(redis).await?)
        .backoff(Backoff::new(WAIT, WAIT, Jitter::Additive)?)
        .breaker(BreakerSettings {
            window: 64,
            failure_ratio: 1.0,
            ..BreakerSettings::default()
        })
        .raw(move |_: Bytes, _: Context| {
            let number = handled.fetch_add(1, Ordering::Relaxed);
            let is_fine = number.is_multiple_of(SUCCEEDS.into());
            std::future::ready(if is_fine {
                Ok(())
            } else {
                Err(HandlerError::transient("the downstream is away"))
            })
        })?;
    let monitor = consumer.monitor();
    let shutdown = Shutdown::new();
    tokio::select! {
        ended = consumer.run(&shutdown) => {
            ended?;
            bail!("the consumer ended");
        }
        failure = talk(&monitor) => failure,
    }
}

async fn talk(monitor: &Monitor) -> Result<()> {
    loop {
        sleep(Duration::from_millis(500)).await;
        let status = tokio::fs::read_to_string("/proc/self/status").await;
        let status = status.context("memory is only known on Linux")?;
        let said = Said {
            waiting: monitor.stats().retried,
            resident_mib: mib(&status, "VmRSS:")?,
            highest_mib: mib(&status, "VmHWM:")?,
        };
        println!("{}", serde_json::to_string(&said)?);
    }
}

/// A line of `/proc/self/status`, such as `VmRSS:     8212 kB`.
fn mib(status: &str, name: &str) -> Result<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    let kib: u32 = number.with_context(|| format!("no {name} here"))?.parse()?;
    Ok(f64::from(kib) / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_is_read_from_the_status() {
        let status = "Name:\tbench\nVmHWM:\t   65536 kB\nVmRSS:\t    8704 kB\n";
        let is = |name, expected: f64| (mib(status, name).unwrap() - expected).abs() < 1e-9;
        assert!(is("VmHWM:", 64.0) && is("VmRSS:", 8.5));
        assert!(mib(status, "VmSwap:").is_err());
    }
}
