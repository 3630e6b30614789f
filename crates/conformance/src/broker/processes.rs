//! Promises that hold across processes, restarts and crashes.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use backstop_core::{DeadLetterReason, Message, Survival};

use super::crew::{Crew, attempts_of, count, task};
use super::harness::{QueueSpec, WorkerStore};
use super::journal::What;
use super::order::{keys_by_turns, must_be_in_order, must_succeed_once};
use super::stage::{Scene, Stage, id_of};
use super::worker::{Act, Duty};
use crate::runner::{Case, case};

pub(super) fn cases() -> Vec<Case<Stage>> {
    vec![
        case!("R4", the_cap_is_exact_with_three_consumers),
        case!(
            "R5",
            the_count_survives_restarts_of_process_and_broker,
            Alone
        ),
        case!("O6", a_key_moves_to_another_consumer_after_a_crash_in_order),
        case!("O7", order_holds_with_three_consumers),
    ]
}

const STORES: [WorkerStore; 2] = [WorkerStore::Shared, WorkerStore::None];

async fn the_cap_is_exact_with_three_consumers(stage: Stage) -> Result<()> {
    for store in STORES {
        let scene = stage.scene().await?;
        let done = cap_is_exact(&scene, store).await;
        done.with_context(|| format!("with the store {store:?}"))?;
        let spec = QueueSpec::default().lease(stage.short_lease());
        let scene = stage.scene_with(spec).await?;
        let done = killer_is_stopped(&scene, store).await;
        done.with_context(|| format!("a message that kills, with the store {store:?}"))?;
    }
    Ok(())
}

async fn cap_is_exact(scene: &Scene, store: WorkerStore) -> Result<()> {
    const EACH: usize = 24;
    let work = scene.ticks(1) / 2;
    let poison = (0..EACH).map(|_| task(work, vec![Act::Fail; 9]));
    let good = (0..EACH).map(|_| task(work, Vec::new()));
    let (poison, good): (Vec<_>, Vec<_>) =
        (poison.collect::<Result<_>>()?, good.collect::<Result<_>>()?);
    let mut crew = Crew::new(scene, store)?;
    for _ in 0..3 {
        let duty = scene.duty();
        crew.hire(Duty {
            max_attempts: 3,
            ..duty
        })
        .await?;
    }
    let turns = poison.iter().zip(&good);
    scene
        .publish(turns.flat_map(|(bad, good)| [bad.clone(), good.clone()]))
        .await?;
    crew.until("every good message succeeds", |entries| {
        count(entries, What::Succeeded) >= EACH
    })
    .await?;
    scene.dead_letters(EACH as u64).await?;
    tokio::time::sleep(scene.stage.harness.quiet()).await;
    crew.drain_all().await?;
    let entries = crew.entries()?;
    for (messages, wanted) in [(&poison, &[1, 2, 3][..]), (&good, &[1])] {
        for message in messages {
            let attempts = attempts_of(&entries, message);
            ensure!(
                attempts == wanted,
                "the attempts of a message were {attempts:?}, not {wanted:?}"
            );
        }
    }
    let started = entries.iter().filter(|e| e.what == What::Started);
    let workers: BTreeSet<_> = started.map(|entry| entry.worker).collect();
    ensure!(
        workers.len() >= 2,
        "one of three consumers had all messages"
    );
    scene.dead_letters(EACH as u64).await?;
    scene.must_be_empty().await
}

async fn the_count_survives_restarts_of_process_and_broker(stage: Stage) -> Result<()> {
    let spec = QueueSpec::default().lease(stage.short_lease());
    let with_store = stage.scene_with(spec).await?;
    let without = stage.scene_with(spec).await?;
    let mut stored = Counted::begin(&with_store, WorkerStore::Shared).await?;
    let mut storeless = Counted::begin(&without, WorkerStore::None).await?;
    with_store.queue.restart_broker().await?;
    if without.broker.capabilities().survival == Survival::Process {
        // Each of its queues is a broker.
        without.queue.restart_broker().await?;
    }
    let (stored, storeless) = tokio::try_join!(stored.end(), storeless.end())?;
    for attempts in stored {
        ensure!(attempts == [1, 2, 3, 4], "the attempts were {attempts:?}");
    }
    for attempts in storeless {
        // A broker may count more than there was, never less.
        ensure!(
            (3..=4).contains(&attempts.len()),
            "without a store the attempts were {attempts:?}"
        );
    }
    Ok(())
}

/// Three messages that fail or die with their process each time, on their way to a cap of four.
struct Counted<'a> {
    scene: &'a Scene,
    crew: Crew<'a>,
    duty: Duty,
    sent: Vec<Message>,
}

impl<'a> Counted<'a> {
    /// Attempt 1 fails, and its process ends.
    async fn begin(scene: &'a Scene, store: WorkerStore) -> Result<Self> {
        let duty = Duty {
            max_attempts: 4,
            wait: scene.ticks(15),
            act: Some(Act::Fail),
            ..scene.duty()
        };
        let mut crew = Crew::new(scene, store)?;
        let sent = (0..3).map(|_| task(Duration::ZERO, Vec::new()));
        let sent: Vec<_> = sent.collect::<Result<_>>()?;
        scene.publish(sent.clone()).await?;
        let first = crew.hire(duty.clone()).await?;
        crew.until("three failures", |entries| {
            count(entries, What::Failed) >= 3
        })
        .await?;
        crew.drain(first).await?;
        Ok(Self {
            scene,
            crew,
            duty,
            sent,
        })
    }

    /// Attempt 2 dies with its process, the last two fail. Gives the attempts of each message.
    async fn end(&mut self) -> Result<Vec<Vec<u32>>> {
        let hangs = Duty {
            act: Some(Act::Hang),
            ..self.duty.clone()
        };
        let second = self.crew.hire(hangs).await?;
        self.crew
            .until("three more starts", |entries| {
                count(entries, What::Started) >= 6
            })
            .await?;
        self.crew.kill(second).await?;
        self.crew.hire(self.duty.clone()).await?;
        let records = self.scene.dead_letters(3).await?;
        self.crew.drain_all().await?;
        let reasons: Vec<_> = records.iter().map(|r| r.dead_letter.reason).collect();
        ensure!(
            reasons == [DeadLetterReason::AttemptsExhausted; 3],
            "{reasons:?}"
        );
        let entries = self.crew.entries()?;
        let attempts = self.sent.iter().map(|sent| attempts_of(&entries, sent));
        Ok(attempts.collect())
    }
}

/// Each process that starts the message dies of it.
async fn killer_is_stopped(scene: &Scene, store: WorkerStore) -> Result<()> {
    const CAP: u32 = 3;
    let duty = Duty {
        max_attempts: CAP,
        act: Some(Act::Hang),
        ..scene.duty()
    };
    let mut crew = Crew::new(scene, store)?;
    let sent = task(Duration::ZERO, Vec::new())?;
    scene.publish([sent.clone()]).await?;
    let dead = scene.broker.dead_letters().await?;
    let mut starts = 0;
    loop {
        let worker = crew.hire(duty.clone()).await?;
        let ends = || async {
            let started = attempts_of(&crew.entries()?, &sent).len() > starts;
            Ok(started || dead.depth().await? > 0)
        };
        scene
            .stage
            .until("the message is started or dead-lettered", ends)
            .await?;
        if dead.depth().await? > 0 {
            break;
        }
        crew.kill(worker).await?;
        starts = attempts_of(&crew.entries()?, &sent).len();
        ensure!(
            starts <= CAP as usize,
            "{starts} processes died of a message"
        );
    }
    crew.drain_all().await?;
    let starts = attempts_of(&crew.entries()?, &sent).len();
    let exact = starts == CAP as usize;
    ensure!(
        exact || (store == WorkerStore::None && starts > 0),
        "{starts} processes died of a message with a cap of {CAP}"
    );
    let records = scene.dead_letters(1).await?;
    let letter = &records[0].dead_letter;
    ensure!(
        letter.reason == DeadLetterReason::AttemptsExhausted,
        "{letter:?}"
    );
    Ok(())
}

/// Tasks of several keys, by turns.
fn keyed_tasks(
    scene: &Scene,
    keys: usize,
    each: usize,
    acts: impl Fn(usize) -> Vec<Act>,
) -> Result<Vec<Message>> {
    let work = scene.ticks(1) / 2;
    let tasks = (0..keys * each).map(|n| task(work, acts(n)));
    let tasks: Vec<_> = tasks.collect::<Result<_>>()?;
    Ok(keys_by_turns(tasks, keys))
}

async fn a_key_moves_to_another_consumer_after_a_crash_in_order(stage: Stage) -> Result<()> {
    let spec = QueueSpec::default().ordered().lease(stage.short_lease());
    let scene = stage.scene_with(spec).await?;
    let sent = keyed_tasks(&scene, 3, 10, |_| Vec::new())?;
    let mut crew = Crew::new(&scene, WorkerStore::Shared)?;
    for _ in 0..2 {
        crew.hire(scene.duty()).await?;
    }
    scene.publish(sent.clone()).await?;
    // Twice, whoever is at work is killed, and a new one comes.
    let mut killed = Vec::new();
    for _ in 0..2 {
        let before = count(&crew.entries()?, What::Succeeded);
        let mut at_work = 0;
        crew.until("four more successes, and somebody at work", |entries| {
            let last = entries.iter().rfind(|e| e.what == What::Started);
            at_work = last.map_or(0, |entry| entry.worker);
            count(entries, What::Succeeded) >= before + 4 && !killed.contains(&at_work)
        })
        .await?;
        crew.kill(at_work).await?;
        killed.push(at_work);
        crew.hire(scene.duty()).await?;
    }
    let ids: BTreeSet<_> = sent.iter().map(id_of).collect();
    crew.until("every message succeeds", |entries| {
        let succeeded = entries.iter().filter(|e| e.what == What::Succeeded);
        let succeeded: BTreeSet<_> = succeeded.map(|entry| entry.id.clone()).collect();
        succeeded == ids
    })
    .await?;
    crew.drain_all().await?;
    let entries = crew.entries()?;
    must_be_in_order(&entries, &sent, u32::MAX)?;
    let depth = scene.broker.dead_letters().await?.depth().await?;
    ensure!(depth == 0, "{depth} messages were dead-lettered");
    scene.must_be_empty().await
}

async fn order_holds_with_three_consumers(stage: Stage) -> Result<()> {
    let scene = stage.ordered_scene().await?;
    // Every fourth fails once, every tenth twice.
    let acts = |n| match n {
        n if n % 10 == 0 => vec![Act::Fail; 2],
        n if n % 4 == 0 => vec![Act::Fail],
        _ => Vec::new(),
    };
    let sent = keyed_tasks(&scene, 6, 10, acts)?;
    let mut crew = Crew::new(&scene, WorkerStore::Shared)?;
    let first = crew.hire(scene.duty()).await?;
    crew.hire(scene.duty()).await?;
    crew.hire(scene.duty()).await?;
    scene.publish(sent.clone()).await?;
    crew.until("some successes", |entries| {
        count(entries, What::Succeeded) >= 15
    })
    .await?;
    // Its keys move on without a crash.
    crew.drain(first).await?;
    crew.hire(scene.duty()).await?;
    crew.until("every message succeeds", |entries| {
        count(entries, What::Succeeded) >= sent.len()
    })
    .await?;
    crew.drain_all().await?;
    let entries = crew.entries()?;
    must_be_in_order(&entries, &sent, u32::MAX)?;
    must_succeed_once(&entries, &sent)?;
    scene.must_be_empty().await
}
