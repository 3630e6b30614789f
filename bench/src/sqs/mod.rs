//! Amazon SQS, by a stub of its protocol in this process: (e) what is billed, and (f) throughput.

pub(crate) mod calls;
mod client;
mod consumers;
#[cfg(test)]
mod in_process;
mod queue;
mod server;
mod stub;
pub(crate) mod throughput;
mod wire;

#[cfg(test)]
mod tests;
