//! What an observer sees: every call to a port, every effect, every answer, every step of a handler.

use std::time::Duration;

use backstop_core::{Claim, DeadLetterReason, Fence, LeaseId, Ownership, ReleaseKind};

use crate::call::Operation;

/// A process, unlike any other, also after a restart.
pub(crate) type Pid = usize;

/// A published message, unlike any other, also with the same id.
pub(crate) type Copy = usize;

/// One start of a handler.
pub(crate) type RunId = usize;

/// A claim that stands or stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    /// The number of the message's id.
    pub(crate) id: usize,
    pub(crate) fence: Fence,
}

/// What is done with a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TicketCall {
    Renew,
    /// A renewal, too, but by the delivery itself: it makes sure of its claim. Told apart from the
    /// keeper's only where schedules are enumerated.
    Confirm,
    Complete,
    Release(ReleaseKind),
}

impl TicketCall {
    /// Whether a claim goes on afterwards.
    pub(crate) const fn renews(self) -> bool {
        matches!(self, Self::Renew | Self::Confirm)
    }

    /// The call to the store.
    pub(crate) const fn operation(self) -> Operation {
        match self {
            Self::Renew => Operation::Renew,
            Self::Confirm => Operation::Confirm,
            Self::Complete => Operation::Complete,
            Self::Release(_) => Operation::Release,
        }
    }
}

/// A verdict, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settling {
    Complete,
    Retry {
        after: Duration,
        attempts_used: u32,
    },
    Release {
        after: Duration,
    },
    DeadLetter {
        reason: DeadLetterReason,
        attempts: u32,
    },
}

/// How a handler's run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Succeeded,
    Failed,
    AskedToWait(Duration),
    Permanent,
    Panicked,
    /// Its future was dropped: it timed out, or was cancelled.
    Dropped,
    /// It was dropped when its time was over.
    TimedOut,
}

/// How a run of a consumer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunEnd {
    Ok,
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Event {
    Published {
        copy: Copy,
    },
    /// A process made a call.
    Asked {
        pid: Pid,
    },
    /// The broker handed a message out.
    Delivered {
        pid: Pid,
        lease: LeaseId,
        copy: Copy,
        attempts_used: u32,
    },
    ExtensionAsked {
        pid: Pid,
        lease: LeaseId,
    },
    /// The broker was asked to extend a lease; `held` says whether it has.
    Extended {
        pid: Pid,
        lease: LeaseId,
        held: bool,
    },
    /// The store answered a claim; whether that arrives is another event.
    Claimed {
        pid: Pid,
        id: usize,
        nonce: u64,
        redrives: u32,
        claim: Claim,
    },
    TicketAsked {
        pid: Pid,
        hold: Hold,
        call: TicketCall,
    },
    /// The store did something with a claim, or refused to.
    TicketUsed {
        pid: Pid,
        hold: Hold,
        call: TicketCall,
        ownership: Ownership,
    },
    /// The consumer was told so.
    TicketTold {
        pid: Pid,
        hold: Hold,
        call: TicketCall,
        ownership: Ownership,
    },
    /// The consumer was told what became of a claim that it asked for.
    ClaimTold {
        pid: Pid,
        id: usize,
    },
    /// The consumer was told that a lease was extended.
    ExtensionTold {
        pid: Pid,
        lease: LeaseId,
    },
    /// The consumer was told that a delivery is lost.
    LeaseLossTold {
        lease: LeaseId,
    },
    SettleAsked {
        pid: Pid,
        lease: LeaseId,
        settling: Settling,
    },
    /// The broker carried it out, or refused to.
    Settled {
        pid: Pid,
        lease: LeaseId,
        settling: Settling,
        done: bool,
    },
    /// The consumer was told that it is done.
    SettleTold {
        lease: LeaseId,
    },
    Started {
        run: RunId,
        pid: Pid,
        copy: Copy,
        attempt: u32,
        fence: Option<Fence>,
    },
    /// A handler's effect on the world outside.
    Effect {
        run: RunId,
    },
    /// The same, by work that goes on after its handler was cancelled: the world outside has to see by its
    /// fence that it comes too late.
    LateEffect {
        run: RunId,
    },
    Ended {
        run: RunId,
        end: End,
    },
    Spawned {
        pid: Pid,
    },
    Killed {
        pid: Pid,
        /// Whether the broker sees its connection end.
        noticed: bool,
    },
    ShutdownBegun {
        pid: Pid,
    },
    RunEnded {
        pid: Pid,
        end: RunEnd,
    },
    RunDropped {
        pid: Pid,
    },
    /// Something went wrong that is not a handler's failure: for one process, or for all.
    Disturbed {
        pid: Option<Pid>,
    },
    /// The store forgot its last writes.
    WritesLost,
    /// The store's clock jumped ahead.
    ClockJumped,
    /// Nothing is left to run until the controller decides.
    Idle,
    /// All is over.
    Finished {
        drained: bool,
        dead: usize,
        missing: i64,
    },
}
