//! What the controller knows while a run lasts.

use std::sync::Arc;

use backstop_core::{InProcessBroker, Shutdown};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::action::Action;
use crate::call::{Go, Operation, Pending};
use crate::choices::Choices;
use crate::event::{Event, Pid};
use crate::facts::Facts;
use crate::invariants;
use crate::memory::{Memory, process_of};
use crate::world::World;

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant's name.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Faults and odd schedules.
    Chaos,
    /// All is well, until the queue is drained.
    Calm {
        since: Instant,
    },
    /// Everything shuts down.
    Ending,
    Over,
}

/// A process slot, in which one process after the other may live.
pub(crate) struct Slot {
    pub(crate) pid: Pid,
    pub(crate) life: SlotLife,
    pub(crate) broker: Arc<InProcessBroker>,
    pub(crate) shutdown: Shutdown,
    pub(crate) abort: Option<AbortHandle>,
    /// Calls to the store fail until then.
    pub(crate) store_away: Option<Instant>,
    /// What its process may still act upon; kept only where schedules are enumerated.
    pub(crate) memory: Memory,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotLife {
    Running,
    Draining,
    Gone,
}

pub(crate) struct State {
    pub(crate) choices: Choices,
    pub(crate) pending: Vec<Pending>,
    pub(crate) slots: Vec<Slot>,
    /// The slot of each process.
    pub(crate) slot_of: Vec<usize>,
    pub(crate) phase: Phase,
    pub(crate) budget: u32,
    pub(crate) steps: u64,
    pub(crate) facts: Facts,
    pub(crate) published: usize,
    pub(crate) redriven: Vec<bool>,
    pub(crate) store_away: Option<Instant>,
    pub(crate) broker_away: Option<Instant>,
    /// How often connections were cut, whosesoever.
    pub(crate) cuts: u64,
    pub(crate) saved: Option<backstop_core::StoreSnapshot>,
    /// What the controller did last.
    pub(crate) last: Option<Action>,
    pub(crate) violation: Option<Violation>,
    pub(crate) is_cut_off: bool,
    pub(crate) trace: Option<Vec<String>>,
    pub(crate) begun: Instant,
    /// Subscriptions of processes whose death the broker has not noticed.
    pub(crate) orphans: Vec<Arc<dyn backstop_core::Subscription>>,
}

impl State {
    /// Checks an event, and takes it in.
    pub(crate) fn see(&mut self, world: &World, event: Event) {
        self.facts.now = Instant::now();
        if self.violation.is_none()
            && let Some((invariant, what)) = invariants::check(&self.facts, &event, world)
        {
            self.note(|| format!("** {invariant}: {what}"));
            self.violation = Some(Violation { invariant, what });
        }
        if let Some(trace) = &mut self.trace
            && !matches!(event, Event::Idle | Event::Asked { .. })
        {
            trace.push(format!("             {event:?}"));
        }
        self.facts.take_in(event, world);
        if world.is_enumerated() {
            self.remember(world, &event);
        }
    }

    fn remember(&mut self, world: &World, event: &Event) {
        let facts = &self.facts;
        let Some(pid) = process_of(event, facts) else {
            return;
        };
        let slot = &mut self.slots[self.slot_of[pid]];
        if slot.pid == pid {
            slot.memory.take_in(event, facts, world);
        }
    }

    /// What a process may still act upon.
    pub(crate) fn memory(&mut self, pid: Pid) -> &mut Memory {
        &mut self.slots[self.slot_of[pid]].memory
    }

    /// Lets processes forget what they are done with.
    pub(crate) fn tidy(&mut self, world: &World) {
        for slot in &mut self.slots {
            let own = |call: &&Pending| call.pid == slot.pid;
            let pending: Vec<_> = self.pending.iter().filter(own).collect();
            slot.memory.tidy(&pending, &self.facts, world);
        }
    }

    /// Writes down what happens, if anyone will read it.
    pub(crate) fn note(&mut self, what: impl FnOnce() -> String) {
        let (step, since) = (self.steps, Instant::now() - self.begun);
        if let Some(trace) = &mut self.trace {
            trace.push(format!(
                "{step:>5} {:>6.2}s {}",
                since.as_secs_f64(),
                what()
            ));
        }
    }

    pub(crate) fn register(
        &mut self,
        pid: Pid,
        operation: Operation,
        ids: u64,
        about: impl FnOnce() -> String,
    ) -> oneshot::Receiver<Go> {
        let (reply, answer) = oneshot::channel();
        let about = if self.trace.is_some() {
            about()
        } else {
            String::new()
        };
        self.pending.push(Pending {
            pid,
            operation,
            ids,
            about,
            reply,
        });
        answer
    }
}
