//! The in-process idempotency store.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::store_faults::{Fault, StoreFaults};
use super::store_records::{End, RECORD_BYTES, Records};
use crate::error::{StoreError, StoreErrorKind};
use crate::ports::{
    Claim, ClaimRequest, Finding, IdempotencyKey, IdempotencyStore, Ownership, ReleaseKind,
    StoreHandle, Survival, Ticket,
};
use crate::sync::Mutex;

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

/// What an [`InProcessStore`] held at one time.
#[derive(Clone)]
pub struct StoreSnapshot(Records);

impl fmt::Debug for StoreSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreSnapshot")
            .field("records", &self.0.len())
            .finish()
    }
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
        let records = Records::new(self.max_bytes);
        InProcessStore {
            records: Arc::new(Mutex::new(records)),
            faults: StoreFaults::default(),
        }
    }
}

impl InProcessStore {
    /// What a record takes beside its key's text, in bytes: the record, its place in the table, and its
    /// place in the order of expiry, with the room that these keep to grow.
    pub const RECORD_BYTES: usize = RECORD_BYTES;

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
        self.records.lock().len()
    }

    /// Whether it keeps none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the store holds now, to go back to.
    pub fn snapshot(&self) -> StoreSnapshot {
        StoreSnapshot(self.records.lock().clone())
    }

    /// Goes back to what the store held, as a failover to a replica does that lacks the last writes.
    pub fn restore(&self, snapshot: &StoreSnapshot) {
        *self.records.lock() = snapshot.0.clone();
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
        let answers = {
            let now = self.faults.now();
            let mut records = self.records.lock();
            records.sweep(now, requests.len() * 2 + 16);
            let answers = requests
                .iter()
                .map(|request| step(&mut records, request, now));
            match fault {
                Fault::AnswerLost => answers.map(|_| Err(unreachable())).collect(),
                Fault::None | Fault::Down => answers.collect(),
            }
        };
        self.faults.answer().await;
        answers
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

    /// Nothing is found: its records live and die with the process, and its limit never evicts.
    async fn inspect(&self) -> Result<Vec<Finding>, StoreError> {
        Ok(Vec::new())
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
            records.forget(key);
            Ok(())
        })
        .await
    }
}

fn unreachable() -> StoreError {
    StoreError::new(
        StoreErrorKind::Unreachable,
        "the in-process store was told to fail",
    )
}
