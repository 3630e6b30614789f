//! Delays: never too early, late within the harness's tolerance, and never in each other's way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use backstop_core::{
    Backoff, BrokerErrorKind, HandlerError, Jitter, Message, Outgoing, Publisher, Verdict,
};
use tokio::time::Instant;

use super::journal::{Journal, Running};
use super::stage::{Scene, Stage, id_of, messages};
use super::watched::{Limits, Watch};
use crate::runner::{Case, case};

pub(super) fn cases() -> Vec<Case<Stage>> {
    vec![
        case!("R1", a_retry_comes_not_before_its_delay_and_soon_after_it),
        case!("R2", delays_grow_with_jitter_in_bounds_up_to_the_cap),
        case!("R11", a_short_delay_does_not_wait_for_a_long_one),
        case!("R12", a_delay_above_the_brokers_maximum_is_refused),
    ]
}

async fn a_retry_comes_not_before_its_delay_and_soon_after_it(stage: Stage) -> Result<()> {
    let scene = stage.scene().await?;
    let inbox = scene.subscribe(&scene.broker, 4).await?;
    let sent = messages(1);
    scene.publish(sent).await?;
    // Adapters treat short and long waits differently.
    let mut used = 0;
    for ticks in [2, 15, 3, 25] {
        let delivery = inbox.next().await?;
        ensure!(
            delivery.attempts_used == used,
            "{} attempts are known instead of {used}",
            delivery.attempts_used
        );
        used += 1;
        let after = scene.ticks(ticks);
        let asked = Instant::now();
        let verdict = Verdict::Retry {
            after,
            attempts_used: used,
        };
        inbox.settle(delivery, verdict).await?;
        let again = inbox.next().await?;
        let took = asked.elapsed();
        stage.must_be_on_time("a retry", after, took)?;
        ensure!(
            again.attempts_used == used,
            "the count of attempts was lost"
        );
        used += 1;
        let verdict = Verdict::Retry {
            after: Duration::ZERO,
            attempts_used: used,
        };
        inbox.settle(again, verdict).await?;
    }
    let last = inbox.next().await?;
    inbox.complete(vec![last]).await?;
    inbox.close().await;
    published_delays_are_kept(&scene).await?;
    scene.must_be_empty().await
}

async fn published_delays_are_kept(scene: &Scene) -> Result<()> {
    let inbox = scene.subscribe(&scene.broker, 4).await?;
    for ticks in [2, 15] {
        let (delay, asked) = (scene.ticks(ticks), Instant::now());
        let message = Arc::new(Message::new("later"));
        let outgoing = Outgoing { message, delay };
        let answers = scene.broker.publish(std::slice::from_ref(&outgoing)).await;
        for answer in answers {
            answer.context("publishing for later")?;
        }
        let delivery = inbox.next().await?;
        let took = asked.elapsed();
        scene.stage.must_be_on_time("a message", delay, took)?;
        inbox.complete(vec![delivery]).await?;
    }
    inbox.close().await;
    Ok(())
}

async fn delays_grow_with_jitter_in_bounds_up_to_the_cap(stage: Stage) -> Result<()> {
    let (least, most) = (jittered_waits(&stage, 0.0), jittered_waits(&stage, 0.999));
    let (least, most) = tokio::join!(least, most);
    least.context("with no jitter at all")?;
    most.context("with nearly all of the jitter")
}

/// Additive jitter: the bare backoff, and up to half as much again.
async fn jittered_waits(stage: &Stage, random: f64) -> Result<()> {
    // Without the cap the last ones would come after nobody's patience any more.
    const ATTEMPTS: u32 = 12;
    let scene = stage.scene().await?;
    let (base, cap) = (scene.ticks(2), scene.ticks(8));
    let builder = scene
        .consumer()
        .await?
        .backoff(Backoff::new(base, cap, Jitter::Additive)?)
        .randomness(Arc::new(move || random))
        .max_attempts(ATTEMPTS);
    let sent = messages(5);
    scene.publish(sent.clone()).await?;
    let journal = Journal::default();
    let running = Running::start(stage, builder, &journal, |_| async {
        Err(HandlerError::transient("the downstream is away"))
    })?;
    scene.dead_letters(5).await?;
    running.drain().await?;
    for message in &sent {
        let starts = journal.starts_of(&id_of(message));
        let count = starts.len();
        ensure!(
            count == ATTEMPTS as usize,
            "{count} starts instead of {ATTEMPTS}"
        );
        for (pair, doublings) in starts.windows(2).zip(0..) {
            let bare = cap.min(base * 2_u32.pow(doublings));
            let ended = pair[0].end.context("an attempt without an end")?.at;
            let took = pair[1].at.duration_since(ended);
            let wait = bare + (bare / 2).mul_f64(random);
            let what = format!("attempt {}", doublings + 2);
            stage.must_be_on_time(&what, wait, took)?;
        }
    }
    Ok(())
}

async fn a_short_delay_does_not_wait_for_a_long_one(stage: Stage) -> Result<()> {
    let scene = stage.scene().await?;
    let long = stage.harness.patience() * 2;
    let sent = messages(4);
    scene.publish(sent).await?;
    let inbox = scene.subscribe(&scene.broker, 10).await?;
    let received = inbox.receive(4).await?;
    let (mut short_ones, begun) = (BTreeMap::new(), Instant::now());
    for (n, delivery) in received.into_iter().enumerate() {
        let after = match n {
            0 | 1 => long,
            2 => scene.ticks(15),
            _ => scene.ticks(2),
        };
        if after != long {
            short_ones.insert(id_of(&delivery.message), after);
        }
        let verdict = Verdict::Retry {
            after,
            attempts_used: 1,
        };
        inbox.settle(delivery, verdict).await?;
    }
    for _ in 0..2 {
        let delivery = inbox.next().await?;
        let took = begun.elapsed();
        let due = short_ones.remove(&id_of(&delivery.message));
        let due = due.context("a long delay ended before a short one")?;
        stage.must_be_on_time("a message beside long delays", due, took)?;
        inbox.complete(vec![delivery]).await?;
    }
    inbox.nothing_for(stage.harness.quiet()).await?;
    inbox.close().await;
    Ok(())
}

async fn a_delay_above_the_brokers_maximum_is_refused(stage: Stage) -> Result<()> {
    let scene = stage.scene().await?;
    let capabilities = scene.broker.capabilities();
    if let Some(limit) = capabilities.max_delay {
        a_longer_retry_is_refused(&scene, limit).await?;
    }
    if let Some(limit) = capabilities.max_publication_delay {
        a_longer_publication_is_refused(&scene, limit).await?;
    }
    Ok(())
}

/// What refuses is the consumer's builder, by what the broker declares. No backoff is longer than a week,
/// whatever the broker can do: one that can do more declares less here, or the refusal would be that of the
/// backoff, and would say nothing of what is declared.
async fn a_longer_retry_is_refused(scene: &Scene, limit: Duration) -> Result<()> {
    let limit = limit.min(Backoff::MAX_CAP / 2);
    let limits = Limits {
        max_delay: Some(limit),
        ..Limits::default()
    };
    let build = async |cap| {
        let broker = Watch::default().limited(scene.queue.connect().await?, limits);
        let builder = scene.consumer_on(broker).idempotent_by_nature();
        let builder = builder.backoff(Backoff::new(limit, cap, Jitter::None)?);
        anyhow::Ok(builder.raw(|_: bytes::Bytes, _| async { Ok(()) }).err())
    };
    let refusal = build(limit + Duration::from_secs(1)).await?;
    let refusal = refusal.context("a backoff above the broker's maximum was accepted")?;
    ensure!(refusal.setting() == "backoff_cap", "refused: {refusal}");
    let refusal = build(limit).await?;
    ensure!(refusal.is_none(), "at the limit: {refusal:?}");
    Ok(())
}

async fn a_longer_publication_is_refused(scene: &Scene, limit: Duration) -> Result<()> {
    let above = limit + Duration::from_secs(1);
    let publisher = Publisher::new(Arc::clone(&scene.broker));
    let error = publisher
        .publish_after(Message::new("too late"), above)
        .await
        .err()
        .context("a publication beyond the broker's maximum was accepted")?;
    ensure!(error.kind() == BrokerErrorKind::Unsupported, "{error}");
    // A publisher refuses by what is declared. The broker is not to cut the delay, either.
    let outgoing = Outgoing {
        message: Arc::new(Message::new("too late")),
        delay: above,
    };
    let mut answers = scene.broker.publish(&[outgoing]).await;
    let answer = answers.pop().context("no answer to a publication")?;
    let error = answer
        .err()
        .context("the broker took a publication beyond its maximum")?;
    ensure!(error.kind() == BrokerErrorKind::Unsupported, "{error}");
    publisher
        .publish_after(Message::new("at the limit"), limit)
        .await?;
    Ok(())
}
