//! A simulator of the core: the real consumers, as several processes on one broker and one store, on
//! one thread with paused time.
//!
//! Every call to a port and every step of a handler waits for a controller, which acts only when
//! every task is idle. It decides which call goes on and what goes wrong with it, or that time passes.
//! Decisions come from a seed or from a list; the same decisions give the same run, so that what failed
//! can be run again, and made shorter.

mod action;
mod broker;
mod call;
mod choices;
mod digest;
mod event;
mod exhaust;
mod explorer;
mod facts;
mod fate;
mod graph;
mod invariants;
mod keeping;
mod memory;
mod options;
mod process;
mod publishing;
mod run;
mod shrink;
mod sim;
mod small;
mod state;
mod store;
mod subscription;
mod world;

pub use choices::{decode, encode};
pub use exhaust::{Count, Exhausted, exhaust};
pub use explorer::Merging;
pub use invariants::{INVARIANTS, Invariant};
pub use run::{Outcome, Setting, Tracing, by_list, by_seed};
pub use shrink::shrink;
pub use small::{Small, small_worlds};
pub use state::Violation;
pub use world::{Chaos, Dedupe, Fault, Order, Plan, Publication, World};
