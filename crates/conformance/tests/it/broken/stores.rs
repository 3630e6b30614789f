//! Stores that are broken in one way each.

use std::time::Duration;

use async_trait::async_trait;
use backstop_core::{
    Claim, ClaimRequest, Fence, Finding, IdempotencyKey, IdempotencyStore, Ownership, ReleaseKind,
    StoreError, StoreHandle, Survival, Ticket,
};

/// What is wrong with a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreFlaw {
    ForgetsCompletions,
    GrantsEveryClaim,
    NeverReleases,
    NeverExpires,
    DoesNotFence,
    NeverRenews,
    SeesNoConflicts,
    RepeatsFences,
    SharesNamespaces,
    IgnoresRedrives,
}

/// A store with a flaw.
pub(crate) struct BrokenStore {
    pub(crate) sound: StoreHandle,
    pub(crate) flaw: StoreFlaw,
}

impl BrokenStore {
    fn key(&self, key: &IdempotencyKey) -> IdempotencyKey {
        match self.flaw {
            StoreFlaw::SharesNamespaces => IdempotencyKey::new("", key.key()),
            _ => key.clone(),
        }
    }

    fn tickets(&self, tickets: &[Ticket]) -> Vec<Ticket> {
        let ticket = |ticket: &Ticket| Ticket {
            key: self.key(&ticket.key),
            ..ticket.clone()
        };
        tickets.iter().map(ticket).collect()
    }
}

#[async_trait]
impl IdempotencyStore for BrokenStore {
    fn survival(&self) -> Survival {
        self.sound.survival()
    }

    async fn inspect(&self) -> Result<Vec<Finding>, StoreError> {
        self.sound.inspect().await
    }

    async fn claim(&self, requests: &[ClaimRequest]) -> Vec<Result<Claim, StoreError>> {
        let mut requests = requests.to_vec();
        for request in &mut requests {
            request.key = self.key(&request.key);
            match self.flaw {
                StoreFlaw::SeesNoConflicts => request.fingerprint = None,
                StoreFlaw::IgnoresRedrives => request.redrives = 0,
                StoreFlaw::NeverExpires => request.lease = Duration::from_hours(20),
                StoreFlaw::GrantsEveryClaim => {
                    self.sound.forget(std::slice::from_ref(&request.key)).await;
                }
                _ => {}
            }
        }
        let mut claims = self.sound.claim(&requests).await;
        if self.flaw == StoreFlaw::RepeatsFences {
            for claim in &mut claims {
                if let Ok(Claim::Acquired { fence, .. }) = claim {
                    *fence = Fence(1);
                }
            }
        }
        claims
    }

    async fn renew(
        &self,
        tickets: &[Ticket],
        lease: Duration,
    ) -> Vec<Result<Ownership, StoreError>> {
        match self.flaw {
            StoreFlaw::NeverRenews => tickets.iter().map(|_| Ok(Ownership::Held)).collect(),
            StoreFlaw::NeverExpires => {
                let lease = Duration::from_hours(20);
                self.sound.renew(tickets, lease).await
            }
            _ => self.sound.renew(&self.tickets(tickets), lease).await,
        }
    }

    async fn complete(
        &self,
        tickets: &[Ticket],
        retention: Duration,
    ) -> Vec<Result<Ownership, StoreError>> {
        let tickets = self.tickets(tickets);
        let answers = self.sound.complete(&tickets, retention).await;
        match self.flaw {
            StoreFlaw::ForgetsCompletions => {
                let keys: Vec<_> = tickets.into_iter().map(|ticket| ticket.key).collect();
                self.sound.forget(&keys).await;
                answers
            }
            StoreFlaw::DoesNotFence => answers.iter().map(|_| Ok(Ownership::Held)).collect(),
            _ => answers,
        }
    }

    async fn release(
        &self,
        tickets: &[(Ticket, ReleaseKind)],
        retention: Duration,
    ) -> Vec<Result<Ownership, StoreError>> {
        let tickets: Vec<_> = tickets
            .iter()
            .map(|(ticket, kind)| {
                let key = self.key(&ticket.key);
                (
                    Ticket {
                        key,
                        ..ticket.clone()
                    },
                    *kind,
                )
            })
            .collect();
        match self.flaw {
            StoreFlaw::NeverReleases => tickets.iter().map(|_| Ok(Ownership::Held)).collect(),
            StoreFlaw::DoesNotFence => {
                let answers = self.sound.release(&tickets, retention).await;
                answers.iter().map(|_| Ok(Ownership::Held)).collect()
            }
            _ => self.sound.release(&tickets, retention).await,
        }
    }

    async fn forget(&self, keys: &[IdempotencyKey]) -> Vec<Result<(), StoreError>> {
        let keys: Vec<_> = keys.iter().map(|key| self.key(key)).collect();
        self.sound.forget(&keys).await
    }
}
