//! What threads share, in many orders of these threads: run by shuttle, see `sync.rs`.
//!
//! `RUSTFLAGS="--cfg shuttle" cargo test -p backstop-core --lib threads::`

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use shuttle::future::block_on;
use shuttle::thread;
use tokio::time::Instant;

use super::batcher::{Batcher, Limits};
use super::breaker::{BreakerSettings, Width};
use super::gate::Gate;
use super::keeper::{Keeper, KeeperSettings, Standing};
use super::lanes::Lanes;
use super::stats::Counters;
use super::workers::{Desk, Idle};
use crate::delivery::{Delivery, LeaseId};
use crate::error::BrokerError;
use crate::in_process::InProcessStore;
use crate::message::PartitionKey;
use crate::ports::{
    Claim, ClaimRequest, DeliveryLease, Fence, IdempotencyKey, IdempotencyStore, LeaseState,
    OwnerId, Ownership, SettleError, Subscription, Ticket,
};
use crate::sync::Mutex;
use crate::verdict::Settlement;

/// How many orders of threads are tried: by chance, and with few switches at places chosen by chance.
const ORDERS: usize = 2_000;
const SWITCHES: usize = 3;

fn in_many_orders(test: fn()) {
    shuttle::check_random(test, ORDERS);
    shuttle::check_pct(test, ORDERS, SWITCHES);
}

const LIMITS: Limits = Limits {
    batch: 2,
    flights: 2,
};

fn counters() -> Arc<Counters> {
    Arc::new(Counters::new(&Arc::from("tests")))
}

/// Doubles; 1 is refused, 3 forgotten.
fn doubler() -> Arc<Batcher<u32, u32>> {
    Arc::new(Batcher::new(|_| 1, || 3))
}

fn drive(batcher: &Arc<Batcher<u32, u32>>) -> thread::JoinHandle<()> {
    let batcher = Arc::clone(batcher);
    let port = |requests: Vec<u32>| async move {
        thread::yield_now();
        requests.into_iter().map(|n| n * 2).collect()
    };
    thread::spawn(move || block_on(batcher.drive(LIMITS, port)))
}

#[test]
fn every_call_of_a_batcher_gets_its_own_answer() {
    in_many_orders(|| {
        let batcher = doubler();
        let driver = drive(&batcher);
        let callers: Vec<_> = (10..13)
            .map(|n| {
                let batcher = Arc::clone(&batcher);
                thread::spawn(move || {
                    // One that nobody waits for must not get in the way.
                    drop(batcher.call(n + 100));
                    assert_eq!(block_on(batcher.call(n)), n * 2);
                })
            })
            .collect();
        for caller in callers {
            caller.join().unwrap();
        }
        batcher.close();
        driver.join().unwrap();
    });
}

#[test]
fn no_call_waits_for_ever_when_a_batcher_is_abandoned() {
    in_many_orders(|| {
        let batcher = doubler();
        let driver = drive(&batcher);
        let callers: Vec<_> = (10..12)
            .map(|n| {
                let batcher = Arc::clone(&batcher);
                thread::spawn(move || {
                    let answer = block_on(batcher.call(n));
                    assert!([1, 3, n * 2].contains(&answer), "{answer}");
                })
            })
            .collect();
        batcher.abandon();
        for caller in callers {
            caller.join().unwrap();
        }
        driver.join().unwrap();
    });
}

#[test]
fn what_is_handed_over_is_worked_on_once() {
    in_many_orders(|| {
        let idle = Arc::new(Mutex::new(Idle::<u32>::default()));
        let worked = Arc::new(AtomicU32::new(0));
        let workers: Vec<_> = (0..2)
            .map(|_| {
                let (idle, worked) = (Arc::clone(&idle), Arc::clone(&worked));
                thread::spawn(move || {
                    let desk = Arc::new(Desk::default());
                    while let Some(bit) = block_on(Idle::next(&idle, &desk)) {
                        let before = worked.fetch_or(bit, Ordering::Relaxed);
                        assert_eq!(before & bit, 0, "twice");
                    }
                })
            })
            .collect();
        let mut own = 0;
        for bit in [1, 2, 4] {
            own |= Idle::hand_over(&idle, bit).unwrap_or(0);
            thread::yield_now();
        }
        Idle::close(&idle);
        for worker in workers {
            worker.join().unwrap();
        }
        let worked = worked.load(Ordering::Relaxed);
        assert_eq!((worked | own, worked & own), (7, 0), "each by one of them");
    });
}

#[test]
fn a_lane_is_run_in_order_by_one_at_a_time() {
    in_many_orders(|| {
        let lanes = Arc::new(Lanes::<u32>::default());
        let key = PartitionKey::from("key");
        let (ran, running) = (
            Arc::new(Mutex::new(Vec::new())),
            Arc::new(Mutex::new(false)),
        );
        let mut runners = Vec::new();
        for n in 0..4 {
            let Some(first) = lanes.enter(&key, n) else {
                continue;
            };
            let (lanes, key) = (Arc::clone(&lanes), key.clone());
            let (ran, running) = (Arc::clone(&ran), Arc::clone(&running));
            runners.push(thread::spawn(move || {
                let mut next = Some(first);
                while let Some(n) = next {
                    assert!(!std::mem::replace(&mut *running.lock(), true), "alone");
                    ran.lock().push(n);
                    *running.lock() = false;
                    next = lanes.next(&key);
                }
            }));
        }
        for runner in runners {
            runner.join().unwrap();
        }
        assert_eq!(*ran.lock(), [0, 1, 2, 3]);
        assert!(lanes.drain(&key).is_empty());
    });
}

/// A broker that has lost the first lease, and keeps all others.
struct FirstIsLost;

#[async_trait]
impl Subscription for FirstIsLost {
    async fn receive(&self, _: NonZeroUsize) -> Result<Vec<Delivery>, BrokerError> {
        Ok(Vec::new())
    }

    async fn settle(&self, batch: Vec<Settlement>) -> Vec<Result<(), SettleError>> {
        batch.into_iter().map(|_| Ok(())).collect()
    }

    async fn extend(&self, leases: &[LeaseId]) -> Vec<Result<LeaseState, BrokerError>> {
        thread::yield_now();
        let answer = |lease: &LeaseId| match lease.0 {
            1 => Ok(LeaseState::Lost),
            _ => Ok(LeaseState::Held(None)),
        };
        leases.iter().map(answer).collect()
    }

    async fn stop(&self) {}

    async fn close(&self) {}
}

#[test]
fn a_keeper_takes_no_answer_for_another_delivery_in_the_same_place() {
    in_many_orders(|| {
        let settings = KeeperSettings {
            claim_lease: Duration::from_hours(1),
            delivery_lease: DeliveryLease::Connection,
        };
        let keeper = Arc::new(Keeper::new(settings, counters()));
        let other = Arc::clone(&keeper);
        let rounds = thread::spawn(move || {
            for _ in 0..2 {
                let now = Instant::now();
                let (leases, _) = other.due(now, Duration::from_secs(1));
                block_on(other.extend_leases(&FirstIsLost, leases, now));
            }
        });
        for lease in 1..=3 {
            let hold = keeper.hold(LeaseId(lease), None, Instant::now());
            let cancellation = hold.cancellation().clone();
            thread::yield_now();
            hold.settling();
            let standing = hold.standing();
            let is_lost = standing == Standing::LeaseLost;
            assert!(is_lost || standing == Standing::Settling, "{standing:?}");
            assert!(!is_lost || lease == 1, "{lease} is still held");
            assert_eq!(is_lost, cancellation.is_cancelled());
        }
        rounds.join().unwrap();
    });
}

#[test]
fn who_waits_at_the_gate_hears_of_every_change() {
    in_many_orders(|| {
        let settings = BreakerSettings {
            window: 1,
            ..BreakerSettings::default()
        };
        let gate = Arc::new(Gate::new(settings, counters()));
        let waits = Arc::clone(&gate);
        // Nothing but the change itself wakes it.
        let waiter = thread::spawn(move || block_on(waits.other_than(Width::Full)));
        gate.handling_failed();
        waiter.join().unwrap();
        assert!(gate.is_tripped());
        let opens = Arc::clone(&gate);
        let opener = thread::spawn(move || opens.handling_succeeded());
        opener.join().unwrap();
        assert!(!gate.is_tripped());
    });
}

#[test]
fn of_claims_at_once_a_store_grants_one() {
    in_many_orders(|| {
        let store = InProcessStore::new();
        let claimers: Vec<_> = (1..=3)
            .map(|nonce| {
                let store = store.clone();
                thread::spawn(move || block_on(claim_and_complete(&store, nonce)))
            })
            .collect();
        let granted = claimers.into_iter().map(|claimer| claimer.join().unwrap());
        assert_eq!(granted.filter(|granted| *granted).count(), 1);
    });
}

async fn claim_and_complete(store: &InProcessStore, nonce: u64) -> bool {
    let (key, owner) = (IdempotencyKey::new("tests", "1"), OwnerId::new("one"));
    let hour = Duration::from_hours(1);
    let request = ClaimRequest {
        key: key.clone(),
        owner: owner.clone(),
        nonce,
        fingerprint: None,
        redrives: 0,
        attempts_used: 0,
        lease: hour,
        retention: hour,
    };
    let claim = store.claim(&[request]).await.remove(0).unwrap();
    let Claim::Acquired { fence, .. } = claim else {
        let is_taken = matches!(claim, Claim::InProgress { .. } | Claim::Completed);
        assert!(is_taken, "{claim:?}");
        return false;
    };
    assert_eq!(fence, Fence(1));
    let ticket = Ticket { key, owner, fence };
    let ended = store.complete(&[ticket], hour).await.remove(0).unwrap();
    assert_eq!(ended, Ownership::Held);
    true
}
