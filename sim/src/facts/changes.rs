//! What an event changes in what is known.

use std::time::Duration;

use backstop_core::{Attempt, Fence, LeaseId, Ownership};

use super::{DeliveryFacts, Facts, Left, RecordFacts, RunFacts};
use crate::event::{Copy, End, Hold, Pid, RunId, Settling, TicketCall};
use crate::world::World;

impl Facts {
    /// The store's record, after a claim that it answered so.
    pub(super) fn recorded(
        &mut self,
        claim: (Pid, u64),
        id: usize,
        attempt: Attempt,
        world: &World,
    ) {
        let known = self.ids.entry(id).or_default();
        // The same claim asked again changes nothing.
        if known.top_claim != Some(claim) || known.record.is_none() {
            known.record = Some(RecordFacts {
                until: self.now + world.claim_lease,
                attempt,
                ended: None,
            });
        }
    }

    pub(super) fn claimed(&mut self, claim: (Pid, u64), id: usize, redrives: u32, fence: Fence) {
        let known = self.ids.entry(id).or_default();
        if known.dead_lettered || redrives > known.redrives {
            known.generation += 1;
        }
        known.redrives = known.redrives.max(redrives);
        known.top_fence = fence.0;
        known.top_claim = Some(claim);
        known.dead_lettered = false;
    }

    pub(super) fn started(&mut self, pid: Pid, copy: Copy, attempt: u32, fence: Option<Fence>) {
        let lease = self.copies[copy].delivery;
        let is_known = |lease: &LeaseId| {
            let delivery = &self.deliveries[lease];
            delivery.pid == pid && !delivery.is_second
        };
        let lease = lease.filter(is_known);
        self.runs.push(RunFacts {
            pid,
            copy,
            attempt,
            fence,
            generation: self.generation_of(copy),
            started: self.now,
            lease,
            end: None,
            fenced_told: None,
        });
    }

    pub(super) fn disturb(&mut self, pid: Option<Pid>) {
        self.disturbed = true;
        match pid {
            Some(pid) => self.processes[pid].disturbed = true,
            None => self
                .processes
                .iter_mut()
                .for_each(|process| process.disturbed = true),
        }
    }

    pub(super) fn delivered(
        &mut self,
        pid: Pid,
        lease: LeaseId,
        copy: Copy,
        attempts_used: u32,
        world: &World,
    ) {
        let known = &mut self.copies[copy];
        let before = known.delivery.replace(lease);
        let before = before.and_then(|before| self.deliveries.get(&before));
        let verdict_missing = before.is_none_or(|before| before.settled.is_none());
        let open = |other: &DeliveryFacts| {
            other.pid == pid && other.copy == copy && other.settled.is_none()
        };
        let is_second = self.deliveries.values().any(open);
        if verdict_missing {
            known.not_before = None;
        }
        let delivery = DeliveryFacts {
            pid,
            copy,
            until: self.now + world.delivery_lease,
            attempts_used,
            settled: None,
            lost_told: None,
            settle_told: false,
            settle_asked: false,
            is_second,
        };
        self.deliveries.insert(lease, delivery);
    }

    pub(super) fn extended(&mut self, lease: LeaseId, world: &World) {
        if let Some(delivery) = self.deliveries.get_mut(&lease) {
            delivery.until = self.now + world.delivery_lease;
        }
    }

    pub(super) fn lost(&mut self, lease: LeaseId) {
        let step = self.step;
        let known = self.deliveries.get_mut(&lease);
        if let Some(delivery) = known.filter(|one| one.settled.is_none()) {
            delivery.lost_told.get_or_insert(step);
        }
    }

    pub(super) fn used(&mut self, hold: Hold, call: TicketCall, world: &World) {
        let until = self.now + world.claim_lease;
        let known = self.ids.entry(hold.id).or_default();
        if !call.renews() {
            self.ended.insert((hold.id, hold.fence.0));
        }
        if let Some(record) = &mut known.record {
            match call {
                TicketCall::Renew | TicketCall::Confirm => record.until = until,
                TicketCall::Complete | TicketCall::Release(_) => record.ended = Some(call),
            }
        }
        match call {
            TicketCall::Renew | TicketCall::Confirm => {}
            TicketCall::Complete => known.completed = true,
            TicketCall::Release(kind) => {
                if kind == backstop_core::ReleaseKind::DeadLettered {
                    known.dead_lettered = true;
                    known.was_dead_lettered = true;
                }
                if kind == backstop_core::ReleaseKind::Unused {
                    self.unused.insert((hold.id, hold.fence.0));
                }
            }
        }
    }

    pub(super) fn told(&mut self, pid: Pid, hold: Hold, call: TicketCall, ownership: Ownership) {
        let claim = (pid, hold.id, hold.fence.0);
        // A renewal that was under way when the claim was completed hears that it is no longer one.
        let is_late = call.renews() && self.given_up.contains_key(&claim);
        if ownership == Ownership::Fenced && !is_late {
            // The failure of an attempt that was overtaken is void.
            for copy in self
                .copies
                .iter_mut()
                .filter(|copy| copy.publication.id == hold.id)
            {
                copy.not_before = None;
            }
            self.fenced.entry(claim).or_insert(self.step);
            let step = self.step;
            let mine = |run: &&mut RunFacts| run.pid == pid && run.fence == Some(hold.fence);
            for run in self.runs.iter_mut().filter(mine) {
                if self.copies[run.copy].publication.id == hold.id {
                    run.fenced_told.get_or_insert(step);
                }
            }
        }
        if !call.renews() && ownership == Ownership::Held {
            // What a renewal was told meanwhile was of this.
            self.fenced.remove(&claim);
        }
        if !call.renews() {
            self.given_up.entry(claim).or_insert(self.step);
        }
        self.turns.insert((pid, hold.id), self.step);
    }

    pub(super) fn settled(&mut self, lease: LeaseId, settling: Settling) {
        let Some(delivery) = self.deliveries.get_mut(&lease) else {
            return;
        };
        delivery.settled = Some(settling);
        let copy = &mut self.copies[delivery.copy];
        copy.attempts_used = delivery.attempts_used;
        match settling {
            Settling::Retry {
                after,
                attempts_used,
            } => {
                copy.due = self.now + after;
                copy.attempts_used = attempts_used;
            }
            Settling::Release { after } => copy.due = self.now + after,
            Settling::Complete | Settling::DeadLetter { .. } => {}
        }
        copy.left = match settling {
            Settling::Complete => Some(Left::Completed),
            Settling::DeadLetter { reason, attempts } => Some(Left::Dead { reason, attempts }),
            Settling::Retry { .. } | Settling::Release { .. } => None,
        };
    }

    pub(super) fn ended(&mut self, run: RunId, end: End, world: &World) {
        let (step, now) = (self.step, self.now);
        let facts = &mut self.runs[run];
        let end = match end {
            End::Dropped if now >= facts.started + world.handler_timeout => End::TimedOut,
            _ => end,
        };
        facts.end = Some(end);
        let (pid, copy, lease) = (facts.pid, facts.copy, facts.lease);
        let failed = match end {
            End::Failed | End::Panicked | End::TimedOut => Some(Duration::ZERO),
            End::AskedToWait(wait) => Some(wait),
            End::Dropped | End::Succeeded | End::Permanent => None,
        };
        let wait = failed.map(|asked| asked.max(least_wait(world, facts.attempt)));
        let known = &mut self.copies[copy];
        if lease.is_some() && known.delivery == lease {
            known.not_before = wait.map(|wait| now + wait);
        }
        let id = known.publication.id;
        self.turns.insert((pid, id), step);
    }
}

/// The least wait after a failed attempt: the jitter only adds.
fn least_wait(world: &World, attempt: u32) -> Duration {
    let doubled = world
        .backoff
        .saturating_mul(1 << attempt.saturating_sub(1).min(16));
    doubled.min(world.backoff * 4)
}
