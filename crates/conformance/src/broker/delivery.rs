//! Delivery: what is published arrives, unchanged, until it is settled.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use backstop_core::{BrokerErrorKind, Delivery, Message, Outgoing, Settlement, Verdict};
use tokio::time::timeout;

use super::harness::QueueSpec;
use super::stage::{Scene, Stage, close, id_of, ids_of, messages};
use crate::runner::{Case, case};

pub(super) fn cases() -> Vec<Case<Stage>> {
    vec![
        case!("D1", body_headers_and_id_arrive_byte_for_byte),
        case!("D2", competing_consumers_get_all_and_each_its_own),
        case!("D3", queues_are_isolated),
        case!("D4", a_completed_message_stays_gone_after_a_restart, Alone),
        case!("D5", what_is_dropped_unsettled_is_delivered_again),
        case!("D6", a_stale_settlement_is_a_typed_error_without_effect),
        case!("D7", a_missing_queue_is_a_typed_error_at_start),
        case!("D8", a_cancelled_receive_loses_nothing),
        case!("D9", opening_and_closing_again_and_again_loses_nothing),
        case!("D10", a_publication_is_confirmed_or_an_error),
    ]
}

/// Publishes the largest text that there can be with an id: of the limit, or of a little less where the id
/// counts, too.
async fn publish_the_largest(scene: &Scene) -> Result<Message> {
    const ROOM_FOR_AN_ID: usize = 4096;
    let limit = scene.broker.capabilities().max_body;
    let of = |size| Message::new(vec![b'7'; size]).with_id("at-the-limit");
    let largest = Outgoing {
        message: Arc::new(of(limit)),
        delay: Duration::ZERO,
    };
    let answers = scene.broker.publish(&[largest]).await;
    match answers.into_iter().next().context("no answer")? {
        Ok(()) => Ok(of(limit)),
        Err(error) if error.kind() == BrokerErrorKind::TooLarge => {
            let smaller = of(limit.saturating_sub(ROOM_FOR_AN_ID));
            scene.publish([smaller.clone()]).await?;
            Ok(smaller)
        }
        Err(error) => Err(error).context("publishing a body at the limit"),
    }
}

async fn body_headers_and_id_arrive_byte_for_byte(stage: Stage) -> Result<()> {
    let scene = stage.scene().await?;
    let every_byte: Vec<u8> = (0..=255).collect();
    let mut sent = vec![
        Message::new(every_byte).with_id("bytes"),
        Message::new("").with_id("empty"),
        Message::new("größer, 鍵, 🔑").with_id("ünï-鍵-🔑"),
        Message::new("x")
            .with_id("headers")
            .with_partition_key("Schlüssel 鍵")
            .with_header(
                "traceparent",
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            )
            .with_header("Case", "upper")
            .with_header("case", "lower")
            .with_header("unicode", "größer 鍵 🔑")
            .with_header("spaces", "  kept  ")
            .with_header("number", "007")
            .with_header("empty", ""),
        Message::new("x").with_id("long-id-".repeat(100)),
        Message::without_id("no id"),
    ];
    scene.publish(sent.iter().cloned()).await?;
    sent.push(publish_the_largest(&scene).await?);
    let inbox = scene.subscribe(&scene.broker, sent.len()).await?;
    let received = inbox.receive(sent.len()).await?;
    for message in &sent {
        let shown = id_of(message);
        let same_id = |d: &&Delivery| d.message.id == message.id;
        let arrived = received
            .iter()
            .find(same_id)
            .with_context(|| format!("the message {shown:?} did not arrive with its id"))?;
        ensure!(
            arrived.message.body == message.body,
            "the body of {shown:?} changed"
        );
        let table = |m: &Message| -> BTreeMap<String, String> {
            m.headers
                .iter()
                .map(|(n, v)| (n.to_owned(), v.to_owned()))
                .collect()
        };
        let (before, after) = (table(message), table(&arrived.message));
        ensure!(
            before == after,
            "the headers of {shown:?} were {before:?} and are {after:?}"
        );
        ensure!(
            arrived.message.partition_key == message.partition_key,
            "the partition key of {shown:?} is {:?}",
            arrived.message.partition_key
        );
        ensure!(
            arrived.attempts_used == 0 && arrived.redrives == 0,
            "{shown:?} has a past: {arrived:?}"
        );
    }
    inbox.complete(received).await?;
    inbox.close().await;
    scene.must_be_empty().await
}

async fn competing_consumers_get_all_and_each_its_own(stage: Stage) -> Result<()> {
    const EACH: usize = 10;
    // Enough for each, also where a broker's client fetches more than it is asked for.
    const COUNT: usize = 9 * EACH;
    let scene = stage.scene().await?;
    let sent = messages(COUNT);
    scene.publish(sent.clone()).await?;
    let (mut inboxes, mut shares) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let broker = scene.queue.connect().await?;
        let inbox = scene.subscribe(&broker, EACH).await?;
        // Each holds its share while the others take theirs.
        shares.push(inbox.receive(EACH).await?);
        inboxes.push((broker, inbox));
    }
    let mut seen: Vec<_> = shares.iter().flat_map(|share| ids_of(share)).collect();
    for ((_, inbox), share) in inboxes.iter().zip(shares) {
        inbox.complete(share).await?;
    }
    let rest = async {
        while seen.len() < COUNT {
            for (_, inbox) in &inboxes {
                let room = const { NonZeroUsize::new(EACH).expect("ten is not zero") };
                let receive = inbox.subscription.receive(room);
                if let Ok(received) = timeout(scene.ticks(2), receive).await {
                    let received = received.context("receiving")?;
                    seen.extend(ids_of(&received));
                    inbox.complete(received).await?;
                }
            }
        }
        anyhow::Ok(())
    };
    let rest = stage.must("every message at one of them", rest).await;
    let count = seen.len();
    rest.with_context(|| format!("{count} of {COUNT} arrived"))??;
    seen.sort();
    let mut wanted: Vec<_> = sent.iter().map(id_of).collect();
    wanted.sort();
    ensure!(seen == wanted, "some arrived twice, and others not at all");
    for (broker, inbox) in inboxes {
        inbox.close().await;
        close(&*broker).await;
    }
    scene.must_be_empty().await
}

async fn queues_are_isolated(stage: Stage) -> Result<()> {
    let (one, other) = (stage.scene().await?, stage.scene().await?);
    one.publish(messages(5)).await?;
    other.must_be_empty().await?;
    let inbox = one.subscribe(&one.broker, 5).await?;
    let received = inbox.receive(5).await?;
    inbox.complete(received).await
}

async fn a_completed_message_stays_gone_after_a_restart(stage: Stage) -> Result<()> {
    let scene = stage.scene().await?;
    let sent = messages(20);
    scene.publish(sent.clone()).await?;
    let inbox = scene.subscribe(&scene.broker, 20).await?;
    let mut received = inbox.receive(20).await?;
    let left = received.split_off(10);
    let (done, wanted): (BTreeSet<_>, BTreeSet<_>) = (
        ids_of(&received).into_iter().collect(),
        ids_of(&left).into_iter().collect(),
    );
    inbox.complete(received).await?;
    scene.queue.restart_broker().await?;
    drop((inbox, left));
    let broker = scene.queue.connect().await?;
    let inbox = scene.subscribe(&broker, 20).await?;
    let again = inbox.receive(10).await?;
    let seen: BTreeSet<_> = ids_of(&again).into_iter().collect();
    ensure!(
        seen.is_disjoint(&done),
        "completed messages came back: {seen:?}"
    );
    ensure!(
        seen == wanted,
        "not every unsettled message came back: {seen:?}"
    );
    inbox.complete(again).await?;
    inbox.close().await;
    scene.must_be_empty().await
}

async fn what_is_dropped_unsettled_is_delivered_again(stage: Stage) -> Result<()> {
    let scene = stage.scene().await?;
    let sent = messages(6);
    scene.publish(sent.clone()).await?;
    let wanted: BTreeSet<_> = sent.iter().map(id_of).collect();

    let closed = scene.subscribe(&scene.broker, 6).await?;
    let held = closed.receive(6).await?;
    closed.close().await;
    drop(held);

    let dropped = scene.subscribe(&scene.broker, 6).await?;
    let held = dropped.receive(6).await?;
    let seen: BTreeSet<_> = ids_of(&held).into_iter().collect();
    ensure!(
        seen == wanted,
        "after a close {} of 6 came again",
        seen.len()
    );
    drop((held, dropped));

    let broker = scene.queue.connect().await?;
    let inbox = scene.subscribe(&broker, 6).await?;
    let held = inbox.receive(6).await?;
    let seen: BTreeSet<_> = ids_of(&held).into_iter().collect();
    ensure!(
        seen == wanted,
        "after a drop {} of 6 came again",
        seen.len()
    );
    close(&*broker).await;
    drop((held, inbox));

    let inbox = scene.subscribe(&scene.broker, 6).await?;
    let held = inbox.receive(6).await?;
    let seen: BTreeSet<_> = ids_of(&held).into_iter().collect();
    ensure!(
        seen == wanted,
        "after a closed connection {} of 6 came again",
        seen.len()
    );
    inbox.complete(held).await?;
    inbox.close().await;
    scene.must_be_empty().await
}

async fn a_stale_settlement_is_a_typed_error_without_effect(stage: Stage) -> Result<()> {
    let scene = stage.scene().await?;
    for kind in [Stale::Complete, Stale::Retry, Stale::Release] {
        let sent = messages(1);
        scene.publish(sent.clone()).await?;
        let broker = scene.queue.connect().await?;
        let first = scene.subscribe(&broker, 1).await?;
        let stale = first.next().await?;
        scene.queue.cut_connections().await?;
        let other = scene.queue.connect().await?;
        let second = scene.subscribe(&other, 1).await?;
        let fresh = second.next().await?;
        let verdict = kind.verdict(scene.ticks(1));
        let batch = vec![Settlement {
            delivery: stale,
            verdict,
        }];
        let answer = stage
            .must(
                "an answer to a stale settlement",
                first.subscription.settle(batch),
            )
            .await?
            .pop()
            .context("no answer to a settlement")?;
        let error = answer
            .err()
            .with_context(|| format!("a stale {kind:?} was taken"))?;
        ensure!(
            error.kept.is_none(),
            "a stale {kind:?} was handed back as if it were ours"
        );
        let found = error.cause.kind();
        ensure!(
            found == BrokerErrorKind::LeaseLost,
            "a stale {kind:?} gives {found:?}"
        );
        // The one that holds it now can settle it, once and for all.
        second.complete(vec![fresh]).await?;
        second.close().await;
        drop(first);
        scene.must_be_empty().await?;
    }
    Ok(())
}

#[derive(Clone, Copy, Debug)]
enum Stale {
    Complete,
    Retry,
    Release,
}

impl Stale {
    const fn verdict(self, after: Duration) -> Verdict {
        match self {
            Self::Complete => Verdict::Complete,
            Self::Retry => Verdict::Retry {
                after,
                attempts_used: 1,
            },
            Self::Release => Verdict::Release { after },
        }
    }
}

async fn a_missing_queue_is_a_typed_error_at_start(stage: Stage) -> Result<()> {
    let broker = stage.harness.missing_queue().await?;
    let scene = stage.scene().await?;
    let options = scene.options(10);
    let inspected = stage
        .must("an answer to inspect", broker.inspect(&options))
        .await?;
    let found = inspected.err().map(|error| error.kind());
    ensure!(
        found == Some(BrokerErrorKind::NotFound),
        "inspect gives {found:?}"
    );
    let subscribed = stage
        .must("an answer to subscribe", broker.subscribe(&options))
        .await?;
    let found = subscribed.err().map(|error| error.kind());
    ensure!(
        found == Some(BrokerErrorKind::NotFound),
        "subscribe gives {found:?}"
    );
    Ok(())
}

async fn a_cancelled_receive_loses_nothing(stage: Stage) -> Result<()> {
    const COUNT: usize = 200;
    // What is lost here does not come back in time.
    let spec = QueueSpec::default().lease(stage.harness.patience() * 2);
    let scene = Arc::new(stage.scene_with(spec).await?);
    let inbox = scene.subscribe(&scene.broker, COUNT).await?;
    let publishing = Arc::clone(&scene);
    let sent = messages(COUNT);
    let wanted: BTreeSet<_> = sent.iter().map(id_of).collect();
    let publisher = tokio::spawn(async move {
        for message in sent {
            publishing.publish([message]).await?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        anyhow::Ok(())
    });
    let most = const { NonZeroUsize::new(3).expect("three is not zero") };
    let mut seen = BTreeSet::new();
    let mut patience = 0_u32;
    let receiving = async {
        while seen.len() < COUNT {
            // From none at all to longer than the next message takes.
            let limit = Duration::from_micros(u64::from(patience % 7) * 500);
            patience += 1;
            let mut receive = inbox.subscription.receive(most);
            let received = tokio::select! {
                biased;
                received = &mut receive => Some(received),
                () = tokio::time::sleep(limit) => None,
            };
            drop(receive);
            if let Some(received) = received {
                let received = received.context("receiving")?;
                seen.extend(ids_of(&received));
                inbox.complete(received).await?;
            }
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    };
    let received = stage
        .must("every message through cancelled receives", receiving)
        .await;
    let count = seen.len();
    received.with_context(|| format!("{count} of {COUNT} arrived"))??;
    publisher.await??;
    ensure!(seen == wanted, "other messages arrived than were published");
    inbox.close().await;
    scene.must_be_empty().await
}

async fn opening_and_closing_again_and_again_loses_nothing(stage: Stage) -> Result<()> {
    const ROUNDS: usize = 15;
    let scene = stage.scene().await?;
    let sent = messages(3 * ROUNDS);
    let wanted: BTreeSet<_> = sent.iter().map(id_of).collect();
    scene.publish(sent).await?;
    let mut seen = BTreeSet::new();
    for _ in 0..ROUNDS {
        let broker = scene.queue.connect().await?;
        let inbox = scene.subscribe(&broker, 10).await?;
        let mut received = inbox.receive(4.min(wanted.len() - seen.len())).await?;
        let settled = received.split_off(received.len().min(1));
        seen.extend(ids_of(&settled));
        inbox.complete(settled).await?;
        inbox.close().await;
        close(&*broker).await;
    }
    let inbox = scene.subscribe(&scene.broker, 10).await?;
    let rest = inbox.receive(wanted.len() - seen.len()).await?;
    seen.extend(ids_of(&rest));
    ensure!(seen == wanted, "{} of {} arrived", seen.len(), wanted.len());
    inbox.complete(rest).await?;
    inbox.close().await;
    scene.must_be_empty().await
}

async fn a_publication_is_confirmed_or_an_error(stage: Stage) -> Result<()> {
    let scene = stage.scene().await?;
    let limit = scene.broker.capabilities().max_body;
    let mut sent = messages(40);
    let wanted: BTreeSet<_> = sent.iter().map(id_of).collect();
    sent.insert(20, Message::new(vec![0; limit + 1]).with_id("too-large"));
    let outgoing: Vec<_> = sent
        .iter()
        .map(|message| Outgoing {
            message: Arc::new(message.clone()),
            delay: Duration::ZERO,
        })
        .collect();
    let answers = scene.broker.publish(&outgoing).await;
    ensure!(
        answers.len() == 41,
        "{} answers to 41 publications",
        answers.len()
    );
    for (at, answer) in answers.into_iter().enumerate() {
        match (at, answer) {
            (20, Err(error)) => ensure!(
                error.kind() == BrokerErrorKind::TooLarge,
                "a body above the limit gives {:?}",
                error.kind()
            ),
            (20, Ok(())) => anyhow::bail!("a body above the limit was confirmed"),
            (_, answer) => answer.context("publishing beside a message that is too large")?,
        }
    }
    let inbox = scene.subscribe(&scene.broker, 50).await?;
    let received = inbox.receive(40).await?;
    let seen: BTreeSet<_> = ids_of(&received).into_iter().collect();
    ensure!(
        seen == wanted,
        "{} of 40 confirmed messages arrived",
        seen.len()
    );
    inbox.complete(received).await?;
    inbox.close().await;
    scene.must_be_empty().await?;
    unroutable_is_an_error(&stage, &scene).await
}

async fn unroutable_is_an_error(stage: &Stage, scene: &Scene) -> Result<()> {
    if scene.broker.capabilities().survival == backstop_core::Survival::Process {
        return Ok(());
    }
    let missing = stage.harness.missing_queue().await?;
    let outgoing = Outgoing {
        message: Arc::new(Message::new("nowhere to go")),
        delay: Duration::ZERO,
    };
    let publishing = missing.publish(std::slice::from_ref(&outgoing));
    let publishing = async { timeout(Duration::from_mins(1), publishing).await };
    let answer = stage
        .must("an answer to an unroutable publication", publishing)
        .await??;
    let found = answer
        .into_iter()
        .next()
        .and_then(Result::err)
        .map(|error| error.kind());
    let typed = matches!(
        found,
        Some(BrokerErrorKind::Unroutable | BrokerErrorKind::NotFound)
    );
    ensure!(typed, "a publication to a missing queue gives {found:?}");
    Ok(())
}
