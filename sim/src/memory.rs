//! What a process may still act upon: all that tells two of its states apart.
//!
//! A process is deterministic: what it does next follows from what it met, and when. Most of that it
//! forgets. [`Memory`] keeps what it has not forgotten yet, and lets go of the rest as the core does:
//! of a delivery when its settlement was answered and nothing is left to do for it, of failures to
//! receive with the next receive, of a store that was down with the next claim, and of all renewals but
//! the last ones at once ([`Keeping`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};

use backstop_core::{LeaseId, Ownership, QueueCounts};
use tokio::time::Instant;

use crate::call::{Go, Operation, Pending};
use crate::event::{End, Event, Hold, Pid, TicketCall};
use crate::facts::Facts;
use crate::keeping::Keeping;
use crate::world::{Order, World};

/// What happened, one after the other, and when.
pub(crate) type Trail = Vec<(Instant, u64)>;

#[derive(Default)]
pub(crate) struct Memory {
    /// When it subscribed: its keeper ticks from then on.
    pub(crate) subscribed: Option<Instant>,
    /// How receiving failed since it last worked.
    pub(crate) intake: Trail,
    /// What happened to deliveries that are with it, by id; where order is kept, by key.
    pub(crate) lanes: BTreeMap<usize, Trail>,
    /// The lanes of deliveries that it is not done with.
    pub(crate) open: HashMap<LeaseId, usize>,
    /// Ids that the store was asked about and gave no answer for.
    pub(crate) failing: BTreeSet<(usize, Operation)>,
    /// When the store failed since it last answered a claim: that holds the gate.
    pub(crate) store: Trail,
    /// How handlers ended: what the breaker looks at, once there are enough.
    pub(crate) outcomes: Vec<End>,
    /// How the queue looked when a receive brought nothing: it waits for another look.
    pub(crate) seen: Option<QueueCounts>,
    /// What its keeper knows.
    pub(crate) keeping: Keeping,
}

/// A number for anything that can be shown.
pub(crate) fn code(of: impl Debug) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{of:?}").hash(&mut hasher);
    hasher.finish()
}

/// Where the deliveries of an id are kept apart from others.
fn lane_of(id: usize, facts: &Facts, world: &World) -> usize {
    let mut publications = facts.copies.iter().map(|copy| copy.publication);
    match world.order {
        Order::Unordered => id,
        Order::ByKey(_) => publications
            .find(|publication| publication.id == id)
            .map_or(id, |publication| publication.key),
    }
}

/// The ids that are set as bits.
fn ids_of(bits: u64) -> impl Iterator<Item = usize> {
    (0..64).filter(move |id| bits & (1 << id) != 0)
}

/// Whose an event is, as far as it can change what a process remembers.
pub(crate) fn process_of(event: &Event, facts: &Facts) -> Option<Pid> {
    match *event {
        Event::Delivered { pid, .. }
        | Event::Claimed { pid, .. }
        | Event::ClaimTold { pid, .. }
        | Event::TicketAsked { pid, .. }
        | Event::TicketUsed { pid, .. }
        | Event::TicketTold { pid, .. }
        | Event::SettleAsked { pid, .. }
        | Event::Settled { pid, .. }
        | Event::ExtensionAsked { pid, .. }
        | Event::ExtensionTold { pid, .. }
        | Event::Started { pid, .. } => Some(pid),
        Event::LeaseLossTold { lease } | Event::SettleTold { lease } => {
            Some(facts.deliveries[&lease].pid)
        }
        Event::Effect { run } | Event::Ended { run, .. } => Some(facts.runs[run].pid),
        _ => None,
    }
}

impl Memory {
    /// A call goes on.
    pub(crate) fn goes_on(&mut self, call: &Pending, go: Go, facts: &Facts, world: &World) {
        let (operation, now) = (call.operation, facts.now);
        match (operation, go) {
            (Operation::Subscribe, Go::On) => {
                self.subscribed = Some(now);
                self.intake.clear();
            }
            (Operation::Receive, Go::On) => {}
            (Operation::Subscribe | Operation::Receive, _) => {
                self.intake.push((now, code((operation, go))));
            }
            (Operation::Extend, _) => return self.keeping.extensions_go_on(),
            (Operation::Renew, _) => return self.keeping.renewals_go_on(),
            _ => {}
        }
        for id in ids_of(call.ids) {
            if operation.is_of_store() && go != Go::On {
                self.failing.insert((id, operation));
                self.store.push((now, code((id, operation))));
            }
            self.append(lane_of(id, facts, world), (id, operation, go), now);
        }
    }

    /// Takes in an event of its process, after the facts have.
    pub(crate) fn take_in(&mut self, event: &Event, facts: &Facts, world: &World) {
        let now = facts.now;
        let lane = |id| lane_of(id, facts, world);
        let of_lease = |lease: &LeaseId| {
            let copy = facts.deliveries[lease].copy;
            (copy, lane(facts.id_of(copy)))
        };
        match *event {
            Event::Delivered {
                lease,
                copy,
                attempts_used,
                ..
            } => {
                let lane = lane(facts.id_of(copy));
                self.intake.clear();
                self.seen = None;
                self.open.insert(lease, lane);
                self.append(lane, ("delivered", copy, attempts_used), now);
            }
            Event::ExtensionAsked { lease, .. } => self.keeping.extends(lease, now),
            Event::ExtensionTold { lease, .. } => self.keeping.was_extended(lease, now),
            // The keeper has forgotten what was settled, and does not hear of it.
            Event::LeaseLossTold { lease } if self.open.contains_key(&lease) => {
                let (copy, lane) = of_lease(&lease);
                self.append(lane, ("lost", copy), now);
            }
            Event::SettleAsked {
                lease, settling, ..
            } => {
                let (copy, lane) = of_lease(&lease);
                self.append(lane, ("settles", copy, settling), now);
            }
            Event::Settled { lease, done, .. } => {
                let (copy, lane) = of_lease(&lease);
                self.append(lane, ("settled", copy, done), now);
            }
            Event::SettleTold { lease } => {
                let (copy, lane) = of_lease(&lease);
                self.append(lane, ("settled told", copy), now);
            }
            Event::Started {
                copy,
                attempt,
                fence,
                ..
            } => {
                let lane = lane(facts.id_of(copy));
                self.append(lane, ("started", copy, attempt, fence), now);
            }
            Event::Effect { run } => {
                let copy = facts.runs[run].copy;
                self.append(lane(facts.id_of(copy)), ("effect", copy), now);
            }
            Event::Ended { run, .. } => {
                let (copy, end) = (facts.runs[run].copy, facts.runs[run].end);
                self.outcomes.extend(end);
                self.append(lane(facts.id_of(copy)), ("ended", copy, end), now);
            }
            _ => self.take_in_claim(event, facts, world),
        }
    }

    /// Takes in what has to do with a claim.
    fn take_in_claim(&mut self, event: &Event, facts: &Facts, world: &World) {
        let now = facts.now;
        let lane = |id| lane_of(id, facts, world);
        match *event {
            Event::Claimed { id, claim, .. } => self.append(lane(id), (id, claim), now),
            Event::ClaimTold { id, .. } => {
                self.failing.remove(&(id, Operation::Claim));
                self.store.clear();
                self.append(lane(id), ("claim told", id), now);
            }
            Event::TicketAsked {
                hold,
                call: TicketCall::Renew,
                ..
            } => self.keeping.renews(hold),
            Event::TicketTold {
                pid,
                hold,
                call: TicketCall::Renew,
                ownership,
            } => {
                // The keeper hears of no claim that has ended.
                let has_ended = facts.given_up.contains_key(&(pid, hold.id, hold.fence.0));
                match ownership {
                    _ if has_ended => {}
                    Ownership::Held => self.keeping.was_renewed(hold, now),
                    Ownership::Fenced => self.append(lane(hold.id), ("overtaken", hold), now),
                }
            }
            Event::TicketUsed {
                call: TicketCall::Renew,
                ..
            } => {}
            Event::TicketAsked { hold, call, .. } => {
                self.append(lane(hold.id), ("asked", hold, call), now);
            }
            Event::TicketUsed {
                hold,
                call,
                ownership,
                ..
            } => self.append(lane(hold.id), ("used", hold, call, ownership), now),
            Event::TicketTold {
                hold,
                call,
                ownership,
                ..
            } => {
                self.told(hold, call, ownership, now);
                self.append(lane(hold.id), ("told", hold, call, ownership), now);
            }
            _ => {}
        }
    }

    /// Hears what became of a claim that it asked about for a delivery's sake.
    fn told(&mut self, hold: Hold, call: TicketCall, ownership: Ownership, now: Instant) {
        if self.failing.remove(&(hold.id, call.operation())) {
            self.store.clear();
        }
        if !call.renews() {
            self.keeping.drops(hold);
        } else if ownership == Ownership::Held {
            self.keeping.was_renewed(hold, now);
        }
    }

    /// Is done with a delivery, but for what it still asks the store.
    pub(crate) fn is_done_with(&mut self, lease: LeaseId) {
        self.open.remove(&lease);
    }

    /// Forgets the lanes in which nothing is left to do.
    pub(crate) fn tidy(&mut self, pending: &[&Pending], facts: &Facts, world: &World) {
        let lane = |id| lane_of(id, facts, world);
        let (open, failing) = (&self.open, &self.failing);
        self.lanes.retain(|place, _| {
            // The keeper asks for deliveries that it knows; of others it does not hear the answer.
            let asks = |call: &&Pending| {
                let is_keepers = matches!(call.operation, Operation::Extend | Operation::Renew);
                !is_keepers && ids_of(call.ids).any(|id| lane(id) == *place)
            };
            open.values().any(|other| other == place)
                || failing.iter().any(|(id, _)| lane(*id) == *place)
                || pending.iter().any(asks)
        });
        let lanes = &self.lanes;
        self.keeping.tidy(|id| lanes.contains_key(&lane(id)));
    }

    fn append(&mut self, lane: usize, what: impl Debug, now: Instant) {
        self.lanes.entry(lane).or_default().push((now, code(what)));
    }
}
