//! The ports for brokers.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::delivery::{Delivery, LeaseId};
use crate::error::BrokerError;
use crate::message::Message;
use crate::verdict::{DeadLetter, Settlement};

/// A broker's queue, shared.
pub type BrokerHandle = Arc<dyn Broker>;

/// How far a queue keeps the order of a partition key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OrderScope {
    /// Across all consuming processes.
    AcrossProcesses,
    /// Within one consuming process only.
    WithinProcess,
}

/// Where an ordered message waits for its next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OrderedRetry {
    /// In its lane in the consumer, under its lease, ahead of its followers.
    HeldInLane,
    /// In the broker, which withholds the followers meanwhile.
    Native,
}

/// What giving a delivery back does to the broker's own count of deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReleaseCost {
    /// Nothing.
    Free,
    /// It raises it, as a failure would: only an idempotency store's count is exact.
    Counted,
}

/// How long a delivery stays with its consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeliveryLease {
    /// Until the connection ends.
    Connection,
    /// For a time that can be extended, up to `max_total` in all if the broker has such a limit.
    Timed {
        /// The most that extensions can add up to.
        max_total: Option<Duration>,
    },
}

/// What outlives a restart of the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Survival {
    /// Messages outlive it.
    Durable,
    /// The broker lives in this process, and its messages with it.
    Process,
}

/// What a broker can do, as data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// How far order within a key goes.
    pub order: OrderScope,
    /// Where an ordered message waits for a retry.
    pub ordered_retry: OrderedRetry,
    /// What a release costs.
    pub release: ReleaseCost,
    /// How a delivery is held.
    pub lease: DeliveryLease,
    /// The longest delay of a retry; `None` is no limit.
    pub max_delay: Option<Duration>,
    /// The longest delay of a publication; `None` is no limit, zero is no delay at all.
    pub max_publication_delay: Option<Duration>,
    /// The largest body that it hands out, in bytes; of text, where a broker carries only text and has to
    /// encode the rest. Where id and headers count, too, one that is published has to be smaller by them.
    pub max_body: usize,
    /// What outlives a restart.
    pub survival: Survival,
}

/// Whether a subscription keeps order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SubscriptionOrder {
    /// Deliveries in any order; the least cost.
    Unordered,
    /// Within a partition key: in order, and all to one subscription at a time. What is given back
    /// keeps its old place: it is handed out again before what follows it, and not before all that
    /// follows it and was handed out is given back, too. While it waits (a release or a retry with a
    /// delay), what follows it waits.
    ByPartitionKey,
}

/// How a consumer wants to receive.
#[derive(Clone, Debug)]
pub struct SubscribeOptions {
    /// The consumer's name, for the broker's management pages.
    pub consumer: Arc<str>,
    /// Whether order is kept.
    pub order: SubscriptionOrder,
    /// The most deliveries that the consumer will hold at once.
    pub max_buffered: NonZeroUsize,
    /// The cap on attempts, which a native cap has to stay above.
    pub max_attempts: NonZeroU32,
    /// The longest that a handler may run; a lease that cannot be extended has to be longer.
    pub handler_timeout: Duration,
    /// The longest wait between two attempts.
    pub longest_wait: Duration,
}

/// A message to publish, perhaps later.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The message.
    pub message: Arc<Message>,
    /// Deliver it not before this long from now; zero is at once.
    pub delay: Duration,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing; the consumer starts.
    Warning,
    /// Unsafe; the consumer refuses to start.
    Refusal,
}

/// One thing that is wrong with a set-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The setting, by the name that the broker or backstop gives it.
    pub setting: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to do.
    pub fix: String,
}

/// Whether a delivery is still ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeaseState {
    /// Ours, for this long from now if the lease is timed.
    Held(Option<Duration>),
    /// Not ours any more: it must not be settled.
    Lost,
}

/// A connected queue.
///
/// # Contract
///
/// - A message leaves the queue only by [`Verdict::Complete`](crate::Verdict::Complete), or after
///   the dead-letter queue has confirmed it.
/// - Every method reconnects by itself; while the broker is away `receive` waits or answers a
///   transient error, and every other method answers a transient error.
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// The queue's name.
    fn queue(&self) -> &str;

    /// What this broker can do.
    fn capabilities(&self) -> Capabilities;

    /// Compares the set-up with what a consumer with these options needs.
    ///
    /// # Errors
    ///
    /// When the broker cannot be asked, or the queue does not exist.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: it changes nothing, but that an adapter which was told to declare its queues may have
    /// declared some.
    async fn inspect(&self, options: &SubscribeOptions) -> Result<Vec<Finding>, BrokerError>;

    /// Starts receiving.
    ///
    /// # Errors
    ///
    /// When the queue does not exist, or the broker cannot keep the order that is asked for.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: a dropped call leaves no subscription behind, and what the broker may have sent to it
    /// is delivered again. A consumer drops it when it is told to shut down.
    async fn subscribe(
        &self,
        options: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>, BrokerError>;

    /// Publishes; each answer says that the broker has the message safely, or why not. Answers
    /// stand at the positions of their messages.
    ///
    /// # Errors
    ///
    /// Each message has its own. After a permanent one (a body that is too large, a delay that is too
    /// long, no queue to go to) the message was not published. After a transient one it may have been: it
    /// is published again with the same id, and a consumer with a store absorbs the repeat.
    ///
    /// # Cancel safety
    ///
    /// Not cancel-safe in effect: a dropped call may have published some of the messages, as after a
    /// transient error.
    async fn publish(&self, messages: &[Outgoing]) -> Vec<Result<(), BrokerError>>;

    /// The queue's dead-letter queue.
    ///
    /// # Errors
    ///
    /// When the queue has none, or the broker cannot be asked.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe, as [`Broker::inspect`] is.
    async fn dead_letters(&self) -> Result<Box<dyn DeadLetterQueue>, BrokerError>;

    /// Closes connections. Subscriptions end too; what they have not settled is delivered again.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may leave connections open. Nothing is lost: what is not settled is delivered again
    /// when its connection or its lease ends.
    async fn close(&self);
}

/// A settlement that did not happen.
#[derive(Debug)]
pub struct SettleError {
    /// Why; [`BrokerErrorKind::LeaseLost`](crate::BrokerErrorKind::LeaseLost) if the delivery is no
    /// longer ours.
    pub cause: BrokerError,
    /// The settlement, if the delivery is still ours: it may be tried again, or settled otherwise
    /// (a dead-letter queue that cannot be reached, say). `None` if the delivery is lost to us, and
    /// the broker will deliver it again.
    pub kept: Option<Box<Settlement>>,
}

/// A running reception.
#[async_trait]
pub trait Subscription: Send + Sync + 'static {
    /// Waits for deliveries: at least one, at most `max`. After a transient error it answers with none,
    /// once, as soon as it receives again: an idle queue would not show that otherwise. Under load it may
    /// also answer with none, soon, to be asked again when there is more room: where each call is billed,
    /// full batches are worth that.
    ///
    /// # Errors
    ///
    /// A transient one may be asked again (the caller backs off); after a permanent one the
    /// subscription is of no more use.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: a dropped call loses no delivery.
    async fn receive(&self, max: NonZeroUsize) -> Result<Vec<Delivery>, BrokerError>;

    /// Carries out verdicts; each answer says that the broker knows. Answers stand at the positions
    /// of their settlements. A dead letter is carried out once the dead-letter queue has it: if the lease
    /// is lost behind that, the message comes back, as a repeat.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may have settled some; the rest is delivered again when its lease ends.
    async fn settle(&self, batch: Vec<Settlement>) -> Vec<Result<(), SettleError>>;

    /// Extends leases by the broker's usual time. Answers stand at the positions of the leases.
    ///
    /// # Errors
    ///
    /// Each lease has its own; it may have been extended all the same, and counts as ours only for as long
    /// as it was known to last. A lease that is not ours any more is no error, but [`LeaseState::Lost`].
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: a dropped call may have extended some, which run out by themselves. A consumer drops
    /// it when the broker does not answer in time to ask again.
    async fn extend(&self, leases: &[LeaseId]) -> Vec<Result<LeaseState, BrokerError>>;

    /// Stops receiving. What was received can still be settled until [`Subscription::close`];
    /// a `receive` under way ends soon.
    ///
    /// # Cancel safety
    ///
    /// Receiving has stopped when a call is dropped that was polled once. What the broker had sent ahead
    /// may not have been given back by then: it is delivered again when the subscription or its lease
    /// ends. A consumer drops it when it takes too long.
    async fn stop(&self);

    /// Flushes settlements and ends. What is unsettled is delivered again.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may not have flushed or given back everything: the rest is delivered again when its
    /// connection or its lease ends. A consumer drops it when it takes too long.
    async fn close(&self);
}

/// A message in a dead-letter queue.
#[derive(Clone, Debug)]
pub struct DeadLetterRecord {
    /// The message, as it was published.
    pub message: Arc<Message>,
    /// Its annotations; what the broker dead-lettered by itself reads the same way.
    pub dead_letter: DeadLetter,
}

/// A queue's dead-letter queue.
#[async_trait]
pub trait DeadLetterQueue: Send + Sync + 'static {
    /// How many messages are in it.
    ///
    /// # Errors
    ///
    /// When the broker cannot be asked.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: it changes nothing.
    async fn depth(&self) -> Result<u64, BrokerError>;

    /// Reads up to `max` of its oldest messages and leaves them there.
    ///
    /// # Errors
    ///
    /// When the broker cannot be asked.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: nothing is lost. Where a broker shows a message only by handing it out, what a dropped
    /// call has looked at is there again a while later.
    async fn browse(&self, max: NonZeroUsize) -> Result<Vec<DeadLetterRecord>, BrokerError>;
}
