//! (a) The pipeline in process, on one core.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use alloc_tracker::Session;
use anyhow::{Result, ensure};
use backstop_core::{
    Consumer, Context, HandlerError, InProcessBroker, InProcessStore, Message, Publisher, Shutdown,
};
use bytes::Bytes;

use crate::cpu;
use crate::report::{Report, Wanted, number};
use crate::rounds::Progress;

const IN_FLIGHT: usize = 256;

/// What a turn showed.
struct Turn {
    messages_a_second: f64,
    messages_a_cpu_second: f64,
    allocations: f64,
}

/// Measures with a handler that does nothing.
pub(crate) fn measure(rounds: u32, messages: u32, report: &mut Report) -> Result<()> {
    let progress = Progress::new("a", u64::from(rounds));
    let (mut speeds, mut on_cpu, mut allocations) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        progress.doing("in process");
        let turn = turn(messages)?;
        let (speed, count) = (number(turn.messages_a_second), number(turn.allocations));
        progress.seen(&format!(
            "{speed} messages/s, {count} allocations a message"
        ));
        speeds.push(turn.messages_a_second);
        on_cpu.push(turn.messages_a_cpu_second);
        allocations.push(turn.allocations);
    }
    let (unit, each) = ("messages/s", "a message");
    let target = Wanted::AtLeast(500_000.0);
    report.target("a", "in process, one core", unit, target, &speeds);
    report.target("a", "allocations", each, Wanted::AtMost(4.0), &allocations);
    report.figure("a", "in process, one core", unit, speeds);
    let unit = "messages/CPU s";
    report.figure("a", "in process, by time on the CPU", unit, on_cpu);
    report.figure("a", "allocations", each, allocations);
    report.note(format!(
        "(a) {messages} messages of 256 bytes a round, in-process broker and store, {IN_FLIGHT} in flight, \
         on one thread; allocations are those of the consumer's run, broker and store included."
    ));
    Ok(())
}

fn turn(messages: u32) -> Result<Turn> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build()?;
    let broker = InProcessBroker::new("bench");
    let body = Bytes::from_static(&[7; 256]);
    runtime.block_on(async {
        let publisher = Publisher::new(broker.clone());
        let messages = (0..messages).map(|_| (Message::new(body.clone()), Duration::ZERO));
        let answers = publisher.publish_batch(messages).await;
        answers.into_iter().try_for_each(|answer| answer.map(drop))
    })?;
    let store = InProcessStore::builder().max_bytes(usize::MAX).build();
    let shutdown = Shutdown::new();
    let (handled, done) = (Arc::new(AtomicU32::new(0)), shutdown.clone());
    let consumer = Consumer::builder(broker)
        .store(store)
        .max_in_flight(IN_FLIGHT)
        .raw(move |_: Bytes, _: Context| {
            if handled.fetch_add(1, Ordering::Relaxed) + 1 == messages {
                done.begin();
            }
            std::future::ready(Ok::<_, HandlerError>(()))
        })?;
    let session = Session::new().no_stdout().no_file();
    let operation = session.operation("run");
    let span = operation
        .measure_thread()
        .no_peak()
        .iterations(messages.into());
    let (begun, cpu) = (Instant::now(), cpu::used()?);
    let stats = runtime.block_on(consumer.run(&shutdown))?;
    let (took, cpu) = (begun.elapsed(), cpu::used()?.saturating_sub(cpu));
    drop(span);
    ensure!(
        stats.completed == u64::from(messages),
        "{} of {messages} messages were completed: {stats:?}",
        stats.completed
    );
    let report = session.to_report();
    let allocations = report.operations().find_map(|(_, seen)| seen.allocations());
    Ok(Turn {
        messages_a_second: f64::from(messages) / took.as_secs_f64(),
        messages_a_cpu_second: f64::from(messages) / cpu.as_secs_f64(),
        allocations: allocations.unwrap_or(f64::NAN),
    })
}
