//! What every case needs: a store, keys of its own, and single calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use backstop_core::{
    Claim, ClaimRequest, Fence, Fingerprint, IdempotencyKey, OwnerId, Ownership, ReleaseKind,
    StoreHandle, Ticket,
};

use super::StoreHarness;
/// Longer than any case takes.
pub(super) const LONG: Duration = Duration::from_hours(1);

/// A store, and names that no other case has.
pub(super) struct Scene {
    pub(super) harness: Arc<dyn StoreHarness>,
    pub(super) store: StoreHandle,
    pub(super) namespace: String,
}

/// What is claimed, and how.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) key: IdempotencyKey,
    pub(super) owner: &'static str,
    pub(super) nonce: u64,
    pub(super) body: Option<u128>,
    pub(super) redrives: u32,
    pub(super) used: u32,
    pub(super) lease: Duration,
    pub(super) retention: Duration,
}

impl Ask {
    pub(super) const fn by(mut self, owner: &'static str) -> Self {
        self.owner = owner;
        self
    }

    pub(super) const fn nonce(mut self, nonce: u64) -> Self {
        self.nonce = nonce;
        self
    }

    pub(super) const fn body(mut self, body: u128) -> Self {
        self.body = Some(body);
        self
    }

    pub(super) const fn redrives(mut self, redrives: u32) -> Self {
        self.redrives = redrives;
        self
    }

    pub(super) const fn used(mut self, attempts: u32) -> Self {
        self.used = attempts;
        self
    }

    pub(super) const fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    pub(super) const fn retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    pub(super) fn request(&self) -> ClaimRequest {
        ClaimRequest {
            key: self.key.clone(),
            owner: OwnerId::new(self.owner),
            nonce: self.nonce,
            fingerprint: self.body.map(Fingerprint),
            redrives: self.redrives,
            attempts_used: self.used,
            lease: self.lease,
            retention: self.retention,
        }
    }

    /// The proof of this claim.
    pub(super) fn ticket(&self, fence: u64) -> Ticket {
        Ticket {
            key: self.key.clone(),
            owner: OwnerId::new(self.owner),
            fence: Fence(fence),
        }
    }
}

impl Scene {
    pub(super) async fn new(harness: Arc<dyn StoreHarness>) -> Result<Self> {
        let store = harness.connect().await?;
        Ok(Self {
            harness,
            store,
            namespace: unique(),
        })
    }

    /// The same records through another handle.
    pub(super) async fn elsewhere(&self) -> Result<Self> {
        Ok(Self {
            harness: Arc::clone(&self.harness),
            store: self.harness.connect().await?,
            namespace: self.namespace.clone(),
        })
    }

    pub(super) fn ticks(&self, count: u32) -> Duration {
        self.harness.tick() * count
    }

    pub(super) async fn wait(&self, ticks: u32) {
        tokio::time::sleep(self.ticks(ticks)).await;
    }

    pub(super) fn key(&self, key: &str) -> IdempotencyKey {
        IdempotencyKey::new(self.namespace.as_str(), key)
    }

    /// A claim by `a`, long in every respect.
    pub(super) fn ask(&self, key: &str) -> Ask {
        Ask {
            key: self.key(key),
            owner: "a",
            nonce: 1,
            body: None,
            redrives: 0,
            used: 0,
            lease: LONG,
            retention: LONG * 2,
        }
    }

    pub(super) async fn claim(&self, ask: &Ask) -> Result<Claim> {
        let mut answers = self.store.claim(&[ask.request()]).await;
        ensure!(answers.len() == 1, "{} answers to a claim", answers.len());
        let answer = answers.pop().context("no answer to a claim")?;
        answer.with_context(|| format!("claiming {:?}", ask.key))
    }

    /// Claims, and expects this fence and attempt.
    pub(super) async fn acquire(&self, ask: &Ask, fence: u64, attempt: u32) -> Result<Ticket> {
        let found = self.claim(ask).await?;
        expect("a claim", &found, &acquired(fence, attempt))?;
        Ok(ask.ticket(fence))
    }

    /// Claims, and expects that somebody else has it.
    pub(super) async fn find_in_progress(&self, ask: &Ask) -> Result<Duration> {
        match self.claim(ask).await? {
            Claim::InProgress { remaining } => Ok(remaining),
            found => anyhow::bail!("a claim of what is in progress gives {found:?}"),
        }
    }

    /// Claims, and expects this answer.
    pub(super) async fn find(&self, ask: &Ask, wanted: Claim) -> Result<()> {
        expect("a claim", &self.claim(ask).await?, &wanted)
    }

    pub(super) async fn renew(&self, ticket: &Ticket, lease: Duration) -> Result<Ownership> {
        one(self.store.renew(std::slice::from_ref(ticket), lease).await)
    }

    pub(super) async fn complete(&self, ticket: &Ticket) -> Result<Ownership> {
        self.complete_for(ticket, LONG).await
    }

    pub(super) async fn complete_for(
        &self,
        ticket: &Ticket,
        retention: Duration,
    ) -> Result<Ownership> {
        one(self
            .store
            .complete(std::slice::from_ref(ticket), retention)
            .await)
    }

    pub(super) async fn release(&self, ticket: &Ticket, kind: ReleaseKind) -> Result<Ownership> {
        let request = (ticket.clone(), kind);
        one(self.store.release(&[request], LONG).await)
    }

    pub(super) async fn must_complete(&self, ticket: &Ticket) -> Result<()> {
        held("a completion", self.complete(ticket).await?)
    }

    pub(super) async fn must_release(&self, ticket: &Ticket, kind: ReleaseKind) -> Result<()> {
        held("a release", self.release(ticket, kind).await?)
    }

    /// Every call of an owner that lost its claim is refused.
    pub(super) async fn must_be_fenced(&self, ticket: &Ticket, who: &str) -> Result<()> {
        fenced(who, "renewal", self.renew(ticket, LONG).await?)?;
        for kind in [
            ReleaseKind::Failed,
            ReleaseKind::Unused,
            ReleaseKind::DeadLettered,
        ] {
            fenced(who, "release", self.release(ticket, kind).await?)?;
        }
        fenced(who, "completion", self.complete(ticket).await?)
    }
}

pub(super) fn acquired(fence: u64, attempt: u32) -> Claim {
    Claim::Acquired {
        fence: Fence(fence),
        attempt: backstop_core::Attempt::after(attempt - 1),
    }
}

pub(super) fn expect<T: PartialEq + std::fmt::Debug>(
    what: &str,
    found: &T,
    wanted: &T,
) -> Result<()> {
    ensure!(found == wanted, "{what} gives {found:?}, not {wanted:?}");
    Ok(())
}

pub(super) fn held(what: &str, found: Ownership) -> Result<()> {
    ensure!(found == Ownership::Held, "{what} of the owner is {found:?}");
    Ok(())
}

fn fenced(who: &str, what: &str, found: Ownership) -> Result<()> {
    ensure!(found == Ownership::Fenced, "a {what} by {who} is {found:?}");
    Ok(())
}

fn one<T>(mut answers: Vec<std::result::Result<T, backstop_core::StoreError>>) -> Result<T> {
    ensure!(answers.len() == 1, "{} answers to a call", answers.len());
    Ok(answers.pop().context("no answer to a call")??)
}

/// A name that no other case has, in this run or another one on the same server.
fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!("{}-{}-{number}", std::process::id(), now.as_nanos())
}
