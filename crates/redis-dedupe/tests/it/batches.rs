//! Many operations in one batch: each has its own answer.

use std::time::Duration;

use backstop_core::{
    Attempt, Claim, Fence, IdempotencyKey, IdempotencyStore as _, Ownership, ReleaseKind,
    StoreErrorKind,
};
use backstop_redis_dedupe::RedisStore;

use crate::setup::{
    LONG, One as _, chain, command, fresh_key, number, record, request, shared_store, ticket,
};

/// More than a call carries, and no multiple of it.
const MANY: usize = 150;

const FIRST: Claim = Claim::Acquired {
    fence: Fence(1),
    attempt: Attempt::FIRST,
};

fn fresh_keys() -> Vec<IdempotencyKey> {
    (0..MANY).map(|_| fresh_key()).collect()
}

async fn claim_all(store: &RedisStore, keys: &[IdempotencyKey]) {
    let requests: Vec<_> = keys.iter().map(|key| request(key, "me", 1)).collect();
    let claims = store.claim(&requests).await;
    assert_eq!(claims.len(), keys.len());
    for claim in claims {
        assert_eq!(claim.unwrap(), FIRST);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_stand_at_the_positions_of_their_requests() {
    let store = shared_store().await;
    let keys = fresh_keys();
    claim_all(&store, &keys).await;
    let is_mine = |at: usize| !at.is_multiple_of(7);
    let fence = |at| if is_mine(at) { 1 } else { 2 };
    let numbered = keys.iter().enumerate();
    let tickets: Vec<_> = numbered
        .map(|(at, key)| ticket(key, "me", fence(at)))
        .collect();
    for answers in [
        store.renew(&tickets, LONG).await,
        store.complete(&tickets, LONG).await,
    ] {
        assert_eq!(answers.len(), MANY);
        for (at, ownership) in answers.into_iter().enumerate() {
            let is_held = ownership.unwrap() == Ownership::Held;
            assert_eq!(is_held, is_mine(at), "at {at}");
        }
    }
    let others: Vec<_> = keys.iter().map(|key| request(key, "other", 1)).collect();
    for (at, claim) in store.claim(&others).await.into_iter().enumerate() {
        let is_completed = match claim.unwrap() {
            Claim::Completed => true,
            Claim::InProgress { .. } => false,
            claim => panic!("{claim:?} at {at}"),
        };
        assert_eq!(is_completed, is_mine(at), "at {at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_record_fails_alone() {
    let url = integration::redis().await;
    let store = shared_store().await;
    let keys = fresh_keys();
    let (text, set) = (3, 70);
    command(url, &[b"SET", record(&keys[text]).as_bytes(), b"text"]).await;
    command(url, &[b"SADD", record(&keys[set]).as_bytes(), b"x"]).await;
    let is_foreign = |at| at == text || at == set;
    let requests: Vec<_> = keys.iter().map(|key| request(key, "me", 1)).collect();
    for (at, claim) in store.claim(&requests).await.into_iter().enumerate() {
        match claim {
            Ok(claim) => assert!(!is_foreign(at) && claim == FIRST, "{claim:?} at {at}"),
            Err(error) => {
                assert!(is_foreign(at), "{at}: {}", chain(&error));
                assert_eq!(error.kind(), StoreErrorKind::Configuration);
            }
        }
    }
    let tickets: Vec<_> = keys.iter().map(|key| ticket(key, "me", 1)).collect();
    for answers in [
        store.renew(&tickets, LONG).await,
        store.complete(&tickets, LONG).await,
    ] {
        for (at, ownership) in answers.into_iter().enumerate() {
            let is_held = matches!(ownership, Ok(Ownership::Held));
            assert_eq!(is_held, !is_foreign(at), "at {at}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_one_batch_keep_their_own_times() {
    let url = integration::redis().await;
    let store = shared_store().await;
    let keys: Vec<_> = (0..6).map(|_| fresh_key()).collect();
    let minutes = |at: usize| if at < 2 || at == 4 { 10 } else { 50 };
    let numbered = keys.iter().enumerate();
    let requests = numbered.map(|(at, key)| {
        let mut claim = request(key, "me", 1);
        claim.retention = Duration::from_mins(minutes(at));
        claim
    });
    let claims = store.claim(&requests.collect::<Vec<_>>()).await;
    for (at, claim) in claims.into_iter().enumerate() {
        assert_eq!(claim.unwrap(), FIRST);
        let expiry = number(url, &["PTTL", &record(&keys[at])]).await;
        let most = i64::try_from(minutes(at)).unwrap() * 60_000;
        assert!((most - 60_000..=most).contains(&expiry), "{expiry} at {at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_may_give_claims_up_for_different_reasons() {
    let store = shared_store().await;
    let keys = fresh_keys();
    claim_all(&store, &keys).await;
    let kind = |at: usize| match at % 3 {
        0 => ReleaseKind::Failed,
        1 => ReleaseKind::Unused,
        _ => ReleaseKind::DeadLettered,
    };
    let numbered = keys.iter().enumerate();
    let releases: Vec<_> = numbered
        .map(|(at, key)| (ticket(key, "me", 1), kind(at)))
        .collect();
    for ownership in store.release(&releases, LONG).await {
        assert_eq!(ownership.unwrap(), Ownership::Held);
    }
    let again: Vec<_> = keys.iter().map(|key| request(key, "me", 2)).collect();
    for (at, claim) in store.claim(&again).await.into_iter().enumerate() {
        let acquired = |attempt| Claim::Acquired {
            fence: Fence(2),
            attempt: Attempt::after(attempt),
        };
        let wanted = match kind(at) {
            ReleaseKind::Failed => acquired(1),
            ReleaseKind::Unused => acquired(0),
            ReleaseKind::DeadLettered => Claim::DeadLettered,
        };
        assert_eq!(claim.unwrap(), wanted, "at {at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_comes_twice_in_a_batch_is_dealt_with_twice() {
    let store = shared_store().await;
    let key = fresh_key();
    let claims = [
        request(&key, "me", 1),
        request(&key, "me", 1),
        request(&key, "other", 1),
    ];
    let answers = store.claim(&claims).await;
    let [Ok(first), Ok(again), Ok(other)] = &answers[..] else {
        panic!("{answers:?}");
    };
    assert_eq!((first, again), (&FIRST, &FIRST));
    assert!(matches!(other, Claim::InProgress { .. }), "{other:?}");
    let unused = || (ticket(&key, "me", 1), ReleaseKind::Unused);
    for ownership in store.release(&[unused(), unused()], LONG).await {
        assert_eq!(ownership.unwrap(), Ownership::Held);
    }
    // The attempt was given back once.
    let claim = store.claim_one(request(&key, "me", 2)).await.unwrap();
    assert!(matches!(claim, Claim::Acquired { attempt, .. } if attempt == Attempt::FIRST));
}
