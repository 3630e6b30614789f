//! What an action touches, so that swaps without a difference are known.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::action::Action;
use crate::call::{Go, Operation, Pending, QUEUE};
use crate::explorer::{Actor, Label};
use crate::state::State;
use crate::world::{Order, World};

const EVERYTHING: u64 = u64::MAX;

/// Names an action, so that it is recognised in another schedule, and says what it touches.
pub(crate) fn label(world: &World, state: &State, action: Action) -> Label {
    let mut name = DefaultHasher::new();
    let (actor, touches) = match action {
        Action::Go(place, go) => {
            let call = &state.pending[place];
            (call.pid, call.number, go).hash(&mut name);
            let dies = go == Go::Die;
            let touches = if dies {
                EVERYTHING
            } else {
                touched(world, state, call)
            };
            (Actor::Process(call.pid), touches)
        }
        Action::KillCaller(place) => {
            let call = &state.pending[place];
            (call.pid, call.number, "dies").hash(&mut name);
            (Actor::Process(call.pid), EVERYTHING)
        }
        _ => {
            action.hash(&mut name);
            (Actor::World, EVERYTHING)
        }
    };
    Label {
        name: name.finish(),
        actor,
        touches,
        is_fault: action.is_fault(),
    }
}

/// What a call touches: ids, and where order is kept the keys that tie them together.
fn touched(world: &World, state: &State, call: &Pending) -> u64 {
    let ids = match call.operation {
        Operation::Receive => QUEUE | receivable(state),
        _ => call.ids,
    };
    if world.order == Order::Unordered {
        return ids;
    }
    let publications = state.facts.copies.iter().map(|copy| copy.publication);
    publications
        .filter(|publication| ids & (1 << publication.id) != 0)
        .fold(ids & QUEUE, |keys, publication| keys | 1 << publication.key)
}

/// The ids of what may be in the queue: all but what has left it, and what a live process holds.
fn receivable(state: &State) -> u64 {
    let facts = &state.facts;
    let held = |copy: &&crate::facts::CopyFacts| {
        let delivery = copy.delivery.map(|lease| &facts.deliveries[&lease]);
        delivery.is_some_and(|one| one.settled.is_none() && facts.lives(one.pid))
    };
    let there = facts.copies.iter().filter(|copy| copy.left.is_none());
    there
        .filter(|copy| !held(copy))
        .fold(0, |ids, copy| ids | 1 << copy.publication.id)
}
