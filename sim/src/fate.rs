//! What becomes of a call on its way, and of its answer.

use tokio::time::sleep;

use crate::call::{Go, Operation};
use crate::event::Pid;
use crate::sim::Sim;

/// What a process makes of a call.
pub(crate) enum Fate {
    /// It has its effect.
    Effect(Answering),
    /// It fails without one.
    Failure,
}

/// What becomes of an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answering {
    Arrives,
    Lost,
    /// Waits for the controller once more.
    Late,
    /// Nobody is there to hear it.
    Never,
}

impl Sim {
    /// Waits for the controller, and for slow servers; says what becomes of the call.
    pub(crate) async fn meet(
        &self,
        pid: Pid,
        operation: Operation,
        ids: u64,
        about: impl FnOnce() -> String,
    ) -> Fate {
        let answering = match self.call(pid, operation, ids, about).await {
            Go::Fail => return Fate::Failure,
            Go::LoseAnswer => Answering::Lost,
            Go::HoldAnswer => Answering::Late,
            Go::Die => Answering::Never,
            Go::Wait(long) => {
                sleep(long).await;
                Answering::Arrives
            }
            Go::On | Go::Handler(_) => Answering::Arrives,
        };
        if !self.lives(pid) {
            return std::future::pending().await;
        }
        if self.is_away(pid, operation) {
            return Fate::Failure;
        }
        Fate::Effect(answering)
    }

    /// Brings the answer of a call that had its effect; says whether it arrives.
    pub(crate) async fn answer(
        &self,
        pid: Pid,
        answering: Answering,
        ids: u64,
        about: impl FnOnce() -> String,
    ) -> bool {
        match answering {
            Answering::Arrives => true,
            Answering::Lost => false,
            Answering::Late => {
                self.call(pid, Operation::Answer, ids, about).await;
                true
            }
            Answering::Never => {
                self.kill_caller(pid);
                std::future::pending().await
            }
        }
    }
}
