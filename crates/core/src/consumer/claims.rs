//! The consumer's side of the idempotency protocol: ask, and ask again when an answer is lost.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::batcher::{Batcher, Limits};
use super::gate::Gate;
use super::keeper::Hold;
use super::nonces::{Nonce, Nonces};
use super::stats::Counters;
use super::{Randomness, Shutdown};
use crate::delivery::{Attempt, Delivery};
use crate::error::{StoreError, StoreErrorKind};
use crate::policy::{Backoff, Jitter};
use crate::ports::{
    Claim, ClaimRequest, Fingerprint, IdempotencyKey, OwnerId, Ownership, ReleaseCost, ReleaseKind,
    StoreHandle, Survival, Ticket,
};

type Answer<T> = Result<T, StoreError>;

/// How the store is asked.
pub(crate) struct ClaimSettings {
    pub(crate) lease: Duration,
    pub(crate) retention: Duration,
    pub(crate) release: ReleaseCost,
    pub(crate) survival: Survival,
}

/// Claims, completes and releases; many at once, in batches.
pub(crate) struct Claims {
    store: StoreHandle,
    settings: ClaimSettings,
    owner: OwnerId,
    nonces: Nonces,
    asks: Batcher<ClaimRequest, Answer<Claim>>,
    completions: Batcher<Ticket, Answer<Ownership>>,
    releases: Batcher<(Ticket, ReleaseKind), Answer<Ownership>>,
    gate: Arc<Gate>,
    counters: Arc<Counters>,
    shutdown: Shutdown,
    randomness: Randomness,
}

/// When to stop asking a store that does not answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum GiveUp {
    /// When the shutdown begins: nothing has been started yet.
    AtDrain,
    /// When the shutdown grace is over: something was started, and its end is worth recording.
    AtGraceEnd,
}

const LIMITS: Limits = Limits {
    batch: 256,
    flights: 4,
};

impl Claims {
    pub(crate) fn new(
        store: StoreHandle,
        settings: ClaimSettings,
        gate: Arc<Gate>,
        counters: Arc<Counters>,
        shutdown: Shutdown,
        randomness: Randomness,
    ) -> Self {
        Self {
            store,
            settings,
            owner: OwnerId::new(uuid::Uuid::now_v7().simple().to_string()),
            nonces: Nonces::default(),
            asks: Batcher::new(|_| Err(closed()), || Err(no_answer())),
            completions: Batcher::new(|_| Err(closed()), || Err(no_answer())),
            releases: Batcher::new(|_| Err(closed()), || Err(no_answer())),
            gate,
            counters,
            shutdown,
            randomness,
        }
    }

    /// Carries the batches to the store until [`Claims::close`].
    pub(crate) async fn drive(&self) {
        let retention = self.settings.retention;
        let store = &self.store;
        tokio::join!(
            self.asks.drive(
                LIMITS,
                |batch: Vec<_>| async move { store.claim(&batch).await }
            ),
            self.completions.drive(LIMITS, |batch: Vec<_>| async move {
                store.complete(&batch, retention).await
            }),
            self.releases.drive(LIMITS, |batch: Vec<_>| async move {
                store.release(&batch, retention).await
            }),
        );
    }

    pub(crate) fn close(&self) {
        self.asks.close();
        self.completions.close();
        self.releases.close();
    }

    /// Waits for no claim any more.
    pub(crate) fn stop_asking(&self) {
        self.asks.abandon();
    }

    /// Waits for no answer any more.
    pub(crate) fn abandon(&self) {
        self.asks.abandon();
        self.completions.abandon();
        self.releases.abandon();
    }

    /// Claims a delivery's key; an acquired claim is kept alive by `hold`.
    ///
    /// A claim that is given up without an answer may have been made, and counts as an attempt then.
    /// When the message comes back its claim is asked for again, by the same nonce.
    pub(crate) async fn claim(
        &self,
        key: IdempotencyKey,
        fingerprint: Option<Fingerprint>,
        delivery: &Delivery,
        hold: &Hold,
    ) -> Answer<(Claim, Option<(Ticket, Attempt)>)> {
        let content = (fingerprint, delivery.redrives);
        let nonce = self.nonces.draw(&key, content);
        let request = ClaimRequest {
            key,
            owner: self.owner.clone(),
            nonce: nonce.number,
            fingerprint,
            redrives: delivery.redrives,
            attempts_used: self.known_attempts(delivery),
            lease: self.settings.lease,
            retention: self.settings.retention,
        };
        let key = request.key.clone();
        let answer = self.claim_by(request, nonce, hold).await;
        if answer.is_err() {
            self.nonces.give_up(key, content, nonce.number);
        }
        answer
    }

    async fn claim_by(
        &self,
        request: ClaimRequest,
        nonce: Nonce,
        hold: &Hold,
    ) -> Answer<(Claim, Option<(Ticket, Attempt)>)> {
        let asked = Instant::now();
        let claim = match self.asks.call(request.clone()).await {
            Ok(claim) => {
                self.gate.store_answered();
                claim
            }
            Err(error) => {
                let again = || self.asks.call(request.clone());
                self.insist(error, GiveUp::AtDrain, hold, again).await?
            }
        };
        let Claim::Acquired { fence, attempt } = claim else {
            return Ok((claim, None));
        };
        let ticket = Ticket {
            key: request.key,
            owner: request.owner,
            fence,
        };
        hold.keep_claim(ticket.clone(), asked);
        // It may have been made long ago: by the first asking, or for an earlier delivery.
        let is_fresh = !nonce.is_drawn_again && asked.elapsed() < self.settings.lease / 3;
        if !is_fresh {
            let confirmed = self.confirm(&ticket, hold).await;
            if !matches!(confirmed, Ok(Ownership::Held)) {
                hold.drop_claim();
                confirmed?;
                let remaining = self.settings.lease;
                return Ok((Claim::InProgress { remaining }, None));
            }
        }
        Ok((claim, Some((ticket, attempt))))
    }

    /// What a fresh record starts its count at. A broker that counts releases, or a crash for whatever
    /// was sent ahead, knows no attempts: what was never started must not reach the cap. Only where the
    /// records die with the process is the broker's count needed: for what kills the process.
    fn known_attempts(&self, delivery: &Delivery) -> u32 {
        match (self.settings.survival, self.settings.release) {
            (Survival::Process, ReleaseCost::Free) => delivery.attempts_used,
            (Survival::Durable, _) | (_, ReleaseCost::Counted) => 0,
        }
    }

    /// Records that the handler succeeded.
    pub(crate) async fn complete(&self, ticket: &Ticket, hold: &Hold) -> Answer<Ownership> {
        let answer = match self.completions.call(ticket.clone()).await {
            Ok(ownership) => Ok(ownership),
            Err(error) => {
                let again = || self.completions.call(ticket.clone());
                self.insist(error, GiveUp::AtGraceEnd, hold, again).await
            }
        };
        hold.drop_claim();
        answer
    }

    /// Gives the claim up.
    pub(crate) async fn release(
        &self,
        ticket: &Ticket,
        kind: ReleaseKind,
        hold: &Hold,
    ) -> Answer<Ownership> {
        let answer = match self.releases.call((ticket.clone(), kind)).await {
            Ok(ownership) => Ok(ownership),
            Err(error) => {
                let again = || self.releases.call((ticket.clone(), kind));
                self.insist(error, GiveUp::AtGraceEnd, hold, again).await
            }
        };
        hold.drop_claim();
        answer
    }

    /// Makes sure that the claim still stands, and makes it last.
    pub(crate) async fn confirm(&self, ticket: &Ticket, hold: &Hold) -> Answer<Ownership> {
        let asked = Instant::now();
        let ask = || async {
            let tickets = std::slice::from_ref(ticket);
            let mut answers = self.store.renew(tickets, self.settings.lease).await;
            answers.pop().unwrap_or_else(|| Err(no_answer()))
        };
        let ownership = match ask().await {
            Ok(ownership) => ownership,
            Err(error) => self.insist(error, GiveUp::AtGraceEnd, hold, ask).await?,
        };
        if ownership == Ownership::Held {
            hold.keep_claim(ticket.clone(), asked);
        }
        Ok(ownership)
    }

    /// Asks again until the store answers, for as long as a claim lasts: every call gives the same
    /// answer to the same owner and fence, so a lost answer is found out by asking again.
    async fn insist<T, Fut>(
        &self,
        first: StoreError,
        give_up: GiveUp,
        hold: &Hold,
        ask: impl Fn() -> Fut,
    ) -> Answer<T>
    where
        Fut: Future<Output = Answer<T>>,
    {
        const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
        let pauses = Backoff::new(PAUSES.0, PAUSES.1, Jitter::Additive).unwrap_or_default();
        let end = Instant::now() + self.settings.lease;
        let mut error = first;
        let mut asked = Attempt::FIRST;
        loop {
            self.counters.store_errors.raise();
            self.gate.store_failed(&error);
            let pause = pauses.delay_after(asked, (self.randomness)());
            if !error.is_transient() || Instant::now() + pause >= end {
                return Err(error);
            }
            tokio::select! {
                biased;
                () = hold.cancellation().token().cancelled() => return Err(error),
                () = self.shutdown.begun(), if give_up == GiveUp::AtDrain => return Err(error),
                () = tokio::time::sleep(pause) => {}
            }
            match ask().await {
                Ok(answer) => {
                    self.gate.store_answered();
                    return Ok(answer);
                }
                Err(again) => error = again,
            }
            asked = Attempt::after(asked.get());
        }
    }
}

fn closed() -> StoreError {
    StoreError::new(StoreErrorKind::Other, "the consumer has ended")
}

fn no_answer() -> StoreError {
    StoreError::new(
        StoreErrorKind::Other,
        "the store gave fewer answers than it was asked",
    )
}
