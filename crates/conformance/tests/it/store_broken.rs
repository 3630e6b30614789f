//! Stores that break one clause each, and the case that notices.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use backstop_conformance::store::run;
use backstop_core::{
    Attempt, Claim, ClaimRequest, Fence, Finding, Fingerprint, IdempotencyKey, IdempotencyStore,
    InProcessStore, OwnerId, Ownership, ReleaseKind, StoreError, StoreHandle, Survival, Ticket,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::store::One;

/// What a store gets wrong; all else is the in-process store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// A completion is taken from anybody.
    CompletesUnfenced,
    /// A release is taken from anybody.
    ReleasesUnfenced,
    /// A renewal always holds.
    RenewsUnfenced,
    /// Released keys are forgotten, and with them fence and count.
    ForgetsReleased,
    /// Releases that do not count, do.
    CountsUnused,
    /// Failures do not count.
    ForgetsFailures,
    /// Two claims at once may both be acquired.
    IsNotExclusive,
    /// A claim asked for again is in progress.
    IgnoresNonce,
    /// No body is ever another.
    NeverConflicts,
    /// A claim ends when its record does.
    EndsWithRecord,
    /// A renewal does not make a claim last.
    RenewsNothing,
    /// A redrive does not reset the count.
    IgnoresRedrives,
    /// A dead-lettered key is free at once.
    FreesDeadLettered,
    /// The broker's count is not taken over.
    IgnoresBrokersCount,
    /// Answers to a batch stand in reverse.
    ReversesAnswers,
    /// Repeats of a completion are refused.
    CompletesOnce,
    /// One namespace for all.
    MixesNamespaces,
    /// Upper and lower case are one.
    IgnoresCase,
    /// Completed records are kept for ever.
    KeepsForEver,
    /// Forgetting is not done.
    ForgetsNothing,
    /// A redrive makes a completed key free.
    RedrivesCompleted,
    /// No fingerprint is a fingerprint like any other.
    MissesFingerprints,
    /// A claim that has ended may end otherwise.
    EndsTwice,
    /// Anybody may use a claim's fence.
    IgnoresOwners,
    /// What comes after the deadline is refused, also when nobody has taken over.
    RefusesLateCalls,
    /// A lease that holds has nothing left.
    TellsNoRest,
    /// A key that stands in a batch again gets the first answer again.
    AnswersAKeyOnceABatch,
}

struct Broken {
    flaw: Flaw,
    inner: InProcessStore,
    /// Who claimed a key last, with which fence.
    last: Mutex<HashMap<IdempotencyKey, (OwnerId, Fence)>>,
    /// Until when claims last.
    deadlines: Mutex<HashMap<IdempotencyKey, Instant>>,
    completed: Mutex<HashSet<Ticket>>,
    ended: Mutex<HashSet<Ticket>>,
    calls: AtomicU64,
}

impl Broken {
    fn handle(flaw: Flaw) -> StoreHandle {
        Arc::new(Self {
            flaw,
            inner: InProcessStore::new(),
            last: Mutex::default(),
            deadlines: Mutex::default(),
            completed: Mutex::default(),
            ended: Mutex::default(),
            calls: AtomicU64::default(),
        })
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    fn key(&self, key: &IdempotencyKey) -> IdempotencyKey {
        match self.flaw {
            Flaw::MixesNamespaces => {
                IdempotencyKey::new("", format!("{}:{}", key.namespace(), key.key()))
            }
            Flaw::IgnoresCase => IdempotencyKey::new(key.namespace(), key.key().to_lowercase()),
            _ => key.clone(),
        }
    }

    fn ticket(&self, ticket: &Ticket, is_unfenced: bool) -> Ticket {
        let key = self.key(&ticket.key);
        let last = self.last.lock();
        let may_take = |(_, fence): &&(OwnerId, Fence)| {
            is_unfenced || self.has(Flaw::IgnoresOwners) && *fence == ticket.fence
        };
        let current = last.get(&key).filter(may_take).cloned();
        let (owner, fence) = current.unwrap_or((ticket.owner.clone(), ticket.fence));
        Ticket { key, owner, fence }
    }

    fn alter(&self, request: &ClaimRequest) -> ClaimRequest {
        let mut request = request.clone();
        request.key = self.key(&request.key);
        match self.flaw {
            Flaw::NeverConflicts => request.fingerprint = None,
            Flaw::EndsWithRecord => request.lease = request.retention,
            Flaw::IgnoresRedrives => request.redrives = 0,
            Flaw::IgnoresBrokersCount => request.attempts_used = 0,
            Flaw::IgnoresNonce => request.nonce = self.calls.fetch_add(1, Ordering::Relaxed),
            Flaw::MissesFingerprints => {
                request.fingerprint = request.fingerprint.or(Some(Fingerprint(7)));
            }
            _ => {}
        }
        request
    }

    async fn claim_one(&self, request: &ClaimRequest) -> Result<Claim, StoreError> {
        let request = self.alter(request);
        let mut claim = self.ask(&request).await?;
        match (self.flaw, claim) {
            (Flaw::IsNotExclusive, Claim::InProgress { .. }) => {
                claim = Claim::Acquired {
                    fence: Fence(2),
                    attempt: Attempt::FIRST,
                };
            }
            (Flaw::FreesDeadLettered, Claim::DeadLettered) => {
                let redriven = ClaimRequest {
                    redrives: u32::MAX,
                    ..request.clone()
                };
                claim = self.ask(&redriven).await?;
            }
            (Flaw::RedrivesCompleted, Claim::Completed) if request.redrives > 0 => {
                self.inner.forget(std::slice::from_ref(&request.key)).await;
                claim = self.ask(&request).await?;
            }
            (Flaw::TellsNoRest, Claim::InProgress { .. }) => {
                let remaining = Duration::ZERO;
                claim = Claim::InProgress { remaining };
            }
            _ => {}
        }
        if let Claim::Acquired { fence, .. } = claim {
            let mut last = self.last.lock();
            last.insert(request.key.clone(), (request.owner.clone(), fence));
            let deadline = Instant::now() + request.lease;
            self.deadlines.lock().insert(request.key.clone(), deadline);
        }
        Ok(claim)
    }

    async fn ask(&self, request: &ClaimRequest) -> Result<Claim, StoreError> {
        self.inner
            .claim(std::slice::from_ref(request))
            .await
            .pop()
            .expect("one answer to one request")
    }

    /// What the flaw makes of the answers to calls that end or renew claims.
    fn own<'a>(
        &self,
        tickets: impl IntoIterator<Item = &'a Ticket>,
        mut answers: Answers<Ownership>,
        ends: bool,
    ) -> Answers<Ownership> {
        for (ticket, answer) in tickets.into_iter().zip(&mut answers) {
            let is_late = || {
                let deadlines = self.deadlines.lock();
                deadlines
                    .get(&ticket.key)
                    .is_some_and(|at| Instant::now() >= *at)
            };
            match self.flaw {
                Flaw::RefusesLateCalls if is_late() => *answer = Ok(Ownership::Fenced),
                Flaw::EndsTwice if self.ended.lock().contains(ticket) => {
                    *answer = Ok(Ownership::Held);
                }
                Flaw::EndsTwice if ends => drop(self.ended.lock().insert(ticket.clone())),
                _ => {}
            }
        }
        self.order(answers)
    }

    fn order<T>(&self, mut answers: Vec<T>) -> Vec<T> {
        if self.has(Flaw::ReversesAnswers) {
            answers.reverse();
        }
        answers
    }
}

type Answers<T> = Vec<Result<T, StoreError>>;

#[async_trait]
impl IdempotencyStore for Broken {
    fn survival(&self) -> Survival {
        self.inner.survival()
    }

    async fn inspect(&self) -> Result<Vec<Finding>, StoreError> {
        self.inner.inspect().await
    }

    async fn claim(&self, requests: &[ClaimRequest]) -> Answers<Claim> {
        let mut answers = Vec::new();
        let mut seen = HashMap::new();
        for request in requests {
            let answer = match seen.get(&request.key) {
                Some(first) if self.has(Flaw::AnswersAKeyOnceABatch) => Ok(*first),
                _ => self.claim_one(request).await,
            };
            if let Ok(claim) = answer {
                seen.insert(request.key.clone(), claim);
            }
            answers.push(answer);
        }
        self.order(answers)
    }

    async fn renew(&self, tickets: &[Ticket], lease: Duration) -> Answers<Ownership> {
        if self.has(Flaw::RenewsNothing) {
            return tickets.iter().map(|_| Ok(Ownership::Held)).collect();
        }
        let is_unfenced = self.has(Flaw::RenewsUnfenced);
        let altered: Vec<_> = tickets
            .iter()
            .map(|ticket| self.ticket(ticket, is_unfenced))
            .collect();
        let answers = self.inner.renew(&altered, lease).await;
        self.own(tickets, answers, false)
    }

    async fn complete(&self, tickets: &[Ticket], retention: Duration) -> Answers<Ownership> {
        let retention = match self.flaw {
            Flaw::KeepsForEver => Duration::from_hours(24),
            _ => retention,
        };
        let is_unfenced = self.has(Flaw::CompletesUnfenced);
        let altered: Vec<_> = tickets
            .iter()
            .map(|ticket| self.ticket(ticket, is_unfenced))
            .collect();
        let mut answers = self.inner.complete(&altered, retention).await;
        if self.has(Flaw::CompletesOnce) {
            for (ticket, answer) in tickets.iter().zip(&mut answers) {
                if !self.completed.lock().insert(ticket.clone()) {
                    *answer = Ok(Ownership::Fenced);
                }
            }
        }
        self.own(tickets, answers, true)
    }

    async fn release(
        &self,
        tickets: &[(Ticket, ReleaseKind)],
        retention: Duration,
    ) -> Answers<Ownership> {
        let is_unfenced = self.has(Flaw::ReleasesUnfenced);
        let altered: Vec<_> = tickets
            .iter()
            .map(|(ticket, kind)| {
                let kind = match (self.flaw, kind) {
                    (Flaw::CountsUnused, ReleaseKind::Unused) => ReleaseKind::Failed,
                    (Flaw::ForgetsFailures, ReleaseKind::Failed) => ReleaseKind::Unused,
                    _ => *kind,
                };
                (self.ticket(ticket, is_unfenced), kind)
            })
            .collect();
        let answers = self.inner.release(&altered, retention).await;
        if self.has(Flaw::ForgetsReleased) {
            let keys: Vec<_> = altered
                .iter()
                .map(|(ticket, _)| ticket.key.clone())
                .collect();
            self.inner.forget(&keys).await;
        }
        self.own(tickets.iter().map(|(ticket, _)| ticket), answers, true)
    }

    async fn forget(&self, keys: &[IdempotencyKey]) -> Answers<()> {
        if self.has(Flaw::ForgetsNothing) {
            return keys.iter().map(|_| Ok(())).collect();
        }
        let keys: Vec<_> = keys.iter().map(|key| self.key(key)).collect();
        self.inner.forget(&keys).await
    }
}

#[tokio::test(start_paused = true)]
async fn every_broken_store_fails_the_case_that_names_its_flaw() {
    let flaws = [
        (Flaw::CompletesUnfenced, "S15"),
        (Flaw::ReleasesUnfenced, "S15"),
        (Flaw::RenewsUnfenced, "S15"),
        (Flaw::ForgetsReleased, "S2"),
        (Flaw::CountsUnused, "S3"),
        (Flaw::ForgetsFailures, "S3"),
        (Flaw::IsNotExclusive, "S1"),
        (Flaw::IsNotExclusive, "S24"),
        (Flaw::IgnoresNonce, "S5"),
        (Flaw::NeverConflicts, "S9"),
        (Flaw::NeverConflicts, "S11"),
        (Flaw::EndsWithRecord, "S17"),
        (Flaw::RenewsNothing, "S18"),
        (Flaw::IgnoresRedrives, "S8"),
        (Flaw::IgnoresRedrives, "S7"),
        (Flaw::FreesDeadLettered, "S7"),
        (Flaw::IgnoresBrokersCount, "S4"),
        (Flaw::ReversesAnswers, "S22"),
        (Flaw::CompletesOnce, "S13"),
        (Flaw::MixesNamespaces, "S25"),
        (Flaw::IgnoresCase, "S26"),
        (Flaw::KeepsForEver, "S20"),
        (Flaw::ForgetsNothing, "S12"),
        (Flaw::RedrivesCompleted, "S6"),
        (Flaw::MissesFingerprints, "S10"),
        (Flaw::EndsTwice, "S14"),
        (Flaw::IgnoresOwners, "S16"),
        (Flaw::RefusesLateCalls, "S19"),
        (Flaw::TellsNoRest, "S21"),
        (Flaw::AnswersAKeyOnceABatch, "S23"),
    ];
    for (flaw, case) in flaws {
        let harness = One {
            name: "a broken store",
            store: Broken::handle(flaw),
            tick: Duration::from_millis(20),
        };
        let report = run(Arc::new(harness), case).await;
        assert!(report.has_failed(case), "{flaw:?} passes {case}");
    }
}
