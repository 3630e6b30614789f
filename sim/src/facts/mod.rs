//! What is known of a run so far, from its events.

mod changes;

use std::collections::{HashMap, HashSet};

use backstop_core::{Attempt, Claim, DeadLetterReason, Fence, LeaseId, Ownership};
use tokio::time::Instant;

use crate::event::{Copy, End, Event, Pid, RunEnd, Settling, TicketCall};
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
    /// When the broker has it ready again, and how many attempts it knows of, if a verdict said so.
    pub(crate) due: Instant,
    pub(crate) attempts_used: u32,
    /// No attempt before this, unless the broker delivers anew because it never got the verdict.
    pub(crate) not_before: Option<Instant>,
}

/// The store's record of an id.
#[derive(Clone, Copy)]
pub(crate) struct RecordFacts {
    pub(crate) until: Instant,
    pub(crate) attempt: Attempt,
    pub(crate) ended: Option<TicketCall>,
}

#[derive(Default)]
pub(crate) struct IdFacts {
    pub(crate) record: Option<RecordFacts>,
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
    /// The end of its lease.
    pub(crate) until: Instant,
    pub(crate) attempts_used: u32,
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
    /// Whether the broker holds nothing for it any more.
    pub(crate) is_gone: bool,
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
            Event::Delivered {
                pid,
                lease,
                copy,
                attempts_used,
            } => self.delivered(pid, lease, copy, attempts_used, world),
            Event::Extended {
                lease, held: true, ..
            } => self.extended(lease, world),
            Event::Claimed {
                pid,
                id,
                nonce,
                redrives,
                claim: Claim::Acquired { fence, attempt },
            } => {
                self.recorded((pid, nonce), id, attempt, world);
                self.claimed((pid, nonce), id, redrives, fence);
            }
            Event::TicketUsed {
                hold,
                call,
                ownership: Ownership::Held,
                ..
            } => self.used(hold, call, world),
            Event::TicketTold {
                pid,
                hold,
                call,
                ownership,
            } => self.told(pid, hold, call, ownership),
            Event::ClaimTold { pid, id } => {
                self.turns.insert((pid, id), self.step);
            }
            Event::LeaseLossTold { lease } => self.lost(lease),
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
                is_gone: false,
            }),
            Event::Killed { pid, noticed } => {
                self.processes[pid].life = Life::Dead;
                self.processes[pid].is_gone = noticed;
                self.processes[pid].disturbed = true;
            }
            Event::ShutdownBegun { pid } if self.processes[pid].life == Life::Running => {
                let (since, step) = (self.now, self.step);
                self.processes[pid].life = Life::Draining { since, step };
            }
            Event::RunEnded { pid, end } => {
                self.processes[pid].life = Life::Ended;
                self.processes[pid].is_gone = true;
                self.processes[pid].disturbed |= end == RunEnd::Failed;
            }
            Event::RunDropped { pid } => {
                self.processes[pid].life = Life::Dropped;
                self.processes[pid].is_gone = true;
                self.processes[pid].disturbed = true;
            }
            _ => {}
        }
    }
}
