//! What passes between a worker process and the test that holds its broker: lines of JSON.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use backstop_core::{
    Attempt, Claim, ClaimRequest, DeadLetter, DeadLetterReason, Delivery, Fence, Fingerprint,
    IdempotencyKey, LeaseId, Message, OwnerId, Ownership, Receipt, ReleaseKind, SubscribeOptions,
    SubscriptionOrder, Ticket, Verdict,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncWrite, AsyncWriteExt as _};

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// The subscription lasts as long as the connection of this request.
    Subscribe(Options),
    Receive {
        subscription: u64,
        max: NonZeroUsize,
    },
    Settle {
        subscription: u64,
        batch: Vec<(u64, Ruling)>,
    },
    Extend {
        subscription: u64,
        leases: Vec<u64>,
    },
    Stop {
        subscription: u64,
    },
    Close {
        subscription: u64,
    },
    Claim(Vec<Wish>),
    Renew(Vec<Proof>, Duration),
    Complete(Vec<Proof>, Duration),
    Release(Vec<(Proof, End)>, Duration),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Response {
    Subscribed(u64),
    Received(Vec<Parcel>),
    Settled(Vec<Settled>),
    /// For how long; `None` if the lease was lost.
    Extended(Vec<Option<Duration>>),
    Done,
    Claimed(Vec<Grant>),
    /// Whether each ticket still stands.
    Owned(Vec<bool>),
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Settled {
    Done,
    Lost,
    Kept,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Options {
    consumer: String,
    ordered: bool,
    max_buffered: NonZeroUsize,
    max_attempts: NonZeroU32,
    handler_timeout: Duration,
    longest_wait: Duration,
}

impl Options {
    pub(super) fn pack(options: &SubscribeOptions) -> Self {
        Self {
            consumer: options.consumer.to_string(),
            ordered: options.order == SubscriptionOrder::ByPartitionKey,
            max_buffered: options.max_buffered,
            max_attempts: options.max_attempts,
            handler_timeout: options.handler_timeout,
            longest_wait: options.longest_wait,
        }
    }

    pub(super) fn unpack(self) -> SubscribeOptions {
        SubscribeOptions {
            consumer: self.consumer.into(),
            order: if self.ordered {
                SubscriptionOrder::ByPartitionKey
            } else {
                SubscriptionOrder::Unordered
            },
            max_buffered: self.max_buffered,
            max_attempts: self.max_attempts,
            handler_timeout: self.handler_timeout,
            longest_wait: self.longest_wait,
        }
    }
}

/// A delivery.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Parcel {
    id: Option<String>,
    partition_key: Option<String>,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    attempts_used: u32,
    redrives: u32,
    lasts: Option<Duration>,
    lease: u64,
}

impl Parcel {
    pub(super) fn pack(delivery: &Delivery) -> Self {
        let message = &delivery.message;
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self {
            id: message.id.as_ref().map(|id| id.as_str().to_owned()),
            partition_key: message
                .partition_key
                .as_ref()
                .map(|key| key.as_str().to_owned()),
            headers: message.headers.iter().map(own).collect(),
            body: message.body.to_vec(),
            attempts_used: delivery.attempts_used,
            redrives: delivery.redrives,
            lasts: delivery.lease,
            lease: delivery.receipt.lease().0,
        }
    }

    pub(super) fn unpack(self) -> Delivery {
        let mut message = Message::without_id(self.body);
        message.id = self.id.map(Into::into);
        message.partition_key = self.partition_key.map(Into::into);
        message.headers = self.headers.into_iter().collect();
        Delivery {
            message: message.into(),
            attempts_used: self.attempts_used,
            redrives: self.redrives,
            lease: self.lasts,
            receipt: Receipt::new(LeaseId(self.lease)),
        }
    }
}

/// A verdict.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Ruling {
    Complete,
    Retry(Duration, u32),
    Release(Duration),
    DeadLetter(Letter),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Letter {
    reason: String,
    error: String,
    attempts: u32,
    origin: String,
    consumer: String,
    at: SystemTime,
}

impl Ruling {
    pub(super) fn pack(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Complete => Self::Complete,
            Verdict::Retry {
                after,
                attempts_used,
            } => Self::Retry(*after, *attempts_used),
            Verdict::Release { after } => Self::Release(*after),
            Verdict::DeadLetter(letter) => Self::DeadLetter(Letter {
                reason: letter.reason.as_str().to_owned(),
                error: letter.error.clone(),
                attempts: letter.attempts,
                origin: letter.origin.clone(),
                consumer: letter.consumer.clone(),
                at: letter.at,
            }),
        }
    }

    pub(super) fn unpack(self) -> Verdict {
        match self {
            Self::Complete => Verdict::Complete,
            Self::Retry(after, attempts_used) => Verdict::Retry {
                after,
                attempts_used,
            },
            Self::Release(after) => Verdict::Release { after },
            Self::DeadLetter(letter) => Verdict::DeadLetter(Box::new(DeadLetter {
                reason: DeadLetterReason::from_wire(&letter.reason),
                error: letter.error,
                attempts: letter.attempts,
                origin: letter.origin,
                consumer: letter.consumer,
                at: letter.at,
            })),
        }
    }
}

/// A request for a claim.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Wish {
    key: (String, String),
    owner: String,
    nonce: u64,
    fingerprint: Option<u128>,
    redrives: u32,
    attempts_used: u32,
    lease: Duration,
    retention: Duration,
}

impl Wish {
    pub(super) fn pack(request: &ClaimRequest) -> Self {
        Self {
            key: pack_key(&request.key),
            owner: request.owner.as_str().to_owned(),
            nonce: request.nonce,
            fingerprint: request.fingerprint.map(|fingerprint| fingerprint.0),
            redrives: request.redrives,
            attempts_used: request.attempts_used,
            lease: request.lease,
            retention: request.retention,
        }
    }

    pub(super) fn unpack(self) -> ClaimRequest {
        ClaimRequest {
            key: IdempotencyKey::new(self.key.0, self.key.1),
            owner: OwnerId::new(self.owner),
            nonce: self.nonce,
            fingerprint: self.fingerprint.map(Fingerprint),
            redrives: self.redrives,
            attempts_used: self.attempts_used,
            lease: self.lease,
            retention: self.retention,
        }
    }
}

fn pack_key(key: &IdempotencyKey) -> (String, String) {
    (key.namespace().to_owned(), key.key().to_owned())
}

/// A ticket.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Proof {
    key: (String, String),
    owner: String,
    fence: u64,
}

impl Proof {
    pub(super) fn pack(ticket: &Ticket) -> Self {
        Self {
            key: pack_key(&ticket.key),
            owner: ticket.owner.as_str().to_owned(),
            fence: ticket.fence.0,
        }
    }

    pub(super) fn unpack(self) -> Ticket {
        Ticket {
            key: IdempotencyKey::new(self.key.0, self.key.1),
            owner: OwnerId::new(self.owner),
            fence: Fence(self.fence),
        }
    }
}

/// How a claim is given up.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum End {
    Failed,
    Unused,
    DeadLettered,
}

impl End {
    pub(super) const fn pack(kind: ReleaseKind) -> Self {
        match kind {
            ReleaseKind::Failed => Self::Failed,
            ReleaseKind::Unused => Self::Unused,
            ReleaseKind::DeadLettered => Self::DeadLettered,
        }
    }

    pub(super) const fn unpack(self) -> ReleaseKind {
        match self {
            Self::Failed => ReleaseKind::Failed,
            Self::Unused => ReleaseKind::Unused,
            Self::DeadLettered => ReleaseKind::DeadLettered,
        }
    }
}

/// The answer to a claim.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Grant {
    Acquired { fence: u64, attempt: u32 },
    InProgress(Duration),
    Completed,
    DeadLettered,
    Conflict,
}

impl Grant {
    pub(super) const fn pack(claim: Claim) -> Self {
        match claim {
            Claim::Acquired { fence, attempt } => Self::Acquired {
                fence: fence.0,
                attempt: attempt.get(),
            },
            Claim::InProgress { remaining } => Self::InProgress(remaining),
            Claim::Completed => Self::Completed,
            Claim::DeadLettered => Self::DeadLettered,
            Claim::Conflict => Self::Conflict,
        }
    }

    pub(super) const fn unpack(self) -> Claim {
        match self {
            Self::Acquired { fence, attempt } => Claim::Acquired {
                fence: Fence(fence),
                attempt: Attempt::after(attempt - 1),
            },
            Self::InProgress(remaining) => Claim::InProgress { remaining },
            Self::Completed => Claim::Completed,
            Self::DeadLettered => Claim::DeadLettered,
            Self::Conflict => Claim::Conflict,
        }
    }
}

pub(super) fn unpack_ownership(held: bool) -> Ownership {
    if held {
        Ownership::Held
    } else {
        Ownership::Fenced
    }
}

pub(super) async fn write<T: Serialize + Sync>(
    to: &mut (impl AsyncWrite + Unpin),
    what: &T,
) -> Result<()> {
    let mut line = serde_json::to_string(what)?;
    line.push('\n');
    to.write_all(line.as_bytes()).await?;
    Ok(())
}

pub(super) async fn read<T: DeserializeOwned>(from: &mut (impl AsyncBufRead + Unpin)) -> Result<T> {
    let mut line = String::new();
    from.read_line(&mut line).await?;
    serde_json::from_str(&line).with_context(|| format!("reading {line:?}"))
}
