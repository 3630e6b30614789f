//! Which of a process's tasks is its keeper's.

use std::sync::{Arc, OnceLock};

use tokio::task;

use crate::event::TicketCall;

/// The task of a process's keeper, which is not told what it runs in.
///
/// It shows itself with its first extension. Where delivery leases last no longer than claims, that is
/// never behind its first renewal.
#[derive(Clone, Default)]
pub(crate) struct KeeperTask(Arc<OnceLock<task::Id>>);

impl KeeperTask {
    /// This is it.
    pub(crate) fn shows_itself(&self) {
        if let Some(task) = task::try_id() {
            self.0.get_or_init(|| task);
        }
    }

    /// Whose renewal this is: the keeper's, or that of a delivery that makes sure of its claim before it
    /// is dead-lettered.
    pub(crate) fn renewal(&self) -> TicketCall {
        if self.0.get().copied() == task::try_id() {
            TicketCall::Renew
        } else {
            TicketCall::Confirm
        }
    }
}
