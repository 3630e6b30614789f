//! What leaves its queue, and how.

use backstop_core::DeadLetterReason;

use super::expect;
use crate::event::{End, Event, Settling};
use crate::facts::{CopyFacts, Facts, Left, RunFacts};
use crate::world::{Dedupe, World};

pub(super) fn nothing_is_lost(facts: &Facts, event: &Event, _: &World) -> Option<String> {
    let Event::Finished {
        drained, missing, ..
    } = event
    else {
        return None;
    };
    let stays = facts.copies.iter().position(|copy| copy.left.is_none());
    expect(
        *drained && *missing == 0 && stays.is_none(),
        || match stays {
            Some(copy) => format!("message {copy} is neither completed nor dead-lettered"),
            None => format!("the broker misses {missing} messages"),
        },
    )
}

pub(super) fn completed_after_success(
    facts: &Facts,
    event: &Event,
    world: &World,
) -> Option<String> {
    let Event::Settled {
        lease,
        settling: Settling::Complete,
        done: true,
        ..
    } = event
    else {
        return None;
    };
    let delivery = &facts.deliveries[lease];
    let succeeded = |run: &RunFacts| {
        let same = match world.dedupe {
            Dedupe::Store => facts.id_of(run.copy) == facts.id_of(delivery.copy),
            Dedupe::None => run.copy == delivery.copy && run.pid == delivery.pid,
        };
        same && run.end == Some(End::Succeeded)
    };
    let recorded = || {
        let known = facts.ids.get(&facts.id_of(delivery.copy));
        known.is_some_and(|known| known.completed || known.was_dead_lettered)
    };
    let is_fine = match world.dedupe {
        Dedupe::Store if !facts.writes_lost => recorded(),
        Dedupe::Store | Dedupe::None => recorded() || facts.runs.iter().any(succeeded),
    };
    expect(is_fine, || {
        format!("message {} was completed too soon", delivery.copy)
    })
}

pub(super) fn dead_letters_are_justified(
    facts: &Facts,
    event: &Event,
    world: &World,
) -> Option<String> {
    let Event::Settled {
        lease,
        settling: Settling::DeadLetter { reason, attempts },
        done: true,
        ..
    } = event
    else {
        return None;
    };
    let copy = facts.deliveries[lease].copy;
    let id = facts.id_of(copy);
    let cap = world.max_attempts;
    let mut ends = facts.runs.iter().filter(|run| facts.id_of(run.copy) == id);
    let is_fine = match reason {
        DeadLetterReason::AttemptsExhausted => *attempts >= cap,
        DeadLetterReason::PermanentError => ends.any(|run| run.end == Some(End::Permanent)),
        DeadLetterReason::KeyConflict => {
            let other = |other: &CopyFacts| {
                other.publication.id == id
                    && other.publication.body != facts.copies[copy].publication.body
            };
            facts.copies.iter().any(other)
        }
        _ => false,
    };
    expect(is_fine, || {
        format!("message {copy} is dead-lettered as {reason} after {attempts} attempts")
    })
}

pub(super) fn dead_once(facts: &Facts, event: &Event, _: &World) -> Option<String> {
    let Event::Finished { dead, .. } = event else {
        return None;
    };
    let is_dead = |left: Option<Left>| matches!(left, Some(Left::Dead { .. }));
    let copies = facts
        .copies
        .iter()
        .filter(|copy| is_dead(copy.left))
        .count();
    if copies != *dead {
        return Some(format!("{dead} dead letters of {copies} messages"));
    }
    if facts.disturbed {
        return None;
    }
    let conflict = DeadLetterReason::KeyConflict;
    let by_itself = |copy: usize| matches!(facts.copies[copy].left, Some(Left::Dead { reason, .. }) if reason != conflict);
    (0..facts.copies.len())
        .filter(|copy| by_itself(*copy))
        .find_map(|copy| {
            let earlier = facts.copies[..copy]
                .iter()
                .position(|other| other.publication == facts.copies[copy].publication);
            // Another body under the same id begins anew, and so does a redrive.
            let mixed = facts.copies.iter().any(|other| {
                let (one, other) = (other.publication, facts.copies[copy].publication);
                one.id == other.id && (one.body != other.body || one.redrives > 0)
            });
            let twice = earlier.is_some_and(by_itself);
            expect(!twice || mixed || facts.ids.is_empty(), || {
                format!("message {copy} is dead-lettered, as its first copy is")
            })
        })
}

/// What was decided before the loss was told may be on its way: only a later turn of the message
/// knows better.
pub(super) fn lost_is_not_settled(facts: &Facts, event: &Event, world: &World) -> Option<String> {
    let Event::SettleAsked {
        pid,
        lease,
        settling,
    } = event
    else {
        return None;
    };
    if !matches!(settling, Settling::Complete | Settling::DeadLetter { .. }) {
        return None;
    }
    let delivery = &facts.deliveries[lease];
    let id = facts.id_of(delivery.copy);
    let turn = facts.turns.get(&(*pid, id)).copied().unwrap_or(0);
    let lost = delivery.lost_told.is_some_and(|told| told < turn) && !delivery.settle_asked;
    let of_lease = |run: &&RunFacts| run.lease == Some(*lease) && run.fence.is_some();
    let claim = facts
        .runs
        .iter()
        .rev()
        .find(of_lease)
        .and_then(|run| run.fence);
    let fenced = world.dedupe == Dedupe::Store
        && !facts.writes_lost
        && claim.is_some_and(|fence| facts.fenced.contains_key(&(*pid, id, fence.0)));
    expect(!(lost || fenced), || {
        format!(
            "message {} is settled as {settling:?} after its loss was told",
            delivery.copy
        )
    })
}
