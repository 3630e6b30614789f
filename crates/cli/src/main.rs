//! The backstop command.

mod connect;
mod demo;
mod exit;
mod logs;
mod output;
mod publish;
#[cfg(test)]
mod readme;
mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::exit::{Code, CommandError};

/// Reliable consumers for at-least-once message queues: repeats absorbed, retries with backoff, dead
/// letters with reasons, order within a key, clean shutdown.
#[derive(Parser)]
#[command(name = "backstop", version, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes are those of sysexits: 0 done, 64 usage, 65 bad data, 66 no \
    input, 69 unavailable, 70 a bug in backstop, 74 input/output, 75 try again, 77 no permission, \
    78 configuration."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Demo),
    Run(Box<run::Run>),
    Publish(publish::Publish),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help goes to stdout and is no error. A reader that went away is none either.
            let _ = error.print();
            let is_error = error.use_stderr();
            return if is_error {
                Code::Usage.into()
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            let text = format!("cannot start the asynchronous runtime: {error}");
            return CommandError::new(Code::Software, text).report();
        }
    };
    let ended = runtime.block_on(async { tokio::spawn(execute(arguments.command)).await });
    // A read of stdin that nobody waits for any more must not keep the process.
    runtime.shutdown_background();
    match ended {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => error.report(),
        Err(_) => {
            let text = "this is a bug in backstop; the lines above say where";
            CommandError::new(Code::Software, text).report()
        }
    }
}

async fn execute(command: Command) -> Result<(), CommandError> {
    match command {
        Command::Demo(demo) => demo.execute().await,
        Command::Run(run) => run.execute().await,
        Command::Publish(publish) => publish.execute().await,
    }
}
