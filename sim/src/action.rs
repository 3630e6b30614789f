//! What the controller does.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::call::{Go, Operation};
use crate::event::Event;
use crate::sim::Sim;
use crate::state::{SlotLife, State};
use crate::world::Publication;

/// What the controller does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Publishes the next message.
    Publish,
    /// Lets the call at this place go on, somehow.
    Go(usize, Go),
    /// Lets time pass until something happens.
    Time,
    /// Kills the process that makes the call at this place, before the call has an effect.
    KillCaller(usize),
    /// Kills a process; the broker notices only when its leases run out.
    Vanish(usize),
    Restart(usize),
    ShutDown(usize),
    CutShort(usize),
    DropRun(usize),
    CutConnection(usize),
    RestartBroker,
    ExpireLeases,
    StoreAway(Duration),
    StoreAwayFrom(usize, Duration),
    BrokerAway(Duration),
    SaveStore,
    LoseWrites,
    JumpClock,
    Redrive(usize),
}

impl Action {
    /// Whether it uses up some of what may go wrong.
    pub(crate) const fn is_fault(self) -> bool {
        !matches!(
            self,
            Self::Publish | Self::Go(_, Go::On) | Self::Time | Self::Restart(_) | Self::SaveStore
        )
    }
}

impl Sim {
    /// Does it.
    pub(crate) fn act(self: &Arc<Self>, state: &mut State, action: Action) {
        if action.is_fault() {
            state.budget = state.budget.saturating_sub(1);
        }
        match action {
            Action::Publish => {
                state.note(|| "a message is published".to_owned());
                self.publish_next(state);
            }
            Action::Go(place, go) => self.let_on(state, place, go),
            Action::Time => {
                if state
                    .pending
                    .iter()
                    .any(|call| call.operation != Operation::Handle)
                {
                    state.see(&self.world, Event::Disturbed { pid: None });
                }
            }
            Action::KillCaller(place) => {
                let call = &state.pending[place];
                let slot = state.slot_of[call.pid];
                let (pid, what, about) = (call.pid, call.operation, call.about.clone());
                state.note(|| format!("p{pid} dies before {what:?} {about} takes effect"));
                self.kill(state, slot, true);
            }
            Action::Vanish(slot) => {
                let pid = state.slots[slot].pid;
                state.note(|| format!("p{pid} dies; the broker does not notice"));
                self.kill(state, slot, false);
            }
            Action::Restart(slot) => self.spawn(state, slot),
            Action::ShutDown(slot) => {
                let pid = state.slots[slot].pid;
                state.note(|| format!("p{pid} begins to shut down"));
                self.shut_down(state, slot);
            }
            Action::CutShort(slot) => {
                let pid = state.slots[slot].pid;
                state.note(|| format!("p{pid} has its grace cut short"));
                state.slots[slot].shutdown.now();
            }
            Action::DropRun(slot) => self.drop_run(state, slot),
            Action::Redrive(copy) => self.redrive(state, copy),
            _ => self.disturb(state, action),
        }
    }

    fn let_on(&self, state: &mut State, place: usize, go: Go) {
        let call = state.pending.remove(place);
        if self.world.is_enumerated() {
            let slot = state.slot_of[call.pid];
            let memory = &mut state.slots[slot].memory;
            memory.goes_on(&call, go, &state.facts, &self.world);
        }
        state.note(|| format!("p{} {:?} {}: {go}", call.pid, call.operation, call.about));
        let is_fine = matches!(go, Go::On | Go::Handler(_)) || call.operation == Operation::Handle;
        if !is_fine {
            state.see(
                &self.world,
                Event::Disturbed {
                    pid: Some(call.pid),
                },
            );
        }
        // A caller that has given up meanwhile hears nothing.
        let _ = call.reply.send(go);
    }

    fn drop_run(&self, state: &mut State, place: usize) {
        let pid = state.slots[place].pid;
        state.note(|| format!("p{pid}'s run is dropped"));
        state.see(&self.world, Event::Disturbed { pid: Some(pid) });
        state.see(&self.world, Event::RunDropped { pid });
        state.slots[place].life = SlotLife::Gone;
        if let Some(abort) = state.slots[place].abort.take() {
            abort.abort();
        }
    }

    fn redrive(&self, state: &mut State, copy: usize) {
        let known = state.facts.copies[copy].publication;
        let redrives = known.redrives + 1;
        state.note(|| format!("message {copy} is redriven"));
        state.redriven[copy] = true;
        self.publish(state, Publication { redrives, ..known });
    }

    /// What goes wrong with the broker, the store, or the way there.
    fn disturb(&self, state: &mut State, action: Action) {
        state.note(|| format!("{action:?}"));
        let now = Instant::now();
        let of = match action {
            Action::CutConnection(slot) | Action::StoreAwayFrom(slot, _) => {
                Some(state.slots[slot].pid)
            }
            _ => None,
        };
        state.see(&self.world, Event::Disturbed { pid: of });
        match action {
            Action::CutConnection(slot) => state.slots[slot].broker.drop_own_connection(),
            Action::RestartBroker => self.broker.drop_connections(),
            Action::ExpireLeases => self.broker.expire_leases(),
            Action::StoreAway(long) => state.store_away = Some(now + long),
            Action::StoreAwayFrom(slot, long) => state.slots[slot].store_away = Some(now + long),
            Action::BrokerAway(long) => {
                state.broker_away = Some(now + long);
                self.broker.drop_connections();
            }
            Action::SaveStore => state.saved = Some(self.store.snapshot()),
            Action::LoseWrites => {
                if let Some(saved) = state.saved.take() {
                    self.store.restore(&saved);
                    state.see(&self.world, Event::WritesLost);
                }
            }
            Action::JumpClock => {
                self.store.faults().jump_clock(self.world.claim_lease);
                state.see(&self.world, Event::ClockJumped);
            }
            _ => {}
        }
        state.cuts += 1;
        self.kicked.notify_waiters();
    }
}
