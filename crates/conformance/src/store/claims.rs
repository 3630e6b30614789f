//! Who gets a claim, with which fence and attempt.

use anyhow::{Result, ensure};
use backstop_core::{Claim, ReleaseKind};

use super::Subject;
use super::scene::{LONG, Scene};
use crate::runner::{Case, case};

pub(super) fn cases() -> Vec<Case<Subject>> {
    vec![
        case!("S1", a_claim_is_exclusive),
        case!("S2", fences_grow_by_one_with_every_claim),
        case!("S3", attempts_count_what_failed_and_not_what_was_unused),
        case!("S4", a_new_record_starts_at_the_brokers_count),
        case!("S5", a_claim_asked_for_again_gives_the_same_answer),
        case!("S6", a_completed_key_is_a_repeat_for_good),
        case!("S7", a_dead_lettered_key_is_a_repeat_until_it_is_redriven),
        case!("S8", a_redrive_resets_the_count),
        case!("S9", another_body_under_a_key_is_a_conflict),
        case!("S10", without_a_fingerprint_there_is_no_conflict),
        case!("S11", a_dead_lettered_key_is_free_for_another_body),
        case!("S12", forgotten_records_are_as_if_never_made),
    ]
}

async fn a_claim_is_exclusive(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    let ask = scene.ask("key").by("a");
    let ticket = scene.acquire(&ask, 1, 1).await?;
    let other = ask.clone().by("b");
    for claim in [other.clone(), other.clone().nonce(2), ask.clone().nonce(2)] {
        let remaining = scene.find_in_progress(&claim).await?;
        ensure!(
            remaining <= LONG && remaining > LONG / 2,
            "{remaining:?} are left of a lease of {LONG:?} that just began"
        );
    }
    // Over another connection, too.
    let elsewhere = scene.elsewhere().await?;
    elsewhere.find_in_progress(&other).await?;
    elsewhere.must_complete(&ticket).await?;
    scene.find(&other, Claim::Completed).await
}

async fn fences_grow_by_one_with_every_claim(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    let ask = scene.ask("key");
    let kinds = [
        ReleaseKind::Failed,
        ReleaseKind::Unused,
        ReleaseKind::Unused,
        ReleaseKind::DeadLettered,
        ReleaseKind::Failed,
    ];
    let mut redrives = 0;
    for (fence, kind) in (1..).zip(kinds) {
        let ask = ask.clone().nonce(fence).redrives(redrives);
        let found = scene.claim(&ask).await?;
        let grew = matches!(found, Claim::Acquired { fence: found, .. } if found.0 == fence);
        ensure!(grew, "claim {fence} of a key gives {found:?}");
        scene.must_release(&ask.ticket(fence), kind).await?;
        redrives += u32::from(kind == ReleaseKind::DeadLettered);
    }
    Ok(())
}

async fn attempts_count_what_failed_and_not_what_was_unused(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    let ask = scene.ask("key");
    let steps = [
        (1, ReleaseKind::Failed),
        (2, ReleaseKind::Unused),
        (2, ReleaseKind::Unused),
        (2, ReleaseKind::Failed),
        (3, ReleaseKind::Failed),
    ];
    for (fence, (attempt, kind)) in (1..).zip(steps) {
        let ticket = scene
            .acquire(&ask.clone().nonce(fence), fence, attempt)
            .await?;
        scene.must_release(&ticket, kind).await?;
    }
    // What the broker knows counts where the record begins only.
    scene.acquire(&ask.nonce(6).used(7), 6, 4).await.map(drop)
}

async fn a_new_record_starts_at_the_brokers_count(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    let ask = scene.ask("key").used(3);
    let ticket = scene.acquire(&ask, 1, 4).await?;
    scene.must_release(&ticket, ReleaseKind::Failed).await?;
    scene.acquire(&ask.nonce(2), 2, 5).await.map(drop)
}

async fn a_claim_asked_for_again_gives_the_same_answer(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    let ask = scene.ask("key").nonce(u64::MAX).body(1);
    scene.acquire(&ask, 1, 1).await?;
    let ticket = scene.acquire(&ask, 1, 1).await?;
    scene.must_release(&ticket, ReleaseKind::Failed).await?;
    let next = ask.clone().nonce(u64::MAX - 1);
    scene.acquire(&next, 2, 2).await?;
    scene.acquire(&next, 2, 2).await?;
    // Neither the nonce of another owner nor one of its own that is over.
    scene.find_in_progress(&next.clone().by("b")).await?;
    scene.find_in_progress(&ask).await.map(drop)
}

async fn a_completed_key_is_a_repeat_for_good(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    let ask = scene.ask("key").body(1);
    let ticket = scene.acquire(&ask, 1, 1).await?;
    scene.must_complete(&ticket).await?;
    for again in [
        ask.clone(),
        ask.clone().nonce(2),
        ask.clone().by("b"),
        ask.redrives(5),
    ] {
        scene.find(&again, Claim::Completed).await?;
    }
    Ok(())
}

async fn a_dead_lettered_key_is_a_repeat_until_it_is_redriven(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    let ask = scene.ask("key").redrives(2).used(4);
    let ticket = scene.acquire(&ask, 1, 5).await?;
    scene
        .must_release(&ticket, ReleaseKind::DeadLettered)
        .await?;
    let again = ask.clone().by("b");
    for redrives in [0, 1, 2] {
        let repeat = again.clone().redrives(redrives);
        scene.find(&repeat, Claim::DeadLettered).await?;
    }
    let redriven = again.redrives(3).used(0);
    let ticket = scene.acquire(&redriven, 2, 1).await?;
    scene
        .must_release(&ticket, ReleaseKind::DeadLettered)
        .await?;
    // The record knows of the redrive now.
    scene.find(&redriven, Claim::DeadLettered).await?;
    scene.acquire(&redriven.redrives(4), 3, 1).await.map(drop)
}

async fn a_redrive_resets_the_count(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    let ask = scene.ask("key").redrives(1);
    let ticket = scene.acquire(&ask, 1, 1).await?;
    scene.must_release(&ticket, ReleaseKind::Failed).await?;
    // A lower or the same number resets nothing.
    let lower = ask.clone().nonce(2).redrives(0);
    let ticket = scene.acquire(&lower, 2, 2).await?;
    scene.must_release(&ticket, ReleaseKind::Failed).await?;
    let same = ask.clone().nonce(3);
    let ticket = scene.acquire(&same, 3, 3).await?;
    scene.must_release(&ticket, ReleaseKind::Failed).await?;
    let higher = ask.clone().nonce(4).redrives(2);
    let ticket = scene.acquire(&higher, 4, 1).await?;
    // A claim under way is not reset.
    scene.find_in_progress(&ask.nonce(5).redrives(3)).await?;
    scene.must_release(&ticket, ReleaseKind::Failed).await?;
    let higher = higher.nonce(6).redrives(7).used(2);
    scene.acquire(&higher, 5, 3).await.map(drop)
}

async fn another_body_under_a_key_is_a_conflict(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    for end in [None, Some(ReleaseKind::Failed), Some(ReleaseKind::Unused)] {
        let ask = scene.ask(&format!("{end:?}")).body(1);
        let ticket = scene.acquire(&ask, 1, 1).await?;
        if let Some(kind) = end {
            scene.must_release(&ticket, kind).await?;
        }
        let other = ask.clone().by("b").body(2);
        scene.find(&other, Claim::Conflict).await?;
        scene.find(&other.redrives(9), Claim::Conflict).await?;
        let high = ask.by("b").body(1 << 127 | 1);
        scene.find(&high, Claim::Conflict).await?;
    }
    let ask = scene.ask("completed").body(1);
    let ticket = scene.acquire(&ask, 1, 1).await?;
    scene
        .find(&ask.clone().nonce(2).body(2), Claim::Conflict)
        .await?;
    // It harmed nobody.
    scene.must_complete(&ticket).await?;
    scene.find(&ask.clone().body(2), Claim::Conflict).await?;
    scene.find(&ask, Claim::Completed).await
}

async fn without_a_fingerprint_there_is_no_conflict(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    let ask = scene.ask("one");
    let ticket = scene.acquire(&ask, 1, 1).await?;
    scene.find_in_progress(&ask.clone().by("b").body(1)).await?;
    scene.must_complete(&ticket).await?;
    scene.find(&ask.body(1), Claim::Completed).await?;

    let ask = scene.ask("other");
    let ticket = scene.acquire(&ask.clone().body(1), 1, 1).await?;
    scene.find_in_progress(&ask.clone().by("b")).await?;
    scene.must_release(&ticket, ReleaseKind::Failed).await?;
    let ticket = scene.acquire(&ask.clone().nonce(2), 2, 2).await?;
    scene.must_complete(&ticket).await?;
    scene.find(&ask, Claim::Completed).await?;
    // Zero is a digest like any other.
    let ask = scene.ask("zero").body(0);
    scene.acquire(&ask, 1, 1).await?;
    scene.find(&ask.by("b").body(1), Claim::Conflict).await
}

async fn a_dead_lettered_key_is_free_for_another_body(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    let ask = scene.ask("key").body(1);
    let ticket = scene.acquire(&ask, 1, 1).await?;
    scene
        .must_release(&ticket, ReleaseKind::DeadLettered)
        .await?;
    let other = ask.clone().by("b").body(2);
    let ticket = scene.acquire(&other, 2, 1).await?;
    scene.must_complete(&ticket).await?;
    scene.find(&other, Claim::Completed).await?;
    scene.find(&ask, Claim::Conflict).await
}

async fn forgotten_records_are_as_if_never_made(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    let (done, running) = (scene.ask("done").body(1), scene.ask("running"));
    let ticket = scene.acquire(&done, 1, 1).await?;
    scene.must_complete(&ticket).await?;
    let stale = scene.acquire(&running.clone().used(6), 1, 7).await?;
    let keys = [done.key.clone(), running.key.clone(), scene.key("never")];
    let answers = scene.store.forget(&keys).await;
    ensure!(answers.len() == 3, "{} answers to 3 keys", answers.len());
    for answer in answers {
        answer?;
    }
    scene
        .must_be_fenced(&stale, "the owner of a forgotten claim")
        .await?;
    scene.acquire(&done.nonce(2).body(2), 1, 1).await?;
    scene.acquire(&running.by("b"), 1, 1).await?;
    scene
        .must_be_fenced(&stale, "the owner of a forgotten claim")
        .await
}
