//! Many calls at once.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use backstop_core::{Claim, ClaimRequest, IdempotencyKey, Ownership, ReleaseKind, Ticket};

use super::Subject;
use super::scene::{LONG, Scene, acquired, expect};
use crate::runner::{Case, case};

pub(super) fn cases() -> Vec<Case<Subject>> {
    vec![
        case!("S22", answers_stand_at_their_requests_positions),
        case!("S23", a_key_may_stand_in_a_batch_twice),
        case!("S24", of_claims_at_once_one_is_acquired),
        case!("S25", namespaces_are_apart),
        case!("S26", keys_of_any_characters_are_apart),
    ]
}

async fn answers_stand_at_their_requests_positions(harness: Subject) -> Result<()> {
    const COUNT: usize = 300;
    let scene = Scene::new(harness).await?;
    let keys: Vec<_> = (0..COUNT).map(|n| scene.ask(&format!("key {n}"))).collect();
    // Every third is completed before, every third in progress, and the rest new.
    for (n, ask) in keys.iter().enumerate().filter(|(n, _)| n % 3 != 2) {
        let ticket = scene.acquire(ask, 1, 1).await?;
        if n % 3 == 0 {
            scene.must_complete(&ticket).await?;
        }
    }
    let requests: Vec<_> = keys
        .iter()
        .map(|ask| ask.clone().by("b").request())
        .collect();
    let answers = scene.store.claim(&requests).await;
    ensure!(
        answers.len() == COUNT,
        "{} answers to {COUNT}",
        answers.len()
    );
    for (n, answer) in answers.into_iter().enumerate() {
        let found = answer?;
        let fits = match n % 3 {
            0 => found == Claim::Completed,
            1 => matches!(found, Claim::InProgress { .. }),
            _ => found == acquired(1, 1),
        };
        ensure!(fits, "the answer at {n} is {found:?}");
    }
    let tickets: Vec<_> = keys
        .iter()
        .map(|ask| ask.clone().by("b").ticket(1))
        .collect();
    settlements_stand_at_theirs(&scene, &tickets).await?;
    let none = scene.store.claim(&[]).await.len()
        + scene.store.renew(&[], LONG).await.len()
        + scene.store.complete(&[], LONG).await.len()
        + scene.store.release(&[], LONG).await.len()
        + scene.store.forget(&[]).await.len();
    ensure!(none == 0, "{none} answers to nothing");
    Ok(())
}

/// Every third ticket is of a claim that stands.
async fn settlements_stand_at_theirs(scene: &Scene, tickets: &[Ticket]) -> Result<()> {
    let count = tickets.len();
    for answers in [
        scene.store.renew(tickets, LONG).await,
        scene.store.complete(tickets, LONG).await,
        scene.store.complete(tickets, LONG).await,
    ] {
        ensure!(
            answers.len() == count,
            "{} answers to {count}",
            answers.len()
        );
        for (n, answer) in answers.into_iter().enumerate() {
            let wanted = if n % 3 == 2 {
                Ownership::Held
            } else {
                Ownership::Fenced
            };
            expect(&format!("ticket {n}"), &answer?, &wanted)?;
        }
    }
    let releases: Vec<_> = tickets
        .iter()
        .map(|ticket| (ticket.clone(), ReleaseKind::Failed))
        .collect();
    let answers = scene.store.release(&releases, LONG).await;
    ensure!(
        answers.len() == count,
        "{} answers to {count}",
        answers.len()
    );
    for answer in answers {
        expect(
            "a release of what is completed",
            &answer?,
            &Ownership::Fenced,
        )?;
    }
    Ok(())
}

async fn a_key_may_stand_in_a_batch_twice(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    let ask = scene.ask("key");
    let other = scene.ask("other");
    let batch = [
        ask.request(),
        other.request(),
        ask.clone().by("b").request(),
        ask.request(),
    ];
    let answers = scene.store.claim(&batch).await;
    let found: Vec<_> = answers.into_iter().collect::<Result<_, _>>()?;
    let is_right = matches!(&found[..], [first, beside, Claim::InProgress { .. }, again]
        if [first, beside, again].iter().all(|claim| **claim == acquired(1, 1)));
    ensure!(is_right, "claims of a key in one batch give {found:?}");
    let (held, failed) = (ask.ticket(1), ReleaseKind::Failed);
    let batch = [(held.clone(), failed), (held.clone(), ReleaseKind::Unused)];
    let answers = scene.store.release(&batch, LONG).await;
    let found: Vec<_> = answers.into_iter().collect::<Result<_, _>>()?;
    let wanted = vec![Ownership::Held, Ownership::Fenced];
    expect("releases of a claim in one batch", &found, &wanted)
}

async fn of_claims_at_once_one_is_acquired(harness: Subject) -> Result<()> {
    const ROUNDS: u64 = 20;
    const OWNERS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let scene = Arc::new(Scene::new(harness).await?);
    let mut stores = Vec::new();
    for _ in OWNERS {
        stores.push(scene.harness.connect().await?);
    }
    for round in 1..=ROUNDS {
        // Half of the rounds contend for a new key, half for a released one.
        let ask = scene.ask(&format!("key {}", round / 2));
        let mut claims = tokio::task::JoinSet::new();
        for (store, owner) in stores.iter().zip(OWNERS) {
            let (store, request) = (
                Arc::clone(store),
                ask.clone().by(owner).nonce(round).request(),
            );
            claims.spawn(async move { (owner, store.claim(&[request]).await) });
        }
        let mut winners = Vec::new();
        while let Some(claimed) = claims.join_next().await {
            let (owner, answers) = claimed?;
            match answers.into_iter().next().context("no answer")?? {
                Claim::Acquired { fence, .. } => winners.push((owner, fence)),
                Claim::InProgress { .. } => {}
                found => anyhow::bail!("a claim among others gives {found:?}"),
            }
        }
        let [(owner, fence)] = winners[..] else {
            anyhow::bail!(
                "in round {round} {} of 8 claims were acquired",
                winners.len()
            );
        };
        let ticket = ask.by(owner).ticket(fence.0);
        scene.must_release(&ticket, ReleaseKind::Failed).await?;
    }
    Ok(())
}

async fn namespaces_are_apart(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    let base = &scene.namespace;
    let names = [
        (format!("{base}-a"), "key"),
        (format!("{base}-b"), "key"),
        (base.clone(), "a:b"),
        (format!("{base}:a"), "b"),
        (format!("{base}%3Aa"), "b"),
        (format!("{base}:"), "a:b"),
        (format!("{base}/a"), "b"),
    ];
    all_are_apart(
        &scene,
        names.map(|(space, key)| IdempotencyKey::new(space, key)),
    )
    .await
}

async fn keys_of_any_characters_are_apart(harness: Subject) -> Result<()> {
    let scene = Scene::new(harness).await?;
    let long = "k".repeat(255);
    let wide = "\u{1F980}".repeat(64);
    let keys = [
        "",
        " ",
        "key",
        "Key",
        "key ",
        "key\n",
        "key\r\n",
        "key\0",
        "key\0x",
        "*",
        "key*",
        "[key]",
        "{key}",
        "{}",
        "{key",
        ":",
        "%",
        "%25",
        "\\",
        "'\"",
        "$6\r\nfoobar\r\n",
        "e\u{301}",
        "\u{e9}",
        &wide,
        &format!("{long}a"),
        &format!("{long}b"),
        &long,
    ];
    all_are_apart(&scene, keys.map(|key| scene.key(key))).await
}

async fn all_are_apart<const COUNT: usize>(
    scene: &Scene,
    keys: [IdempotencyKey; COUNT],
) -> Result<()> {
    let template = scene.ask("");
    let requests: Vec<ClaimRequest> = keys
        .iter()
        .zip(1..)
        .map(|(key, nonce)| ClaimRequest {
            key: key.clone(),
            nonce,
            ..template.request()
        })
        .collect();
    for (request, answer) in requests.iter().zip(scene.store.claim(&requests).await) {
        expect(&format!("{:?}", request.key), &answer?, &acquired(1, 1))?;
    }
    let others: Vec<_> = requests
        .into_iter()
        .map(|request| ClaimRequest {
            nonce: 0,
            ..request
        })
        .collect();
    for (request, answer) in others.iter().zip(scene.store.claim(&others).await) {
        let found = answer?;
        let is_known = matches!(found, Claim::InProgress { .. });
        ensure!(is_known, "{:?} claimed again gives {found:?}", request.key);
    }
    // To forget one forgets no other.
    let Some((last, rest)) = keys.split_last() else {
        return Ok(());
    };
    for answer in scene.store.forget(rest).await {
        answer?;
    }
    let last = others.iter().find(|request| request.key == *last);
    let answers = scene.store.claim(last.cloned().as_slice()).await;
    let found = answers.into_iter().next().context("no answer")??;
    let is_kept = matches!(found, Claim::InProgress { .. });
    ensure!(is_kept, "forgetting the others gave {found:?}");
    Ok(())
}
