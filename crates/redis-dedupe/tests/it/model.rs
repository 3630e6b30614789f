//! Whatever is asked in whatever order, Redis answers as the in-process store does.

use std::time::Duration;

use backstop_core::{
    Claim, ClaimRequest, Fence, Fingerprint, IdempotencyKey, IdempotencyStore, InProcessStore,
    OwnerId, ReleaseKind, Ticket,
};
use backstop_redis_dedupe::RedisStore;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::setup::{LONG, fresh_key};

/// Leases either outlast a test or end before the next step: then both stores see the same.
#[derive(Clone, Copy, Debug)]
enum Lease {
    Long,
    Over,
}

impl Lease {
    const fn duration(self) -> Duration {
        match self {
            Self::Long => LONG,
            Self::Over => Duration::from_millis(1),
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Claim(Vec<(usize, u8, u64, Option<u128>, u32, u32)>, Lease),
    Renew(Vec<(usize, u8, u64)>, Lease),
    Complete(Vec<(usize, u8, u64)>),
    Release(Vec<(usize, u8, u64, ReleaseKind)>),
    Forget(Vec<usize>),
}

const KEYS: usize = 3;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lease = || prop_oneof![3 => Just(Lease::Long), 1 => Just(Lease::Over)];
    let kind = || {
        prop_oneof![
            Just(ReleaseKind::Failed),
            Just(ReleaseKind::Unused),
            Just(ReleaseKind::DeadLettered),
        ]
    };
    let body = || prop_oneof![1 => Just(None), 4 => Just(Some(0_u128)), 1 => Just(Some(1 << 100))];
    let ticket = || (0..KEYS, 0..2_u8, 1..5_u64);
    let claim = (0..KEYS, 0..2_u8, 0..4_u64, body(), 0..3_u32, 0..3_u32);
    let release = (0..KEYS, 0..2_u8, 1..5_u64, kind());
    let batch = 1..4_usize;
    let claims = (prop::collection::vec(claim, batch.clone()), lease());
    let renewals = (prop::collection::vec(ticket(), batch.clone()), lease());
    let tickets = prop::collection::vec(ticket(), batch.clone());
    let releases = prop::collection::vec(release, batch.clone());
    let keys = prop::collection::vec(0..KEYS, batch);
    let step = prop_oneof![
        6 => claims.prop_map(|(all, lease)| Step::Claim(distinct(all, lease, |c| c.0), lease)),
        2 => renewals.prop_map(|(all, lease)| Step::Renew(distinct(all, lease, |t| t.0), lease)),
        2 => tickets.prop_map(Step::Complete),
        5 => releases.prop_map(Step::Release),
        1 => keys.prop_map(Step::Forget),
    ];
    prop::collection::vec(step, 1..25)
}

/// A lease that is over soon must not end within its own batch: there a key stands once.
fn distinct<T>(batch: Vec<T>, lease: Lease, key: impl Fn(&T) -> usize) -> Vec<T> {
    let mut seen = [false; KEYS];
    let is_kept = |item: &T| match lease {
        Lease::Long => true,
        Lease::Over => !std::mem::replace(&mut seen[key(item)], true),
    };
    batch.into_iter().filter(is_kept).collect()
}

fn owner(number: u8) -> OwnerId {
    OwnerId::new(format!("owner-{number}"))
}

async fn answer(store: &dyn IdempotencyStore, keys: &[IdempotencyKey], step: &Step) -> String {
    let ticket = |key: usize, by: u8, fence: u64| Ticket {
        key: keys[key].clone(),
        owner: owner(by),
        fence: Fence(fence),
    };
    match step {
        Step::Claim(claims, lease) => {
            let requests: Vec<_> = claims
                .iter()
                .map(|(key, by, nonce, body, redrives, used)| ClaimRequest {
                    key: keys[*key].clone(),
                    owner: owner(*by),
                    nonce: *nonce,
                    fingerprint: body.map(Fingerprint),
                    redrives: *redrives,
                    attempts_used: *used,
                    lease: lease.duration(),
                    retention: LONG,
                })
                .collect();
            let answers = store.claim(&requests).await.into_iter().map(Result::unwrap);
            // How much is left is not the same to the millisecond.
            let coarse = answers.map(|claim| match claim {
                Claim::InProgress { .. } => "in progress".to_owned(),
                claim => format!("{claim:?}"),
            });
            coarse.collect::<Vec<_>>().join(", ")
        }
        Step::Renew(tickets, lease) => {
            let tickets: Vec<_> = tickets.iter().map(|(k, o, f)| ticket(*k, *o, *f)).collect();
            format!("{:?}", store.renew(&tickets, lease.duration()).await)
        }
        Step::Complete(tickets) => {
            let tickets: Vec<_> = tickets.iter().map(|(k, o, f)| ticket(*k, *o, *f)).collect();
            format!("{:?}", store.complete(&tickets, LONG).await)
        }
        Step::Release(tickets) => {
            let tickets: Vec<_> = tickets
                .iter()
                .map(|(k, o, f, kind)| (ticket(*k, *o, *f), *kind))
                .collect();
            format!("{:?}", store.release(&tickets, LONG).await)
        }
        Step::Forget(forgotten) => {
            let keys: Vec<_> = forgotten.iter().map(|key| keys[*key].clone()).collect();
            format!("{:?}", store.forget(&keys).await)
        }
    }
}

async fn compare(redis: &RedisStore, steps: &[Step]) -> Result<(), TestCaseError> {
    let model = InProcessStore::new();
    let keys: Vec<_> = (0..KEYS).map(|_| fresh_key()).collect();
    for step in steps {
        let wanted = answer(&model, &keys, step).await;
        let found = answer(redis, &keys, step).await;
        prop_assert_eq!(found, wanted, "{:?}", step);
        if let Step::Claim(_, Lease::Over) | Step::Renew(_, Lease::Over) = step {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    Ok(())
}

#[test]
fn redis_answers_as_the_in_process_store_does() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let store = runtime.block_on(crate::setup::shared_store());
    let config = ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = TestRunner::new(config);
    let result = runner.run(&steps(), |steps| runtime.block_on(compare(&store, &steps)));
    result.unwrap();
}
