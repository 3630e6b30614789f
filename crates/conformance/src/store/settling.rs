//! Who may renew, complete and release.

use anyhow::Result;
use backstop_core::{Claim, OwnerId, ReleaseKind};

use super::Subject;
use super::scene::{LONG, Scene, expect, held};
use crate::runner::{Case, case};
use backstop_core::Ownership::{Fenced, Held};

pub(super) fn cases() -> Vec<Case<Subject>> {
    vec![
        case!(
            "S13",
            the_end_of_a_claim_asked_for_again_gives_the_same_answer
        ),
        case!("S14", a_claim_ends_once),
        case!("S15", a_stale_owner_is_fenced),
        case!("S16", only_the_owner_at_its_fence_holds_a_claim),
    ]
}

const KINDS: [ReleaseKind; 3] = [
    ReleaseKind::Failed,
    ReleaseKind::Unused,
    ReleaseKind::DeadLettered,
];

async fn the_end_of_a_claim_asked_for_again_gives_the_same_answer(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    let ask = scene.ask("completed");
    let ticket = scene.acquire(&ask, 1, 1).await?;
    for _ in 0..3 {
        held("a renewal", scene.renew(&ticket, LONG).await?)?;
    }
    for _ in 0..3 {
        scene.must_complete(&ticket).await?;
    }
    scene.find(&ask, Claim::Completed).await?;
    for kind in KINDS {
        let ask = scene.ask(&format!("{kind:?}"));
        let ticket = scene.acquire(&ask, 1, 1).await?;
        for _ in 0..3 {
            scene.must_release(&ticket, kind).await?;
        }
        // It counted once.
        let next = ask.nonce(2);
        match kind {
            ReleaseKind::Failed => scene.acquire(&next, 2, 2).await.map(drop)?,
            ReleaseKind::Unused => scene.acquire(&next, 2, 1).await.map(drop)?,
            ReleaseKind::DeadLettered => scene.find(&next, Claim::DeadLettered).await?,
        }
    }
    Ok(())
}

async fn a_claim_ends_once(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    let ask = scene.ask("completed");
    let ticket = scene.acquire(&ask, 1, 1).await?;
    scene.must_complete(&ticket).await?;
    expect(
        "a renewal after the end",
        &scene.renew(&ticket, LONG).await?,
        &Fenced,
    )?;
    for kind in KINDS {
        let found = scene.release(&ticket, kind).await?;
        expect("a release after a completion", &found, &Fenced)?;
    }
    scene.find(&ask, Claim::Completed).await?;
    for kind in KINDS {
        let ask = scene.ask(&format!("{kind:?}"));
        let ticket = scene.acquire(&ask, 1, 1).await?;
        scene.must_release(&ticket, kind).await?;
        let found = scene.complete(&ticket).await?;
        expect("a completion after a release", &found, &Fenced)?;
        expect(
            "a renewal after the end",
            &scene.renew(&ticket, LONG).await?,
            &Fenced,
        )?;
        for other in KINDS {
            let found = scene.release(&ticket, other).await?;
            let wanted = if other == kind { Held } else { Fenced };
            expect("another release after a release", &found, &wanted)?;
        }
        let next = ask.nonce(2).redrives(1);
        scene.acquire(&next, 2, 1).await?;
    }
    Ok(())
}

async fn a_stale_owner_is_fenced(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    let ask = scene.ask("key").by("a");
    let stale = scene.acquire(&ask, 1, 1).await?;
    scene.must_release(&stale, ReleaseKind::Failed).await?;
    let current = scene.acquire(&ask.clone().by("b"), 2, 2).await?;
    let stale_owner = "an owner whose claim was taken over";
    scene.must_be_fenced(&stale, stale_owner).await?;
    // It had no effect: the claim stands, and ends as its owner says.
    scene.find_in_progress(&ask.clone().nonce(2)).await?;
    held("a renewal", scene.renew(&current, LONG).await?)?;
    scene.must_complete(&current).await?;
    scene.must_be_fenced(&stale, stale_owner).await?;
    scene.find(&ask, Claim::Completed).await?;

    // The same owner at an older fence is as stale.
    let ask = scene.ask("own").by("a");
    let stale = scene.acquire(&ask, 1, 1).await?;
    scene.must_release(&stale, ReleaseKind::Unused).await?;
    let current = scene.acquire(&ask.nonce(2), 2, 1).await?;
    scene
        .must_be_fenced(&stale, "an owner at its older fence")
        .await?;
    scene.must_complete(&current).await
}

async fn only_the_owner_at_its_fence_holds_a_claim(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    let ask = scene.ask("key");
    let ticket = scene.acquire(&ask, 1, 1).await?;
    let mut other = ticket.clone();
    other.owner = OwnerId::new("b");
    scene.must_be_fenced(&other, "another owner").await?;
    for fence in [0, 2, u64::from(u32::MAX) + 2] {
        let ticket = ask.ticket(fence);
        scene
            .must_be_fenced(&ticket, "a fence that was not given")
            .await?;
    }
    let never = scene.ask("never").ticket(1);
    scene.must_be_fenced(&never, "an owner of nothing").await?;
    scene.acquire(&scene.ask("never"), 1, 1).await?;
    scene.must_complete(&ticket).await
}
