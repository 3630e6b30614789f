//! A reliable consumer for at-least-once message queues.
//!
//! Write one async function. Its consumer absorbs repeats, retries with backoff and jitter,
//! dead-letters with a reason, keeps order within a key if asked to, stops taking messages while
//! everything fails, survives restarts of everything, and shuts down without losing a message.
//!
//! ```
//! use backstop::{Consumer, Context, HandlerError, Message, Publisher, Shutdown};
//!
//! #[derive(serde::Deserialize)]
//! struct Order {
//!     amount: u32,
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let broker = backstop::connect("memory://orders").await?;
//! let store = backstop::connect_store("memory://orders").await?;
//! Publisher::new(broker.clone()).publish(Message::new(r#"{"amount": 7}"#)).await?;
//!
//! let shutdown = Shutdown::new();
//! let done = shutdown.clone();
//! let consumer = Consumer::builder(broker).store(store).json(
//!     move |order: Order, _context: Context| {
//!         let done = done.clone();
//!         async move {
//!             println!("charged {}", order.amount);
//!             done.begin();
//!             Ok::<_, HandlerError>(())
//!         }
//!     },
//! )?;
//! let stats = consumer.run(&shutdown).await?;
//! assert_eq!(stats.completed, 1);
//! # Ok(())
//! # }
//! ```
//!
//! # Brokers and stores
//!
//! [`connect`] and [`connect_store`] take a URL, so that another broker is another URL and one more
//! feature, and no other line of code:
//!
//! | URL | what | feature |
//! |---|---|---|
//! | `memory://<queue>` | a queue, or a store, inside this process | none |
//! | `amqp://`, `amqps://`, with `?queue=<queue>` | RabbitMQ | `rabbitmq` |
//! | `sqs://<host>/<account>/<queue>`, `sqs:///<queue>?region=<region>` | Amazon SQS | `sqs` |
//! | `redis://`, `redis+cluster://`, `redis+sentinel://`, and `rediss` for TLS | an idempotency store on Redis | `redis` |
//!
//! No feature is on by default, and switching one on changes nothing by itself.

mod connect;
mod memory;

pub use backstop_core::{
    Attempt, Backoff, BreakerSettings, Broker, BrokerCall, BrokerError, BrokerErrorKind,
    BrokerFault, BrokerFaults, BrokerHandle, BrokerOperation, Capabilities, Claim, ClaimRequest,
    Codec, ConfigError, Consumer, ConsumerBuilder, Context, DeadLetter, DeadLetterQueue,
    DeadLetterReason, DeadLetterRecord, Decision, Delivery, DeliveryLease, Failed, Failure, Fence,
    Finding, Fingerprint, Fingerprints, Handler, HandlerError, Headers, IdempotencyKey,
    IdempotencyStore, InProcessBroker, InProcessBrokerBuilder, InProcessStore,
    InProcessStoreBuilder, Jitter, Json, KeySource, LeaseId, LeaseState, Message, MessageId,
    MissingKey, Monitor, OrderScope, OrderedRetry, Outcome, Outgoing, OwnerId, Ownership,
    PartitionKey, Permanence, Persistence, Policy, Publisher, QueueCounts, Randomness, Raw,
    Receipt, ReleaseCost, ReleaseKind, RunError, RunErrorKind, SettleError, Settlement, Severity,
    Shutdown, Stats, StoreError, StoreErrorKind, StoreFaults, StoreHandle, StoreSnapshot,
    SubscribeOptions, Subscription, SubscriptionOrder, Survival, Ticket, Verdict, decide,
    truncate_visibly, with_causes,
};

#[cfg(feature = "rabbitmq")]
pub use backstop_rabbitmq::{RabbitMq, RabbitMqConfig, Topology};
#[cfg(feature = "redis")]
pub use backstop_redis_dedupe::{RedisStore, RedisStoreConfig};
#[cfg(feature = "sqs")]
pub use backstop_sqs::{Sqs, SqsConfig, SqsTopology};

pub use connect::{connect, connect_store};
pub use memory::{in_process_queue, in_process_store};

#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct ReadmeSnippets;
