//! The way of a message: receive -> lane -> claim -> handle -> verdict -> settle.
//!
//! `intake` receives, `lanes` keeps order; the rest is [`Engine::process`], whole.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;

use super::engine::{Engine, Held};
use super::keeper::{Hold, Standing};
use super::key::MissingKey;
use super::settlements::Settled;
use crate::causes::with_causes;
use crate::codec::Codec;
use crate::delivery::{Attempt, Delivery};
use crate::error::{Failure, HandlerError};
use crate::handler::{Context, Handler};
use crate::policy::{Decision, decide};
use crate::ports::{Claim, IdempotencyKey, Ownership, ReleaseKind, Ticket};
use crate::verdict::{DeadLetter, DeadLetterReason, Failed, Outcome, Verdict, truncate_visibly};

/// How long a message rests that the store could not be asked about.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// What a lane does next.
#[derive(Debug)]
pub(crate) enum Step {
    /// The message has left the queue, or waits for its retry elsewhere: the next one may start.
    Settled,
    /// The message went back to its queue, ahead of the next one: the next one has to follow it.
    GivenBack,
    /// The same delivery is to be processed again, after this long.
    Wait(Duration),
}

/// The right to start a handler.
struct Grant {
    attempt: Attempt,
    ticket: Option<Ticket>,
}

enum Claimed {
    Granted(Grant),
    Refused(Outcome, Option<Ticket>),
}

/// Whether a claim led to the start of a handler.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    Made,
    Spared,
}

/// Whether the claim is still ours, according to the store.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owned {
    Ours,
    Fenced,
    Unknown,
}

impl<C: Codec, H: Handler<C::Payload>> Engine<C, H> {
    /// Claims, handles, decides and settles.
    pub(crate) async fn process(&self, held: &mut Held) -> Step {
        let (outcome, ticket, start) = match self.claim(held).await {
            Claimed::Granted(grant) => {
                let outcome = self.handle(held, &grant).await;
                (outcome, grant.ticket, Start::Made)
            }
            Claimed::Refused(outcome, ticket) => (outcome, ticket, Start::Spared),
        };
        let decision = decide(&outcome, &self.settings.policy, (self.randomness)());
        let decision = match decision {
            Decision::Retry { attempts_used, .. } if planted!(RetriesAtOnce) => Decision::Retry {
                after: Duration::ZERO,
                attempts_used,
            },
            _ => decision,
        };
        self.observe(held, &outcome, decision);

        // The claim before the delivery: a completion is never recorded behind the ack, and an owner
        // that was overtaken finds out before it settles anything.
        let owned = self
            .settle_claim(ticket.as_ref(), decision, start, &held.hold)
            .await;
        let standing = held.hold.standing();
        if standing == Standing::LeaseLost && !planted!(SettlesAfterLoss) {
            self.counters.abandoned.raise();
            return Step::GivenBack;
        }
        let verdict = match (owned, decision) {
            (Owned::Fenced, _) => {
                self.counters.fenced.raise();
                held.back(Duration::ZERO)
            }
            // The wait of a failed attempt is kept, also where its end could not be recorded.
            (Owned::Unknown, Decision::Retry { after, .. } | Decision::Release { after }) => {
                held.back(after.max(STORE_PAUSE))
            }
            (Owned::Unknown, _) => held.back(STORE_PAUSE),
            (
                Owned::Ours,
                Decision::Retry {
                    after,
                    attempts_used,
                },
            ) => {
                let after = after.min(self.longest_wait);
                if self.holds_in_lane(standing) {
                    self.counters.retried.raise();
                    held.set_attempts_used(attempts_used);
                    return Step::Wait(after);
                }
                Verdict::Retry {
                    after: after.min(self.max_delay),
                    attempts_used,
                }
            }
            (Owned::Ours, Decision::Release { after }) => {
                if matches!(outcome, Outcome::InProgress { .. }) && self.holds_in_lane(standing) {
                    return Step::Wait(after);
                }
                held.back(after)
            }
            (Owned::Ours, Decision::Complete) => Verdict::Complete,
            (Owned::Ours, Decision::DeadLetter { reason, attempts }) => {
                Verdict::DeadLetter(Box::new(self.annotate(&outcome, reason, attempts)))
            }
        };
        self.settle(held, verdict, &outcome, ticket.as_ref()).await
    }

    async fn claim(&self, held: &Held) -> Claimed {
        let delivery = held.delivery();
        let used = delivery.attempts_used;
        let refuse = |reason, detail: String| {
            let detail = detail.into();
            let outcome = Outcome::Refused {
                reason,
                attempts_used: used,
                detail,
            };
            Claimed::Refused(outcome, None)
        };
        if self.gate.is_shut() || self.shutdown.has_begun() {
            return Claimed::Refused(
                Outcome::GivenBack {
                    after: Duration::ZERO,
                },
                None,
            );
        }
        let (size, limit) = (delivery.message.body.len(), self.settings.max_body);
        if size > limit {
            let detail = format!("the body has {size} bytes, and this consumer takes {limit}");
            return refuse(DeadLetterReason::BodyTooLarge, detail);
        }
        let Some(claims) = &self.claims else {
            return self.admit(held, Attempt::after(used), None);
        };
        let key = match self.settings.key.extract(&delivery.message) {
            Some(key) => IdempotencyKey::new(self.settings.name.clone(), key),
            None if self.settings.missing_key == MissingKey::HandleWithoutKey => {
                return self.admit(held, Attempt::after(used), None);
            }
            None => {
                let detail = self.settings.key.describe_missing();
                return refuse(DeadLetterReason::KeyMissing, detail);
            }
        };
        let fingerprint = self.settings.fingerprints.of(&delivery.message.body);
        match claims.claim(key, fingerprint, delivery, &held.hold).await {
            Ok((_, Some((ticket, attempt)))) => self.admit(held, attempt, Some(ticket)),
            Ok((Claim::InProgress { remaining }, None)) => {
                Claimed::Refused(Outcome::InProgress { remaining }, None)
            }
            Ok((Claim::Conflict, None)) => {
                self.counters.conflicts.raise();
                let detail = "a message with the same idempotency key has another body";
                refuse(DeadLetterReason::KeyConflict, detail.to_owned())
            }
            Ok((_, None)) => Claimed::Refused(Outcome::Repeat, None),
            Err(error) => {
                tracing::warn!(error = %with_causes(&error), "a message could not be claimed; it is given back");
                let after = STORE_PAUSE;
                Claimed::Refused(Outcome::GivenBack { after }, None)
            }
        }
    }

    /// Lets an attempt start, unless it is one too many or has to be spared.
    fn admit(&self, held: &Held, attempt: Attempt, ticket: Option<Ticket>) -> Claimed {
        if self.shutdown.has_begun() || held.hold.cancellation().is_cancelled() {
            // While the store was asked the shutdown began, or the delivery was lost, or the run dropped.
            let after = Duration::ZERO;
            return Claimed::Refused(Outcome::GivenBack { after }, ticket);
        }
        let max = self.settings.policy.max_attempts.get();
        let max = if planted!(CapOffByOne) { max + 1 } else { max };
        if attempt.get() > max {
            let detail = "the last attempt did not come to an end: its process died, its lease was \
                          lost, or the dead-letter queue could not be reached";
            let outcome = Outcome::Refused {
                reason: DeadLetterReason::AttemptsExhausted,
                attempts_used: attempt.get() - 1,
                detail: detail.into(),
            };
            return Claimed::Refused(outcome, ticket);
        }
        if attempt.get() == max
            && let Some(after) = self.gate.spares_last_attempt()
        {
            if planted!(BreakerDeadLetters) {
                let outcome = Outcome::Refused {
                    reason: DeadLetterReason::AttemptsExhausted,
                    attempts_used: attempt.get() - 1,
                    detail: "planted".into(),
                };
                return Claimed::Refused(outcome, ticket);
            }
            return Claimed::Refused(Outcome::GivenBack { after }, ticket);
        }
        Claimed::Granted(Grant { attempt, ticket })
    }

    async fn handle(&self, held: &Held, grant: &Grant) -> Outcome {
        let delivery = held.delivery();
        let decode = || self.codec.decode(&delivery.message);
        let decode = || decode().map_err(|error| error.to_string());
        let payload = match std::panic::catch_unwind(AssertUnwindSafe(decode)) {
            Ok(Ok(payload)) => payload,
            Ok(Err(error)) => return undecodable(grant.attempt, error),
            Err(panic) => return undecodable(grant.attempt, panic_text(&*panic)),
        };
        let context = Context {
            message: delivery.message.clone(),
            attempt: grant.attempt,
            fence: grant.ticket.as_ref().map(|ticket| ticket.fence),
            redrives: delivery.redrives,
            cancellation: held.hold.cancellation().clone(),
        };
        self.counters.started.raise();
        let timeout = self.settings.handler_timeout;
        // Creating, polling and dropping the user's future: whatever panics is the handler's failure.
        let ended = AssertUnwindSafe(async {
            let mut handler = pin!(self.handler.handle(payload, context));
            // A handler that need not wait for anything needs no timer and no watch either.
            if let Poll::Ready(ended) = poll_fn(|cx| Poll::Ready(handler.as_mut().poll(cx))).await {
                return Some(Ok(ended));
            }
            tokio::select! {
                biased;
                ended = tokio::time::timeout(timeout, handler) => Some(ended),
                () = held.hold.cancellation().token().cancelled() => None,
            }
        });
        let failure = match ended.catch_unwind().await {
            Ok(Some(Ok(Ok(())))) => return Outcome::Succeeded,
            Ok(Some(Ok(Err(error)))) => speakable(error),
            Ok(Some(Err(_))) => Failed::TimedOut(timeout),
            Ok(None) => {
                let after = Duration::ZERO;
                return Outcome::GivenBack { after };
            }
            Err(panic) => Failed::Panicked(panic_text(&*panic)),
        };
        let attempt = grant.attempt;
        Outcome::Failed { attempt, failure }
    }

    async fn settle_claim(
        &self,
        ticket: Option<&Ticket>,
        decision: Decision,
        start: Start,
        hold: &Hold,
    ) -> Owned {
        let (Some(claims), Some(ticket)) = (&self.claims, ticket) else {
            return Owned::Ours;
        };
        let answer = match decision {
            Decision::Complete if planted!(AckBeforeComplete) => return Owned::Ours,
            Decision::Complete => claims.complete(ticket, hold).await,
            // The copy has to be in the dead-letter queue before repeats may be absorbed.
            Decision::DeadLetter { .. } => claims.confirm(ticket, hold).await,
            Decision::Retry { .. } => claims.release(ticket, ReleaseKind::Failed, hold).await,
            Decision::Release { .. } => claims.release(ticket, given_back(start, hold), hold).await,
        };
        match answer {
            Ok(Ownership::Held) => Owned::Ours,
            Ok(Ownership::Fenced) => Owned::Fenced,
            Err(_) if planted!(SilenceIsConsent) => Owned::Ours,
            Err(error) => {
                tracing::warn!(key = ?ticket.key, error = %with_causes(&error), ?decision, "the store did not take the end of an attempt; the message is given back and may be handled again");
                Owned::Unknown
            }
        }
    }

    async fn settle(
        &self,
        held: &mut Held,
        verdict: Verdict,
        outcome: &Outcome,
        ticket: Option<&Ticket>,
    ) -> Step {
        let (count, step) = match &verdict {
            Verdict::Complete if matches!(outcome, Outcome::Repeat) => {
                (&self.counters.repeats, Step::Settled)
            }
            Verdict::Complete => (&self.counters.completed, Step::Settled),
            Verdict::DeadLetter(_) => (&self.counters.dead_lettered, Step::Settled),
            Verdict::Retry { .. } if matches!(outcome, Outcome::Failed { .. }) => {
                (&self.counters.retried, self.after_native_retry())
            }
            Verdict::Retry { .. } | Verdict::Release { .. } => {
                (&self.counters.released, Step::GivenBack)
            }
        };
        let dead = matches!(verdict, Verdict::DeadLetter(_));
        let Some(delivery) = held.take() else {
            return Step::GivenBack;
        };
        let settled = self.settlements.settle(delivery, verdict, &held.hold).await;
        if planted!(AckBeforeComplete)
            && matches!(outcome, Outcome::Succeeded)
            && let (Some(claims), Some(ticket)) = (&self.claims, ticket)
        {
            let _ = claims.complete(ticket, &held.hold).await;
        }
        if let (true, Some(claims), Some(ticket)) = (dead, &self.claims, ticket) {
            let kind = match settled {
                Settled::AsDecided => ReleaseKind::DeadLettered,
                Settled::GivenBack if was_started(outcome) => ReleaseKind::Failed,
                Settled::GivenBack => ReleaseKind::Unused,
            };
            if let Err(error) = claims.release(ticket, kind, &held.hold).await {
                tracing::warn!(key = ?ticket.key, error = %with_causes(&error), "the store did not take the end of a dead-lettered message; a repeat may be handled");
            }
        }
        match settled {
            Settled::AsDecided => {
                count.raise();
                step
            }
            Settled::GivenBack => {
                self.counters.abandoned.raise();
                Step::GivenBack
            }
        }
    }

    fn annotate(&self, outcome: &Outcome, reason: DeadLetterReason, attempts: u32) -> DeadLetter {
        let error = match outcome {
            Outcome::Failed { failure, .. } => failure.to_string(),
            Outcome::Refused { detail, .. } => detail.to_string(),
            _ => String::new(),
        };
        DeadLetter {
            reason,
            error: truncate_visibly(&error, DeadLetter::MAX_ERROR_BYTES),
            attempts,
            origin: self.queue.to_string(),
            consumer: self.settings.name.to_string(),
            at: SystemTime::now(),
        }
    }

    /// Counts what happened, tells the breaker, and logs what a person may have to look at.
    fn observe(&self, held: &Held, outcome: &Outcome, decision: Decision) {
        let Delivery { message, .. } = held.delivery();
        let id = message.id.as_ref().map_or("", |id| id.as_str());
        match outcome {
            Outcome::Succeeded => self.gate.handling_succeeded(),
            Outcome::Failed { attempt, failure } => {
                self.counters.failed.raise();
                match failure {
                    Failed::Error(error) if error.failure() == Failure::Permanent => {}
                    Failed::Error(_) => self.gate.handling_failed(),
                    Failed::TimedOut(_) => {
                        self.counters.timed_out.raise();
                        self.gate.handling_failed();
                    }
                    Failed::Panicked(_) => {
                        self.counters.panicked.raise();
                        self.gate.handling_failed();
                    }
                }
                tracing::warn!(id, %attempt, error = %failure, ?decision, "an attempt failed");
            }
            Outcome::Refused { reason, detail, .. } => {
                tracing::warn!(id, %reason, %detail, "a message is dead-lettered without a further attempt");
            }
            Outcome::Repeat => tracing::debug!(id, "a repeat is absorbed"),
            Outcome::InProgress { remaining } => {
                tracing::debug!(
                    id,
                    ?remaining,
                    "another delivery of the message is being handled"
                );
            }
            Outcome::GivenBack { after } => tracing::debug!(id, ?after, "a message is given back"),
        }
    }
}

/// What was never started uses no attempt, and neither does a handler that was cancelled at shutdown;
/// one that lost its lease does, or a message that outlives every lease would be started for ever.
fn given_back(start: Start, hold: &Hold) -> ReleaseKind {
    match (start, hold.standing()) {
        (Start::Made, Standing::LeaseLost | Standing::ClaimLost) => ReleaseKind::Failed,
        _ => ReleaseKind::Unused,
    }
}

/// Whether the attempt of a claim that ended so counts: not if it was one too many.
fn was_started(outcome: &Outcome) -> bool {
    let one_too_many = DeadLetterReason::AttemptsExhausted;
    !matches!(outcome, Outcome::Refused { reason, .. } if *reason == one_too_many)
}

/// An error that can be told. One that panics instead is no better than a handler that does.
fn speakable(error: HandlerError) -> Failed {
    let tell = AssertUnwindSafe(|| drop(error.to_string()));
    match std::panic::catch_unwind(tell) {
        Ok(()) => Failed::Error(error),
        Err(panic) => Failed::Panicked(panic_text(&*panic)),
    }
}

fn undecodable(attempt: Attempt, detail: String) -> Outcome {
    Outcome::Refused {
        reason: DeadLetterReason::Undecodable,
        attempts_used: attempt.get(),
        detail: detail.into(),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
        .to_owned()
}
