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

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands behind `cargo xtask` in a document, up to the end of the code that it stands in.
    fn commands(document: &str) -> Vec<Vec<&str>> {
        let behind = document.split("cargo xtask").skip(1);
        let code = behind.filter_map(|text| text.split('`').next());
        code.map(|code| code.split_whitespace().collect()).collect()
    }

    #[test]
    fn every_task_that_the_documents_name_exists() {
        let mut named = 0;
        for name in ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"] {
            let document = std::fs::read_to_string(shell::root().join(name)).expect(name);
            for command in commands(&document) {
                let words = std::iter::once("xtask").chain(command.iter().copied());
                if let Err(error) = Arguments::try_parse_from(words) {
                    panic!("{name}: cargo xtask {command:?}: {error}");
                }
                named += 1;
            }
        }
        assert!(named > 10, "only {named} were found");
    }
}
