//! What is known of a run so far, from its events.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use backstop_core::{Claim, DeadLetterReason, Fence, LeaseId, Ownership};
use tokio::time::Instant;

use crate::event::{Copy, End, Event, Hold, Pid, RunEnd, RunId, Settling, TicketCall};
use crate::world::{Publication, World};

/// How a copy left its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Completed,
    Dead {
        reason: DeadLetterReason,
        attempts: u32,
    },
}

pub(crate) struct CopyFacts {
    pub(crate) publication: Publication,
    pub(crate) left: Option<Left>,
    pub(crate) delivery: Option<LeaseId>,
    pub(crate) deliveries: u32,
    /// No attempt before this, unless the broker delivers anew because it never got the verdict.
    pub(crate) not_before: Option<Instant>,
}

#[derive(Default)]
pub(crate) struct IdFacts {
    pub(crate) top_fence: u64,
    pub(crate) top_claim: Option<(Pid, u64)>,
    pub(crate) completed: bool,
    pub(crate) dead_lettered: bool,
    /// Whether it ever was: what was told then may be acted on later.
    pub(crate) was_dead_lettered: bool,
    pub(crate) redrives: u32,
    /// How often its count of attempts began anew: with a redrive, or when it was dead-lettered and
    /// came back with another body.
    pub(crate) generation: u32,
}

pub(crate) struct DeliveryFacts {
    pub(crate) pid: Pid,
    pub(crate) copy: Copy,
    /// What the broker carried out.
    pub(crate) settled: Option<Settling>,
    /// The step in which the consumer was told that it is lost.
    pub(crate) lost_told: Option<u64>,
    pub(crate) settle_told: bool,
    /// Whether a verdict was under way before a loss was told.
    pub(crate) settle_asked: bool,
    /// Its process holds an earlier delivery of the message, which it may not know yet to be lost:
    /// which of the two a handler belongs to cannot be seen.
    pub(crate) is_second: bool,
}

pub(crate) struct RunFacts {
    pub(crate) pid: Pid,
    pub(crate) copy: Copy,
    pub(crate) attempt: u32,
    pub(crate) fence: Option<Fence>,
    pub(crate) generation: u32,
    pub(crate) started: Instant,
    pub(crate) lease: Option<LeaseId>,
    pub(crate) end: Option<End>,
    /// The step in which the consumer was told that the claim is lost.
    pub(crate) fenced_told: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Running,
    Draining { since: Instant, step: u64 },
    Ended,
    Dropped,
    Dead,
}

pub(crate) struct ProcessFacts {
    pub(crate) life: Life,
    pub(crate) disturbed: bool,
}

/// Everything that the invariants look at.
pub(crate) struct Facts {
    pub(crate) now: Instant,
    pub(crate) step: u64,
    pub(crate) copies: Vec<CopyFacts>,
    pub(crate) ids: HashMap<usize, IdFacts>,
    pub(crate) deliveries: HashMap<LeaseId, DeliveryFacts>,
    pub(crate) runs: Vec<RunFacts>,
    pub(crate) processes: Vec<ProcessFacts>,
    /// Claims whose end the consumer was told of, with the step.
    pub(crate) given_up: HashMap<(Pid, usize, u64), u64>,
    /// Claims that the consumer was told are lost.
    pub(crate) fenced: HashMap<(Pid, usize, u64), u64>,
    /// When a process was last told something about an id, or its handler ended: its last turn.
    pub(crate) turns: HashMap<(Pid, usize), u64>,
    /// Claims that were completed or released.
    pub(crate) ended: HashSet<(usize, u64)>,
    /// Attempts that were claimed and given back unused.
    pub(crate) unused: HashSet<(usize, u64)>,
    pub(crate) disturbed: bool,
    /// The store forgot something: its fences and completions are void.
    pub(crate) writes_lost: bool,
    /// The store's clock jumped: claims ran out early.
    pub(crate) clock_jumped: bool,
}

impl Facts {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            now,
            step: 0,
            copies: Vec::new(),
            ids: HashMap::new(),
            deliveries: HashMap::new(),
            runs: Vec::new(),
            processes: Vec::new(),
            given_up: HashMap::new(),
            fenced: HashMap::new(),
            turns: HashMap::new(),
            ended: HashSet::new(),
            unused: HashSet::new(),
            disturbed: false,
            writes_lost: false,
            clock_jumped: false,
        }
    }

    pub(crate) fn id_of(&self, copy: Copy) -> usize {
        self.copies[copy].publication.id
    }

    /// Whether the store did not keep a claim for as long as it promised.
    pub(crate) const fn store_broke(&self) -> bool {
        self.writes_lost || self.clock_jumped
    }

    pub(crate) fn generation_of(&self, copy: Copy) -> u32 {
        self.ids
            .get(&self.id_of(copy))
            .map_or(0, |known| known.generation)
    }

    /// The runs of a process that have not ended.
    pub(crate) fn running(&self, pid: Pid) -> impl Iterator<Item = &RunFacts> {
        let is_running = move |run: &&RunFacts| run.pid == pid && run.end.is_none();
        self.runs.iter().filter(is_running)
    }

    pub(crate) fn lives(&self, pid: Pid) -> bool {
        self.processes[pid].life != Life::Dead
    }

    /// Takes in what happened, after the invariants have looked at it.
    pub(crate) fn take_in(&mut self, event: Event, world: &World) {
        match event {
            Event::Delivered { pid, lease, copy } => self.delivered(pid, lease, copy),
            Event::Claimed {
                pid,
                id,
                nonce,
                redrives,
                claim: Claim::Acquired { fence, .. },
            } => self.claimed((pid, nonce), id, redrives, fence),
            Event::TicketUsed {
                hold,
                call,
                ownership: Ownership::Held,
                ..
            } => self.used(hold, call),
            Event::TicketTold {
                pid,
                hold,
                call,
                ownership,
            } => self.told(pid, hold, call, ownership),
            Event::ClaimTold { pid, id } => {
                self.turns.insert((pid, id), self.step);
            }
            Event::LeaseLossTold { lease } => {
                let step = self.step;
                let known = self.deliveries.get_mut(&lease);
                if let Some(delivery) = known.filter(|one| one.settled.is_none()) {
                    delivery.lost_told.get_or_insert(step);
                }
            }
            Event::Settled {
                lease,
                settling,
                done: true,
                ..
            } => self.settled(lease, settling),
            Event::SettleAsked { lease, .. } => {
                let known = self.deliveries.get_mut(&lease);
                if let Some(delivery) = known.filter(|one| one.lost_told.is_none()) {
                    delivery.settle_asked = true;
                }
            }
            Event::SettleTold { lease } => {
                if let Some(delivery) = self.deliveries.get_mut(&lease) {
                    delivery.settle_told = true;
                }
            }
            Event::Started {
                pid,
                copy,
                attempt,
                fence,
                ..
            } => self.started(pid, copy, attempt, fence),
            Event::Ended { run, end } => self.ended(run, end, world),
            Event::Disturbed { pid } => self.disturb(pid),
            Event::WritesLost => self.writes_lost = true,
            Event::ClockJumped => self.clock_jumped = true,
            _ => self.take_in_process(event),
        }
    }

    fn take_in_process(&mut self, event: Event) {
        match event {
            Event::Spawned { .. } => self.processes.push(ProcessFacts {
                life: Life::Running,
                disturbed: false,
            }),
            Event::Killed { pid } => {
                self.processes[pid].life = Life::Dead;
                self.processes[pid].disturbed = true;
            }
            Event::ShutdownBegun { pid } if self.processes[pid].life == Life::Running => {
                let (since, step) = (self.now, self.step);
                self.processes[pid].life = Life::Draining { since, step };
            }
            Event::RunEnded { pid, end } => {
                self.processes[pid].life = Life::Ended;
                self.processes[pid].disturbed |= end == RunEnd::Failed;
            }
            Event::RunDropped { pid } => {
                self.processes[pid].life = Life::Dropped;
                self.processes[pid].disturbed = true;
            }
            _ => {}
        }
    }

    fn claimed(&mut self, claim: (Pid, u64), id: usize, redrives: u32, fence: Fence) {
        let known = self.ids.entry(id).or_default();
        if known.dead_lettered || redrives > known.redrives {
            known.generation += 1;
        }
        known.redrives = known.redrives.max(redrives);
        known.top_fence = fence.0;
        known.top_claim = Some(claim);
        known.dead_lettered = false;
    }

    fn started(&mut self, pid: Pid, copy: Copy, attempt: u32, fence: Option<Fence>) {
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

    fn disturb(&mut self, pid: Option<Pid>) {
        self.disturbed = true;
        match pid {
            Some(pid) => self.processes[pid].disturbed = true,
            None => self
                .processes
                .iter_mut()
                .for_each(|process| process.disturbed = true),
        }
    }

    fn delivered(&mut self, pid: Pid, lease: LeaseId, copy: Copy) {
        let known = &mut self.copies[copy];
        let before = known.delivery.replace(lease);
        known.deliveries += 1;
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
            settled: None,
            lost_told: None,
            settle_told: false,
            settle_asked: false,
            is_second,
        };
        self.deliveries.insert(lease, delivery);
    }

    fn used(&mut self, hold: Hold, call: TicketCall) {
        let known = self.ids.entry(hold.id).or_default();
        if call != TicketCall::Renew {
            self.ended.insert((hold.id, hold.fence.0));
        }
        match call {
            TicketCall::Renew => {}
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

    fn told(&mut self, pid: Pid, hold: Hold, call: TicketCall, ownership: Ownership) {
        let claim = (pid, hold.id, hold.fence.0);
        // A renewal that was under way when the claim was completed hears that it is no longer one.
        let is_late = call == TicketCall::Renew && self.given_up.contains_key(&claim);
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
        if call != TicketCall::Renew && ownership == Ownership::Held {
            // What a renewal was told meanwhile was of this.
            self.fenced.remove(&claim);
        }
        if call != TicketCall::Renew {
            self.given_up.entry(claim).or_insert(self.step);
        }
        self.turns.insert((pid, hold.id), self.step);
    }

    fn settled(&mut self, lease: LeaseId, settling: Settling) {
        let Some(delivery) = self.deliveries.get_mut(&lease) else {
            return;
        };
        delivery.settled = Some(settling);
        self.copies[delivery.copy].left = match settling {
            Settling::Complete => Some(Left::Completed),
            Settling::DeadLetter { reason, attempts } => Some(Left::Dead { reason, attempts }),
            Settling::Retry { .. } | Settling::Release => None,
        };
    }

    fn ended(&mut self, run: RunId, end: End, world: &World) {
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
pub(crate) fn least_wait(world: &World, attempt: u32) -> Duration {
    let doubled = world
        .backoff
        .saturating_mul(1 << attempt.saturating_sub(1).min(16));
    doubled.min(world.backoff * 4)
}
