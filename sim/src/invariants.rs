//! The invariants, each with its name. To add one, add a row to [`INVARIANTS`] and a function below that
//! looks at what was known before an event, and at the event.
//!
//! What a crash or another disturbance may legally repeat stands with the invariant that it bends.

use std::time::Duration;

use backstop_core::{Claim, DeadLetterReason, Ownership, ReleaseCost, ReleaseKind};

use crate::event::{End, Event, RunEnd, Settling, TicketCall};
use crate::facts::{Facts, Left, Life, RunFacts};
use crate::world::{Dedupe, Order, World};

/// How much longer than its grace a shutdown may take: four times five seconds for a broker or a store
/// that does not answer (the stop, the last settlements, the flush, the close), one for the last claims,
/// and one to be late.
const LAST_SETTLEMENTS: Duration = Duration::from_secs(22);

/// One thing that is always true.
pub struct Invariant {
    /// Its name.
    pub name: &'static str,
    /// What it says.
    pub says: &'static str,
    check: fn(&Facts, &Event, &World) -> Option<String>,
}

const fn invariant(
    name: &'static str,
    says: &'static str,
    check: fn(&Facts, &Event, &World) -> Option<String>,
) -> Invariant {
    Invariant { name, says, check }
}

/// All of them.
pub const INVARIANTS: &[Invariant] = &[
    invariant(
        "nothing is lost",
        "every published message ends completed or dead-lettered, once the faults are over; and leaves its queue only so",
        nothing_is_lost,
    ),
    invariant(
        "completed after success",
        "a delivery is completed only after its completion was recorded (or its message dead-lettered); without a store, after its handler succeeded",
        completed_after_success,
    ),
    invariant(
        "fences grow by one",
        "every acquired claim has the next fence; the same claim asked again has the same",
        fences_grow_by_one,
    ),
    invariant(
        "stale claims are refused",
        "only the newest claim of a key can be renewed, completed or released",
        stale_claims_are_refused,
    ),
    invariant(
        "one start a fence",
        "handlers of one key start with fences that strictly increase, so that effects are at most one a fence",
        one_start_a_fence,
    ),
    invariant(
        "completed is final",
        "no handler starts after the completion of its key was recorded",
        completed_is_final,
    ),
    invariant(
        "one at a time",
        "with a store, no two handlers of one key run at once, in whichever processes",
        one_at_a_time,
    ),
    invariant(
        "the cap holds",
        "no attempt has a number above the cap, and no more handlers start than it allows, apart from those that a shutdown cancelled; without a store a crash, or a settlement that fails, may forget some",
        the_cap_holds,
    ),
    invariant(
        "the cap is exact",
        "undisturbed, what is dead-lettered for its attempts was started exactly as often as the cap says",
        the_cap_is_exact,
    ),
    invariant(
        "only started attempts count",
        "a claim is released as failed only if its handler was started, and as unused only if it did not come to an end of its own",
        only_started_attempts_count,
    ),
    invariant(
        "dead letters are justified",
        "an exhausted message used all attempts, and a permanent error was one",
        dead_letters_are_justified,
    ),
    invariant(
        "dead once",
        "a message is dead-lettered once for each time it was published or redriven; a crash between that and its record may repeat it for a second copy",
        dead_once,
    ),
    invariant(
        "order within a key",
        "a handler starts only when everything published before it under its partition key has left the queue, through failures, crashes and hand-overs",
        order_within_a_key,
    ),
    invariant(
        "no early retry",
        "after a failure no attempt starts before its wait is over, unless the broker delivers anew because it never got the verdict, or a process starts what it does not know yet to be lost",
        no_early_retry,
    ),
    invariant(
        "in flight bound",
        "a process runs no more handlers at once than it may",
        in_flight_bound,
    ),
    invariant(
        "lost is not settled",
        "after the loss of its lease or claim was told, a delivery is neither completed nor dead-lettered",
        lost_is_not_settled,
    ),
    invariant(
        "loss cancels",
        "a handler whose lease or claim is known to be lost is cancelled at once",
        loss_cancels,
    ),
    invariant(
        "renewal ends with the handler",
        "a claim that was completed or released is not renewed any more",
        renewal_ends,
    ),
    invariant(
        "leases outlive handlers",
        "undisturbed, no lease and no claim is lost, and no handler is cancelled before its time, however long it takes",
        leases_outlive_handlers,
    ),
    invariant(
        "shutdown in time",
        "a run ends within its grace and the bounded times for the last settlements",
        shutdown_in_time,
    ),
    invariant(
        "nothing starts in a drain",
        "after a shutdown began, no handler starts",
        nothing_starts_in_a_drain,
    ),
    invariant(
        "a drain gives back",
        "an undisturbed run that ends has settled everything it received",
        a_drain_gives_back,
    ),
    invariant(
        "the end is the end",
        "after its run has ended, a process makes no calls and runs no handlers",
        the_end_is_the_end,
    ),
];

/// Checks an event against all of them.
pub(crate) fn check(facts: &Facts, event: &Event, world: &World) -> Option<(&'static str, String)> {
    INVARIANTS
        .iter()
        .find_map(|one| (one.check)(facts, event, world).map(|what| (one.name, what)))
}

/// A violation, unless it is as it should be.
fn expect(is_fine: bool, what: impl FnOnce() -> String) -> Option<String> {
    (!is_fine).then(what)
}

fn nothing_is_lost(facts: &Facts, event: &Event, _: &World) -> Option<String> {
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

fn completed_after_success(facts: &Facts, event: &Event, world: &World) -> Option<String> {
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

fn fences_grow_by_one(facts: &Facts, event: &Event, _: &World) -> Option<String> {
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

fn stale_claims_are_refused(facts: &Facts, event: &Event, _: &World) -> Option<String> {
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

fn one_start_a_fence(facts: &Facts, event: &Event, _: &World) -> Option<String> {
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

fn completed_is_final(facts: &Facts, event: &Event, world: &World) -> Option<String> {
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

fn one_at_a_time(facts: &Facts, event: &Event, world: &World) -> Option<String> {
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

fn the_cap_holds(facts: &Facts, event: &Event, world: &World) -> Option<String> {
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

fn the_cap_is_exact(facts: &Facts, event: &Event, world: &World) -> Option<String> {
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

fn only_started_attempts_count(facts: &Facts, event: &Event, _: &World) -> Option<String> {
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

fn dead_letters_are_justified(facts: &Facts, event: &Event, world: &World) -> Option<String> {
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
            let other = |other: &crate::facts::CopyFacts| {
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

fn dead_once(facts: &Facts, event: &Event, _: &World) -> Option<String> {
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

fn order_within_a_key(facts: &Facts, event: &Event, world: &World) -> Option<String> {
    let Event::Started { copy, .. } = event else {
        return None;
    };
    if world.order == Order::Unordered {
        return None;
    }
    let key = facts.copies[*copy].publication.key;
    let stays =
        |other: &crate::facts::CopyFacts| other.publication.key == key && other.left.is_none();
    let before = facts.copies[..*copy].iter().position(stays);
    expect(before.is_none(), || {
        format!(
            "message {copy} starts before {} of the same key is done",
            before.unwrap_or(0)
        )
    })
}

fn no_early_retry(facts: &Facts, event: &Event, _: &World) -> Option<String> {
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

fn in_flight_bound(facts: &Facts, event: &Event, world: &World) -> Option<String> {
    let Event::Started { pid, .. } = event else {
        return None;
    };
    let running = facts.running(*pid).count();
    expect(running < world.max_in_flight, || {
        format!("process {pid} starts a handler beside {running} others")
    })
}

/// What was decided before the loss was told may be on its way: only a later turn of the message
/// knows better.
fn lost_is_not_settled(facts: &Facts, event: &Event, world: &World) -> Option<String> {
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

fn loss_cancels(facts: &Facts, event: &Event, _: &World) -> Option<String> {
    if *event != Event::Idle {
        return None;
    }
    let knows = |run: &&RunFacts| {
        let lease = run
            .lease
            .and_then(|lease| facts.deliveries[&lease].lost_told);
        let told = [lease, run.fenced_told].into_iter().flatten().min();
        run.end.is_none() && facts.lives(run.pid) && told.is_some_and(|step| step < facts.step)
    };
    let run = facts.runs.iter().find(knows);
    run.map(|run| {
        format!(
            "the handler of message {} runs on after its loss was told",
            run.copy
        )
    })
}

fn renewal_ends(facts: &Facts, event: &Event, _: &World) -> Option<String> {
    let Event::TicketAsked {
        pid,
        hold,
        call: TicketCall::Renew,
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

fn leases_outlive_handlers(facts: &Facts, event: &Event, world: &World) -> Option<String> {
    if facts.disturbed {
        return None;
    }
    match event {
        Event::Ended {
            run,
            end: End::Dropped,
        } => {
            let run = &facts.runs[*run];
            let timed_out = facts.now >= run.started + world.handler_timeout;
            let runs_on = facts.processes[run.pid].life == Life::Running;
            expect(timed_out || !runs_on, || {
                format!("the handler of message {} was cancelled", run.copy)
            })
        }
        Event::TicketUsed {
            hold,
            ownership: Ownership::Fenced,
            ..
        } if !facts.ended.contains(&(hold.id, hold.fence.0)) => {
            Some(format!("the claim of m{} was lost", hold.id))
        }
        Event::LeaseLossTold { lease } if facts.deliveries[lease].settled.is_none() => {
            Some(format!(
                "the lease of message {} was lost",
                facts.deliveries[lease].copy
            ))
        }
        Event::Settled {
            lease, done: false, ..
        } => Some(format!(
            "message {} could not be settled",
            facts.deliveries[lease].copy
        )),
        _ => None,
    }
}

fn shutdown_in_time(facts: &Facts, event: &Event, world: &World) -> Option<String> {
    if !matches!(event, Event::Idle | Event::RunEnded { .. }) {
        return None;
    }
    facts
        .processes
        .iter()
        .enumerate()
        .find_map(|(pid, process)| {
            let Life::Draining { since, .. } = process.life else {
                return None;
            };
            let taken = facts.now - since;
            expect(taken <= world.grace + LAST_SETTLEMENTS, || {
                format!("process {pid} is still there {taken:?} after its shutdown began")
            })
        })
}

fn nothing_starts_in_a_drain(facts: &Facts, event: &Event, _: &World) -> Option<String> {
    let Event::Started { pid, copy, .. } = event else {
        return None;
    };
    let draining = match facts.processes[*pid].life {
        Life::Draining { step, .. } => step < facts.step,
        _ => false,
    };
    expect(!draining, || {
        format!("message {copy} starts in process {pid} during its shutdown")
    })
}

fn a_drain_gives_back(facts: &Facts, event: &Event, _: &World) -> Option<String> {
    let Event::RunEnded {
        pid,
        end: RunEnd::Ok,
    } = event
    else {
        return None;
    };
    if facts.processes[*pid].disturbed {
        return None;
    }
    let held = facts
        .deliveries
        .values()
        .filter(|d| d.pid == *pid && !d.settle_told);
    let first = held.map(|delivery| delivery.copy).min()?;
    Some(format!(
        "process {pid} ends and has not settled message {first}"
    ))
}

fn the_end_is_the_end(facts: &Facts, event: &Event, _: &World) -> Option<String> {
    match event {
        Event::Asked { pid } | Event::Started { pid, .. } => {
            let ended = matches!(facts.processes[*pid].life, Life::Ended | Life::Dropped);
            expect(!ended, || format!("process {pid} goes on after its end"))
        }
        Event::RunEnded { pid, .. } => {
            let runs = facts.running(*pid).next();
            runs.map(|run| format!("process {pid} ends while message {} is handled", run.copy))
        }
        _ => None,
    }
}
