//! Shutting down.

use std::time::Duration;

use super::expect;
use crate::event::{Event, RunEnd};
use crate::facts::{Facts, Life};
use crate::world::World;

/// How much longer than its grace a shutdown may take: four times five seconds for a broker or a store
/// that does not answer (the stop, the last settlements, the flush, the close), one for the last claims,
/// and one to be late.
const LAST_SETTLEMENTS: Duration = Duration::from_secs(22);

pub(super) fn shutdown_in_time(facts: &Facts, event: &Event, world: &World) -> Option<String> {
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

pub(super) fn nothing_starts_in_a_drain(facts: &Facts, event: &Event, _: &World) -> Option<String> {
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

pub(super) fn a_drain_gives_back(facts: &Facts, event: &Event, _: &World) -> Option<String> {
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

pub(super) fn the_end_is_the_end(facts: &Facts, event: &Event, _: &World) -> Option<String> {
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
