//! The ends of leases.

use std::collections::VecDeque;

use tokio::time::Instant;

use crate::delivery::LeaseId;

/// When leases run out, in the order of their times.
///
/// All leases last equally long, so that a new one is the last to run out. What becomes of a lease
/// later (it is settled, or extended) is looked up when its time comes.
#[derive(Default)]
pub(super) struct Deadlines {
    queue: VecDeque<(Instant, LeaseId)>,
}

impl Deadlines {
    pub(super) fn push(&mut self, at: Instant, lease: LeaseId) {
        self.queue.push_back((at, lease));
    }

    /// Takes a lease that has run out. `deadline` tells when a lease ends now, if it stands;
    /// `standing` is how many do.
    pub(super) fn pop(
        &mut self,
        now: Instant,
        standing: usize,
        deadline: impl Fn(LeaseId) -> Option<Instant>,
    ) -> Option<LeaseId> {
        if self.queue.len() > 2 * standing + 1024 {
            self.queue.retain(|(_, lease)| deadline(*lease).is_some());
        }
        while let Some(&(at, lease)) = self.queue.front() {
            let ends = deadline(lease);
            if at > now && ends.is_some() {
                return None;
            }
            self.queue.pop_front();
            match ends {
                Some(ends) if ends <= now => return Some(lease),
                Some(ends) => self.insert(ends, lease),
                None => {}
            }
        }
        None
    }

    /// Adds a lease that was extended.
    fn insert(&mut self, at: Instant, lease: LeaseId) {
        let index = self.queue.partition_point(|(other, _)| *other <= at);
        self.queue.insert(index, (at, lease));
    }

    /// When the next lease may run out.
    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.front().map(|(at, _)| *at)
    }
}
