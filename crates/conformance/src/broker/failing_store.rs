//! A store that fails when it is told to.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backstop_core::{
    Claim, ClaimRequest, Finding, IdempotencyKey, IdempotencyStore, Ownership, ReleaseKind,
    StoreError, StoreErrorKind, StoreHandle, Survival, Ticket,
};
use parking_lot::Mutex;

/// How a store fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// As the store behind it.
    Well,
    /// No call reaches it.
    Down,
    /// Renewals do not reach it, everything else does.
    NoRenewals,
    /// Renewals seem to succeed and have no effect, as for a process that was stopped for so long
    /// that it does not know the time.
    VoidRenewals,
    /// Completions do not reach it and are never answered.
    NoCompletions,
}

/// A consumer's way to the store, which can fail.
#[derive(Clone)]
pub(crate) struct FailingStore {
    inner: StoreHandle,
    health: Arc<Mutex<Health>>,
}

impl FailingStore {
    pub(crate) fn new(inner: StoreHandle, health: Health) -> Self {
        let health = Arc::new(Mutex::new(health));
        Self { inner, health }
    }

    pub(crate) fn handle(&self) -> StoreHandle {
        Arc::new(self.clone())
    }

    pub(crate) fn turn(&self, health: Health) {
        *self.health.lock() = health;
    }

    fn health(&self) -> Health {
        *self.health.lock()
    }

    fn refuse<Q, A>(requests: &[Q]) -> Vec<Result<A, StoreError>> {
        let error = || {
            let text = "the conformance suite keeps the store out of reach";
            StoreError::new(StoreErrorKind::Unreachable, text)
        };
        requests.iter().map(|_| Err(error())).collect()
    }
}

#[async_trait]
impl IdempotencyStore for FailingStore {
    fn survival(&self) -> Survival {
        self.inner.survival()
    }

    async fn inspect(&self) -> Result<Vec<Finding>, StoreError> {
        self.inner.inspect().await
    }

    async fn claim(&self, requests: &[ClaimRequest]) -> Vec<Result<Claim, StoreError>> {
        match self.health() {
            Health::Down => Self::refuse(requests),
            _ => self.inner.claim(requests).await,
        }
    }

    async fn renew(
        &self,
        tickets: &[Ticket],
        lease: Duration,
    ) -> Vec<Result<Ownership, StoreError>> {
        match self.health() {
            Health::Down | Health::NoRenewals => Self::refuse(tickets),
            Health::VoidRenewals => tickets.iter().map(|_| Ok(Ownership::Held)).collect(),
            Health::Well | Health::NoCompletions => self.inner.renew(tickets, lease).await,
        }
    }

    async fn complete(
        &self,
        tickets: &[Ticket],
        retention: Duration,
    ) -> Vec<Result<Ownership, StoreError>> {
        match self.health() {
            Health::Down => Self::refuse(tickets),
            Health::NoCompletions => std::future::pending().await,
            _ => self.inner.complete(tickets, retention).await,
        }
    }

    async fn release(
        &self,
        tickets: &[(Ticket, ReleaseKind)],
        retention: Duration,
    ) -> Vec<Result<Ownership, StoreError>> {
        match self.health() {
            Health::Down => Self::refuse(tickets),
            _ => self.inner.release(tickets, retention).await,
        }
    }

    async fn forget(&self, keys: &[IdempotencyKey]) -> Vec<Result<(), StoreError>> {
        self.inner.forget(keys).await
    }
}
