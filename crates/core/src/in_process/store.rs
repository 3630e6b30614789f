//! The in-process idempotency store.

use std::collections::BTreeMap;
use std::fmt;
use std::mem::size_of;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::store_faults::{Fault, StoreFaults};
use crate::delivery::Attempt;
use crate::error::{StoreError, StoreErrorKind};
use crate::ports::{
    Claim, ClaimRequest, Fence, Fingerprint, IdempotencyKey, IdempotencyStore, OwnerId, Ownership,
    ReleaseKind, StoreHandle, Survival, Ticket,
};

/// An idempotency store inside the process.
///
/// It absorbs the repeats that one process sees; other processes and restarts know nothing of it.
/// Its time is tokio's, so that tests can run under paused time. Clones share the records.
///
/// It keeps to a memory limit, counted as [`InProcessStore::RECORD_BYTES`] and the key's length a
/// record. When it is full of records that have not expired, new keys are refused with
/// [`StoreErrorKind::Full`], which stops handling: nothing is forgotten early.
#[derive(Clone)]
pub struct InProcessStore {
    records: Arc<Mutex<Records>>,
    faults: StoreFaults,
}

/// Builds an [`InProcessStore`].
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct InProcessStoreBuilder {
    max_bytes: usize,
}

impl InProcessStoreBuilder {
    /// Keeps records of at most this many bytes in all; default 256 MiB, about 1,000,000 records.
    pub const fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Builds the store.
    pub fn build(self) -> InProcessStore {
        let records = Records {
            by_key: HashMap::new(),
            expiries: BTreeMap::new(),
            origin: Instant::now(),
            bytes: 0,
            max_bytes: self.max_bytes,
        };
        InProcessStore {
            records: Arc::new(Mutex::new(records)),
            faults: StoreFaults::default(),
        }
    }
}

impl InProcessStore {
    /// What a record takes beside its key's text, in bytes: the record, its place in a table that is
    /// on average seven tenths full, and its place in the order of expiry.
    pub const RECORD_BYTES: usize = (size_of::<Record>() + size_of::<IdempotencyKey>()) * 10 / 7
        + size_of::<IdempotencyKey>()
        + 16;

    /// A store with the default memory limit.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Builds a store with another memory limit.
    pub const fn builder() -> InProcessStoreBuilder {
        InProcessStoreBuilder {
            max_bytes: 256 << 20,
        }
    }

    /// Faults to inject, for tests.
    pub const fn faults(&self) -> &StoreFaults {
        &self.faults
    }

    /// How many records it keeps, those that have expired but were not swept yet included.
    pub fn len(&self) -> usize {
        self.records.lock().by_key.len()
    }

    /// Whether it keeps none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Runs a batch under one lock, with the faults that are planned.
    async fn run<Q, A>(
        &self,
        requests: &[Q],
        mut step: impl FnMut(&mut Records, &Q, Instant) -> Result<A, StoreError> + Send,
    ) -> Vec<Result<A, StoreError>>
    where
        Q: Sync,
        A: Send,
    {
        let fault = self.faults.next().await;
        if fault == Fault::Down {
            return requests.iter().map(|_| Err(unreachable())).collect();
        }
        let now = Instant::now();
        let mut records = self.records.lock();
        records.sweep(now, requests.len() * 2 + 16);
        let answers = requests
            .iter()
            .map(|request| step(&mut records, request, now));
        match fault {
            Fault::AnswerLost => answers.map(|_| Err(unreachable())).collect(),
            Fault::None | Fault::Down => answers.collect(),
        }
    }
}

impl Default for InProcessStore {
    fn default() -> Self {
        Self::new()
    }
}

impl From<InProcessStore> for StoreHandle {
    fn from(store: InProcessStore) -> Self {
        Arc::new(store)
    }
}

impl fmt::Debug for InProcessStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcessStore")
            .field("records", &self.len())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl IdempotencyStore for InProcessStore {
    fn survival(&self) -> Survival {
        Survival::Process
    }

    async fn claim(&self, requests: &[ClaimRequest]) -> Vec<Result<Claim, StoreError>> {
        self.run(requests, Records::claim).await
    }

    async fn renew(
        &self,
        tickets: &[Ticket],
        lease: Duration,
    ) -> Vec<Result<Ownership, StoreError>> {
        self.run(tickets, |records, ticket, now| {
            Ok(records.renew(ticket, now + lease, now))
        })
        .await
    }

    async fn complete(
        &self,
        tickets: &[Ticket],
        retention: Duration,
    ) -> Vec<Result<Ownership, StoreError>> {
        self.run(tickets, |records, ticket, now| {
            Ok(records.end(ticket, End::Completed, now + retention, now))
        })
        .await
    }

    async fn release(
        &self,
        tickets: &[(Ticket, ReleaseKind)],
        retention: Duration,
    ) -> Vec<Result<Ownership, StoreError>> {
        self.run(tickets, |records, (ticket, kind), now| {
            Ok(records.end(ticket, End::Released(*kind), now + retention, now))
        })
        .await
    }

    async fn forget(&self, keys: &[IdempotencyKey]) -> Vec<Result<(), StoreError>> {
        self.run(keys, |records, key, _| {
            records.remove(key);
            Ok(())
        })
        .await
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Completed,
    Released(ReleaseKind),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    InProgress { until: Instant },
    Ended(End),
}

struct Record {
    state: State,
    owner: OwnerId,
    nonce: u64,
    fence: u64,
    attempts: u32,
    redrives: u32,
    fingerprint: Option<Halves>,
    expires: Instant,
}

/// A fingerprint that fits a record without gaps.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Halves(u64, u64);

impl Halves {
    const fn of(Fingerprint(whole): Fingerprint) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "each half is kept")]
        Self((whole >> 64) as u64, whole as u64)
    }
}

struct Records {
    by_key: HashMap<IdempotencyKey, Record>,
    // Keys by the second in which they are to be looked at again; every record stands in it once.
    expiries: BTreeMap<u64, Vec<IdempotencyKey>>,
    origin: Instant,
    bytes: usize,
    max_bytes: usize,
}

impl Records {
    fn claim(&mut self, request: &ClaimRequest, now: Instant) -> Result<Claim, StoreError> {
        let known = self.by_key.len();
        // One look into the table, whatever is found.
        match self.by_key.entry(request.key.clone()) {
            Entry::Occupied(mut entry) if entry.get().expires > now => {
                Ok(entry.get_mut().claim(request, now))
            }
            Entry::Occupied(mut entry) => {
                let record = Record::new(request, now);
                let acquired = record.acquired();
                entry.insert(record);
                Ok(acquired)
            }
            Entry::Vacant(entry) => {
                let bytes = self.bytes + record_bytes(&request.key);
                if bytes > self.max_bytes {
                    return Err(full(known, self.max_bytes));
                }
                let record = Record::new(request, now);
                let (acquired, expires) = (record.acquired(), record.expires);
                entry.insert(record);
                self.bytes = bytes;
                self.look_again(request.key.clone(), expires);
                Ok(acquired)
            }
        }
    }

    fn renew(&mut self, ticket: &Ticket, until: Instant, now: Instant) -> Ownership {
        match self.live(&ticket.key, now) {
            Some(record)
                if record.belongs_to(ticket)
                    && matches!(record.state, State::InProgress { .. }) =>
            {
                record.state = State::InProgress { until };
                record.expires = record.expires.max(until);
                Ownership::Held
            }
            _ => Ownership::Fenced,
        }
    }

    fn end(&mut self, ticket: &Ticket, end: End, expires: Instant, now: Instant) -> Ownership {
        let Some(record) = self.live(&ticket.key, now) else {
            return Ownership::Fenced;
        };
        match record.state {
            _ if !record.belongs_to(ticket) => Ownership::Fenced,
            // The answer was lost, and is given again.
            State::Ended(before) if before == end => Ownership::Held,
            State::Ended(_) => Ownership::Fenced,
            State::InProgress { .. } => {
                record.state = State::Ended(end);
                if end == End::Released(ReleaseKind::Unused) {
                    record.attempts -= 1;
                }
                record.expires = expires;
                Ownership::Held
            }
        }
    }

    /// The record of a key, unless its time is over.
    fn live(&mut self, key: &IdempotencyKey, now: Instant) -> Option<&mut Record> {
        self.by_key
            .get_mut(key)
            .filter(|record| record.expires > now)
    }

    fn remove(&mut self, key: &IdempotencyKey) {
        if self.by_key.remove(key).is_some() {
            self.bytes -= record_bytes(key);
        }
    }

    fn look_again(&mut self, key: IdempotencyKey, at: Instant) {
        let second = at.saturating_duration_since(self.origin).as_secs() + 1;
        self.expiries.entry(second).or_default().push(key);
    }

    /// Removes expired records, looking at no more than `most`.
    fn sweep(&mut self, now: Instant, most: usize) {
        let passed = now.saturating_duration_since(self.origin).as_secs();
        for _ in 0..most {
            let Some(mut first) = self.expiries.first_entry().filter(|e| *e.key() <= passed) else {
                return;
            };
            let Some(key) = first.get_mut().pop() else {
                first.remove();
                continue;
            };
            match self.by_key.get(&key).map(|record| record.expires) {
                Some(expires) if expires > now => self.look_again(key, expires),
                Some(_) => self.remove(&key),
                None => {}
            }
        }
    }
}

impl Record {
    fn new(request: &ClaimRequest, now: Instant) -> Self {
        Self {
            state: State::InProgress {
                until: now + request.lease,
            },
            owner: request.owner.clone(),
            nonce: request.nonce,
            fence: 1,
            attempts: request.attempts_used.saturating_add(1),
            redrives: request.redrives,
            fingerprint: request.fingerprint.map(Halves::of),
            expires: now + request.retention.max(request.lease),
        }
    }

    fn claim(&mut self, request: &ClaimRequest, now: Instant) -> Claim {
        let fingerprint = request.fingerprint.map(Halves::of);
        let same_body = match (self.fingerprint, fingerprint) {
            (Some(known), Some(seen)) => known == seen,
            _ => true,
        };
        let redriven = request.redrives > self.redrives;
        match self.state {
            State::InProgress { .. }
                if self.owner == request.owner && self.nonce == request.nonce =>
            {
                return self.acquired();
            }
            State::Ended(End::Released(ReleaseKind::DeadLettered)) => {
                if !redriven && same_body {
                    return Claim::DeadLettered;
                }
                self.attempts = request.attempts_used;
            }
            _ if !same_body => return Claim::Conflict,
            State::Ended(End::Completed) => return Claim::Completed,
            State::InProgress { until } if now < until => {
                let remaining = until.duration_since(now);
                return Claim::InProgress { remaining };
            }
            State::InProgress { .. } | State::Ended(End::Released(_)) => {
                if redriven {
                    self.attempts = request.attempts_used;
                }
            }
        }
        let fresh = Self::new(request, now);
        *self = Self {
            fence: self.fence + 1,
            attempts: self.attempts.saturating_add(1),
            redrives: self.redrives.max(request.redrives),
            ..fresh
        };
        self.acquired()
    }

    fn acquired(&self) -> Claim {
        Claim::Acquired {
            fence: Fence(self.fence),
            attempt: Attempt::after(self.attempts.saturating_sub(1)),
        }
    }

    fn belongs_to(&self, ticket: &Ticket) -> bool {
        self.fence == ticket.fence.0 && self.owner == ticket.owner
    }
}

fn record_bytes(key: &IdempotencyKey) -> usize {
    InProcessStore::RECORD_BYTES + key.key().len()
}

fn full(records: usize, limit: usize) -> StoreError {
    let text = format!(
        "the in-process store is full: {records} records fill its limit of {limit} bytes; shorten \
         the retention or raise max_bytes"
    );
    StoreError::new(StoreErrorKind::Full, text)
}

fn unreachable() -> StoreError {
    StoreError::new(
        StoreErrorKind::Unreachable,
        "the in-process store was told to fail",
    )
}
