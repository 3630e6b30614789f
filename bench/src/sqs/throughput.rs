//! (f) Throughput on SQS, beside the SDK's.

use std::sync::Arc;

use anyhow::Result;

use super::client::{self, BODY};
use super::consumers::{Contestant, IN_FLIGHT, RECEIVES};
use super::server::Server;
use crate::cpu;
use crate::report::{Report, Wanted, number};
use crate::rounds::{Progress, ratios, turns};
use crate::tally::Tally;

const CONTESTANTS: [Contestant; 3] = [
    Contestant::Raw,
    Contestant::RawAttributes,
    Contestant::Backstop,
];

/// Measures how fast a queue that is full is emptied.
pub(crate) async fn measure(rounds: u32, messages: u32, report: &mut Report) -> Result<()> {
    let steps = u64::from(rounds) * CONTESTANTS.len() as u64;
    let progress = Progress::new("f", steps);
    let mut speeds = CONTESTANTS.map(|_| Vec::new());
    let mut costs = CONTESTANTS.map(|_| Vec::new());
    for contestant in turns(&CONTESTANTS, rounds) {
        progress.doing(contestant.name());
        let (speed, cost) = turn(contestant, messages).await?;
        let (name, shown, cpu) = (contestant.name(), number(speed), number(cost));
        progress.seen(&format!("{name}: {shown} messages/s, {cpu} µs of CPU each"));
        for (place, (speeds, costs)) in speeds.iter_mut().zip(&mut costs).enumerate() {
            if CONTESTANTS[place] == contestant {
                speeds.push(speed);
                costs.push(cost);
            }
        }
    }
    drop(progress);
    let [raw, attributes, backstop] = &speeds;
    let share = ratios(backstop, raw);
    report.target("f", "SQS / raw", "times", Wanted::AtLeast(0.85), &share);
    let further = ratios(backstop, attributes);
    for ((contestant, speeds), costs) in CONTESTANTS.iter().zip(speeds.clone()).zip(costs) {
        let name = contestant.name();
        report.figure("f", name, "messages/s", speeds);
        let what = format!("{name}, CPU of client and stub");
        report.figure("f", what, "µs a message", costs);
    }
    report.figure("f", "backstop / raw, with attributes", "times", further);
    report.note(format!(
        "(f) {messages} messages of {BODY} bytes a turn, from a stub of the SQS protocol in this process, \
         which shares the processors; up to {RECEIVES} receives of ten at once, deletions by tens. \
         backstop's max_in_flight is {IN_FLIGHT}. Ratios are medians of the ratios of the rounds."
    ));
    Ok(())
}

/// Gives messages a second, and microseconds of processor time a message.
async fn turn(contestant: Contestant, messages: u32) -> Result<(f64, f64)> {
    let server = Server::start().await?;
    client::fill(&client::client(server.stub.endpoint()), messages).await?;
    let tally = Arc::new(Tally::new(messages));
    let before = cpu::used()?;
    let took = contestant.consume(&server.stub, &tally).await?;
    let cost = cpu::used()?.saturating_sub(before).as_secs_f64() * 1e6 / f64::from(messages);
    Ok((f64::from(messages) / took.as_secs_f64(), cost))
}
