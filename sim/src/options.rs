//! What the controller may do next.

use backstop_core::InProcessBroker;

use crate::action::Action;
use crate::call::{Go, HandlerEnd, Operation, Pending};
use crate::facts::Left;
use crate::state::{Phase, Slot, SlotLife, State};
use crate::world::{Chaos, Dedupe, Fault, World};

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
        // Where schedules are enumerated, it makes no difference when in a wait a process dies.
        let waits = state.pending.is_empty() && state.last == Some(Action::Time);
        if !(world.is_enumerated() && waits) {
            may(Fault::Crash, Action::Vanish(place), 4);
        }
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
