//! The port for idempotency stores.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::broker::{Finding, Survival};
use crate::delivery::Attempt;
use crate::error::StoreError;

/// A store, shared.
pub type StoreHandle = Arc<dyn IdempotencyStore>;

/// Names one consumer process to the store; unlike any other's, also after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OwnerId(Arc<str>);

impl OwnerId {
    /// Wraps a text that no other process uses.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a repeat is recognised by, within the namespace of one consumer.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey {
    namespace: Arc<str>,
    key: Arc<str>,
}

impl IdempotencyKey {
    /// A key in a consumer's namespace.
    pub fn new(namespace: impl Into<Arc<str>>, key: impl Into<Arc<str>>) -> Self {
        Self {
            namespace: namespace.into(),
            key: key.into(),
        }
    }

    /// The consumer's namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The key within the namespace; the pipeline hands in at most 256 bytes.
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.namespace, self.key)
    }
}

/// A number that grows with every claim of a key, and never shrinks while its record lives: a
/// database that remembers the highest one seen can refuse the write of a stalled owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(pub u64);

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A short digest of a body, to notice one key with two bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub u128);

/// A wish to handle the message of a key.
#[derive(Clone, Debug)]
pub struct ClaimRequest {
    /// What is claimed.
    pub key: IdempotencyKey,
    /// By whom.
    pub owner: OwnerId,
    /// Names this one claim within its owner, so that a claim whose answer was lost can be asked
    /// for again and gets the same answer.
    pub nonce: u64,
    /// Digest of the body; `None` disables the check for conflicts.
    pub fingerprint: Option<Fingerprint>,
    /// How often the message was redriven; a higher number than the record's resets the count of a
    /// record that is not completed.
    pub redrives: u32,
    /// Attempts that the broker knows of; a fresh record starts its count there, so that a lost
    /// record does not reset the cap.
    pub attempts_used: u32,
    /// How long the claim holds without renewal, by the store's clock.
    pub lease: Duration,
    /// How long the record is kept after its last change.
    pub retention: Duration,
}

/// The answer to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The key is ours to handle.
    Acquired {
        /// One more than the last claim's.
        fence: Fence,
        /// Which attempt this is.
        attempt: Attempt,
    },
    /// Somebody else is handling it.
    InProgress {
        /// What is left of the other claim's lease, by the store's clock.
        remaining: Duration,
    },
    /// It was completed: a repeat.
    Completed,
    /// It is in the dead-letter queue already, and this copy was not redriven since: a repeat.
    DeadLettered,
    /// The record was made by a message with another body.
    Conflict,
}

/// Proof of a claim.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// What was claimed.
    pub key: IdempotencyKey,
    /// By whom.
    pub owner: OwnerId,
    /// With which fence.
    pub fence: Fence,
}

/// Whether a ticket still stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ownership {
    /// The call took effect, now or when it was first asked.
    Held,
    /// Another claim has been made since, or the record is gone: the caller settles nothing.
    Fenced,
}

/// Why a claim is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReleaseKind {
    /// The attempt failed, and counts.
    Failed,
    /// The attempt does not count: it never began, or was cancelled without its fault.
    Unused,
    /// The message is in the dead-letter queue: repeats of it are absorbed until it is redriven.
    DeadLettered,
}

/// A store of idempotency records.
///
/// # Contract
///
/// One record per key: in progress (owner, fence, lease deadline, fingerprint), released,
/// dead-lettered, or completed.
///
/// - Answers stand at the positions of their requests, and there are as many.
/// - `fence` grows by exactly one with every acquired claim, from 1, and survives release and lease
///   expiry. The attempt is the fence less what did not count ([`ReleaseKind::Unused`]) and less
///   what a redrive reset, plus what the broker knew when the record was made.
/// - Acquired: when absent, released, in progress past its deadline, or dead-lettered with fewer
///   redrives than the request's or with another fingerprint. A released or in-progress record with
///   another fingerprint is [`Claim::Conflict`], as is a completed one.
/// - Every deadline is judged by the store's own clock, and stands inside the record: expiry of the
///   record itself comes later.
/// - Every call may be repeated by the same owner, fence and nonce, and then gives the same answer:
///   a caller that lost an answer asks again. A renewal, completion or release of a claim whose
///   deadline has passed, but which nobody else has taken, still takes effect.
/// - An error means that the effect is unknown.
#[async_trait]
pub trait IdempotencyStore: Send + Sync + 'static {
    /// What becomes of records when the consumer's process dies. Where they outlive it the store alone
    /// counts attempts: a broker counts a crash for whatever was sent ahead, also for what was never
    /// started.
    fn survival(&self) -> Survival;

    /// Looks for what endangers the records: evictions, say. A consumer logs what is found when it
    /// starts.
    ///
    /// # Errors
    ///
    /// When the store cannot be asked; the consumer starts all the same.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: it changes nothing.
    async fn inspect(&self) -> Result<Vec<Finding>, StoreError>;

    /// Claims keys.
    ///
    /// # Errors
    ///
    /// Each request has its own. Asked for again with the same owner and nonce, a claim that was made all
    /// the same is given again.
    ///
    /// # Cancel safety
    ///
    /// Not cancel-safe in effect: a dropped call may have claimed; its lease runs out.
    async fn claim(&self, requests: &[ClaimRequest]) -> Vec<Result<Claim, StoreError>>;

    /// Makes claims last `lease` from now, by the store's clock.
    ///
    /// # Errors
    ///
    /// Each ticket has its own; the claim may have been renewed all the same. An owner that was overtaken
    /// gets no error, but [`Ownership::Fenced`]; so do the calls below.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: a dropped call may have renewed some, which run out by themselves. A consumer drops it
    /// when the store does not answer in time to ask again.
    async fn renew(
        &self,
        tickets: &[Ticket],
        lease: Duration,
    ) -> Vec<Result<Ownership, StoreError>>;

    /// Records that handling succeeded, for `retention` from now.
    ///
    /// # Errors
    ///
    /// Each ticket has its own; the success may have been recorded all the same, and is asked for again.
    ///
    /// # Cancel safety
    ///
    /// Not cancel-safe in effect: a dropped call may have recorded some. Asked for again, it gives the same
    /// answer.
    async fn complete(
        &self,
        tickets: &[Ticket],
        retention: Duration,
    ) -> Vec<Result<Ownership, StoreError>>;

    /// Gives claims up.
    ///
    /// # Errors
    ///
    /// Each ticket has its own; the claim may have been given up all the same, and counts once, however
    /// often that is asked for.
    ///
    /// # Cancel safety
    ///
    /// Not cancel-safe in effect: a dropped call may have given some up. Asked for again, it gives the same
    /// answer; not asked for again, the claim runs out.
    async fn release(
        &self,
        tickets: &[(Ticket, ReleaseKind)],
        retention: Duration,
    ) -> Vec<Result<Ownership, StoreError>>;

    /// Forgets records, whatever their state; for operators.
    ///
    /// # Errors
    ///
    /// Each key has its own; its record may have been forgotten all the same.
    ///
    /// # Cancel safety
    ///
    /// Not cancel-safe in effect: a dropped call may have forgotten some. It can be asked for again.
    async fn forget(&self, keys: &[IdempotencyKey]) -> Vec<Result<(), StoreError>>;
}
