//! backstop on Amazon SQS, by an emulator, with a real Redis.

mod emulator;
mod faults;
mod harness;
mod interop;
mod kills;
mod peer;
mod redrives;
mod servers;
mod suite;
mod world;
