//! The command as its users see it: arguments and signals in, output and exit codes out.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

mod bad_input;
mod command;
mod demo;
mod interop;
mod peer;
mod publish;
mod rabbitmq;
mod run_endpoint;
mod run_program;
mod signals;
mod sqs;
mod terminal;
