//! Idempotency: repeats are harmless.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use backstop_core::{DeadLetterReason, HandlerError, Message, ReleaseCost, Stats};
use tokio::time::Instant;

use super::failing_store::{FailingStore, Health};
use super::harness::QueueSpec;
use super::journal::{Ending, Journal, Running, Start};
use super::stage::{Door, Scene, Stage, id_of, messages, unique};
use crate::runner::{Case, case};

pub(super) fn cases() -> Vec<Case<Stage>> {
    vec![
        case!("I1", a_repeat_after_success_is_acked_and_not_handled),
        case!("I2", of_concurrent_copies_one_runs),
        case!("I3", a_copy_of_what_is_in_progress_waits_without_an_attempt),
        case!("I4", a_failure_releases_the_claim),
        case!(
            "I5",
            after_a_crash_the_claim_runs_out_and_the_message_runs_again
        ),
        case!("I6", a_stale_owner_can_neither_complete_nor_release),
        case!("I7", a_claim_is_renewed_during_long_work),
        case!("I8", without_its_store_nothing_is_handled_and_nothing_lost),
        case!("I9", the_same_key_with_another_body_is_a_conflict),
        case!(
            "I10",
            a_crash_between_effect_and_completion_repeats_with_a_higher_fence
        ),
        case!("I11", namespaces_keep_consumers_apart),
        case!("I12", a_redrive_resets_the_count),
    ]
}

fn transient() -> HandlerError {
    HandlerError::transient("the downstream is away")
}

async fn a_repeat_after_success_is_acked_and_not_handled(stage: Stage) -> Result<()> {
    let scene = stage.scene().await?;
    let sent = messages(4);
    let journal = Journal::default();
    let succeeds = |_| async { Ok(()) };
    let running = Running::start(&stage, scene.consumer().await?, &journal, succeeds)?;
    scene.publish(sent.clone()).await?;
    running
        .until("four completions", |stats| stats.completed == 4)
        .await?;
    scene.publish(sent.clone()).await?;
    running
        .until("four repeats absorbed", |stats| stats.repeats == 4)
        .await?;
    running.drain().await?;

    // Another process absorbs them too.
    let running = Running::start(&stage, scene.consumer().await?, &journal, succeeds)?;
    scene.publish(sent).await?;
    running
        .until("four repeats absorbed elsewhere", |stats| {
            stats.repeats == 4
        })
        .await?;
    let stats = running.drain().await?;
    ensure!(stats.started == 0, "counted {stats:?}");
    let starts = journal.starts().len();
    ensure!(starts == 4, "{starts} starts instead of 4");
    scene.must_be_empty().await
}

async fn of_concurrent_copies_one_runs(stage: Stage) -> Result<()> {
    const COPIES: usize = 8;
    let scene = stage.scene().await?;
    let (lease, work) = (stage.short_lease(), scene.ticks(3));
    let journal = Journal::default();
    let start = async || {
        let builder = scene.consumer().await?.claim_lease(lease);
        Running::start(&stage, builder, &journal, move |_| async move {
            tokio::time::sleep(work).await;
            Ok(())
        })
    };
    let crew = [start().await?, start().await?];
    let sent = messages(5);
    let copies = (0..COPIES).flat_map(|_| sent.iter().cloned());
    scene.publish(copies).await?;
    let all = (COPIES * sent.len()) as u64;
    let settled = || async {
        let settled = |stats: Stats| stats.completed + stats.repeats;
        Ok(crew.iter().map(|one| settled(one.stats())).sum::<u64>() == all)
    };
    stage.until("every copy is settled", settled).await?;
    for running in crew {
        running.drain().await?;
    }
    for message in &sent {
        let attempts = journal.attempts_of(&id_of(message));
        ensure!(attempts == [1], "{COPIES} copies had attempts {attempts:?}");
    }
    scene.must_be_empty().await
}

async fn a_copy_of_what_is_in_progress_waits_without_an_attempt(stage: Stage) -> Result<()> {
    let scene = stage.scene().await?;
    let (journal, door) = (Journal::default(), Door::default());
    let waiting = door.clone();
    let builder = scene.consumer().await?.claim_lease(stage.short_lease());
    let running = Running::start(&stage, builder, &journal, move |start: Start| {
        let door = waiting.clone();
        async move {
            door.pass().await;
            if start.attempt == 1 {
                Err(transient())
            } else {
                Ok(())
            }
        }
    })?;
    let sent = messages(1);
    scene.publish(sent.clone()).await?;
    journal.until_started(&stage, 1).await?;
    scene.publish(sent.clone()).await?;
    running
        .until("the copy is given back", |stats| stats.released >= 1)
        .await?;
    door.open();
    let ends = |stats: &Stats| stats.completed == 1 && stats.repeats == 1;
    running.until("a completion and a repeat", ends).await?;
    let stats = running.drain().await?;
    let attempts = journal.attempts_of(&id_of(&sent[0]));
    ensure!(attempts == [1, 2], "the attempts were {attempts:?}");
    ensure!(stats.dead_lettered == 0, "counted {stats:?}");
    scene.must_be_empty().await
}

async fn a_failure_releases_the_claim(stage: Stage) -> Result<()> {
    let scene = stage.scene().await?;
    // A claim that was not released would outlast the case.
    let lease = stage.harness.patience() * 3;
    let journal = Journal::default();
    let builder = scene.consumer().await?.claim_lease(lease);
    let running = Running::start(&stage, builder, &journal, |start: Start| async move {
        if start.attempt < 3 {
            Err(transient())
        } else {
            Ok(())
        }
    })?;
    scene.publish(messages(2)).await?;
    running
        .until("two completions", |stats| stats.completed == 2)
        .await?;
    running.drain().await?;
    let starts = journal.starts();
    ensure!(starts.len() == 6, "{} starts instead of 6", starts.len());
    for start in starts {
        let (fence, attempt) = (start.fence, start.attempt);
        ensure!(
            fence == Some(u64::from(attempt)),
            "attempt {attempt} has the fence {fence:?}"
        );
    }
    Ok(())
}

async fn after_a_crash_the_claim_runs_out_and_the_message_runs_again(stage: Stage) -> Result<()> {
    let lease = stage.short_lease();
    let scene = stage.scene_with(QueueSpec::default().lease(lease)).await?;
    let journal = Journal::default();
    let (sent, claimed) = (messages(2), Instant::now());
    scene.publish(sent.clone()).await?;
    let builder = scene.consumer().await?.claim_lease(lease);
    let running = Running::start(&stage, builder, &journal, |_| std::future::pending())?;
    journal.until_started(&stage, 2).await?;
    running.crash().await;

    let builder = scene.consumer().await?.claim_lease(lease);
    let running = Running::start(&stage, builder, &journal, |_| async { Ok(()) })?;
    running
        .until("two completions", |stats| stats.completed == 2)
        .await?;
    running.drain().await?;
    for message in &sent {
        let starts = journal.starts_of(&id_of(message));
        must_have_fences(&starts, &[1, 2])?;
        let after = starts[1].at.duration_since(claimed);
        // The store's clock may show whole milliseconds only.
        let least = lease.saturating_sub(Duration::from_millis(2));
        ensure!(
            after >= least,
            "a claim of {lease:?} was taken over after {after:?}"
        );
    }
    scene.must_be_empty().await
}

fn must_have_fences(starts: &[Start], wanted: &[u64]) -> Result<()> {
    let fences: Vec<_> = starts.iter().filter_map(|start| start.fence).collect();
    ensure!(
        fences == wanted,
        "the fences were {fences:?} instead of {wanted:?}"
    );
    Ok(())
}

async fn a_stale_owner_can_neither_complete_nor_release(stage: Stage) -> Result<()> {
    for ending in [Ending::Succeeded, Ending::Failed] {
        let scene = stage.scene().await?;
        let end = stale_owner_ends(&scene, ending).await;
        end.with_context(|| format!("when the stale handler has {ending:?}"))?;
    }
    Ok(())
}

/// An owner stalls, another takes the claim over, and then the stale one comes to its end.
async fn stale_owner_ends(scene: &Scene, ending: Ending) -> Result<()> {
    const COPIES: usize = 8;
    let stage = &scene.stage;
    let (journal, lease) = (Journal::default(), stage.short_lease());
    let (stale_door, door) = (Door::default(), Door::default());
    let store = FailingStore::new(stage.store().await?, Health::VoidRenewals);
    let builder = scene
        .consumer_on(scene.queue.connect().await?)
        .store(store.handle())
        .claim_lease(lease)
        .max_in_flight(1);
    let waiting = stale_door.clone();
    let stale = Running::start(stage, builder, &journal, move |_| {
        let door = waiting.clone();
        async move {
            door.pass().await;
            match ending {
                Ending::Succeeded => Ok(()),
                _ => Err(transient()),
            }
        }
    })?;
    let sent = messages(1);
    scene.publish(sent.clone()).await?;
    journal.until_started(stage, 1).await?;

    let waiting = door.clone();
    let builder = scene.consumer().await?.claim_lease(lease);
    let successor = Running::start(stage, builder, &journal, move |_| {
        let door = waiting.clone();
        async move {
            door.pass().await;
            Ok(())
        }
    })?;
    // Some of the copies reach the successor, also where a broker's client fetches in advance.
    scene.publish(vec![sent[0].clone(); COPIES]).await?;
    journal.until_started(stage, 2).await?;
    stale_door.open();
    stale
        .until("the stale owner is told", |stats| stats.fenced > 0)
        .await?;
    tokio::time::sleep(stage.harness.quiet()).await;
    door.open();
    successor
        .until("the successor completes", |stats| stats.completed == 1)
        .await?;
    let repeats = || async {
        let repeats = stale.stats().repeats + successor.stats().repeats;
        Ok(repeats == COPIES as u64)
    };
    stage.until("the other copies are repeats", repeats).await?;
    let stats = stale.drain().await?;
    successor.drain().await?;
    ensure!(
        stats.completed == 0 && stats.retried == 0 && stats.dead_lettered == 0,
        "the stale owner counted {stats:?}"
    );
    must_have_fences(&journal.starts(), &[1, 2])?;
    scene.must_be_empty().await
}

async fn a_claim_is_renewed_during_long_work(stage: Stage) -> Result<()> {
    let scene = stage.scene().await?;
    let lease = stage.short_lease();
    let journal = Journal::default();
    let start = async || {
        let builder = scene.consumer().await?.claim_lease(lease);
        Running::start(&stage, builder, &journal, move |_| async move {
            tokio::time::sleep(lease * 3).await;
            Ok(())
        })
    };
    let sent = messages(1);
    // The copy asks again and again for the claim.
    scene.publish([sent[0].clone(), sent[0].clone()]).await?;
    let crew = [start().await?, start().await?];
    let absorbed = || async { Ok(crew.iter().map(|one| one.stats().repeats).sum::<u64>() == 1) };
    stage
        .until("the copy is absorbed as a repeat", absorbed)
        .await?;
    for running in crew {
        running.drain().await?;
    }
    must_have_fences(&journal.starts(), &[1])?;
    scene.must_be_empty().await
}

async fn without_its_store_nothing_is_handled_and_nothing_lost(stage: Stage) -> Result<()> {
    let scene = stage.scene().await?;
    let store = FailingStore::new(stage.store().await?, Health::Down);
    let builder = scene
        .consumer_on(scene.queue.connect().await?)
        .store(store.handle());
    let (journal, door) = (Journal::default(), Door::default());
    let waiting = door.clone();
    let running = Running::start(&stage, builder, &journal, move |_| {
        let door = waiting.clone();
        async move {
            door.pass().await;
            Ok(())
        }
    })?;
    let sent = messages(6);
    scene.publish(sent.clone()).await?;
    running
        .until("the store's failure shows", |stats| stats.store_errors > 0)
        .await?;
    ensure!(!running.monitor.is_ready(), "it calls itself ready");
    tokio::time::sleep(stage.harness.quiet()).await;
    let starts = journal.starts().len();
    ensure!(starts == 0, "{starts} handlers ran without the store");
    store.turn(Health::Well);
    journal.until_started(&stage, 6).await?;

    // The store is away when the handlers come to their end.
    store.turn(Health::Down);
    let errors = running.stats().store_errors;
    door.open();
    journal.until_succeeded(&stage, 6).await?;
    running
        .until("the failure to complete shows", |stats| {
            stats.store_errors > errors
        })
        .await?;
    store.turn(Health::Well);
    running
        .until("six completions", |stats| stats.completed == 6)
        .await?;
    running.until_ready().await?;
    let stats = running.drain().await?;
    ensure!(stats.dead_lettered == 0, "counted {stats:?}");
    let released_for_free = scene.broker.capabilities().release == ReleaseCost::Free;
    for message in &sent {
        let attempts = journal.attempts_of(&id_of(message));
        ensure!(attempts.len() == 1, "the attempts were {attempts:?}");
        ensure!(
            !released_for_free || attempts == [1],
            "the attempts were {attempts:?}"
        );
    }
    scene.must_be_empty().await
}

async fn the_same_key_with_another_body_is_a_conflict(stage: Stage) -> Result<()> {
    let scene = stage.scene().await?;
    let id = unique("i9");
    let (first, other) = (
        Message::new("100 euros").with_id(id.as_str()),
        Message::new("900 euros").with_id(id.as_str()),
    );
    let journal = Journal::default();
    let running = Running::start(&stage, scene.consumer().await?, &journal, |_| async {
        Ok(())
    })?;
    scene.publish([first]).await?;
    running
        .until("one completion", |stats| stats.completed == 1)
        .await?;
    scene.publish([other.clone()]).await?;
    let records = scene.dead_letters(1).await?;
    let stats = running.drain().await?;
    ensure!(
        stats.started == 1 && stats.conflicts == 1,
        "counted {stats:?}"
    );
    let (letter, body) = (&records[0].dead_letter, &records[0].message.body);
    ensure!(letter.reason == DeadLetterReason::KeyConflict, "{letter:?}");
    ensure!(
        *body == other.body,
        "another body is in the dead-letter queue"
    );
    scene.must_be_empty().await
}

async fn a_crash_between_effect_and_completion_repeats_with_a_higher_fence(
    stage: Stage,
) -> Result<()> {
    let lease = stage.short_lease();
    let scene = stage.scene_with(QueueSpec::default().lease(lease)).await?;
    let store = FailingStore::new(stage.store().await?, Health::NoCompletions);
    let builder = scene
        .consumer_on(scene.queue.connect().await?)
        .store(store.handle())
        .claim_lease(lease);
    let journal = Journal::default();
    let succeeds = |_| async { Ok(()) };
    let running = Running::start(&stage, builder, &journal, succeeds)?;
    let sent = messages(3);
    scene.publish(sent.clone()).await?;
    journal.until_succeeded(&stage, 3).await?;
    running.crash().await;

    let builder = scene.consumer().await?.claim_lease(lease);
    let running = Running::start(&stage, builder, &journal, succeeds)?;
    running
        .until("three completions", |stats| stats.completed == 3)
        .await?;
    running.drain().await?;
    for message in &sent {
        must_have_fences(&journal.starts_of(&id_of(message)), &[1, 2])?;
    }
    scene.must_be_empty().await
}

async fn namespaces_keep_consumers_apart(stage: Stage) -> Result<()> {
    let scene = stage.scene().await?;
    let sent = messages(3);
    for name in ["billing", "shipping"] {
        let journal = Journal::default();
        let builder = scene.consumer().await?.name(name);
        let running = Running::start(&stage, builder, &journal, |_| async { Ok(()) })?;
        scene.publish(sent.clone()).await?;
        running
            .until("three completions", |stats| stats.completed == 3)
            .await?;
        let stats = running.drain().await?;
        ensure!(stats.repeats == 0, "{name} counted {stats:?}");
        must_have_fences(&journal.starts(), &[1, 1, 1])?;
    }
    Ok(())
}

async fn a_redrive_resets_the_count(stage: Stage) -> Result<()> {
    let scene = stage.scene().await?;
    let sent = messages(1);
    let id = id_of(&sent[0]);
    let journal = Journal::default();
    let builder = scene.consumer().await?.max_attempts(2);
    let running = Running::start(&stage, builder, &journal, |start: Start| async move {
        // Healed before the redrive, but for one more failure.
        if start.fence.is_some_and(|fence| fence > 3) {
            Ok(())
        } else {
            Err(transient())
        }
    })?;
    scene.publish(sent.clone()).await?;
    scene.dead_letters(1).await?;
    scene.publish(sent.clone()).await?;
    running
        .until("a copy of a dead letter is a repeat", |stats| {
            stats.repeats == 1
        })
        .await?;
    let redriven = sent[0].clone().with_header(Message::REDRIVES_HEADER, "1");
    scene.publish([redriven]).await?;
    running
        .until("the redriven message is completed", |stats| {
            stats.completed == 1
        })
        .await?;
    running.drain().await?;
    let attempts = journal.attempts_of(&id);
    ensure!(attempts == [1, 2, 1, 2], "the attempts were {attempts:?}");
    must_have_fences(&journal.starts_of(&id), &[1, 2, 3, 4])?;
    scene.dead_letters(1).await?;
    scene.must_be_empty().await
}
