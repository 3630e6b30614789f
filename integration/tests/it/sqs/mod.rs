//! The emulator of SQS, on which backstop is tested.

mod emulator;
mod servers;
