//! The servers work, the proxy misbehaves as told, and the adapters keep their promises on real servers.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod proxy;
mod rabbitmq;
mod servers;
mod sqs;
mod tls;
