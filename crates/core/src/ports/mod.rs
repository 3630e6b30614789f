//! What adapters and stores implement.

mod broker;
mod store;

pub use broker::{
    Broker, BrokerHandle, Capabilities, DeadLetterQueue, DeadLetterRecord, DeliveryLease, Finding,
    LeaseState, OrderScope, OrderedRetry, Outgoing, ReleaseCost, SettleError, Severity,
    SubscribeOptions, Subscription, SubscriptionOrder, Survival,
};
pub use store::{
    Claim, ClaimRequest, Fence, Fingerprint, IdempotencyKey, IdempotencyStore, OwnerId, Ownership,
    ReleaseKind, StoreHandle, Ticket,
};
