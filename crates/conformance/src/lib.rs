//! The suites that every backstop adapter and store must pass.
//!
//! A suite is a table of named cases, each of them one promise. It takes a harness, which makes
//! queues or stores, and gives a [`Report`]. A case is left out only when the broker's
//! [`Capabilities`](backstop_core::Capabilities) declare that the broker cannot do it, and the
//! report says so; a declared capability that fails is a failure.
//!
//! [`broker::run_all`] is for adapters, [`store::run_all`] for stores. `BACKSTOP_CASE=R4` (or
//! `R4,R5`, or `R` for a group) runs chosen cases only. Each case prints a line, and the report's
//! [`Report::assert_passed`] ends a test; where the broker cannot do everything, it is
//! [`Report::assert_passed_but`], which names the cases that are left out.

pub mod broker;
mod report;
mod runner;
pub mod store;

pub use report::{Failure, LeftOut, Report};
