//! What time does to claims and records.

use anyhow::{Context as _, Result, ensure};
use backstop_core::{Claim, ReleaseKind};
use tokio::time::Instant;

use super::Subject;
use super::scene::{LONG, Scene, held};
use crate::runner::{Case, case};

pub(super) fn cases() -> Vec<Case<Subject>> {
    vec![
        case!("S17", a_claim_past_its_deadline_is_taken_over),
        case!("S18", a_renewed_claim_outlives_its_lease),
        case!("S19", a_late_call_takes_effect_while_nobody_took_over),
        case!(
            "S20",
            a_record_outlives_its_lease_and_ends_with_its_retention
        ),
        case!("S21", the_rest_of_a_lease_is_told),
    ]
}

async fn a_claim_past_its_deadline_is_taken_over(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    let short = scene.ticks(2);
    let ask = scene.ask("key").by("a").body(1).lease(short);
    let stale = scene.acquire(&ask, 1, 1).await?;
    scene.wait(3).await;
    // The body is judged as ever.
    let other = ask.clone().by("b").lease(LONG);
    scene.find(&other.clone().body(2), Claim::Conflict).await?;
    // The one that ended without a word counts as an attempt.
    let current = scene.acquire(&other, 2, 2).await?;
    scene.find_in_progress(&ask.clone().nonce(2)).await?;
    scene.find_in_progress(&ask).await?;
    scene
        .must_be_fenced(&stale, "an owner whose lease ran out")
        .await?;
    scene.must_complete(&current).await?;
    scene.find(&ask, Claim::Completed).await?;

    let ask = scene.ask("redriven").lease(short);
    scene.acquire(&ask, 1, 1).await?;
    scene.wait(3).await;
    let redriven = ask.by("b").redrives(1).used(5).lease(LONG);
    scene.acquire(&redriven, 2, 6).await.map(drop)
}

async fn a_renewed_claim_outlives_its_lease(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    let ask = scene.ask("longer").lease(scene.ticks(2));
    let ticket = scene.acquire(&ask, 1, 1).await?;
    held("a renewal", scene.renew(&ticket, LONG).await?)?;
    scene.wait(3).await;
    let remaining = scene.find_in_progress(&ask.clone().by("b")).await?;
    ensure!(
        remaining <= LONG && remaining > LONG / 2,
        "{remaining:?} are left of a renewal for {LONG:?}"
    );
    // The record lives on with it, though its retention is over.
    let ask = scene
        .ask("retention")
        .lease(scene.ticks(2))
        .retention(scene.ticks(2));
    let ticket = scene.acquire(&ask, 1, 1).await?;
    held("a renewal", scene.renew(&ticket, LONG).await?)?;
    scene.wait(3).await;
    scene.find_in_progress(&ask.by("b")).await?;
    scene.must_complete(&ticket).await?;
    // A lease counts from its renewal, also when it is shorter.
    let ask = scene.ask("shorter");
    let ticket = scene.acquire(&ask, 1, 1).await?;
    held("a renewal", scene.renew(&ticket, scene.ticks(2)).await?)?;
    scene.wait(3).await;
    scene.acquire(&ask.by("b"), 2, 2).await.map(drop)
}

async fn a_late_call_takes_effect_while_nobody_took_over(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    let short = |key: &str| scene.ask(key).lease(scene.ticks(1));
    let asks = ["renewed", "completed", "released", "asked"].map(short);
    let mut tickets = Vec::new();
    for ask in &asks {
        tickets.push(scene.acquire(ask, 1, 1).await?);
    }
    scene.wait(2).await;
    let [renewed, completed, released, asked] = &asks;
    let others = asks.clone().map(|ask| ask.by("b").lease(LONG));
    held("a late renewal", scene.renew(&tickets[0], LONG).await?)?;
    scene.find_in_progress(&others[0]).await?;
    scene.must_complete(&renewed.ticket(1)).await?;
    scene.must_complete(&completed.ticket(1)).await?;
    scene.find(&others[1], Claim::Completed).await?;
    scene
        .must_release(&released.ticket(1), ReleaseKind::Unused)
        .await?;
    scene.acquire(&others[2], 2, 1).await?;
    // The same claim, asked for again, is the same claim.
    scene.acquire(asked, 1, 1).await?;
    scene.acquire(&others[3], 2, 2).await.map(drop)
}

async fn a_record_outlives_its_lease_and_ends_with_its_retention(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    let (short, retention) = (scene.ticks(1), scene.ticks(6));
    // What ends and when: a claim without an end from the claim on, the others from their end on.
    let silent = scene.ask("silent").lease(short).retention(retention);
    scene.acquire(&silent, 1, 1).await?;
    let completed = scene.ask("completed");
    let ticket = scene.acquire(&completed, 1, 1).await?;
    let begun = Instant::now();
    held(
        "a completion",
        scene.complete_for(&ticket, retention).await?,
    )?;
    let released = scene.ask("released");
    let ticket = scene.acquire(&released, 1, 1).await?;
    let request = [(ticket, ReleaseKind::Failed)];
    let answers = scene.store.release(&request, retention).await;
    let answer = answers.into_iter().next().context("no answer")??;
    held("a release", answer)?;
    let kept = scene.ask("kept").retention(retention);
    let ticket = scene.acquire(&kept, 1, 1).await?;
    scene.must_complete(&ticket).await?;

    scene.wait(2).await;
    let found = scene.claim(&completed.clone().by("b")).await?;
    if begun.elapsed() < retention {
        ensure!(
            found == Claim::Completed,
            "before its retention is over, a completed record gives {found:?}"
        );
    }
    scene.wait(6).await;
    scene.acquire(&silent.by("b").used(1), 1, 2).await?;
    scene.acquire(&completed.by("b"), 1, 1).await?;
    scene.acquire(&released.by("b"), 1, 1).await?;
    scene.find(&kept.by("b"), Claim::Completed).await
}

async fn the_rest_of_a_lease_is_told(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    let ask = scene.ask("key").lease(scene.ticks(4));
    scene.acquire(&ask, 1, 1).await?;
    let begun = Instant::now();
    let other = ask.by("b").lease(LONG);
    // Whoever waits as long as it is told is not turned away.
    loop {
        match scene.claim(&other).await? {
            Claim::InProgress { remaining } => {
                let most = scene.ticks(4);
                ensure!(remaining <= most, "{remaining:?} are left of {most:?}");
                ensure!(
                    !remaining.is_zero(),
                    "nothing is left of a lease that holds"
                );
                tokio::time::sleep(remaining).await;
            }
            found => {
                let wanted = super::scene::acquired(2, 2);
                super::scene::expect("the claim after it", &found, &wanted)?;
                break;
            }
        }
        ensure!(begun.elapsed() < LONG, "the lease never ends");
    }
    Ok(())
}
