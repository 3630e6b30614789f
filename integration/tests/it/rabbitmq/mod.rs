//! backstop on a real RabbitMQ, with a real Redis.

mod bad_input;
mod faults;
mod harness;
pub(crate) mod kills;
mod review;
mod suite;
mod tls;
pub(crate) mod world;
