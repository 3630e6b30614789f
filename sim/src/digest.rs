//! One number for all that can make a difference from here on.
//!
//! Two runs with the same digest go on alike: broker and store hold the same, the processes remember
//! the same ([`Memory`]), the same calls are pending, and the invariants know the same, as far as they
//! look back. Times count from now, and names that only order tells apart (processes, leases, runs,
//! nonces) are left out. The processes of a world are alike, so it makes no difference which is which.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use backstop_core::{LeaseId, QueueCounts};
use tokio::time::Instant;

use crate::event::{Copy, End, Pid};
use crate::facts::{DeliveryFacts, RunFacts};
use crate::memory::{Memory, Trail, code};
use crate::state::{SlotLife, State};
use crate::world::{Dedupe, World};

/// How often a keeper looks at its leases.
const TICK: Duration = Duration::from_secs(1);

/// The digest of a state; the same whichever process has which slot.
pub(crate) fn digest(world: &World, state: &State, counts: QueueCounts) -> u64 {
    let slots = state.slots.len();
    let look = |rank: Vec<usize>| {
        let look = Look {
            world,
            state,
            counts,
            rank,
        };
        look.digest()
    };
    let forth = look((0..slots).collect());
    forth.min(look((0..slots).rev().collect()))
}

/// A look at a state in which each slot has a rank.
struct Look<'a> {
    world: &'a World,
    state: &'a State,
    counts: QueueCounts,
    rank: Vec<usize>,
}

/// A number for what can be hashed.
fn number(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

fn sorted(numbers: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut all: Vec<_> = numbers.collect();
    all.sort_unstable();
    all
}

impl Look<'_> {
    fn digest(&self) -> u64 {
        let state = self.state;
        let mut slots: Vec<_> = (0..state.slots.len()).collect();
        slots.sort_unstable_by_key(|slot| self.rank[*slot]);
        let slots: Vec<_> = slots.into_iter().map(|slot| self.slot(slot)).collect();
        let pending = state.pending.iter().map(|call| {
            let pid = self.rank_of(call.pid);
            number((pid, call.operation, call.ids))
        });
        let copies = (0..state.facts.copies.len()).map(|copy| self.copy(copy));
        number((
            (state.budget, state.published, state.facts.disturbed),
            (slots, sorted(pending)),
            copies.collect::<Vec<_>>(),
            sorted(state.facts.ids.keys().map(|id| self.id(*id))),
            sorted(state.facts.deliveries.keys().map(|at| self.delivery(*at))),
            sorted((0..state.facts.runs.len()).map(|run| self.run(run))),
            sorted(self.runs_in_sum()),
        ))
    }

    fn left(&self, until: Instant) -> Duration {
        until.saturating_duration_since(self.state.facts.now)
    }

    fn since(&self, then: Instant) -> Duration {
        self.state.facts.now - then
    }

    /// A process's rank; none if it is gone.
    fn rank_of(&self, pid: Pid) -> Option<usize> {
        let place = self.state.slot_of[pid];
        let slot = &self.state.slots[place];
        let is_there = slot.pid == pid && slot.life != SlotLife::Gone;
        is_there.then(|| self.rank[place])
    }

    fn memory_of(&self, pid: Pid) -> &Memory {
        &self.state.slots[self.state.slot_of[pid]].memory
    }

    fn slot(&self, place: usize) -> u64 {
        let slot = &self.state.slots[place];
        if slot.life == SlotLife::Gone {
            return 0;
        }
        let memory = &slot.memory;
        let process = &self.state.facts.processes[slot.pid];
        let trail = |trail: &Trail| {
            let steps = trail.iter().map(|(at, what)| (self.since(*at), *what));
            steps.collect::<Vec<_>>()
        };
        let lanes = memory
            .lanes
            .iter()
            .map(|(lane, steps)| (lane, trail(steps)));
        let phase = memory
            .subscribed
            .map(|at| self.since(at).as_nanos() % TICK.as_nanos());
        // A breaker that has seen fewer outcomes than its window is closed, whatever they were.
        let is_full = memory.outcomes.len() >= self.world.breaker.window as usize;
        let outcomes = is_full.then(|| code(&memory.outcomes));
        let keeping = &memory.keeping;
        let renewed = keeping.renewed.iter();
        let renewed = renewed.map(|(claim, at)| (claim, self.since(*at)));
        number((
            (trail(&memory.intake), lanes.collect::<Vec<_>>()),
            (&memory.failing, trail(&memory.store)),
            (phase, outcomes, memory.seen == Some(self.counts)),
            (code(slot.life), process.disturbed),
            (&keeping.renewing, renewed.collect::<Vec<_>>()),
        ))
    }

    /// Where the broker has a message, and what is known of it.
    fn copy(&self, copy: Copy) -> u64 {
        let facts = &self.state.facts;
        let known = &facts.copies[copy];
        let delivery = known.delivery.map(|lease| &facts.deliveries[&lease]);
        let place = match (known.left, delivery) {
            (Some(left), _) => code(left),
            (None, Some(delivery)) if self.is_out(delivery) => {
                let until = self.left(delivery.until);
                number((
                    "out",
                    self.rank_of(delivery.pid),
                    until,
                    delivery.attempts_used,
                ))
            }
            (None, Some(delivery)) if delivery.settled.is_none() => {
                number(("back", Duration::ZERO, delivery.attempts_used + 1))
            }
            (None, _) => number(("back", self.left(known.due), known.attempts_used)),
        };
        let verdict = delivery.is_none_or(|delivery| delivery.settled.is_none());
        let not_before = known.not_before.map(|at| self.left(at));
        number((place, verdict, not_before))
    }

    /// Whether the broker takes a delivery for its process's.
    fn is_out(&self, delivery: &DeliveryFacts) -> bool {
        let facts = &self.state.facts;
        let is_held = delivery.settled.is_none() && !facts.processes[delivery.pid].is_gone;
        is_held && !self.left(delivery.until).is_zero()
    }

    /// What the store has of an id, and what is known of it.
    fn id(&self, id: usize) -> u64 {
        let facts = &self.state.facts;
        let known = &facts.ids[&id];
        let owner = known.top_claim.and_then(|(pid, _)| self.rank_of(pid));
        let record = known.record.map(|record| {
            let until = self.left(record.until);
            (until, record.attempt, code(record.ended))
        });
        let top = known.top_fence;
        let runs = facts.runs.iter().filter(|run| facts.id_of(run.copy) == id);
        let newest = runs.filter_map(|run| run.fence).max();
        let alive = self.state.slots.iter().map(|slot| slot.pid);
        let told = alive.map(|pid| {
            let claim = (pid, id, top);
            let fenced = facts.fenced.contains_key(&claim);
            number((
                self.rank_of(pid),
                facts.given_up.contains_key(&claim),
                fenced,
            ))
        });
        // Undisturbed, a claim that has not ended must not be lost.
        let open = |fence: &u64| !facts.disturbed && !facts.ended.contains(&(id, *fence));
        number((
            (id, top, newest, owner, record),
            (
                known.completed,
                known.dead_lettered,
                known.was_dead_lettered,
            ),
            (known.redrives, known.generation),
            (sorted(told), (1..=top).filter(open).collect::<Vec<_>>()),
        ))
    }

    /// A delivery that its process may still hear of, or act on; nothing for others.
    fn delivery(&self, lease: LeaseId) -> u64 {
        let facts = &self.state.facts;
        let delivery = &facts.deliveries[&lease];
        let Some(rank) = self.rank_of(delivery.pid) else {
            return 0;
        };
        let memory = self.memory_of(delivery.pid);
        let is_open = memory.open.contains_key(&lease);
        let extension = memory.keeping.of_lease(lease);
        let is_settled = delivery.settled.is_some() && delivery.settle_told;
        if !is_open && !extension.is_under_way && is_settled {
            return 0;
        }
        let since = |at: Option<Instant>| at.filter(|_| is_open).map(|at| self.since(at));
        let turn = facts.turns.get(&(delivery.pid, facts.id_of(delivery.copy)));
        let turn = turn.copied().unwrap_or(0);
        let is_current = facts.copies[delivery.copy].delivery == Some(lease);
        number((
            (rank, delivery.copy, is_open, is_current),
            (
                code(delivery.settled),
                delivery.settle_told,
                delivery.settle_asked,
            ),
            delivery.lost_told.map(|told| told < turn),
            (delivery.is_second, self.left(delivery.until)),
            (
                extension.is_under_way,
                since(extension.made),
                since(extension.tried),
            ),
        ))
    }

    /// A handler's run that may still matter by itself; nothing for others.
    fn run(&self, run: usize) -> u64 {
        let facts = &self.state.facts;
        let known = &facts.runs[run];
        let Some(rank) = self.rank_of(known.pid) else {
            return 0;
        };
        let id = facts.id_of(known.copy);
        let open = &self.memory_of(known.pid).open;
        let is_open = known.lease.is_none_or(|lease| open.contains_key(&lease));
        let claim = known.fence.map(|fence| (known.pid, id, fence.0));
        let is_claimed = claim.is_some_and(|claim| !facts.given_up.contains_key(&claim));
        if known.end.is_some() && !is_open && !is_claimed {
            return 0;
        }
        let runs = known.end.is_none().then(|| self.since(known.started));
        let current = facts.copies[known.copy].delivery;
        let fenced = claim.is_some_and(|claim| facts.fenced.contains_key(&claim));
        number((
            (
                rank,
                known.copy,
                known.attempt,
                known.fence,
                known.generation,
            ),
            (runs, code(known.end), is_open, is_claimed, fenced),
            (
                known.lease.is_some(),
                known.lease == current,
                known.fenced_told.is_some(),
            ),
        ))
    }

    /// What the invariants ask of all runs together: how many count, and how they ended.
    fn runs_in_sum(&self) -> impl Iterator<Item = u64> {
        let facts = &self.state.facts;
        let counted = |run: &RunFacts| {
            let id = facts.id_of(run.copy);
            let is_unused = run
                .fence
                .is_some_and(|fence| facts.unused.contains(&(id, fence.0)));
            let ended = match run.end {
                Some(end @ (End::Succeeded | End::Permanent | End::Dropped)) => Some(code(end)),
                _ => None,
            };
            // Without a store, whose success it was matters.
            let is_plain = self.world.dedupe == Dedupe::None && run.end == Some(End::Succeeded);
            let whose = is_plain.then(|| self.rank_of(run.pid));
            number((run.copy, run.generation, is_unused, whose, ended))
        };
        facts.runs.iter().map(counted)
    }
}
