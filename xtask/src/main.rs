//! The tasks of the backstop workspace: `cargo xtask --help`.

mod apt;
mod features;
mod images;
mod pip;
mod shell;
mod test;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "The tasks of the backstop workspace")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the container images that the tests use where no image can be pulled
    Images(images::Images),
    /// Run every check and every test
    Test(test::Test),
    /// Measure speed and memory, in interleaved rounds: `cargo xtask bench --help`
    #[command(disable_help_flag = true)]
    Bench {
        /// Handed to the benchmark program
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run the core through schedules and faults: `cargo xtask sim --help`
    #[command(disable_help_flag = true)]
    Sim {
        /// Handed to the simulator
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().task {
        Task::Images(images) => images.run(),
        Task::Test(test) => test.run(),
        Task::Bench { arguments } => run_package("bench", &arguments),
        Task::Sim { arguments } => run_package("backstop-sim", &arguments),
    }
}

/// Runs the program of one of our packages.
fn run_package(package: &str, arguments: &[String]) -> Result<()> {
    let mut command = vec!["run", "--quiet", "--release", "--package", package, "--"];
    command.extend(arguments.iter().map(String::as_str));
    shell::cargo(&command)
}
