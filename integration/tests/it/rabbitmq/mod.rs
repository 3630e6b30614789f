//! backstop on a real RabbitMQ, with a real Redis.

mod bad_input;
mod faults;
mod harness;
mod kills;
mod review;
mod suite;
mod tls;
mod world;
