//! The invariants, each with its name. To add one, add a row to [`INVARIANTS`] and, in the file of
//! its subject, a function that looks at what was known before an event, and at the event.
//!
//! What a crash or another disturbance may legally repeat stands with the invariant that it bends.

mod attempts;
mod claims;
mod handling;
mod settling;
mod shutdown;

use crate::event::Event;
use crate::facts::Facts;
use crate::world::World;

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
        settling::nothing_is_lost,
    ),
    invariant(
        "completed after success",
        "a delivery is completed only after its completion was recorded (or its message dead-lettered); without a store, after its handler succeeded",
        settling::completed_after_success,
    ),
    invariant(
        "fences grow by one",
        "every acquired claim has the next fence; the same claim asked again has the same",
        claims::fences_grow_by_one,
    ),
    invariant(
        "stale claims are refused",
        "only the newest claim of a key can be renewed, completed or released",
        claims::stale_claims_are_refused,
    ),
    invariant(
        "one start a fence",
        "handlers of one key start with fences that strictly increase, so that effects are at most one a fence",
        claims::one_start_a_fence,
    ),
    invariant(
        "no stale effect",
        "no handler that heeds its cancellation has an effect after its key was claimed anew",
        claims::no_stale_effect,
    ),
    invariant(
        "completed is final",
        "no handler starts after the completion of its key was recorded",
        claims::completed_is_final,
    ),
    invariant(
        "one at a time",
        "with a store, no two handlers of one key run at once, in whichever processes",
        claims::one_at_a_time,
    ),
    invariant(
        "the cap holds",
        "no attempt has a number above the cap, and no more handlers start than it allows, apart from those that a shutdown cancelled; without a store a crash, or a settlement that fails, may forget some",
        attempts::the_cap_holds,
    ),
    invariant(
        "the cap is exact",
        "undisturbed, what is dead-lettered for its attempts was started exactly as often as the cap says",
        attempts::the_cap_is_exact,
    ),
    invariant(
        "only started attempts count",
        "a claim is released as failed only if its handler was started, and as unused only if it did not come to an end of its own",
        attempts::only_started_attempts_count,
    ),
    invariant(
        "dead letters are justified",
        "an exhausted message used all attempts, and a permanent error was one",
        settling::dead_letters_are_justified,
    ),
    invariant(
        "dead once",
        "a message is dead-lettered once for each time it was published or redriven; a crash between that and its record may repeat it for a second copy",
        settling::dead_once,
    ),
    invariant(
        "order within a key",
        "a handler starts only when everything published before it under its partition key has left the queue, through failures, crashes and hand-overs",
        handling::order_within_a_key,
    ),
    invariant(
        "no early retry",
        "after a failure no attempt starts before its wait is over, unless the broker delivers anew because it never got the verdict, or a process starts what it does not know yet to be lost",
        attempts::no_early_retry,
    ),
    invariant(
        "in flight bound",
        "a process runs no more handlers at once than it may",
        handling::in_flight_bound,
    ),
    invariant(
        "lost is not settled",
        "after the loss of its lease or claim was told, a delivery is neither completed nor dead-lettered",
        settling::lost_is_not_settled,
    ),
    invariant(
        "loss cancels",
        "a handler whose lease or claim is known to be lost is cancelled at once",
        handling::loss_cancels,
    ),
    invariant(
        "renewal ends with the handler",
        "a claim that was completed or released is not renewed any more",
        claims::renewal_ends,
    ),
    invariant(
        "leases outlive handlers",
        "undisturbed, no lease and no claim is lost, and no handler is cancelled before its time, however long it takes",
        handling::leases_outlive_handlers,
    ),
    invariant(
        "shutdown in time",
        "a run ends within its grace and the bounded times for the last settlements",
        shutdown::shutdown_in_time,
    ),
    invariant(
        "nothing starts in a drain",
        "after a shutdown began, no handler starts",
        shutdown::nothing_starts_in_a_drain,
    ),
    invariant(
        "a drain gives back",
        "an undisturbed run that ends has settled everything it received",
        shutdown::a_drain_gives_back,
    ),
    invariant(
        "the end is the end",
        "after its run has ended, a process makes no calls and runs no handlers",
        shutdown::the_end_is_the_end,
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
