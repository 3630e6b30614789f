//! Attempts: how many, and when.

use backstop_core::{DeadLetterReason, ReleaseCost, ReleaseKind};

use super::expect;
use crate::event::{End, Event, Settling, TicketCall};
use crate::facts::{Facts, RunFacts};
use crate::world::{Dedupe, World};

/// Starts that count: not those that were cancelled and whose claim was released as unused, or
/// (without a store) that had no verdict but a release.
fn counted_starts(facts: &Facts, copy: usize, world: &World) -> u32 {
    let (id, generation) = (facts.id_of(copy), facts.generation_of(copy));
    let counts = |run: &&RunFacts| {
        let same = match world.dedupe {
            Dedupe::Store => facts.id_of(run.copy) == id && run.generation == generation,
            Dedupe::None => run.copy == copy,
        };
        let unused = match run.fence {
            Some(fence) => facts.unused.contains(&(id, fence.0)),
            None => run.end == Some(End::Dropped),
        };
        same && !unused
    };
    u32::try_from(facts.runs.iter().filter(counts).count()).unwrap_or(u32::MAX)
}

pub(super) fn the_cap_holds(facts: &Facts, event: &Event, world: &World) -> Option<String> {
    let Event::Started { copy, attempt, .. } = event else {
        return None;
    };
    let cap = world.max_attempts;
    let started = counted_starts(facts, *copy, world);
    // Without a store the broker counts: it does not hear of attempts that were made in a lane of a
    // process that died, or whose success it did not take.
    let forgotten = world.dedupe == Dedupe::None && facts.disturbed;
    let is_counted = facts.writes_lost || forgotten || started < cap;
    expect(*attempt <= cap && is_counted, || {
        format!(
            "message {copy} starts attempt {attempt} after {started} starts, and the cap is {cap}"
        )
    })
}

pub(super) fn the_cap_is_exact(facts: &Facts, event: &Event, world: &World) -> Option<String> {
    let Event::Settled {
        lease,
        settling:
            Settling::DeadLetter {
                reason: DeadLetterReason::AttemptsExhausted,
                ..
            },
        done: true,
        ..
    } = event
    else {
        return None;
    };
    let copy = facts.deliveries[lease].copy;
    let started = counted_starts(facts, copy, world);
    let is_exact = facts.disturbed || releases_count(world) || started == world.max_attempts;
    expect(is_exact, || {
        format!("message {copy} was dead-lettered after {started} starts")
    })
}

/// Whether a message that is given back comes nearer to its cap.
fn releases_count(world: &World) -> bool {
    world.dedupe == Dedupe::None && world.release == ReleaseCost::Counted
}

pub(super) fn only_started_attempts_count(
    facts: &Facts,
    event: &Event,
    _: &World,
) -> Option<String> {
    if facts.writes_lost {
        return None;
    }
    let Event::TicketAsked {
        pid,
        hold,
        call: TicketCall::Release(kind),
    } = event
    else {
        return None;
    };
    let of_claim = |run: &&RunFacts| {
        run.pid == *pid && run.fence == Some(hold.fence) && facts.id_of(run.copy) == hold.id
    };
    let run = facts.runs.iter().find(of_claim);
    let is_fine = match kind {
        ReleaseKind::Failed => run.is_some(),
        ReleaseKind::Unused => run.is_none_or(|run| run.end == Some(End::Dropped)),
        ReleaseKind::DeadLettered => true,
    };
    expect(is_fine, || {
        let ran = run.map(|run| run.end);
        format!(
            "the claim of m{} is released as {kind:?}, and its handler: {ran:?}",
            hold.id
        )
    })
}

pub(super) fn no_early_retry(facts: &Facts, event: &Event, _: &World) -> Option<String> {
    let Event::Started { copy, pid, .. } = event else {
        return None;
    };
    let delivery = facts.copies[*copy]
        .delivery
        .map(|lease| &facts.deliveries[&lease]);
    if facts.store_broke()
        || delivery.is_none_or(|delivery| {
            delivery.pid != *pid || delivery.settled.is_some() || delivery.is_second
        })
    {
        return None;
    }
    let early = facts.copies[*copy]
        .not_before
        .and_then(|from| from.checked_duration_since(facts.now))
        .filter(|early| !early.is_zero());
    early.map(|early| format!("message {copy} is retried {early:?} too early"))
}
