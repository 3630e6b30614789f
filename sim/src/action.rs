//! What the controller may do next, and doing it.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::InProcessBroker;
use tokio::time::Instant;

use crate::call::{Go, HandlerEnd, Operation, Pending};
use crate::event::Event;
use crate::facts::Left;
use crate::sim::{Phase, Sim, Slot, SlotLife, State};
use crate::world::{Chaos, Dedupe, Fault, Publication, World};

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

type Weighted = (Action, u32);

/// All that may happen now, each with its weight; the first is what happens when nothing goes wrong.
pub(crate) fn options(
    world: &World,
    state: &State,
    broker: &InProcessBroker,
) -> (Vec<Action>, Vec<u32>) {
    let options = match world.chaos {
        Chaos::UntilDrained => forced(world, state),
        Chaos::Steps(_) => None,
    };
    let options = options.unwrap_or_else(|| options_of(world, state, broker));
    options.into_iter().unzip()
}

/// What comes before anything else where schedules are enumerated.
fn forced(world: &World, state: &State) -> Option<Vec<Weighted>> {
    if state.published < world.publications.len() {
        return Some(vec![(Action::Publish, 1)]);
    }
    let gone = |slot: &Slot| slot.life == SlotLife::Gone;
    let gone = state.slots.iter().position(gone)?;
    Some(vec![(Action::Restart(gone), 1)])
}

fn options_of(world: &World, state: &State, broker: &InProcessBroker) -> Vec<Weighted> {
    let mut all: Vec<Weighted> = Vec::with_capacity(32);
    let rest = state.pending.len().max(1);
    let share = |of: usize| u32::try_from(of.div_ceil(rest)).unwrap_or(1);
    if state.published < world.publications.len() {
        all.push((Action::Publish, 300));
    }
    for place in 0..state.pending.len() {
        let weight = if all.is_empty() { 600 } else { share(300) };
        all.push((Action::Go(place, Go::On), weight));
    }
    // Where nobody lives, time brings nothing.
    let anyone = state.slots.iter().any(|slot| slot.life != SlotLife::Gone);
    if anyone && (all.is_empty() || world.calls_take_time) {
        all.push((Action::Time, if all.is_empty() { 600 } else { 60 }));
    }
    for (place, slot) in state.slots.iter().enumerate() {
        if slot.life == SlotLife::Gone {
            all.push((Action::Restart(place), 40));
        }
    }
    if state.budget > 0 && state.phase == Phase::Chaos {
        for (place, call) in state.pending.iter().enumerate() {
            call_faults(world, place, call, share(60), &mut all);
        }
        process_faults(world, state, &mut all);
        world_faults(world, state, broker, &mut all);
    }
    all
}

/// What can happen to one call.
fn call_faults(world: &World, place: usize, call: &Pending, weight: u32, all: &mut Vec<Weighted>) {
    let mut may = |fault, action| {
        if world.has(fault) {
            all.push((action, weight));
        }
    };
    may(Fault::Crash, Action::KillCaller(place));
    match call.operation {
        Operation::Answer | Operation::LateEffect => return,
        Operation::Handle => {
            use HandlerEnd::{AskToWait, Fail, FailPermanently, HandOn, Hang, Panic};
            for end in [Fail, FailPermanently, AskToWait, Panic, Hang] {
                may(Fault::HandlerFails, Action::Go(place, Go::Handler(end)));
            }
            may(
                Fault::HandlerIgnoresCancellation,
                Action::Go(place, Go::Handler(HandOn)),
            );
            may(
                Fault::CallSlow,
                Action::Go(place, Go::Wait(world.claim_lease * 2)),
            );
        }
        Operation::Receive => {
            may(Fault::CallFails, Action::Go(place, Go::Fail));
        }
        _ => {
            may(Fault::CallFails, Action::Go(place, Go::Fail));
            may(Fault::AnswerLost, Action::Go(place, Go::LoseAnswer));
            may(Fault::AnswerLate, Action::Go(place, Go::HoldAnswer));
            may(
                Fault::CallSlow,
                Action::Go(place, Go::Wait(world.claim_lease / 2)),
            );
            may(
                Fault::CallSlow,
                Action::Go(place, Go::Wait(world.claim_lease * 3 / 2)),
            );
        }
    }
    may(Fault::Crash, Action::Go(place, Go::Die));
}

fn process_faults(world: &World, state: &State, all: &mut Vec<Weighted>) {
    for (place, slot) in state.slots.iter().enumerate() {
        let mut may = |fault, action, weight| {
            if world.has(fault) {
                all.push((action, weight));
            }
        };
        match slot.life {
            SlotLife::Gone => continue,
            SlotLife::Draining => may(Fault::Shutdown, Action::CutShort(place), 10),
            SlotLife::Running => {
                may(Fault::Shutdown, Action::ShutDown(place), 6);
                may(Fault::RunDropped, Action::DropRun(place), 4);
            }
        }
        may(Fault::Crash, Action::Vanish(place), 4);
        may(Fault::ConnectionCut, Action::CutConnection(place), 6);
        if world.dedupe == Dedupe::Store {
            let away = |leases| Action::StoreAwayFrom(place, world.claim_lease * leases / 2);
            may(Fault::StoreDown, away(1), 4);
            may(Fault::StoreDown, away(3), 4);
        }
    }
}

fn world_faults(world: &World, state: &State, broker: &InProcessBroker, all: &mut Vec<Weighted>) {
    let mut may = |fault, action, weight| {
        if world.has(fault) {
            all.push((action, weight));
        }
    };
    may(Fault::ConnectionCut, Action::RestartBroker, 6);
    if broker.counts().in_flight > 0 {
        may(Fault::LeaseLost, Action::ExpireLeases, 12);
    }
    may(
        Fault::BrokerDown,
        Action::BrokerAway(world.delivery_lease / 2),
        3,
    );
    may(
        Fault::BrokerDown,
        Action::BrokerAway(world.delivery_lease * 3 / 2),
        3,
    );
    if world.dedupe == Dedupe::Store {
        may(
            Fault::StoreDown,
            Action::StoreAway(world.claim_lease / 2),
            4,
        );
        may(
            Fault::StoreDown,
            Action::StoreAway(world.claim_lease * 3 / 2),
            4,
        );
        may(Fault::ClockJumps, Action::JumpClock, 8);
        may(Fault::WritesLost, Action::SaveStore, 8);
        if state.saved.is_some() {
            may(Fault::WritesLost, Action::LoseWrites, 8);
        }
    }
    for (copy, known) in state.facts.copies.iter().enumerate() {
        if matches!(known.left, Some(Left::Dead { .. })) && !state.redriven[copy] {
            may(Fault::Redrive, Action::Redrive(copy), 20);
        }
    }
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
