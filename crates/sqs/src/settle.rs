//! Carrying verdicts out.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::{
    BrokerError, BrokerErrorKind, DeadLetter, Delivery, LeaseId, LeaseState, SettleError,
    Settlement, Verdict, with_causes,
};
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::batches::{Batches, Change, Entry, Underway, carry_out};
use crate::broker::Shared;
use crate::connection::Clients;
use crate::decode::{Arrival, Original};
use crate::encode::{self, Native};
use crate::error::again;
use crate::leases::{Lease, Leases};
use crate::publish::{self, BATCH};

/// What a subscription holds, and how it lets go of it.
pub(crate) struct Desk {
    shared: Arc<Shared>,
    clients: Clients,
    url: Arc<str>,
    pub(crate) leases: Leases,
    deletions: Batches,
    visibilities: Batches,
}

type Answer = Result<(), SettleError>;

impl Desk {
    pub(crate) fn new(
        shared: Arc<Shared>,
        clients: Clients,
        url: Arc<str>,
        lease_seconds: u32,
    ) -> Self {
        let batches = || Batches::new(clients.prompt.clone(), Arc::clone(&url));
        Self {
            deletions: batches(),
            visibilities: batches(),
            leases: Leases::new(lease_seconds),
            shared,
            clients,
            url,
        }
    }

    /// Settles; answers stand at the positions of their settlements.
    pub(crate) async fn settle(&self, batch: Vec<Settlement>) -> Vec<Answer> {
        let now = Instant::now();
        let (mut letters, mut others) = (Vec::new(), Vec::with_capacity(batch.len()));
        let mut answers: Vec<Option<Answer>> = Vec::with_capacity(batch.len());
        for (at, settlement) in batch.into_iter().enumerate() {
            let lease = settlement.delivery.receipt.lease();
            let Some(held) = self.leases.get(lease, now) else {
                answers.push(Some(Err(lost())));
                continue;
            };
            answers.push(None);
            if matches!(settlement.verdict, Verdict::DeadLetter(_)) {
                letters.push((at, settlement, held));
            } else {
                let underway = self.begin(&settlement, held, now);
                others.push((at, settlement, underway));
            }
        }
        // All are under way: one after the other is no slower, and costs no task for each.
        let settling = async {
            for (at, settlement, underway) in others {
                answers[at] = Some(self.settled(settlement, underway).await);
            }
        };
        let ((), buried) = tokio::join!(settling, self.dead_letter(letters));
        for (at, answer) in buried {
            answers[at] = Some(answer);
        }
        answers
            .into_iter()
            .map(|answer| answer.unwrap_or_else(|| Err(lost())))
            .collect()
    }

    /// Asks for what a verdict does to the message in its queue.
    fn begin(&self, settlement: &Settlement, held: Lease, now: Instant) -> Underway {
        let (batches, change) = match &settlement.verdict {
            Verdict::Retry { after, .. } | Verdict::Release { after } => {
                let seconds = seconds(held.visibility(*after, now));
                (&self.visibilities, Change::Visibility(seconds))
            }
            Verdict::Complete | Verdict::DeadLetter(_) => (&self.deletions, Change::Delete),
        };
        batches.begin(Entry {
            handle: held.handle,
            change,
        })
    }

    async fn settled(&self, settlement: Settlement, underway: Underway) -> Answer {
        match underway.answer().await {
            Ok(()) => {
                self.leases.end(settlement.delivery.receipt.lease());
                Ok(())
            }
            Err(cause) => Err(self.not_settled(settlement, cause)),
        }
    }

    /// A delivery that is still ours is handed back.
    fn not_settled(&self, settlement: Settlement, cause: BrokerError) -> SettleError {
        let lease = settlement.delivery.receipt.lease();
        if cause.kind() == BrokerErrorKind::LeaseLost {
            self.leases.end(lease);
        }
        if self.leases.get(lease, Instant::now()).is_none() {
            return SettleError { cause, kept: None };
        }
        let kept = Some(Box::new(settlement));
        SettleError { cause, kept }
    }

    /// Copies first: the original is deleted after SQS has confirmed its copy. Then it is dead-lettered,
    /// also where it cannot be deleted: what comes back is a repeat, which the store absorbs if it is told
    /// of the dead letter. Another try would make another copy.
    async fn dead_letter(&self, letters: Vec<(usize, Settlement, Lease)>) -> Vec<(usize, Answer)> {
        if letters.is_empty() {
            return Vec::new();
        }
        let copied = self.copy(&letters).await;
        let settling =
            letters
                .into_iter()
                .zip(copied)
                .map(async |((at, settlement, held), copied)| match copied {
                    Ok(()) => {
                        let lease = settlement.delivery.receipt.lease();
                        let underway = self.begin(&settlement, held, Instant::now());
                        let deleted = self.settled(settlement, underway).await;
                        if let Err(error) = deleted {
                            self.leases.end(lease);
                            tracing::warn!(error = %with_causes(&error.cause), "a message is in the dead-letter queue, but could not be deleted from its own; it comes back as a repeat");
                        }
                        (at, Ok(()))
                    }
                    Err(cause) => (at, Err(self.not_settled(settlement, cause))),
                });
        join_all(settling).await
    }

    async fn copy(&self, letters: &[(usize, Settlement, Lease)]) -> Vec<Result<(), BrokerError>> {
        let for_all = |error: &BrokerError| letters.iter().map(|_| Err(again(error))).collect();
        let target = match self.shared.target().await {
            Ok(target) => target,
            Err(error) => return for_all(&error),
        };
        let kind = self.shared.link.config.kind();
        let native = |settlement: &Settlement| {
            let (delivery, letter) = (&settlement.delivery, letter_of(&settlement.verdict));
            match (delivery.receipt.native::<Original>(), letter) {
                (Some(original), Some(letter)) => Ok(encode::dead_letter(
                    original,
                    &delivery.message,
                    letter,
                    kind,
                )),
                _ => Err(foreign()),
            }
        };
        let natives: Vec<Result<Native, BrokerError>> = letters
            .iter()
            .map(|(_, settlement, _)| native(settlement))
            .collect();
        let copied = publish::send(&self.clients.prompt, &target.url, natives, kind).await;
        let missing = |answer: &Result<(), BrokerError>| matches!(answer, Err(error) if error.kind() == BrokerErrorKind::NotFound);
        if copied.iter().any(missing) {
            // The queue may name another by now.
            self.shared.forget_target();
        }
        copied
            .into_iter()
            .map(|answer| answer.map_err(unreached))
            .collect()
    }

    /// Extends leases by their usual time; answers stand at the positions of the leases.
    pub(crate) async fn extend(&self, leases: &[LeaseId]) -> Vec<Result<LeaseState, BrokerError>> {
        let now = Instant::now();
        let mut answers: Vec<_> = leases.iter().map(|_| Ok(LeaseState::Lost)).collect();
        let held: Vec<_> = leases
            .iter()
            .enumerate()
            .filter_map(|(at, id)| {
                let lease = self.leases.get(*id, now)?;
                let wanted = Duration::from_secs(self.leases.seconds().into());
                let seconds = lease.visibility(wanted, now);
                // At the end of the 12 hours nothing is left to extend.
                (seconds > 0).then_some((at, *id, lease.handle, seconds))
            })
            .collect();
        let extending = held.chunks(BATCH).map(async |chunk| {
            let entries: Vec<_> = chunk
                .iter()
                .map(|(_, _, handle, secs)| Entry {
                    handle: Arc::clone(handle),
                    change: Change::Visibility(seconds(*secs)),
                })
                .collect();
            carry_out(&self.clients.prompt, &self.url, &entries).await
        });
        let extended: Vec<_> = join_all(extending).await.into_iter().flatten().collect();
        for ((at, id, _, secs), answer) in held.iter().zip(extended) {
            answers[*at] = match answer {
                Ok(()) => Ok(match self.leases.extended(*id, now, *secs) {
                    Some(lasts) => LeaseState::Held(Some(lasts)),
                    None => LeaseState::Lost,
                }),
                Err(error) if error.kind() == BrokerErrorKind::LeaseLost => {
                    self.leases.end(*id);
                    Ok(LeaseState::Lost)
                }
                Err(error) => Err(error),
            };
        }
        answers
    }

    /// Gives messages back that nobody has begun.
    pub(crate) async fn give_back(&self, arrivals: Vec<Arrival>) {
        self.show(arrivals.into_iter().map(|arrival| arrival.handle))
            .await;
    }

    /// Gives everything back that is not settled.
    pub(crate) async fn give_all_back(&self) {
        let leases = self.leases.end_all(Instant::now());
        self.show(leases.into_iter().map(|lease| lease.handle))
            .await;
    }

    /// Makes messages visible at once.
    async fn show(&self, handles: impl Iterator<Item = Arc<str>>) {
        let change = Change::Visibility(0);
        let entries: Vec<_> = handles.map(|handle| Entry { handle, change }).collect();
        let showing = entries
            .chunks(BATCH)
            .map(|chunk| carry_out(&self.clients.prompt, &self.url, chunk));
        for answer in join_all(showing).await.into_iter().flatten() {
            if let Err(error) = answer {
                tracing::debug!(error = %with_causes(&error), "a message could not be given back; it comes back when its lease ends");
            }
        }
    }
}

fn letter_of(verdict: &Verdict) -> Option<&DeadLetter> {
    match verdict {
        Verdict::DeadLetter(letter) => Some(letter),
        _ => None,
    }
}

/// SQS takes whole seconds, up to 43,200.
fn seconds(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Gives a delivery for an arrival that is handed out.
pub(crate) fn delivery(
    arrival: Arrival,
    lease: LeaseId,
    lasts: Duration,
    attempts_used: u32,
) -> Delivery {
    Delivery {
        message: arrival.message,
        attempts_used,
        redrives: arrival.redrives,
        lease: Some(lasts),
        receipt: backstop_core::Receipt::with_native(lease, arrival.original),
    }
}

fn lost() -> SettleError {
    let text =
        "the message's visibility timeout ended before it was settled; SQS delivers it again";
    SettleError {
        cause: BrokerError::new(BrokerErrorKind::LeaseLost, text),
        kept: None,
    }
}

fn foreign() -> BrokerError {
    let text = "the delivery is not one of this queue";
    BrokerError::new(BrokerErrorKind::Unsupported, text)
}

/// Whatever keeps a message from its dead-letter queue may be mended while the message stays where it is.
fn unreached(error: BrokerError) -> BrokerError {
    if error.is_transient() {
        return error;
    }
    let text = "the dead-letter queue does not take the message";
    BrokerError::new(BrokerErrorKind::Other, text).with_source(error)
}
