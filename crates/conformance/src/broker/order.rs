//! Order: messages of one partition key, one at a time and in order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use backstop_core::{DeadLetterReason, HandlerError, Message, ReleaseCost};
use tokio::sync::Barrier;

use super::harness::QueueSpec;
use super::journal::{Ending, Entry, Journal, Running, Start, What};
use super::stage::{Scene, Stage, backoff, id_of, messages, unique};
use crate::runner::{Case, case};

pub(super) fn cases() -> Vec<Case<Stage>> {
    vec![
        case!("O1", order_within_a_key_holds_through_failures),
        case!("O2", keys_run_in_parallel),
        case!("O3", nothing_overtakes_a_message_that_waits_for_its_retry),
        case!("O4", the_attempts_of_followers_are_not_used_up),
        case!("O5", after_a_dead_lettered_message_its_key_goes_on),
    ]
}

fn transient() -> HandlerError {
    HandlerError::transient("the downstream is away")
}

/// Messages of several keys, by turns; so many of each.
fn keyed(keys: usize, each: usize) -> Vec<Message> {
    keys_by_turns(messages(keys * each), keys)
}

/// Gives messages the keys of a new set, by turns.
pub(super) fn keys_by_turns(messages: Vec<Message>, keys: usize) -> Vec<Message> {
    let prefix = unique("key");
    let keyed = messages.into_iter().zip((0..keys).cycle());
    keyed
        .map(|(message, key)| message.with_partition_key(format!("{prefix}-{key}")))
        .collect()
}

/// Makes sure that nothing was started before all earlier messages of its key were done with:
/// had succeeded, or had no attempt left.
pub(super) fn must_be_in_order(
    entries: &[Entry],
    sent: &[Message],
    max_attempts: u32,
) -> Result<()> {
    let mut earlier: HashMap<String, Vec<String>> = HashMap::new();
    let mut lanes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for message in sent {
        let key = message.partition_key.as_ref().context("no key")?.as_str();
        let lane = lanes.entry(key.to_owned()).or_default();
        earlier.insert(id_of(message), lane.clone());
        lane.push(id_of(message));
    }
    let mut done = HashSet::new();
    for entry in entries {
        let Entry { id, attempt, .. } = entry;
        match entry.what {
            What::Started => {
                let unfinished = earlier
                    .get(id)
                    .and_then(|before| before.iter().find(|id| !done.contains(*id)));
                ensure!(
                    unfinished.is_none(),
                    "attempt {attempt} of {id} was started before {unfinished:?} was done with"
                );
            }
            What::Succeeded => {
                done.insert(id.clone());
            }
            What::Failed if *attempt >= max_attempts => {
                done.insert(id.clone());
            }
            What::Failed | What::Dropped | What::Ready => {}
        }
    }
    Ok(())
}

/// Makes sure that each message succeeded, once.
pub(super) fn must_succeed_once(entries: &[Entry], sent: &[Message]) -> Result<()> {
    let mut successes: HashMap<&str, u32> = HashMap::new();
    for entry in entries.iter().filter(|entry| entry.what == What::Succeeded) {
        *successes.entry(&entry.id).or_default() += 1;
    }
    for message in sent {
        let id = id_of(message);
        let count = successes.get(id.as_str()).copied().unwrap_or(0);
        ensure!(count == 1, "{id} succeeded {count} times");
    }
    Ok(())
}

async fn order_within_a_key_holds_through_failures(stage: Stage) -> Result<()> {
    let scene = stage.ordered_scene().await?;
    let sent = keyed(5, 10);
    // Every third message fails once, every seventh twice.
    let fails: HashMap<_, _> = sent
        .iter()
        .zip(0_u32..)
        .map(|(message, n)| {
            (
                id_of(message),
                u32::from(n % 3 == 0) + u32::from(n % 7 == 0),
            )
        })
        .collect();
    let journal = Journal::default();
    let builder = scene.consumer().await?.max_in_flight(8);
    let running = Running::start(&stage, builder, &journal, move |start: Start| {
        let fails = fails.get(&start.id).copied().unwrap_or(0);
        async move {
            if start.attempt <= fails {
                Err(transient())
            } else {
                Ok(())
            }
        }
    })?;
    scene.publish(sent.clone()).await?;
    running
        .until("fifty completions", |stats| stats.completed == 50)
        .await?;
    running.drain().await?;
    let entries = journal.entries();
    must_be_in_order(&entries, &sent, u32::MAX)?;
    must_succeed_once(&entries, &sent)?;
    scene.must_be_empty().await
}

async fn keys_run_in_parallel(stage: Stage) -> Result<()> {
    const KEYS: usize = 6;
    let scene = stage.ordered_scene().await?;
    let together = Arc::new(Barrier::new(KEYS));
    let journal = Journal::default();
    let builder = scene.consumer().await?.max_in_flight(KEYS);
    // No handler ends before one of each key runs.
    let running = Running::start(&stage, builder, &journal, move |_| {
        let together = Arc::clone(&together);
        async move {
            together.wait().await;
            Ok(())
        }
    })?;
    let sent = keyed(KEYS, 2);
    scene.publish(sent.clone()).await?;
    running
        .until("all are completed", |stats| stats.completed == 12)
        .await?;
    running.drain().await?;
    must_be_in_order(&journal.entries(), &sent, u32::MAX)
}

async fn nothing_overtakes_a_message_that_waits_for_its_retry(stage: Stage) -> Result<()> {
    // No broker's own cap is asked to be above 1,000: SQS takes none.
    let spec = QueueSpec::default().ordered().delivery_limit(1_000);
    let scene = stage.scene_with(spec).await?;
    let (slow, quick) = (keyed(1, 4), keyed(1, 4));
    let head = id_of(&slow[0]);
    let journal = Journal::default();
    let wait = scene.ticks(15);
    let builder = scene.consumer().await?.backoff(backoff(wait, wait));
    let builder = builder.max_attempts(900);
    // It fails until the other key is done with: a key that waits behind it waits for ever.
    let (first, others) = (head.clone(), quick.iter().map(id_of).collect::<Vec<_>>());
    let seen = journal.clone();
    let running = Running::start(&stage, builder, &journal, move |start: Start| {
        let is_done = |id: &String| {
            let starts = seen.starts_of(id);
            starts.iter().any(|start| start.ended(Ending::Succeeded))
        };
        let fails = start.id == first && (start.attempt < 3 || !others.iter().all(is_done));
        async move { if fails { Err(transient()) } else { Ok(()) } }
    })?;
    scene.publish(slow.clone()).await?;
    journal.until_started(&stage, 1).await?;
    scene.publish(quick.clone()).await?;
    running
        .until("eight completions", |stats| stats.completed == 8)
        .await?;
    running.drain().await?;
    let attempts = journal.attempts_of(&head);
    let wanted: Vec<_> = (1..).take(attempts.len()).collect();
    ensure!(
        attempts == wanted && attempts.len() >= 3,
        "the attempts were {attempts:?}"
    );
    let entries = journal.entries();
    must_be_in_order(&entries, &slow, u32::MAX)?;
    must_be_in_order(&entries, &quick, u32::MAX)?;
    scene.must_be_empty().await
}

async fn the_attempts_of_followers_are_not_used_up(stage: Stage) -> Result<()> {
    let scene = stage.ordered_scene().await?;
    followers_keep_attempts(&scene, true).await?;
    if scene.broker.capabilities().release == ReleaseCost::Free {
        let scene = stage.ordered_scene().await?;
        followers_keep_attempts(&scene, false).await?;
    }
    Ok(())
}

/// The head fails again and again, also in the next process, and its followers wait.
async fn followers_keep_attempts(scene: &Scene, with_store: bool) -> Result<()> {
    let stage = &scene.stage;
    let sent = keyed(1, 6);
    let head = id_of(&sent[0]);
    let journal = Journal::default();
    let start = async || {
        let builder = if with_store {
            scene.consumer().await?
        } else {
            scene.storeless_consumer().await?
        };
        let wait = scene.ticks(5);
        let builder = builder.backoff(backoff(wait, wait)).max_attempts(6);
        let head = head.clone();
        Running::start(stage, builder, &journal, move |start: Start| {
            let fails = start.id == head && start.attempt < 6;
            async move { if fails { Err(transient()) } else { Ok(()) } }
        })
    };
    scene.publish(sent.clone()).await?;
    for rounds in 1..=2 {
        let running = start().await?;
        journal.until_started(stage, rounds * 2).await?;
        running.drain().await?;
    }
    let running = start().await?;
    running
        .until("six completions", |stats| stats.completed == 6)
        .await?;
    running.drain().await?;
    must_be_in_order(&journal.entries(), &sent, u32::MAX)?;
    for message in &sent[1..] {
        let attempts = journal.attempts_of(&id_of(message));
        ensure!(attempts == [1], "a follower's attempts were {attempts:?}");
    }
    let attempts = journal.attempts_of(&head);
    // A broker may not know of attempts that a lane has seen; a store does.
    ensure!(
        !with_store || attempts == [1, 2, 3, 4, 5, 6],
        "the head's attempts were {attempts:?}"
    );
    scene.must_be_empty().await
}

async fn after_a_dead_lettered_message_its_key_goes_on(stage: Stage) -> Result<()> {
    let scene = stage.ordered_scene().await?;
    let sent = keyed(2, 6);
    // The first of one key is hopeless, the first of the other uses up its attempts.
    let (hopeless, poison) = (id_of(&sent[0]), id_of(&sent[1]));
    let bad = (hopeless.clone(), poison.clone());
    let journal = Journal::default();
    let builder = scene.consumer().await?.max_attempts(3);
    let running = Running::start(&stage, builder, &journal, move |start: Start| {
        let result = if start.id == bad.0 {
            Err(HandlerError::permanent("no such customer"))
        } else if start.id == bad.1 {
            Err(transient())
        } else {
            Ok(())
        };
        async move { result }
    })?;
    scene.publish(sent.clone()).await?;
    running
        .until("ten completions", |stats| stats.completed == 10)
        .await?;
    let records = scene.dead_letters(2).await?;
    running.drain().await?;
    let reasons: HashMap<_, _> = records
        .iter()
        .map(|record| (id_of(&record.message), record.dead_letter.reason))
        .collect();
    ensure!(
        reasons.get(&hopeless) == Some(&DeadLetterReason::PermanentError)
            && reasons.get(&poison) == Some(&DeadLetterReason::AttemptsExhausted),
        "dead letters: {reasons:?}"
    );
    let of_key = |n: usize| sent.iter().skip(n).step_by(2).cloned().collect::<Vec<_>>();
    let entries = journal.entries();
    must_be_in_order(&entries, &of_key(0), 1)?;
    must_be_in_order(&entries, &of_key(1), 3)?;
    scene.must_be_empty().await
}
