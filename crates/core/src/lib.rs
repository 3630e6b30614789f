//! The policy, the pipeline and the ports of backstop: a reliable consumer for at-least-once queues.
//!
//! This crate names no broker. Adapter crates implement [`Broker`], store crates implement
//! [`IdempotencyStore`], and users depend on the facade `backstop`.

/// Whether a bug is planted: never, but in tests of the simulator.
macro_rules! planted {
    ($bug:ident) => {{
        #[cfg(feature = "planted")]
        let planted = crate::planted::is_planted(crate::planted::Bug::$bug);
        #[cfg(not(feature = "planted"))]
        let planted = false;
        planted
    }};
}

mod causes;
mod codec;
mod consumer;
mod delivery;
mod error;
mod handler;
mod in_process;
mod message;
#[cfg(feature = "planted")]
#[doc(hidden)]
pub mod planted;
mod policy;
mod ports;
mod publisher;
mod sync;
mod verdict;

pub use causes::with_causes;
pub use codec::{Codec, Json, Raw};
pub use consumer::{
    BreakerSettings, Consumer, ConsumerBuilder, Fingerprints, KeySource, MissingKey, Monitor,
    Randomness, RunError, RunErrorKind, Shutdown, Stats,
};
pub use delivery::{Attempt, Delivery, LeaseId, Receipt};
pub use error::{
    BrokerError, BrokerErrorKind, ConfigError, Failure, HandlerError, Permanence, Persistence,
    StoreError, StoreErrorKind,
};
pub use handler::{Context, Handler};
pub use in_process::{
    BrokerCall, BrokerFault, BrokerFaults, BrokerOperation, InProcessBroker,
    InProcessBrokerBuilder, InProcessStore, InProcessStoreBuilder, QueueCounts, StoreFaults,
    StoreSnapshot,
};
pub use message::{Headers, Message, MessageId, PartitionKey};
pub use policy::{Backoff, Decision, Jitter, Policy, decide};
pub use ports::{
    Broker, BrokerHandle, Capabilities, Claim, ClaimRequest, DeadLetterQueue, DeadLetterRecord,
    DeliveryLease, Fence, Finding, Fingerprint, IdempotencyKey, IdempotencyStore, LeaseState,
    OrderScope, OrderedRetry, Outgoing, OwnerId, Ownership, ReleaseCost, ReleaseKind, SettleError,
    Severity, StoreHandle, SubscribeOptions, Subscription, SubscriptionOrder, Survival, Ticket,
};
pub use publisher::Publisher;
pub use verdict::{
    DeadLetter, DeadLetterReason, Failed, Outcome, Settlement, Verdict, truncate_visibly,
};
