//! Measures the speed and memory of backstop: `cargo xtask bench`.
//!
//! Figures of different runs, or of different machines, say little about each other. So contestants
//! take turns within a run, in an order that moves on with every round, and what counts is the median
//! of the ratios of the rounds. Nothing fails because a machine is slow: targets stand beside the
//! figures.

mod cpu;
mod latency;
mod load;
mod memory;
mod pipeline;
mod rabbit;
mod report;
mod rounds;
mod servers;
mod sqs;
mod tally;
mod throughput;

use std::alloc::System;

use alloc_tracker::Allocator;
use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

use crate::report::Report;

/// Counts allocations for part (a); a few instructions each, also for what (b) and (c) measure.
#[global_allocator]
static ALLOCATOR: Allocator<System> = Allocator::system();

/// Measures the speed and memory of backstop, beside its targets
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Arguments {
    /// Which parts: a (in process), b (`RabbitMQ`), c (latency), d (memory), e (calls of SQS), f (SQS); all
    /// unless told
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// How often each contestant takes its turn, in all parts but d
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How many messages a turn takes; 500,000 in a, 50,000 in b, e and f, 5,000 in c, 1,000,000 in d unless
    /// told
    #[arg(long, value_parser = clap::value_parser!(u32).range(100..=100_000_000))]
    messages: Option<u32>,
    /// Gives the figures as JSON, in the last line of stdout
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    child: Option<Child>,
}

/// What this program runs itself for.
#[derive(Subcommand)]
enum Child {
    /// The consumer of part d
    #[command(hide = true)]
    Failing { rabbitmq: String, redis: String },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    A,
    B,
    C,
    D,
    E,
    F,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(Child::Failing { rabbitmq, redis }) = &arguments.child {
        return runtime()?.block_on(memory::consume_and_fail(rabbitmq, redis));
    }
    let wants = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let (rounds, messages) = (arguments.rounds, arguments.messages);
    let mut report = Report::default();
    if wants(Part::A) {
        pipeline::measure(rounds, messages.unwrap_or(500_000), &mut report)?;
    }
    let runtime = runtime()?;
    if wants(Part::B) {
        let messages = messages.unwrap_or(50_000);
        runtime.block_on(throughput::measure(rounds, messages, &mut report))?;
    }
    if wants(Part::C) {
        let messages = messages.unwrap_or(5_000);
        runtime.block_on(latency::measure(rounds, messages, &mut report))?;
    }
    if wants(Part::D) {
        let messages = messages.unwrap_or(1_000_000);
        runtime.block_on(memory::measure(messages, &mut report))?;
    }
    if wants(Part::E) {
        let messages = messages.unwrap_or(50_000);
        runtime.block_on(sqs::calls::measure(rounds, messages, &mut report))?;
    }
    if wants(Part::F) {
        let messages = messages.unwrap_or(50_000);
        runtime.block_on(sqs::throughput::measure(rounds, messages, &mut report))?;
    }
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.enable_all().build()?)
}
