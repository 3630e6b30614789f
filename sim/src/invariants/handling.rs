//! Handlers: in which order, how many, and for how long.

use backstop_core::Ownership;

use super::expect;
use crate::event::{End, Event};
use crate::facts::{CopyFacts, Facts, Life, RunFacts};
use crate::world::{Order, World};

pub(super) fn order_within_a_key(facts: &Facts, event: &Event, world: &World) -> Option<String> {
    let Event::Started { copy, .. } = event else {
        return None;
    };
    if world.order == Order::Unordered {
        return None;
    }
    let key = facts.copies[*copy].publication.key;
    let stays = |other: &CopyFacts| other.publication.key == key && other.left.is_none();
    let before = facts.copies[..*copy].iter().position(stays);
    expect(before.is_none(), || {
        format!(
            "message {copy} starts before {} of the same key is done",
            before.unwrap_or(0)
        )
    })
}

pub(super) fn in_flight_bound(facts: &Facts, event: &Event, world: &World) -> Option<String> {
    let Event::Started { pid, .. } = event else {
        return None;
    };
    let running = facts.running(*pid).count();
    expect(running < world.max_in_flight, || {
        format!("process {pid} starts a handler beside {running} others")
    })
}

pub(super) fn loss_cancels(facts: &Facts, event: &Event, _: &World) -> Option<String> {
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

pub(super) fn leases_outlive_handlers(
    facts: &Facts,
    event: &Event,
    world: &World,
) -> Option<String> {
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
