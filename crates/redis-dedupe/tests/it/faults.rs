//! Connections and servers that fail, and come back.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backstop_core::{Attempt, Claim, Fence, IdempotencyStore as _, Ownership, StoreErrorKind};
use futures_util::future::join_all;
use integration::{Mode, Proxy};

use crate::setup::{
    One as _, chain, config, fresh_key, insist, request, say, shared_store, ticket,
};

const FIRST: Claim = Claim::Acquired {
    fence: Fence(1),
    attempt: Attempt::FIRST,
};

async fn proxy() -> Proxy {
    Proxy::start(integration::redis().await).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_is_survived_and_loses_nothing() {
    let server = integration::start_redis(&[]).await.unwrap();
    let store = config(server.url()).connect().await.unwrap();
    let (done, running) = (fresh_key(), fresh_key());
    for key in [&done, &running] {
        let claim = store.claim_one(request(key, "me", 1)).await.unwrap();
        assert_eq!(claim, FIRST);
    }
    store.complete_one(&ticket(&done, "me", 1)).await.unwrap();
    server.restart().await.unwrap();
    let again = insist(async || store.claim_one(request(&done, "other", 1)).await).await;
    assert_eq!(again, Claim::Completed);
    let ownership = insist(async || store.complete_one(&ticket(&running, "me", 1)).await).await;
    assert_eq!(ownership, Ownership::Held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_replaced_within_the_call() {
    let proxy = proxy().await;
    let store = config(proxy.url()).connect().await.unwrap();
    for _ in 0..5 {
        proxy.cut();
        let key = fresh_key();
        let claim = store.claim_one(request(&key, "me", 1)).await.unwrap();
        assert_eq!(claim, FIRST);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_connection_is_an_error_and_then_replaced() {
    let proxy = proxy().await;
    let store = config(proxy.url())
        .response_timeout(Duration::from_millis(300))
        .connect()
        .await
        .unwrap();
    for mode in [Mode::BlackHole, Mode::DropToServer, Mode::DropToClient] {
        let key = fresh_key();
        proxy.set_mode(mode);
        // However long the machine takes: without a limit it would take for ever.
        let claim = store.claim_one(request(&key, "me", 1));
        let claim = tokio::time::timeout(Duration::from_mins(1), claim)
            .await
            .unwrap();
        let error = claim.unwrap_err();
        assert_eq!(
            error.kind(),
            StoreErrorKind::Unreachable,
            "{}",
            chain(&error)
        );
        assert!(error.is_transient());
        proxy.set_mode(Mode::Forward);
        // With `DropToClient` the first one took effect, and this is its answer.
        let claim = insist(async || store.claim_one(request(&key, "me", 1)).await).await;
        assert_eq!(claim, FIRST, "after {mode:?}");
        let ticket = ticket(&key, "me", 1);
        let ownership = insist(async || store.complete_one(&ticket).await).await;
        assert_eq!(ownership, Ownership::Held);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_server_is_an_error_and_then_answers() {
    let server = integration::start_redis(&[]).await.unwrap();
    let quick = config(server.url()).response_timeout(Duration::from_millis(300));
    let store = quick.connect().await.unwrap();
    let key = fresh_key();
    server.pause().await.unwrap();
    let error = store.claim_one(request(&key, "me", 1)).await.unwrap_err();
    assert_eq!(
        error.kind(),
        StoreErrorKind::Unreachable,
        "{}",
        chain(&error)
    );
    server.unpause().await.unwrap();
    let claim = insist(async || store.claim_one(request(&key, "me", 1)).await).await;
    assert_eq!(claim, FIRST);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_at_the_start_is_awaited() {
    let proxy = proxy().await;
    proxy.set_mode(Mode::Refuse);
    let quick = config(proxy.url())
        .response_timeout(Duration::from_millis(200))
        .connect_timeout(Duration::from_millis(200));
    // The mode takes a moment: an early connection may still be taken, and is closed.
    let error = loop {
        match quick.clone().connect().await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    assert_eq!(
        error.kind(),
        StoreErrorKind::Unreachable,
        "{}",
        chain(&error)
    );
    let store = quick.open().unwrap();
    let key = fresh_key();
    let error = store.claim_one(request(&key, "me", 1)).await.unwrap_err();
    assert_eq!(
        error.kind(),
        StoreErrorKind::Unreachable,
        "{}",
        chain(&error)
    );
    proxy.set_mode(Mode::Forward);
    let claim = insist(async || store.claim_one(request(&key, "me", 1)).await).await;
    assert_eq!(claim, FIRST);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_claim_is_made_once_while_connections_are_cut() {
    let proxy = proxy().await;
    let store = config(proxy.url()).connect().await.unwrap();
    let done = AtomicU32::new(0);
    let work = join_all((0..8).map(|_| async {
        for _ in 0..40 {
            let key = fresh_key();
            let claim = insist(async || store.claim_one(request(&key, "me", 7)).await).await;
            assert_eq!(claim, FIRST);
            let ticket = ticket(&key, "me", 1);
            let ownership = insist(async || store.complete_one(&ticket).await).await;
            assert_eq!(ownership, Ownership::Held);
            done.fetch_add(1, Ordering::Relaxed);
        }
    }));
    let cutting = async {
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(15)).await;
            // A machine that needs longer than this for a connection gets on all the same.
            let now = done.load(Ordering::Relaxed);
            if now > before {
                proxy.cut();
                before = now;
            }
        }
    };
    tokio::select! {
        _ = work => {}
        () = cutting => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_flush_is_survived() {
    let server = integration::start_redis(&[]).await.unwrap();
    let store = config(server.url()).connect().await.unwrap();
    for _ in 0..20 {
        say(server.url(), "SCRIPT FLUSH SYNC").await;
        let keys: Vec<_> = (0..100).map(|_| fresh_key()).collect();
        let requests: Vec<_> = keys.iter().map(|key| request(key, "me", 1)).collect();
        let tickets: Vec<_> = keys.iter().map(|key| ticket(key, "me", 1)).collect();
        let (claims, _) = tokio::join!(store.claim(&requests), say(server.url(), "SCRIPT FLUSH"));
        for claim in claims {
            assert_eq!(claim.unwrap(), FIRST);
        }
        for ownership in store.complete(&tickets, crate::setup::LONG).await {
            assert_eq!(ownership.unwrap(), Ownership::Held);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_call_harms_no_other() {
    let store = shared_store().await;
    let keys: Vec<_> = (0..50).map(|_| fresh_key()).collect();
    for key in &keys {
        let claim = store.claim_one(request(key, "me", 1));
        // Some are dropped before they are sent, some while they wait.
        let _ = tokio::time::timeout(Duration::from_micros(200), claim).await;
    }
    for key in &keys {
        let claim = store.claim_one(request(key, "me", 1)).await.unwrap();
        assert_eq!(claim, FIRST);
    }
}
