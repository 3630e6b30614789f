//! The operations of the store, as their scripts take them.

use std::time::Duration;

use backstop_core::{Claim, ClaimRequest, IdempotencyKey, Ownership, ReleaseKind, Ticket};
use redis::{Cmd, Value};

use crate::record;

/// An operation on one key. A call carries many: its script gets their keys, what they all have in
/// common, and for each key an argument of its own.
pub(crate) trait Operation: Sync {
    type Answer;

    fn key(&self) -> &IdempotencyKey;

    /// Whether both can be in one call.
    fn joins(&self, other: &Self) -> bool;

    /// Adds the arguments that the operations of a call have in common.
    fn add_common(&self, command: &mut Cmd);

    fn own_argument(&self) -> impl AsRef<[u8]>;

    /// Reads what the script answers for the key.
    fn read(&self, answer: &Value) -> Option<Self::Answer>;
}

impl Operation for ClaimRequest {
    type Answer = Claim;

    fn key(&self) -> &IdempotencyKey {
        &self.key
    }

    fn joins(&self, other: &Self) -> bool {
        (self.lease, self.retention) == (other.lease, other.retention)
    }

    fn add_common(&self, command: &mut Cmd) {
        command
            .arg(record::millis(self.lease))
            .arg(record::millis(self.retention.max(self.lease)));
    }

    fn own_argument(&self) -> impl AsRef<[u8]> {
        record::claimed(self)
    }

    fn read(&self, answer: &Value) -> Option<Claim> {
        record::read_claim(self, answer)
    }
}

/// A claim that is to last.
pub(crate) struct Renewal<'a> {
    pub(crate) ticket: &'a Ticket,
    pub(crate) lease: Duration,
}

impl Operation for Renewal<'_> {
    type Answer = Ownership;

    fn key(&self) -> &IdempotencyKey {
        &self.ticket.key
    }

    fn joins(&self, other: &Self) -> bool {
        self.lease == other.lease
    }

    fn add_common(&self, command: &mut Cmd) {
        command.arg(record::millis(self.lease));
    }

    fn own_argument(&self) -> impl AsRef<[u8]> {
        record::holder(self.ticket)
    }

    fn read(&self, answer: &Value) -> Option<Ownership> {
        record::read_ownership(answer)
    }
}

/// Why a claim ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    Completed,
    Released(ReleaseKind),
}

/// A claim that ends.
pub(crate) struct Ending<'a> {
    pub(crate) ticket: &'a Ticket,
    pub(crate) cause: Cause,
    pub(crate) retention: Duration,
}

impl Operation for Ending<'_> {
    type Answer = Ownership;

    fn key(&self) -> &IdempotencyKey {
        &self.ticket.key
    }

    fn joins(&self, other: &Self) -> bool {
        (self.cause, self.retention) == (other.cause, other.retention)
    }

    fn add_common(&self, command: &mut Cmd) {
        let state = match self.cause {
            Cause::Completed => "C",
            Cause::Released(ReleaseKind::Failed) => "F",
            Cause::Released(ReleaseKind::Unused) => "U",
            Cause::Released(ReleaseKind::DeadLettered) => "D",
        };
        command.arg(state).arg(record::millis(self.retention));
    }

    fn own_argument(&self) -> impl AsRef<[u8]> {
        record::holder(self.ticket)
    }

    fn read(&self, answer: &Value) -> Option<Ownership> {
        record::read_ownership(answer)
    }
}
