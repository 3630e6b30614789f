//! Claims, fences, and what a completion ends.

use backstop_core::{Claim, Ownership};

use super::expect;
use crate::event::{Event, TicketCall};
use crate::facts::{Facts, RunFacts};
use crate::world::{Dedupe, World};

pub(super) fn fences_grow_by_one(facts: &Facts, event: &Event, _: &World) -> Option<String> {
    let Event::Claimed {
        pid,
        id,
        nonce,
        claim: Claim::Acquired { fence, .. },
        ..
    } = event
    else {
        return None;
    };
    let known = facts.ids.get(id);
    let top = known.map_or(0, |known| known.top_fence);
    let again = known.is_some_and(|known| known.top_claim == Some((*pid, *nonce)));
    let wanted = if again { top } else { top + 1 };
    expect(facts.writes_lost || fence.0 == wanted, || {
        format!("m{id} was claimed with fence {fence}, after {top}")
    })
}

pub(super) fn stale_claims_are_refused(facts: &Facts, event: &Event, _: &World) -> Option<String> {
    let Event::TicketUsed {
        hold,
        call,
        ownership: Ownership::Held,
        ..
    } = event
    else {
        return None;
    };
    let top = facts.ids.get(&hold.id).map_or(0, |known| known.top_fence);
    expect(facts.writes_lost || hold.fence.0 == top, || {
        format!(
            "{call:?} of m{} with fence {} was taken, after {top}",
            hold.id, hold.fence
        )
    })
}

pub(super) fn one_start_a_fence(facts: &Facts, event: &Event, _: &World) -> Option<String> {
    let Event::Started {
        copy,
        fence: Some(fence),
        ..
    } = event
    else {
        return None;
    };
    let id = facts.id_of(*copy);
    let earlier = facts.runs.iter().filter(|run| facts.id_of(run.copy) == id);
    let top = earlier.filter_map(|run| run.fence).max();
    expect(facts.writes_lost || top < Some(*fence), || {
        format!("a handler of m{id} starts with fence {fence}, after one with {top:?}")
    })
}

pub(super) fn no_stale_effect(facts: &Facts, event: &Event, _: &World) -> Option<String> {
    let Event::Effect { run } = event else {
        return None;
    };
    let run = &facts.runs[*run];
    let fence = run.fence?;
    let id = facts.id_of(run.copy);
    let top = facts.ids.get(&id).map_or(0, |known| known.top_fence);
    expect(facts.store_broke() || fence.0 == top, || {
        format!("a handler of m{id} with fence {fence} has its effect after a claim with {top}")
    })
}

pub(super) fn completed_is_final(facts: &Facts, event: &Event, world: &World) -> Option<String> {
    let Event::Started { copy, .. } = event else {
        return None;
    };
    let id = facts.id_of(*copy);
    let completed = facts.ids.get(&id).is_some_and(|known| known.completed);
    expect(
        world.dedupe == Dedupe::None || facts.writes_lost || !completed,
        || format!("a handler of m{id} starts, after it was completed"),
    )
}

pub(super) fn one_at_a_time(facts: &Facts, event: &Event, world: &World) -> Option<String> {
    let Event::Started { copy, pid, .. } = event else {
        return None;
    };
    let id = facts.id_of(*copy);
    let runs =
        |run: &&RunFacts| facts.id_of(run.copy) == id && run.end.is_none() && facts.lives(run.pid);
    let other = facts.runs.iter().find(runs);
    expect(
        world.dedupe == Dedupe::None || facts.store_broke() || other.is_none(),
        || format!("m{id} starts in process {pid} while another handler of it runs"),
    )
}

pub(super) fn renewal_ends(facts: &Facts, event: &Event, _: &World) -> Option<String> {
    let Event::TicketAsked {
        pid,
        hold,
        call: TicketCall::Renew | TicketCall::Confirm,
    } = event
    else {
        return None;
    };
    let given_up = facts.given_up.get(&(*pid, hold.id, hold.fence.0));
    expect(
        facts.writes_lost || given_up.is_none_or(|step| *step == facts.step),
        || {
            format!(
                "the claim of m{} with fence {} is renewed after its end",
                hold.id, hold.fence
            )
        },
    )
}
