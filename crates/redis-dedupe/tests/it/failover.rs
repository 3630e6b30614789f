//! What a failover does to the store.

use std::cell::RefCell;
use std::num::NonZeroU32;
use std::time::Duration;

use backstop_core::{Claim, IdempotencyKey, IdempotencyStore as _, Ownership};
use backstop_redis_dedupe::{RedisStore, RedisStoreConfig};

use crate::setup::{
    LONG, One as _, PATIENCE, chain, config, fresh_key, insist, request, shared_cluster, ticket,
};

const BATCH: usize = 20;

/// A consumer without end: it claims and completes fresh keys, and remembers which the store said to
/// hold. Errors that may pass are borne.
struct Load<'a> {
    store: &'a RedisStore,
    completed: RefCell<Vec<IdempotencyKey>>,
}

impl Load<'_> {
    async fn run(&self) {
        loop {
            let keys: Vec<_> = (0..BATCH).map(|_| fresh_key()).collect();
            let requests: Vec<_> = keys.iter().map(|key| request(key, "me", 1)).collect();
            for claim in self.store.claim(&requests).await {
                bear(claim.map(drop));
            }
            let tickets: Vec<_> = keys.iter().map(|key| ticket(key, "me", 1)).collect();
            let answers = self.store.complete(&tickets, LONG).await;
            for (key, answer) in keys.into_iter().zip(answers) {
                match answer {
                    Ok(Ownership::Held) => self.completed.borrow_mut().push(key),
                    // The claim failed, or was lost with the old master.
                    Ok(Ownership::Fenced) => {}
                    Err(error) => bear(Err(error)),
                }
            }
        }
    }

    fn count(&self) -> usize {
        self.completed.borrow().len()
    }

    /// Waits for so many completions more.
    async fn progress(&self, more: usize) {
        let wanted = self.count() + more;
        let end = tokio::time::Instant::now() + PATIENCE;
        while self.count() < wanted {
            assert!(
                tokio::time::Instant::now() < end,
                "the store does not go on"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Runs beside what happens to the servers, until that is over.
    async fn beside(&self, happens: impl Future<Output = ()>) {
        tokio::select! {
            () = self.run() => {}
            () = happens => {}
        }
    }

    /// How many of the completed keys are handed out again.
    async fn lost(&self) -> usize {
        let mut lost = 0;
        let completed = self.completed.borrow().clone();
        for key in &completed {
            let claim = insist(async || self.store.claim_one(request(key, "other", 1)).await).await;
            lost += usize::from(claim != Claim::Completed);
        }
        lost
    }
}

fn bear(answer: Result<(), backstop_core::StoreError>) {
    if let Err(error) = answer {
        assert!(error.is_transient(), "{}", chain(&error));
    }
}

/// Waits for the one replica of each master.
fn with_wait(url: &str) -> RedisStoreConfig {
    config(url).wait_for_replicas(NonZeroU32::MIN, Duration::from_millis(500))
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_failover_hands_out_nothing_twice_where_replicas_are_waited_for() {
    let sentinels = integration::start_sentinels().await.unwrap();
    let store = with_wait(sentinels.url()).connect().await.unwrap();
    let load = Load {
        store: &store,
        completed: RefCell::default(),
    };
    load.beside(async {
        load.progress(200).await;
        let old = sentinels.master().await.unwrap();
        sentinels.nodes().kill(old).await.unwrap();
        sentinels.next_master(old).await.unwrap();
        // Nobody is left to be waited for until it is back.
        sentinels.nodes().start(old).await.unwrap();
        load.progress(200).await;
    })
    .await;
    assert_eq!(load.lost().await, 0, "of {}", load.count());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_master_under_sentinel_is_left_for_its_successor() {
    let sentinels = integration::start_sentinels().await.unwrap();
    let quick = config(sentinels.url()).response_timeout(Duration::from_millis(500));
    let store = quick.connect().await.unwrap();
    let load = Load {
        store: &store,
        completed: RefCell::default(),
    };
    load.beside(async {
        load.progress(200).await;
        let old = sentinels.master().await.unwrap();
        sentinels.nodes().freeze(old).await.unwrap();
        sentinels.next_master(old).await.unwrap();
        load.progress(200).await;
        // When it is back it believes to be the master for a moment.
        sentinels.nodes().thaw(old).await.unwrap();
        load.progress(200).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clusters_failover_hands_out_nothing_twice_where_replicas_are_waited_for() {
    let cluster = integration::start_cluster().await.unwrap();
    let store = with_wait(cluster.url()).connect().await.unwrap();
    let load = Load {
        store: &store,
        completed: RefCell::default(),
    };
    load.beside(async {
        load.progress(400).await;
        let (_, new) = cluster.fail_over().await.unwrap();
        load.progress(400).await;
        cluster.nodes().kill(new).await.unwrap();
        cluster.until_replaced(new).await.unwrap();
        cluster.nodes().start(new).await.unwrap();
        load.progress(400).await;
    })
    .await;
    assert_eq!(load.lost().await, 0, "of {}", load.count());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_master_of_a_cluster_is_left_for_its_successor() {
    let cluster = integration::start_cluster().await.unwrap();
    let quick = config(cluster.url()).response_timeout(Duration::from_millis(500));
    let store = quick.connect().await.unwrap();
    let load = Load {
        store: &store,
        completed: RefCell::default(),
    };
    load.beside(async {
        load.progress(400).await;
        let old = cluster.masters().await.unwrap()[0];
        cluster.nodes().freeze(old).await.unwrap();
        cluster.until_replaced(old).await.unwrap();
        load.progress(400).await;
        cluster.nodes().thaw(old).await.unwrap();
        load.progress(400).await;
    })
    .await;
    // Every slot is served again.
    for _ in 0..50 {
        let key = fresh_key();
        let claim = insist(async || store.claim_one(request(&key, "me", 1)).await).await;
        assert!(matches!(claim, Claim::Acquired { .. }), "{claim:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_moves_is_followed() {
    // Every test that shares the Cluster has to bear this one.
    let cluster = shared_cluster().await;
    let store = config(cluster.url()).connect().await.unwrap();
    let masters = cluster.masters().await.unwrap();
    let (from, to) = (masters[0], masters[1]);
    let ask = async |port: u16, words: &str| {
        let words: Vec<_> = words.split(' ').collect();
        cluster.nodes().ask(port, &words).await.unwrap()
    };
    // Keys of one slot, by their braces, on the first master.
    let mut claims = Vec::new();
    let mut slot = String::new();
    for number in 0..100 {
        let tag = format!("{{tag-{number}}}");
        slot = ask(from, &format!("cluster keyslot {tag}"))
            .await
            .trim()
            .to_owned();
        let key = |n| IdempotencyKey::new("moving", format!("{tag}-{n}"));
        let first = request(&key(0), "me", 1);
        store.claim_one(first.clone()).await.unwrap();
        if ask(from, &format!("cluster countkeysinslot {slot}"))
            .await
            .trim()
            == "1"
        {
            claims = (0..5).map(|n| request(&key(n), "me", 1)).collect();
            break;
        }
    }
    assert_eq!(claims.len(), 5, "no slot of the first master was found");
    let id = async |port| ask(port, "cluster myid").await.trim().to_owned();
    let (from_id, to_id) = (id(from).await, id(to).await);
    ask(to, &format!("cluster setslot {slot} importing {from_id}")).await;
    ask(from, &format!("cluster setslot {slot} migrating {to_id}")).await;
    // The first key is still at home; the others are new, and the other master's already: ASK.
    for _ in 0..2 {
        for claim in store.claim(&claims).await {
            assert!(matches!(claim.unwrap(), Claim::Acquired { fence, .. } if fence.0 == 1));
        }
    }
    let moved = ask(to, &format!("cluster countkeysinslot {slot}")).await;
    assert_eq!(moved.trim(), "4");
    let name = format!("backstop:moving:{}", claims[0].key.key());
    ask(from, &format!("migrate 127.0.0.1 {to} {name} 0 5000")).await;
    for port in [to, from] {
        ask(port, &format!("cluster setslot {slot} node {to_id}")).await;
    }
    // MOVED.
    for claim in store.claim(&claims).await {
        assert!(matches!(claim.unwrap(), Claim::Acquired { fence, .. } if fence.0 == 1));
    }
    for claim in &claims {
        let ownership = store
            .complete_one(&ticket(&claim.key, "me", 1))
            .await
            .unwrap();
        assert_eq!(ownership, Ownership::Held);
    }
}
