//! One hand-over of a message by a broker.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::message::Message;

/// The number of a delivery whose handler is started; the first is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(u32);

impl Attempt {
    /// The first attempt.
    pub const FIRST: Self = Self(1);

    /// The attempt that follows `used` earlier ones.
    pub const fn after(used: u32) -> Self {
        Self(used.saturating_add(1))
    }

    /// The number, from 1.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Names a delivery to its subscription, for as long as its lease lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// The right to settle one delivery, once: settling consumes it.
pub struct Receipt {
    lease: LeaseId,
    native: Option<Box<dyn Any + Send + Sync>>,
}

impl Receipt {
    /// A receipt for an adapter that finds everything by the lease's number.
    pub const fn new(lease: LeaseId) -> Self {
        Self {
            lease,
            native: None,
        }
    }

    /// A receipt that carries what the adapter needs to settle (a delivery tag, native properties).
    pub fn with_native(lease: LeaseId, native: impl Any + Send + Sync) -> Self {
        Self {
            lease,
            native: Some(Box::new(native)),
        }
    }

    /// The lease that this receipt settles.
    pub const fn lease(&self) -> LeaseId {
        self.lease
    }

    /// What the adapter put in, if it is a `T`.
    pub fn native<T: 'static>(&self) -> Option<&T> {
        self.native.as_ref()?.downcast_ref()
    }

    /// Takes out what the adapter put in, if it is a `T`.
    pub fn into_native<T: 'static>(self) -> Option<T> {
        self.native?.downcast().ok().map(|native| *native)
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receipt").field(&self.lease.0).finish()
    }
}

/// One hand-over of a message, with the right to settle it.
#[derive(Debug)]
pub struct Delivery {
    /// The message; the same on every delivery of it.
    pub message: Arc<Message>,
    /// Attempts that were used before this delivery, as far as the broker and our own headers on
    /// copies know. An idempotency store knows better and overrules it.
    pub attempts_used: u32,
    /// How often the message was redriven from a dead-letter queue.
    pub redrives: u32,
    /// How long this delivery is ours from its receipt on, unless extended; `None` where a delivery
    /// stays ours until the connection ends.
    pub lease: Option<Duration>,
    /// The right to settle.
    pub receipt: Receipt,
}
