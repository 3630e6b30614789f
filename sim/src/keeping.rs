//! What a process's keeper remembers of what it has asked.
//!
//! A keeper asks in rounds, one a second, and where schedules are enumerated no time passes while it waits
//! for an answer. Of all rounds that are over it knows for each delivery when its lease was extended last,
//! and when that was last tried, and for each claim when it was renewed last: in which order the calls of
//! a round went on, and which of them failed, it has forgotten. For an answer sets the time of what it is
//! about to that of its round (`Keeper::extend_leases`, `Keeper::renew_claims`), and no two answers are
//! about the same; a failure sets nothing, and is tried again with the next round, whose time follows from
//! the time of the last success.
//!
//! What it is told to be lost is no part of this: that cancels handlers, and stands in the trail of the
//! delivery. But of a delivery that was settled, or a claim that has ended, the keeper has no entry to lose
//! any more (`Keeper::with`): there such news changes nothing either.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use backstop_core::LeaseId;
use tokio::task;
use tokio::time::Instant;

use crate::event::{Hold, TicketCall};

/// A claim: the number of its id, and its fence.
pub(crate) type ClaimName = (usize, u64);

/// What a keeper is waiting for, and what it has learned.
#[derive(Default)]
pub(crate) struct Keeping {
    extending: HashSet<LeaseId>,
    pub(crate) renewing: BTreeSet<ClaimName>,
    extended: HashMap<LeaseId, Instant>,
    tried: HashMap<LeaseId, Instant>,
    pub(crate) renewed: BTreeMap<ClaimName, Instant>,
}

/// What a keeper knows of a lease.
#[derive(Clone, Copy)]
pub(crate) struct Extension {
    pub(crate) is_under_way: bool,
    pub(crate) made: Option<Instant>,
    pub(crate) tried: Option<Instant>,
}

impl Keeping {
    /// Asks for an extension.
    pub(crate) fn extends(&mut self, lease: LeaseId, now: Instant) {
        self.extending.insert(lease);
        self.tried.insert(lease, now);
    }

    /// The call for extensions goes on, somehow: there is one at a time.
    pub(crate) fn extensions_go_on(&mut self) {
        self.extending.clear();
    }

    /// Hears that a lease was extended.
    pub(crate) fn was_extended(&mut self, lease: LeaseId, now: Instant) {
        self.extended.insert(lease, now);
    }

    /// Asks for a renewal.
    pub(crate) fn renews(&mut self, hold: Hold) {
        self.renewing.insert(name_of(hold));
    }

    /// The call for renewals goes on, somehow: there is one at a time.
    pub(crate) fn renewals_go_on(&mut self) {
        self.renewing.clear();
    }

    /// Hears that a claim was renewed.
    pub(crate) fn was_renewed(&mut self, hold: Hold, now: Instant) {
        self.renewed.insert(name_of(hold), now);
    }

    /// Is to renew a claim no more.
    pub(crate) fn drops(&mut self, hold: Hold) {
        self.renewed.remove(&name_of(hold));
    }

    /// Forgets the claims of ids that the process has nothing to do with.
    pub(crate) fn tidy(&mut self, is_known: impl Fn(usize) -> bool) {
        self.renewed.retain(|(id, _), _| is_known(*id));
    }

    pub(crate) fn of_lease(&self, lease: LeaseId) -> Extension {
        Extension {
            is_under_way: self.extending.contains(&lease),
            made: self.extended.get(&lease).copied(),
            tried: self.tried.get(&lease).copied(),
        }
    }
}

const fn name_of(hold: Hold) -> ClaimName {
    (hold.id, hold.fence.0)
}

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
