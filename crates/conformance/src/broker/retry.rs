//! Retry: backed off, counted, and never in anybody's way.

use std::time::Duration;

use anyhow::{Result, ensure};
use backstop_core::{ConsumerBuilder, DeadLetterReason, HandlerError, Message};

use super::journal::{Ending, Journal, Running, Start};
use super::stage::{Scene, Stage, backoff, id_of, messages, unique};
use crate::runner::{Case, case};

pub(super) fn cases() -> Vec<Case<Stage>> {
    vec![
        case!(
            "R3",
            a_message_is_started_exactly_n_times_then_dead_lettered_once
        ),
        case!("R6", a_permanent_error_dead_letters_after_one_start),
        case!("R8", a_panic_is_a_failure),
        case!("R9", a_timeout_is_a_failure_and_its_late_result_is_void),
        case!(
            "R10",
            slots_stay_free_while_a_thousand_messages_back_off,
            Alone
        ),
        case!("R13", a_message_survives_its_retries_unchanged),
    ]
}

fn transient() -> HandlerError {
    HandlerError::transient("the downstream is away")
}

async fn a_message_is_started_exactly_n_times_then_dead_lettered_once(stage: Stage) -> Result<()> {
    for with_store in [true, false] {
        let scene = stage.scene().await?;
        let builder = if with_store {
            scene.consumer().await?
        } else {
            scene.storeless_consumer().await?
        };
        exactly_three_starts(&scene, builder.max_attempts(3)).await?;
    }
    Ok(())
}

async fn exactly_three_starts(scene: &Scene, builder: ConsumerBuilder) -> Result<()> {
    let stage = &scene.stage;
    let (poison, good) = (messages(5), messages(5));
    scene.publish(poison.iter().chain(&good).cloned()).await?;
    let journal = Journal::default();
    let bad: Vec<_> = poison.iter().map(id_of).collect();
    let ids = bad.clone();
    let running = Running::start(stage, builder, &journal, move |start| {
        let result = if ids.contains(&start.id) {
            Err(transient())
        } else {
            Ok(())
        };
        async { result }
    })?;
    let records = scene.dead_letters(5).await?;
    running
        .until("five completions", |stats| stats.completed == 5)
        .await?;
    tokio::time::sleep(stage.harness.quiet()).await;
    let stats = running.drain().await?;
    for id in &bad {
        let attempts = journal.attempts_of(id);
        ensure!(
            attempts == [1, 2, 3],
            "the attempts of a poison message were {attempts:?}"
        );
        let letters = records
            .iter()
            .filter(|record| id_of(&record.message) == *id);
        let letters: Vec<_> = letters.map(|record| &record.dead_letter).collect();
        ensure!(
            letters.len() == 1,
            "it is {} times in the dead-letter queue",
            letters.len()
        );
        ensure!(
            letters[0].reason == DeadLetterReason::AttemptsExhausted,
            "{letters:?}"
        );
        ensure!(letters[0].attempts == 3, "{letters:?}");
    }
    for message in &good {
        ensure!(
            journal.attempts_of(&id_of(message)) == [1],
            "a good message was not handled once"
        );
    }
    ensure!(
        stats.started == 20 && stats.dead_lettered == 5 && stats.retried == 10,
        "counted {stats:?}"
    );
    scene.dead_letters(5).await?;
    scene.must_be_empty().await
}

async fn a_permanent_error_dead_letters_after_one_start(stage: Stage) -> Result<()> {
    let scene = stage.scene().await?;
    let sent = messages(3);
    scene.publish(sent.clone()).await?;
    let journal = Journal::default();
    let running = Running::start(&stage, scene.consumer().await?, &journal, |_| async {
        Err(HandlerError::permanent("no such customer"))
    })?;
    let records = scene.dead_letters(3).await?;
    tokio::time::sleep(stage.harness.quiet()).await;
    running.drain().await?;
    ensure!(
        journal.starts().len() == 3,
        "{} starts instead of 3",
        journal.starts().len()
    );
    for record in &records {
        let letter = &record.dead_letter;
        ensure!(
            letter.reason == DeadLetterReason::PermanentError && letter.attempts == 1,
            "{letter:?}"
        );
    }
    scene.must_be_empty().await
}

async fn a_panic_is_a_failure(stage: Stage) -> Result<()> {
    let scene = stage.scene().await?;
    let sent = messages(2);
    let (once, always) = (id_of(&sent[0]), id_of(&sent[1]));
    scene.publish(sent).await?;
    let journal = Journal::default();
    let poison = always.clone();
    let builder = scene.consumer().await?.max_attempts(2);
    let running = Running::start(&stage, builder, &journal, move |start: Start| {
        let panics = start.attempt == 1 || start.id == poison;
        async move {
            assert!(
                !panics,
                "the handler of the conformance suite panics on purpose"
            );
            Ok(())
        }
    })?;
    let records = scene.dead_letters(1).await?;
    running
        .until("one completion", |stats| stats.completed == 1)
        .await?;
    let stats = running.drain().await?;
    ensure!(
        journal.attempts_of(&once) == [1, 2],
        "{:?}",
        journal.attempts_of(&once)
    );
    ensure!(
        journal.attempts_of(&always) == [1, 2],
        "{:?}",
        journal.attempts_of(&always)
    );
    ensure!(
        stats.panicked == 3 && stats.failed == 3,
        "counted {stats:?}"
    );
    let letter = &records[0].dead_letter;
    ensure!(
        letter.reason == DeadLetterReason::AttemptsExhausted,
        "{letter:?}"
    );
    ensure!(
        letter.error.contains("panics on purpose"),
        "the error is {:?}",
        letter.error
    );
    Ok(())
}

async fn a_timeout_is_a_failure_and_its_late_result_is_void(stage: Stage) -> Result<()> {
    let scene = stage.scene().await?;
    let sent = messages(1);
    let id = id_of(&sent[0]);
    scene.publish(sent).await?;
    let journal = Journal::default();
    let limit = stage.short_lease();
    let builder = scene.consumer().await?.handler_timeout(limit);
    let late = limit * 2;
    let running = Running::start(&stage, builder, &journal, move |start| async move {
        if start.attempt == 1 {
            tokio::time::sleep(late).await;
        }
        Ok(())
    })?;
    running
        .until("one completion", |stats| stats.completed == 1)
        .await?;
    tokio::time::sleep(late).await;
    let stats = running.drain().await?;
    let endings: Vec<_> = journal
        .starts_of(&id)
        .iter()
        .filter_map(|start| start.end.map(|end| (start.attempt, end.ending)))
        .collect();
    ensure!(
        endings == [(1, Ending::Dropped), (2, Ending::Succeeded)],
        "the attempts ended as {endings:?}"
    );
    ensure!(
        stats.timed_out == 1 && stats.completed == 1,
        "counted {stats:?}"
    );
    scene.must_be_empty().await
}

async fn slots_stay_free_while_a_thousand_messages_back_off(stage: Stage) -> Result<()> {
    const WAITING: usize = 1_000;
    let scene = stage.scene().await?;
    // A wait that outlasts the case.
    let long = Duration::from_mins(12);
    let builder = scene
        .consumer()
        .await?
        .backoff(backoff(long, long))
        .max_in_flight(8);
    let prefix = unique("r10");
    // Some succeed, so that this is no general failure.
    let failing = (0..WAITING).map(|n| format!("{prefix}-bad-{n}"));
    let mut ids: Vec<_> = failing.collect();
    for n in 0..WAITING / 8 {
        ids.insert(n * 9, format!("{prefix}-good-{n}"));
    }
    scene
        .publish(ids.iter().map(|id| Message::new("").with_id(id.as_str())))
        .await?;
    let journal = Journal::default();
    let running = Running::start(&stage, builder, &journal, |start: Start| {
        let fails = start.id.contains("-bad-");
        async move { if fails { Err(transient()) } else { Ok(()) } }
    })?;
    let waiting = |stats: &backstop_core::Stats| stats.retried == WAITING as u64;
    running
        .until("1,000 messages that wait for a retry", waiting)
        .await?;
    let late = messages(50);
    scene.publish(late.clone()).await?;
    let all = (WAITING / 8 + 50) as u64;
    running
        .until("50 messages handled meanwhile", |stats| {
            stats.completed == all
        })
        .await?;
    let stats = running.drain().await?;
    ensure!(stats.started == WAITING as u64 + all, "counted {stats:?}");
    Ok(())
}

async fn a_message_survives_its_retries_unchanged(stage: Stage) -> Result<()> {
    let scene = stage.scene().await?;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let sent = Message::new(vec![0, 159, 146, 150])
        .with_id(unique("r13 größer"))
        .with_partition_key("customer 鍵")
        .with_header("traceparent", trace)
        .with_header("tracestate", "vendor=1")
        .with_header("tenant", "größer");
    scene.publish([sent.clone()]).await?;
    let journal = Journal::default();
    // Waits of all kinds that adapters tell apart.
    let builder = scene
        .consumer()
        .await?
        .backoff(backoff(scene.ticks(3), scene.ticks(15)));
    let running = Running::start(&stage, builder, &journal, |start: Start| async move {
        if start.attempt < 5 {
            Err(transient())
        } else {
            Ok(())
        }
    })?;
    running
        .until("one completion", |stats| stats.completed == 1)
        .await?;
    running.drain().await?;
    let starts = journal.starts();
    ensure!(starts.len() == 5, "{} starts instead of 5", starts.len());
    for start in starts {
        let (seen, attempt) = (&start.message, start.attempt);
        ensure!(
            seen.id == sent.id,
            "attempt {attempt} has the id {:?}",
            seen.id
        );
        ensure!(
            seen.partition_key == sent.partition_key,
            "attempt {attempt} has the partition key {:?}",
            seen.partition_key
        );
        ensure!(seen.body == sent.body, "attempt {attempt} has another body");
        for (name, value) in sent.headers.iter() {
            let found = seen.headers.get(name);
            ensure!(
                found == Some(value),
                "attempt {attempt} has {name}: {found:?}"
            );
        }
        ensure!(
            seen.headers.len() == sent.headers.len(),
            "attempt {attempt} has the headers {:?}",
            seen.headers
        );
    }
    Ok(())
}
