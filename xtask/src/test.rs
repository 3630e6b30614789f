//! Every check and every test, in one command.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};

use crate::images::Image;
use crate::{features, shell};

/// Run every check and every test.
#[derive(Args)]
pub(crate) struct Test {
    /// The version of RabbitMQ to test against
    #[arg(long, value_enum, default_value = "4.3")]
    rabbitmq: RabbitMq,
    /// Only this step; may be repeated
    #[arg(long, value_enum)]
    only: Vec<Step>,
    /// Handed to `cargo test`, such as a filter
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RabbitMq {
    #[value(name = "4.3")]
    V4_3,
    #[value(name = "4.0")]
    V4_0,
    #[value(name = "3.10")]
    V3_10,
}

impl RabbitMq {
    const fn version(self) -> &'static str {
        match self {
            Self::V4_3 => "4.3",
            Self::V4_0 => "4.0",
            Self::V3_10 => "3.10",
        }
    }

    const fn image(self) -> Image {
        match self {
            Self::V4_3 => Image::RABBITMQ_4_3,
            Self::V4_0 => Image::RABBITMQ_4_0,
            Self::V3_10 => Image::RABBITMQ_3_10,
        }
    }
}

/// In the order in which they run: what fails soonest comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Step {
    /// `cargo fmt --check`
    Format,
    /// The images that the servers need
    Images,
    /// `cargo clippy`, where a warning is an error
    Lint,
    /// Each feature compiles alone, each package without any, and what goes together with nothing else
    Features,
    /// `cargo doc`, where a warning is an error
    Docs,
    /// `cargo deny`, where it is installed
    Deny,
    /// The tests beside the code
    Unit,
    /// What threads share, in many orders of them, under shuttle
    Threads,
    /// The examples in the documentation
    DocTests,
    /// The tests in `tests/`, with real servers
    Integration,
}

/// Its tests plant bugs in the core.
const SIMULATOR: &str = "backstop-sim";

impl Test {
    pub(crate) fn run(&self) -> Result<()> {
        let mut times = Vec::new();
        for step in Step::value_variants() {
            if !self.only.is_empty() && !self.only.contains(step) {
                continue;
            }
            println!("== {}", step.name());
            let begun = Instant::now();
            let result = self.step(*step);
            times.push((step.name(), begun.elapsed()));
            if let Err(error) = result {
                show(&times);
                return Err(error.context(format!("{} failed", step.name())));
            }
        }
        show(&times);
        println!("== all passed, with RabbitMQ {}", self.rabbitmq.version());
        Ok(())
    }

    fn step(&self, step: Step) -> Result<()> {
        match step {
            Step::Format => shell::cargo(&["fmt", "--all", "--check"]),
            Step::Images => self.images(),
            Step::Lint => features::lint(&["--workspace", "--all-targets", "--all-features"]),
            Step::Features => features::check(),
            Step::Docs => docs(),
            Step::Deny => deny(),
            Step::Unit => self.cargo_test(&["--lib", "--bins", "--examples"]),
            Step::Threads => threads(),
            Step::DocTests => self.cargo_test(&["--doc"]),
            Step::Integration => self.cargo_test(&["--test", "*"]),
        }
    }

    fn images(&self) -> Result<()> {
        ensure!(
            shell::output("docker", &["info"]).is_some(),
            "the tests need Docker: install and start it, and let this user use it"
        );
        self.rabbitmq.image().ensure()?;
        Image::REDIS.ensure()?;
        Image::LOCALSTACK.ensure()
    }

    /// The simulator apart: nothing else is tested on a core that bugs can be planted in.
    fn cargo_test(&self, targets: &[&str]) -> Result<()> {
        let features = features::all_of_users()?;
        let users = [
            "--workspace",
            "--exclude",
            SIMULATOR,
            "--features",
            &features,
        ];
        let simulator = ["--package", SIMULATOR, "--all-features"];
        let results = [&users[..], &simulator].map(|packages| {
            let mut test = shell::cargo_command();
            test.args(["test", "--no-fail-fast"]).args(packages);
            test.args(targets).args(&self.arguments);
            test.env("BACKSTOP_TEST_RABBITMQ_VERSION", self.rabbitmq.version());
            shell::run(&mut test)
        });
        results.into_iter().collect()
    }
}

impl Step {
    fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

fn show(times: &[(String, Duration)]) {
    println!("== seconds");
    for (name, time) in times {
        println!("{:>6.0}  {name}", time.as_secs_f64());
    }
    let all: Duration = times.iter().map(|(_, time)| *time).sum();
    println!("{:>6.0}  in all", all.as_secs_f64());
}

/// Built apart: under this flag the core's locks work in these tests only.
fn threads() -> Result<()> {
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    let mut test = shell::cargo_command();
    test.args(["test", "--package", "backstop-core", "--lib", "threads::"]);
    test.env("RUSTFLAGS", format!("{flags} --cfg shuttle"));
    shell::run(test.env("CARGO_TARGET_DIR", shell::root().join("target/shuttle")))
}

fn docs() -> Result<()> {
    let mut doc = shell::cargo_command();
    doc.args([
        "doc",
        "--workspace",
        "--all-features",
        "--no-deps",
        "--quiet",
    ]);
    shell::run(doc.env("RUSTDOCFLAGS", "--deny warnings"))
}

fn deny() -> Result<()> {
    if shell::output("cargo", &["deny", "--version"]).is_none() {
        println!("cargo-deny is not installed: licences and sources are left to .ci/run");
        return Ok(());
    }
    // Without advisories: those change from one day to the next, and are fetched. A package that may
    // name a client need not.
    let check = [
        "deny",
        "check",
        "--allow",
        "unused-wrapper",
        "bans",
        "licenses",
        "sources",
    ];
    shell::run(Command::new("cargo").args(check))
}
