//! The simulator's tests: what the core holds, and that the simulator finds what is wrong with it.

mod corpus;
mod exhaustive;
#[cfg(feature = "planted")]
mod planted;
mod seeds;
