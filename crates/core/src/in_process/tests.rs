//! Tests of the in-process store, under paused time.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::InProcessStore;
use crate::delivery::Attempt;
use crate::error::StoreErrorKind;
use crate::ports::{
    Claim, ClaimRequest, Fence, Fingerprint, IdempotencyKey, IdempotencyStore, OwnerId, Ownership,
    ReleaseKind, Ticket,
};

const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(10);
const RETENTION: Duration = Duration::from_mins(1);
/// All but a second of it.
const LONG: Duration = Duration::from_secs(59);

fn key(name: &str) -> IdempotencyKey {
    IdempotencyKey::new("tests", name)
}

fn request(name: &str, nonce: u64) -> ClaimRequest {
    ClaimRequest {
        key: key(name),
        owner: OwnerId::new("one"),
        nonce,
        fingerprint: None,
        redrives: 0,
        attempts_used: 0,
        lease: LEASE,
        retention: RETENTION,
    }
}

fn ticket(name: &str, fence: u64) -> Ticket {
    Ticket {
        key: key(name),
        owner: OwnerId::new("one"),
        fence: Fence(fence),
    }
}

const fn acquired(fence: u64, attempt: u32) -> Claim {
    Claim::Acquired {
        fence: Fence(fence),
        attempt: Attempt::after(attempt - 1),
    }
}

async fn try_claim(store: &InProcessStore, request: ClaimRequest) -> Result<Claim, StoreErrorKind> {
    let mut answers = store.claim(&[request]).await;
    answers.pop().unwrap().map_err(|error| error.kind())
}

async fn claim(store: &InProcessStore, name: &str, nonce: u64) -> Claim {
    try_claim(store, request(name, nonce)).await.unwrap()
}

async fn complete(store: &InProcessStore, name: &str, fence: u64) -> Ownership {
    let mut answers = store.complete(&[ticket(name, fence)], RETENTION).await;
    answers.pop().unwrap().unwrap()
}

async fn release(store: &InProcessStore, name: &str, fence: u64, kind: ReleaseKind) -> Ownership {
    let mut answers = store
        .release(&[(ticket(name, fence), kind)], RETENTION)
        .await;
    answers.pop().unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn its_memory_limit_refuses_new_keys_and_forgets_none_early() {
    // Keys of two bytes.
    let room = InProcessStore::RECORD_BYTES + 2;
    let store = InProcessStore::builder().max_bytes(10 * room).build();
    for n in 10..20 {
        assert_eq!(claim(&store, &n.to_string(), 1).await, acquired(1, 1));
    }
    let refused = try_claim(&store, request("20", 1)).await;
    assert_eq!(refused, Err(StoreErrorKind::Full));
    assert_eq!(store.len(), 10);
    assert_eq!(
        complete(&store, "10", 1).await,
        Ownership::Held,
        "known keys go on"
    );
    assert_eq!(claim(&store, "10", 2).await, Claim::Completed);

    store.forget(&[key("11")]).await;
    assert_eq!(
        claim(&store, "20", 1).await,
        acquired(1, 1),
        "as much room as was freed"
    );
    assert_eq!(
        try_claim(&store, request("21", 1)).await,
        Err(StoreErrorKind::Full)
    );

    tokio::time::sleep(RETENTION + 2 * SECOND).await;
    let long = "k".repeat(2 + 9 * room);
    assert_eq!(
        claim(&store, &long, 1).await,
        acquired(1, 1),
        "a key counts by its length"
    );
    assert_eq!(
        try_claim(&store, request("22", 1)).await,
        Err(StoreErrorKind::Full)
    );
}

#[tokio::test(start_paused = true)]
async fn what_has_expired_is_forgotten_and_removed() {
    let store = InProcessStore::new();
    for n in 0..10_000 {
        claim(&store, &n.to_string(), 1).await;
        complete(&store, &n.to_string(), 1).await;
    }
    tokio::time::sleep(LONG).await;
    assert_eq!(claim(&store, "17", 2).await, Claim::Completed);
    tokio::time::sleep(3 * SECOND).await;
    assert_eq!(claim(&store, "17", 2).await, acquired(1, 1));
    for _ in 0..1000 {
        claim(&store, "17", 2).await;
    }
    assert_eq!(store.len(), 1, "removed bit by bit as the store is used");
}

#[tokio::test(start_paused = true)]
async fn a_record_outlives_its_lease_and_every_change_prolongs_it() {
    let store = InProcessStore::new();
    assert_eq!(claim(&store, "1", 1).await, acquired(1, 1));
    tokio::time::sleep(LONG).await;
    assert_eq!(
        claim(&store, "1", 2).await,
        acquired(2, 2),
        "past its lease"
    );
    tokio::time::sleep(LONG).await;
    let renewed = store.renew(&[ticket("1", 2)], RETENTION).await;
    assert_eq!(*renewed[0].as_ref().unwrap(), Ownership::Held);
    tokio::time::sleep(LONG).await;
    assert_eq!(
        release(&store, "1", 2, ReleaseKind::Failed).await,
        Ownership::Held
    );
    tokio::time::sleep(LONG).await;
    assert_eq!(claim(&store, "1", 3).await, acquired(3, 3));
    tokio::time::sleep(RETENTION).await;
    assert_eq!(
        complete(&store, "1", 3).await,
        Ownership::Fenced,
        "the record is gone"
    );
}

#[tokio::test(start_paused = true)]
async fn counts_that_a_broker_makes_up_do_not_overflow() {
    let store = InProcessStore::new();
    for (nonce, redrives) in [(1, 0), (2, 1)] {
        let claimed = ClaimRequest {
            attempts_used: u32::MAX,
            redrives,
            ..request("1", nonce)
        };
        let claimed = try_claim(&store, claimed).await.unwrap();
        assert!(matches!(claimed, Claim::Acquired { attempt, .. } if attempt.get() == u32::MAX));
        assert_eq!(
            release(&store, "1", nonce, ReleaseKind::Failed).await,
            Ownership::Held
        );
    }
    assert!(matches!(
        claim(&store, "1", 3).await,
        Claim::Acquired { .. }
    ));
}

#[tokio::test(start_paused = true)]
async fn its_faults_are_those_of_a_store_across_a_wire() {
    let store = InProcessStore::new();
    store.faults().go_down();
    assert_eq!(
        try_claim(&store, request("1", 1)).await,
        Err(StoreErrorKind::Unreachable)
    );
    assert!(store.is_empty(), "without effect");
    store.faults().come_back();
    store.faults().lose_answers(1);
    assert_eq!(
        try_claim(&store, request("1", 1)).await,
        Err(StoreErrorKind::Unreachable)
    );
    assert_eq!(store.len(), 1, "with effect");
    assert_eq!(
        claim(&store, "1", 1).await,
        acquired(1, 1),
        "the same answer as before"
    );
    store.faults().delay_calls(SECOND);
    let asked = Instant::now();
    assert!(matches!(
        claim(&store, "1", 2).await,
        Claim::InProgress { .. }
    ));
    assert_eq!(asked.elapsed().as_secs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_restored_store_has_lost_the_writes_since() {
    let store = InProcessStore::new();
    assert_eq!(claim(&store, "1", 1).await, acquired(1, 1));
    let snapshot = store.snapshot();
    for _ in 0..2 {
        // The snapshot keeps what it was, whatever becomes of the store, and however often it is used.
        assert_eq!(complete(&store, "1", 1).await, Ownership::Held);
        assert_eq!(claim(&store, "1", 2).await, Claim::Completed);
        assert_eq!(claim(&store, "2", 3).await, acquired(1, 1));
        assert_eq!(store.len(), 2);
        store.restore(&snapshot);
        assert_eq!(store.len(), 1);
        assert_eq!(claim(&store, "1", 1).await, acquired(1, 1), "still held");
        let remaining = LEASE;
        assert_eq!(claim(&store, "1", 2).await, Claim::InProgress { remaining });
    }
}

#[tokio::test(start_paused = true)]
async fn a_restored_store_forgets_at_the_time_of_its_records() {
    let store = InProcessStore::new();
    claim(&store, "1", 1).await;
    let snapshot = store.snapshot();
    store.forget(&[key("1")]).await;
    assert!(store.is_empty());
    tokio::time::advance(LONG).await;
    store.restore(&snapshot);
    assert_eq!(claim(&store, "1", 2).await, acquired(2, 2), "it remembers");
    store.restore(&snapshot);
    tokio::time::advance(2 * SECOND).await;
    assert_eq!(claim(&store, "1", 3).await, acquired(1, 1), "it is past");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_ends_claims_and_records_early() {
    let store = InProcessStore::new();
    let remaining = |remaining| Claim::InProgress { remaining };
    assert_eq!(claim(&store, "1", 1).await, acquired(1, 1));
    store.faults().jump_clock(9 * SECOND);
    assert_eq!(claim(&store, "1", 2).await, remaining(SECOND));
    // Jumps add up.
    store.faults().jump_clock(SECOND);
    assert_eq!(claim(&store, "1", 2).await, acquired(2, 2));
    assert_eq!(complete(&store, "1", 1).await, Ownership::Fenced);
    // What is claimed after a jump lasts as long as ever.
    assert_eq!(claim(&store, "1", 3).await, remaining(LEASE));
    tokio::time::advance(9 * SECOND).await;
    assert_eq!(claim(&store, "1", 3).await, remaining(SECOND));
    assert_eq!(complete(&store, "1", 2).await, Ownership::Held);
    assert_eq!(claim(&store, "1", 4).await, Claim::Completed);
    store.faults().jump_clock(RETENTION);
    assert_eq!(claim(&store, "1", 5).await, acquired(1, 1), "it is past");
}

/// What the contract of [`IdempotencyStore`] says, without a thought for memory or speed.
#[derive(Default)]
struct Model {
    records: HashMap<IdempotencyKey, Record>,
}

struct Record {
    state: State,
    owner: OwnerId,
    nonce: u64,
    fence: u64,
    attempts: u32,
    redrives: u32,
    fingerprint: Option<Fingerprint>,
    expires: Instant,
}

#[derive(PartialEq)]
enum State {
    InProgress(Instant),
    Released(ReleaseKind),
    Completed,
}

impl Model {
    fn claim(&mut self, request: &ClaimRequest) -> Claim {
        let now = Instant::now();
        self.records.retain(|_, record| record.expires > now);
        let fresh = Record {
            state: State::Released(ReleaseKind::Failed),
            owner: request.owner.clone(),
            nonce: 0,
            fence: 0,
            attempts: request.attempts_used,
            redrives: request.redrives,
            fingerprint: request.fingerprint,
            expires: now,
        };
        let record = self.records.entry(request.key.clone()).or_insert(fresh);
        let other_body = record.fingerprint.is_some()
            && request.fingerprint.is_some()
            && record.fingerprint != request.fingerprint;
        let redriven = request.redrives > record.redrives;
        let buried = record.state == State::Released(ReleaseKind::DeadLettered);
        match record.state {
            State::InProgress(_)
                if (&record.owner, record.nonce) == (&request.owner, request.nonce) =>
            {
                return acquired(record.fence, record.attempts);
            }
            _ if buried && !redriven && !other_body => return Claim::DeadLettered,
            _ if other_body && !buried => return Claim::Conflict,
            State::Completed => return Claim::Completed,
            State::InProgress(until) if now < until => {
                return Claim::InProgress {
                    remaining: until - now,
                };
            }
            _ => {}
        }
        if redriven || buried {
            record.attempts = request.attempts_used;
        }
        record.state = State::InProgress(now + request.lease);
        record.owner = request.owner.clone();
        record.nonce = request.nonce;
        record.fence += 1;
        record.attempts += 1;
        record.redrives = record.redrives.max(request.redrives);
        record.fingerprint = request.fingerprint;
        record.expires = now + request.retention;
        acquired(record.fence, record.attempts)
    }

    fn owned(&mut self, ticket: &Ticket) -> Option<&mut Record> {
        let record = self.records.get_mut(&ticket.key)?;
        let owned = record.expires > Instant::now()
            && (&record.owner, record.fence) == (&ticket.owner, ticket.fence.0);
        owned.then_some(record)
    }

    fn renew(&mut self, ticket: &Ticket) -> Ownership {
        let until = Instant::now() + LEASE;
        match self.owned(ticket) {
            Some(record) if matches!(record.state, State::InProgress(_)) => {
                record.state = State::InProgress(until);
                record.expires = record.expires.max(until);
                Ownership::Held
            }
            _ => Ownership::Fenced,
        }
    }

    fn end(&mut self, ticket: &Ticket, state: State) -> Ownership {
        match self.owned(ticket) {
            Some(record) if record.state == state => Ownership::Held,
            Some(record) if matches!(record.state, State::InProgress(_)) => {
                record.attempts -= u32::from(state == State::Released(ReleaseKind::Unused));
                record.state = state;
                record.expires = Instant::now() + RETENTION;
                Ownership::Held
            }
            _ => Ownership::Fenced,
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Of a key, by an owner, again with the last nonce or a new one, and with all that varies.
    Claim(u8, bool, bool, Option<u128>, u32, u32),
    Renew(prop::sample::Index),
    Complete(prop::sample::Index),
    Release(prop::sample::Index, ReleaseKind),
    Forget(u8),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Step> {
    let kinds = prop::sample::select(vec![
        ReleaseKind::Failed,
        ReleaseKind::Unused,
        ReleaseKind::DeadLettered,
    ]);
    let body = prop::option::of(0_u128..2);
    let ticket = any::<prop::sample::Index>;
    prop_oneof![
        6 => (0_u8..3, any::<bool>(), any::<bool>(), body, 0_u32..3, 0_u32..3)
            .prop_map(|(key, owner, again, body, redrives, used)| {
                Step::Claim(key, owner, again, body, redrives, used)
            }),
        2 => ticket().prop_map(Step::Renew),
        2 => ticket().prop_map(Step::Complete),
        3 => (ticket(), kinds).prop_map(|(ticket, kind)| Step::Release(ticket, kind)),
        1 => (0_u8..3).prop_map(Step::Forget),
        3 => prop_oneof![0_u64..12_000, 50_000_u64..65_000].prop_map(Step::Wait),
    ]
}

async fn follow(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let (store, mut model) = (InProcessStore::new(), Model::default());
    let mut tickets = vec![ticket("0", 1)];
    let mut nonce = 0;
    for step in steps {
        let chosen = |index: prop::sample::Index| index.get(&tickets).clone();
        match step {
            Step::Claim(name, other, again, body, redrives, attempts_used) => {
                nonce += u64::from(!again);
                let request = ClaimRequest {
                    owner: OwnerId::new(if other { "two" } else { "one" }),
                    fingerprint: body.map(Fingerprint),
                    redrives,
                    attempts_used,
                    ..request(&name.to_string(), nonce)
                };
                let answer = try_claim(&store, request.clone()).await.unwrap();
                prop_assert_eq!(answer, model.claim(&request));
                if let Claim::Acquired { fence, .. } = answer {
                    let ClaimRequest { key, owner, .. } = request;
                    tickets.push(Ticket { key, owner, fence });
                }
            }
            Step::Renew(index) => {
                let ticket = chosen(index);
                let answer = store.renew(std::slice::from_ref(&ticket), LEASE).await;
                prop_assert_eq!(*answer[0].as_ref().unwrap(), model.renew(&ticket));
            }
            Step::Complete(index) => {
                let ticket = chosen(index);
                let answer = store
                    .complete(std::slice::from_ref(&ticket), RETENTION)
                    .await;
                prop_assert_eq!(
                    *answer[0].as_ref().unwrap(),
                    model.end(&ticket, State::Completed)
                );
            }
            Step::Release(index, kind) => {
                let ticket = chosen(index);
                let answer = store.release(&[(ticket.clone(), kind)], RETENTION).await;
                let expected = model.end(&ticket, State::Released(kind));
                prop_assert_eq!(*answer[0].as_ref().unwrap(), expected);
            }
            Step::Forget(name) => {
                store.forget(&[key(&name.to_string())]).await;
                model.records.remove(&key(&name.to_string()));
            }
            Step::Wait(milliseconds) => {
                tokio::time::advance(Duration::from_millis(milliseconds)).await;
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn it_answers_as_its_contract_says(steps in prop::collection::vec(steps(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(follow(steps))?;
    }
}
