//! (b) Throughput on RabbitMQ.

use std::sync::Arc;

use anyhow::Result;

use crate::cpu;
use crate::load::Contestant;
use crate::rabbit::{BODY, Queue};
use crate::report::{Report, Wanted, number};
use crate::rounds::{Progress, ratios, turns};
use crate::servers;
use crate::tally::Tally;

const CONTESTANTS: [Contestant; 4] = [
    Contestant::Raw,
    Contestant::InProcess,
    Contestant::Redis,
    Contestant::Naive,
];

/// Measures how fast a queue that is full is emptied.
pub(crate) async fn measure(rounds: u32, messages: u32, report: &mut Report) -> Result<()> {
    let (rabbitmq, redis) = servers::running().await;
    let (rabbitmq, redis) = (rabbitmq.as_str(), redis.as_str());
    let steps = u64::from(rounds) * CONTESTANTS.len() as u64;
    let progress = Progress::new("b", steps);
    let mut speeds = CONTESTANTS.map(|_| Vec::new());
    let mut costs = CONTESTANTS.map(|_| Vec::new());
    for contestant in turns(&CONTESTANTS, rounds) {
        progress.doing(format!("{} (filling)", contestant.name()));
        let queue = Queue::declare(rabbitmq).await?;
        queue.fill(messages).await?;
        progress.doing(contestant.name());
        let tally = Arc::new(Tally::new(messages));
        let before = cpu::used()?;
        let took = contestant.consume(&queue, redis, &tally).await?;
        let cost = cpu::used()?.saturating_sub(before).as_secs_f64() * 1e6 / f64::from(messages);
        queue.delete().await?;
        let speed = f64::from(messages) / took.as_secs_f64();
        let (name, shown) = (contestant.name(), number(speed));
        let cpu = number(cost);
        progress.seen(&format!("{name}: {shown} messages/s, {cpu} µs of CPU each"));
        let place = CONTESTANTS.iter().position(|place| *place == contestant);
        if let Some(place) = place {
            speeds[place].push(speed);
            costs[place].push(cost);
        }
    }
    drop(progress);
    tell(report, speeds);
    for (contestant, costs) in CONTESTANTS.iter().zip(costs) {
        let what = format!("{}, CPU of this process", contestant.name());
        report.figure("b", what, "µs a message", costs);
    }
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    report.note(format!(
        "(b) {messages} persistent messages of {BODY} bytes a turn, quorum queue of RabbitMQ {}, {cores} \
         cores shared with the servers; backstop's max_in_flight is 256, and so is its prefetch. Ratios are \
         medians of the ratios of the rounds.",
        integration::rabbitmq_version()
    ));
    Ok(())
}

fn tell(report: &mut Report, speeds: [Vec<f64>; CONTESTANTS.len()]) {
    let [raw, in_process, redis, naive] = &speeds;
    let targets = [
        ("in-process store / raw", in_process, raw, 1.1),
        ("Redis / raw", redis, raw, 0.8),
        ("Redis / naive loop", redis, naive, 1.5),
    ];
    for (what, of, to, least) in targets {
        let ratios = ratios(of, to);
        report.target("b", what, "times", Wanted::AtLeast(least), &ratios);
    }
    for (contestant, speeds) in CONTESTANTS.iter().zip(speeds) {
        report.figure("b", contestant.name(), "messages/s", speeds);
    }
}
