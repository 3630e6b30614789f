//! RabbitMQ for backstop: quorum queues, confirmed copies, delay queues, ordered partitions.
//!
//! ```no_run
//! use backstop_core::{Consumer, Context, HandlerError, Shutdown};
//! use backstop_rabbitmq::RabbitMq;
//! # use backstop_core::InProcessStore;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let broker = RabbitMq::open("amqp://guest:guest@localhost:5672/?queue=orders&declare=true")?;
//! let consumer = Consumer::builder(broker)
//!     .store(InProcessStore::new())
//!     .raw(async |body: bytes::Bytes, _: Context| {
//!         println!("{} bytes", body.len());
//!         Ok::<_, HandlerError>(())
//!     })?;
//! consumer.run(&Shutdown::new()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # How promises are kept
//!
//! | promise | by |
//! |---|---|
//! | nothing is lost | persistent, mandatory, confirmed copies; the original is acknowledged after its copy is confirmed |
//! | retry, up to 2 s | the delivery is held unsettled, then rejected: RabbitMQ counts it, and a crash meanwhile too |
//! | retry, longer | a copy in a queue of that delay, which dead-letters back, at least once |
//! | release | `basic.nack`, which counts nothing from 4.3 on; a copy before |
//! | dead letter | a copy with `backstop-dead-letter-*` headers in the dead-letter queue |
//! | poison that we never see | `x-delivery-limit`, above the consumer's cap |
//! | order | partition queues with a single active consumer each; retries wait in the consumer |
//!
//! A retry comes up to 19 % later than its wait, a delayed publication up to 2.2 %: delay queues come
//! in rungs, so that there are few of them. They are named `<queue>.retry.<milliseconds>ms.week-<number>`,
//! are declared when they are needed, whatever `declare` says, take messages for a week, and vanish a
//! week after the last of them is due: an outage of the broker, or of the queue that they move their
//! messages to, must not last longer. The user needs the right to configure, write and read queues of
//! these names.
//!
//! # What RabbitMQ cannot do
//!
//! - An acknowledgement is not answered: when the connection breaks behind it, the message comes once
//!   more. The idempotency store absorbs that.
//! - Before 4.3 RabbitMQ counts every return. What is given back is copied to the queue's end instead.
//! - After a restart of the server a retry or a delayed message may come up to three minutes late: so
//!   long RabbitMQ waits before it dead-letters again to a queue that was not up
//!   (`dead_letter_worker_publisher_confirm_timeout`, 180 s by default).
//! - Seen once on 4.0.5, in a dozen runs on a machine that was overloaded: a delay queue whose messages were
//!   past their time did not expire them until the next command reached it, so the last retries of a burst
//!   stayed there until another message waited as long. They are late, not lost; `basic.get` on the queue
//!   frees them. <https://github.com/rabbitmq/rabbitmq-server/issues/10718> tells of the like.
//! - On an ordered queue the native count says nothing about attempts (a restart raises it for whatever
//!   was sent ahead). The idempotency store counts exactly. Without one, the attempts of a message
//!   whose process dies are bounded by `x-delivery-limit` alone.
//! - A delayed message has no place in the order of its key: an ordered queue refuses it.
//! - The server's version, and whether it has the consistent-hash exchange, are looked at with every
//!   connection. Publishers that find a key's partition by themselves go on with that until they reconnect:
//!   declare the exchange while nobody publishes, or the messages of a key are in two partitions.
//! - Without the right to declare delay queues, or to publish to them, a retry waits unsettled in the
//!   process, for at most 10 minutes; as many as the consumer buffers, and then nothing more is received.
//! - Before 4.0 all partitions are with the consumer that came first, until it goes.
//! - Copies lose `expiration`, `user_id` and the headers `CC` and `BCC`, which would end their wait,
//!   be refused, or route them elsewhere.
//!
//! lapin logs a returned message with its body at level `warn`, target `lapin`: keep that target at
//! `error` where bodies must not be logged.

mod acks;
mod arguments;
mod arrivals;
mod broker;
mod config;
mod connection;
mod copies;
mod dead_letters;
mod decode;
mod delay;
mod desk;
mod encode;
mod ending;
mod error;
mod frames;
mod headers;
mod holds;
mod inspect;
mod publish;
mod settle;
mod shelf;
mod source;
mod subscription;
mod topology;
mod version;

pub use broker::RabbitMq;
pub use config::{RabbitMqConfig, Topology};
