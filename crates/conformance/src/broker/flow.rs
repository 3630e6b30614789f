//! Flow and shutdown: never more than asked for, and nothing left behind.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use backstop_core::{BreakerSettings, ConsumerBuilder, HandlerError, ReleaseCost, Verdict};
use tokio::time::Instant;

use super::journal::{Ending, Entry, Journal, Running, What};
use super::stage::{Door, Scene, Stage, id_of, ids_of, messages};
use super::watched::Watch;
use crate::runner::{Case, case};

pub(super) fn cases() -> Vec<Case<Stage>> {
    vec![
        case!("F1", no_more_are_in_flight_than_the_limit),
        case!("F2", a_drain_finishes_what_runs_and_takes_nothing_new),
        case!("F3", past_the_grace_what_runs_is_cancelled_and_given_back),
        case!("F4", acks_are_flushed_before_closing),
        case!("F5", stopping_and_starting_resumes),
        case!("F6", the_breaker_opens_probes_and_closes),
        case!("F7", a_long_poll_ends_at_once_on_shutdown),
    ]
}

async fn no_more_are_in_flight_than_the_limit(stage: Stage) -> Result<()> {
    const LIMIT: usize = 4;
    let scene = stage.scene().await?;
    let (journal, watch) = (Journal::default(), Watch::default());
    let broker = watch.over(scene.queue.connect().await?);
    let builder = scene.consumer_on(broker).idempotent_by_nature();
    let work = scene.ticks(1);
    let running = Running::start(
        &stage,
        builder.max_in_flight(LIMIT),
        &journal,
        move |_| async move {
            tokio::time::sleep(work).await;
            Ok(())
        },
    )?;
    scene.publish(messages(40)).await?;
    running
        .until("forty completions", |stats| stats.completed == 40)
        .await?;
    running.drain().await?;
    let most = most_at_once(&journal.entries());
    ensure!(
        (2..=LIMIT).contains(&most),
        "{most} handlers ran at once with a limit of {LIMIT}"
    );
    let held = watch.most_held();
    ensure!(
        held <= LIMIT,
        "{held} deliveries were held at once with a limit of {LIMIT}"
    );
    scene.must_be_empty().await
}

fn most_at_once(entries: &[Entry]) -> usize {
    let (mut running, mut most) = (0_usize, 0);
    for entry in entries {
        match entry.what {
            What::Started => running += 1,
            What::Succeeded | What::Failed | What::Dropped => running -= 1,
            What::Ready => {}
        }
        most = most.max(running);
    }
    most
}

async fn a_drain_finishes_what_runs_and_takes_nothing_new(stage: Stage) -> Result<()> {
    let scene = stage.scene().await?;
    let (journal, door) = (Journal::default(), Door::default());
    let waiting = door.clone();
    let builder = scene.storeless_consumer().await?.max_in_flight(4);
    let running = Running::start(&stage, builder, &journal, move |_| {
        let door = waiting.clone();
        async move {
            door.pass().await;
            Ok(())
        }
    })?;
    let sent = messages(20);
    scene.publish(sent.clone()).await?;
    journal.until_started(&stage, 4).await?;
    running.shutdown.begin();
    tokio::time::sleep(stage.harness.quiet()).await;
    door.open();
    let stats = running.end().await?;
    ensure!(
        stats.started == 4 && stats.completed == 4,
        "counted {stats:?}"
    );
    let done: BTreeSet<_> = journal.starts().into_iter().map(|start| start.id).collect();
    must_be_left(
        &scene,
        sent.iter().map(id_of).filter(|id| !done.contains(id)),
    )
    .await
}

/// Makes sure that exactly these are in the queue, without a past where a release is free.
async fn must_be_left(scene: &Scene, ids: impl Iterator<Item = String>) -> Result<()> {
    let wanted: BTreeSet<_> = ids.collect();
    let broker = scene.queue.connect().await?;
    let inbox = scene.subscribe(&broker, wanted.len()).await?;
    let left = inbox.receive(wanted.len()).await?;
    let seen: BTreeSet<_> = ids_of(&left).into_iter().collect();
    ensure!(
        seen == wanted,
        "left in the queue: {seen:?}, not {wanted:?}"
    );
    if scene.broker.capabilities().release == ReleaseCost::Free {
        let used: Vec<_> = left.iter().map(|delivery| delivery.attempts_used).collect();
        ensure!(
            used.iter().all(|used| *used == 0),
            "attempts were used up: {used:?}"
        );
    }
    inbox.complete(left).await?;
    inbox.close().await;
    scene.must_be_empty().await
}

async fn past_the_grace_what_runs_is_cancelled_and_given_back(stage: Stage) -> Result<()> {
    let scene = stage.scene().await?;
    let consumers = [scene.consumer().await?, scene.consumer().await?];
    let starts = cancelled_then_handled(&scene, consumers).await?;
    for (attempt, fence) in starts {
        ensure!(
            attempt == 1 && fence == Some(2),
            "given back, it was started as attempt {attempt} with the fence {fence:?}"
        );
    }
    if scene.broker.capabilities().release == ReleaseCost::Free {
        let consumers = [
            scene.storeless_consumer().await?,
            scene.storeless_consumer().await?,
        ];
        let starts = cancelled_then_handled(&scene, consumers).await?;
        let attempts: Vec<_> = starts.iter().map(|(attempt, _)| *attempt).collect();
        ensure!(
            attempts == [1; 4],
            "without a store, given back, they were started as attempts {attempts:?}"
        );
    }
    releases_keep_their_delay(&scene).await?;
    scene.must_be_empty().await
}

/// The attempts and fences of four messages after a shutdown that had to cancel them.
async fn cancelled_then_handled(
    scene: &Scene,
    [first, second]: [ConsumerBuilder; 2],
) -> Result<Vec<(u32, Option<u64>)>> {
    let stage = &scene.stage;
    let journal = Journal::default();
    let builder = first.shutdown_grace(scene.ticks(3));
    let running = Running::start(stage, builder, &journal, |_| std::future::pending())?;
    scene.publish(messages(4)).await?;
    journal.until_started(stage, 4).await?;
    running.drain().await?;
    let starts = journal.starts();
    ensure!(
        starts.iter().all(|start| start.ended(Ending::Dropped)),
        "the handlers ended otherwise: {starts:?}"
    );
    let journal = Journal::default();
    let running = Running::start(stage, second, &journal, |_| async { Ok(()) })?;
    running
        .until("four completions", |stats| stats.completed == 4)
        .await?;
    running.drain().await?;
    let starts = journal.starts().into_iter();
    Ok(starts.map(|start| (start.attempt, start.fence)).collect())
}

async fn releases_keep_their_delay(scene: &Scene) -> Result<()> {
    scene.publish(messages(1)).await?;
    let inbox = scene.subscribe(&scene.broker, 1).await?;
    for ticks in [0, 2, 15] {
        let delivery = inbox.next().await?;
        let (after, told) = (scene.ticks(ticks), Instant::now());
        inbox.settle(delivery, Verdict::Release { after }).await?;
        let again = inbox.next().await?;
        let took = told.elapsed();
        ensure!(
            took >= after,
            "what was released for {after:?} came after {took:?}"
        );
        let verdict = Verdict::Release {
            after: Duration::ZERO,
        };
        inbox.settle(again, verdict).await?;
    }
    let last = inbox.next().await?;
    let (used, cost) = (last.attempts_used, scene.broker.capabilities().release);
    ensure!(
        used == 0 || cost == ReleaseCost::Counted,
        "six releases used {used} attempts"
    );
    inbox.complete(vec![last]).await?;
    inbox.close().await;
    Ok(())
}

async fn acks_are_flushed_before_closing(stage: Stage) -> Result<()> {
    const COUNT: usize = 200;
    let scene = stage.scene().await?;
    let sent = messages(COUNT);
    scene.publish(sent).await?;
    let journal = Journal::default();
    let builder = scene.storeless_consumer().await?;
    let running = Running::start(&stage, builder, &journal, |_| async { Ok(()) })?;
    journal.until_succeeded(&stage, COUNT).await?;
    let stats = running.drain().await?;
    ensure!(stats.completed == COUNT as u64, "counted {stats:?}");
    scene.must_be_empty().await
}

async fn stopping_and_starting_resumes(stage: Stage) -> Result<()> {
    const COUNT: usize = 120;
    let scene = stage.scene().await?;
    let sent = messages(COUNT);
    scene.publish(sent.clone()).await?;
    let (journal, work) = (Journal::default(), scene.ticks(1) / 2);
    let start = async || {
        let builder = scene.storeless_consumer().await?.max_in_flight(8);
        Running::start(&stage, builder, &journal, move |_| async move {
            tokio::time::sleep(work).await;
            Ok(())
        })
    };
    for round in 1..=3 {
        let running = start().await?;
        journal.until_started(&stage, round * COUNT / 4).await?;
        running.drain().await?;
    }
    let running = start().await?;
    journal.until_succeeded(&stage, COUNT).await?;
    running.drain().await?;
    for message in &sent {
        let starts = journal.starts_of(&id_of(message)).len();
        ensure!(starts == 1, "a message was started {starts} times");
    }
    scene.must_be_empty().await
}

async fn the_breaker_opens_probes_and_closes(stage: Stage) -> Result<()> {
    const COUNT: usize = 40;
    let scene = stage.scene().await?;
    let (journal, works) = (Journal::default(), Arc::new(AtomicBool::new(false)));
    let downstream = Arc::clone(&works);
    let breaker = BreakerSettings {
        window: 4,
        failure_ratio: 1.0,
        first_pause: scene.ticks(3),
        longest_pause: scene.ticks(6),
    };
    let builder = scene.consumer().await?.breaker(breaker).max_in_flight(4);
    let running = Running::start(&stage, builder, &journal, move |_| {
        let works = downstream.load(Ordering::Relaxed);
        async move {
            if works {
                Ok(())
            } else {
                Err(HandlerError::transient("the downstream is away"))
            }
        }
    })?;
    let sent = messages(COUNT);
    scene.publish(sent.clone()).await?;
    running
        .until("it opens, and stays open after two probes", |stats| {
            stats.breaker_opened >= 3
        })
        .await?;
    ensure!(!running.monitor.is_ready(), "it calls itself ready");
    let early = running.stats();
    ensure!(
        early.started < COUNT as u64,
        "the outage did not stop intake: {early:?}"
    );
    let depth = scene.broker.dead_letters().await?.depth().await?;
    ensure!(depth == 0, "the outage cost {depth} messages");
    works.store(true, Ordering::Relaxed);
    running
        .until("all are completed", |stats| stats.completed == COUNT as u64)
        .await?;
    running.until_ready().await?;
    let stats = running.drain().await?;
    ensure!(stats.dead_lettered == 0, "counted {stats:?}");
    for message in &sent {
        let ended = journal.starts_of(&id_of(message));
        let ended = ended.iter().filter(|start| start.ended(Ending::Succeeded));
        let successes = ended.count();
        ensure!(successes == 1, "a message succeeded {successes} times");
    }
    scene.must_be_empty().await
}

async fn a_long_poll_ends_at_once_on_shutdown(stage: Stage) -> Result<()> {
    // Shorter than the long polls of brokers, which last 20 s; nothing else here takes long.
    const LONG_POLL: Duration = Duration::from_secs(18);
    let at_once = stage.harness.tolerance(Duration::ZERO).min(LONG_POLL);
    let scene = stage.scene().await?;
    let journal = Journal::default();
    let builder = scene.storeless_consumer().await?;
    let running = Running::start(&stage, builder, &journal, |_| async { Ok(()) })?;
    running.until_ready().await?;
    tokio::time::sleep(scene.ticks(5)).await;
    let told = Instant::now();
    running.drain().await?;
    let took = told.elapsed();
    ensure!(
        took <= at_once,
        "an idle consumer took {took:?} to shut down, and not {at_once:?} at most"
    );

    let inbox = scene.subscribe(&scene.broker, 1).await?;
    let (begun, before) = (Instant::now(), scene.ticks(2));
    let receive = inbox.subscription.receive(std::num::NonZeroUsize::MIN);
    let stop = async {
        tokio::time::sleep(before).await;
        inbox.subscription.stop().await;
    };
    let both = async { tokio::join!(receive, stop) };
    let (received, ()) = stage.must("the end of a stopped receive", both).await?;
    let took = begun.elapsed();
    ensure!(
        took <= before + at_once,
        "a receive that was stopped after {before:?} ended after {took:?}"
    );
    ensure!(
        received.is_err(),
        "a stopped receive of an empty queue gave something"
    );
    inbox.close().await;
    Ok(())
}
