//! The store on real servers.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod access;
mod batches;
mod consumer;
mod failover;
mod faults;
mod model;
mod records;
mod setup;
mod suite;
