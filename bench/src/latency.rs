//! (c) The latency that backstop adds.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::time::{MissedTickBehavior, interval};

use crate::load::Contestant;
use crate::rabbit::{BODY, Queue};
use crate::report::{Report, Wanted, number};
use crate::rounds::{Progress, turns};
use crate::servers;
use crate::tally::Tally;

const CONTESTANTS: [Contestant; 3] = [Contestant::Raw, Contestant::InProcess, Contestant::Redis];

/// One message each, so a thousand a second.
const PACE: Duration = Duration::from_millis(1);

/// The latencies of a contestant in each round, in milliseconds.
#[derive(Default)]
struct Seen {
    p50: Vec<f64>,
    p99: Vec<f64>,
}

/// Measures the time from sending to handling at a thousand messages a second.
pub(crate) async fn measure(rounds: u32, messages: u32, report: &mut Report) -> Result<()> {
    let (rabbitmq, redis) = servers::running().await;
    let (rabbitmq, redis) = (rabbitmq.as_str(), redis.as_str());
    let steps = u64::from(rounds) * CONTESTANTS.len() as u64;
    let progress = Progress::new("c", steps);
    let mut seen = CONTESTANTS.map(|_| Seen::default());
    for contestant in turns(&CONTESTANTS, rounds) {
        progress.doing(contestant.name());
        let (p50, p99) = turn(contestant, rabbitmq, redis, messages).await?;
        let (shown, tail) = (number(p50), number(p99));
        progress.seen(&format!(
            "{}: p50 {shown} ms, p99 {tail} ms",
            contestant.name()
        ));
        for (place, seen) in CONTESTANTS.iter().zip(&mut seen) {
            if *place == contestant {
                seen.p50.push(p50);
                seen.p99.push(p99);
            }
        }
    }
    drop(progress);
    tell(report, &seen);
    report.note(format!(
        "(c) {messages} messages a turn, one a millisecond, from before it is sent to when it is handled; \
         the first tenth is left out. Differences are medians of the differences of the rounds."
    ));
    Ok(())
}

async fn turn(
    contestant: Contestant,
    rabbitmq: &str,
    redis: &str,
    messages: u32,
) -> Result<(f64, f64)> {
    let queue = Queue::declare(rabbitmq).await?;
    let tally = Arc::new(Tally::with_latencies(messages));
    let consuming = contestant.consume(&queue, redis, &tally);
    tokio::try_join!(consuming, send(&queue, &tally, messages))?;
    queue.delete().await?;
    let mut latencies = tally.latencies();
    let mut warm = latencies.split_off(latencies.len() / 10);
    warm.sort_unstable();
    let at = |percent: usize| {
        let latency = warm.get((warm.len() - 1) * percent / 100);
        latency.map_or(f64::NAN, |latency| latency.as_secs_f64() * 1000.0)
    };
    Ok((at(50), at(99)))
}

async fn send(queue: &Queue, tally: &Tally, messages: u32) -> Result<()> {
    let connection = queue.connect().await?;
    let channel = connection.create_channel().await?;
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut body = [7; BODY];
    for _ in 0..messages {
        ticks.tick().await;
        body[..8].copy_from_slice(&tally.stamp());
        queue.publish(&channel, &body).await?;
    }
    connection.close(200, "done".into()).await?;
    Ok(())
}

fn tell(report: &mut Report, seen: &[Seen; CONTESTANTS.len()]) {
    let [raw, in_process, redis] = seen;
    let targets = [
        (
            "in-process store, more than raw at p50",
            &in_process.p50,
            &raw.p50,
            0.5,
        ),
        (
            "in-process store, more than raw at p99",
            &in_process.p99,
            &raw.p99,
            2.0,
        ),
        ("Redis, more than raw at p50", &redis.p50, &raw.p50, 0.5),
        ("Redis, more than raw at p99", &redis.p99, &raw.p99, 2.0),
    ];
    for (what, of, than, most) in targets {
        let added: Vec<f64> = of.iter().zip(than).map(|(of, than)| of - than).collect();
        report.target("c", what, "ms", Wanted::AtMost(most), &added);
    }
    for (contestant, seen) in CONTESTANTS.iter().zip(seen) {
        let name = contestant.name();
        report.figure("c", format!("{name}, p50"), "ms", seen.p50.clone());
        report.figure("c", format!("{name}, p99"), "ms", seen.p99.clone());
    }
}
