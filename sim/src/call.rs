//! Calls that wait for the controller.

use std::fmt;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::event::Pid;

/// What a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Operation {
    Subscribe,
    Receive,
    Settle,
    Extend,
    Claim,
    Renew,
    /// A renewal by the delivery itself, see [`TicketCall::Confirm`](crate::event::TicketCall).
    Confirm,
    Complete,
    Release,
    /// A handler does its work and ends.
    Handle,
    /// A handler's work goes on after its cancellation.
    LateEffect,
    /// The answer to a call arrives.
    Answer,
}

impl Operation {
    pub(crate) const fn is_of_store(self) -> bool {
        matches!(
            self,
            Self::Claim | Self::Renew | Self::Confirm | Self::Complete | Self::Release
        )
    }
}

/// What a call is about, as text for a person: made only where somebody reads it.
pub(crate) type About = String;

/// How a call goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Go {
    /// As it should.
    On,
    /// Without effect, with an error.
    Fail,
    /// With its effect, and an error.
    LoseAnswer,
    /// With its effect; the answer waits to be let on, too.
    HoldAnswer,
    /// The process dies after the effect.
    Die,
    /// After this long.
    Wait(Duration),
    /// A handler ends so.
    Handler(HandlerEnd),
}

/// How a handler ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HandlerEnd {
    Fail,
    FailPermanently,
    AskToWait,
    Panic,
    Hang,
    /// Its work goes on elsewhere, and it waits for that without an end.
    HandOn,
}

impl fmt::Display for Go {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::On => f.write_str("goes on"),
            Self::Fail => f.write_str("fails without effect"),
            Self::LoseAnswer => f.write_str("takes effect; its answer is lost"),
            Self::HoldAnswer => f.write_str("takes effect; its answer is under way"),
            Self::Die => f.write_str("takes effect, and its process dies"),
            Self::Wait(long) => write!(f, "takes {long:?}"),
            Self::Handler(end) => write!(f, "ends: {end:?}"),
        }
    }
}

/// A call that waits.
pub(crate) struct Pending {
    pub(crate) pid: Pid,
    pub(crate) operation: Operation,
    /// The ids of the messages that it is about, as bits.
    pub(crate) ids: u64,
    pub(crate) about: About,
    pub(crate) reply: oneshot::Sender<Go>,
}
