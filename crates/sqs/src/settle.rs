//! Carrying verdicts out.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::{
    BrokerError, BrokerErrorKind, DeadLetter, Delivery, LeaseId, LeaseState, SettleError,
    Settlement, Verdict, with_causes,
};
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::batches::{Batches, Change, Entry, carry_out, interrupted};
use crate::broker::Shared;
use crate::connection::Clients;
use crate::decode::{Arrival, Original};
use crate::encode::{self, Native};
use crate::error::again;
use crate::leases::{Lease, Leases, Turn};
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

/// A lease that is to be extended, from when, by how many seconds, and how SQS is asked for that.
type Extension = (LeaseId, Instant, u32, Entry);

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

    /// Asks a script instead of SQS.
    #[cfg(test)]
    pub(crate) fn scripted(shared: Arc<Shared>, script: &crate::scripted::Script) -> Self {
        Self::new(shared, script.clients(), "https://q".into(), 30)
    }

    /// Settles; answers stand at the positions of their settlements.
    pub(crate) async fn settle(&self, batch: Vec<Settlement>) -> Vec<Answer> {
        let now = Instant::now();
        let (mut letters, mut others) = (Vec::new(), Vec::new());
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
                others.push((at, settlement, held));
            }
        }
        let settling = others
            .into_iter()
            .map(async |(at, settlement, held)| (at, self.settle_one(settlement, held, now).await));
        let (settled, buried) = tokio::join!(join_all(settling), self.dead_letter(letters));
        for (at, answer) in settled.into_iter().chain(buried) {
            answers[at] = Some(answer);
        }
        answers
            .into_iter()
            .map(|answer| answer.unwrap_or_else(|| Err(lost())))
            .collect()
    }

    async fn settle_one(&self, settlement: Settlement, held: Lease, asked: Instant) -> Answer {
        let lease = settlement.delivery.receipt.lease();
        let entry = match &settlement.verdict {
            Verdict::Retry { after, .. } | Verdict::Release { after } => {
                let turn = held.turn().await;
                let now = Instant::now();
                let Some(held) = self.leases.get(lease, now) else {
                    return Err(lost());
                };
                // The turn may have taken a part of the wait.
                let after = (asked + *after).saturating_duration_since(now);
                Entry {
                    change: Change::Visibility(seconds(held.visibility(after, now))),
                    handle: held.handle,
                    turn: Some(turn),
                }
            }
            Verdict::Complete | Verdict::DeadLetter(_) => Entry {
                handle: held.handle,
                change: Change::Delete,
                turn: None,
            },
        };
        self.carry(lease, entry)
            .await
            .map_err(|cause| self.not_settled(settlement, cause))
    }

    async fn carry(&self, lease: LeaseId, entry: Entry) -> Result<(), BrokerError> {
        let batches = match entry.change {
            Change::Delete => &self.deletions,
            Change::Visibility(_) => &self.visibilities,
        };
        batches.call(entry).await?;
        self.leases.end(lease);
        Ok(())
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
                        let deleted = self.settle_one(settlement, held, Instant::now()).await;
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

    /// Extends leases by their usual time; answers stand at the positions of the leases. A dropped call is
    /// carried out all the same: SQS may have it already, and a settlement waits for it.
    pub(crate) async fn extend(
        self: &Arc<Self>,
        leases: &[LeaseId],
    ) -> Vec<Result<LeaseState, BrokerError>> {
        let now = Instant::now();
        let mut answers = Vec::with_capacity(leases.len());
        let mut chunks: Vec<(Vec<usize>, Vec<Extension>)> = Vec::new();
        for (at, lease) in leases.iter().enumerate() {
            let extension = match self.extension(*lease, now) {
                Ok(extension) => extension,
                Err(state) => {
                    answers.push(Ok(state));
                    continue;
                }
            };
            answers.push(Err(interrupted()));
            match chunks.last_mut() {
                Some((positions, chunk)) if chunk.len() < BATCH => {
                    positions.push(at);
                    chunk.push(extension);
                }
                _ => chunks.push((vec![at], vec![extension])),
            }
        }
        let under_way = chunks.into_iter().map(|(positions, chunk)| {
            let carried = tokio::spawn(Arc::clone(self).carry_extensions(chunk));
            async move { (positions, carried.await.unwrap_or_default()) }
        });
        // All are begun before one is waited for.
        let under_way: Vec<_> = under_way.collect();
        for (positions, carried) in join_all(under_way).await {
            for (at, answer) in positions.into_iter().zip(carried) {
                answers[at] = answer;
            }
        }
        answers
    }

    /// How a lease is to be extended, or its state if it is not.
    fn extension(&self, lease: LeaseId, now: Instant) -> Result<Extension, LeaseState> {
        let held = self.leases.get(lease, now).ok_or(LeaseState::Lost)?;
        let wanted = Duration::from_secs(self.leases.seconds().into());
        let secs = held.visibility(wanted, now);
        if secs == 0 {
            // At the end of the 12 hours nothing is left to extend.
            return Err(LeaseState::Lost);
        }
        // Another one is under way, or the wait of a retry.
        let left = LeaseState::Held(Some(held.left(now)));
        let turn = held.try_turn().ok_or(left)?;
        let entry = Entry {
            handle: held.handle,
            change: Change::Visibility(seconds(secs)),
            turn: Some(turn),
        };
        Ok((lease, now, secs, entry))
    }

    async fn carry_extensions(
        self: Arc<Self>,
        extensions: Vec<Extension>,
    ) -> Vec<Result<LeaseState, BrokerError>> {
        let (noted, entries): (Vec<_>, Vec<_>) = extensions
            .into_iter()
            .map(|(lease, asked, secs, entry)| ((lease, asked, secs), entry))
            .unzip();
        let carried = carry_out(&self.clients.prompt, &self.url, &entries).await;
        let answers = noted.into_iter().zip(carried);
        let answers = answers.map(|((lease, asked, secs), answer)| match answer {
            Ok(()) => Ok(match self.leases.extended(lease, asked, secs) {
                Some(lasts) => LeaseState::Held(Some(lasts)),
                None => LeaseState::Lost,
            }),
            Err(error) if error.kind() == BrokerErrorKind::LeaseLost => {
                self.leases.end(lease);
                Ok(LeaseState::Lost)
            }
            Err(error) => Err(error),
        });
        answers.collect()
    }

    /// Gives messages back that nobody has begun.
    pub(crate) async fn give_back(&self, arrivals: Vec<Arrival>) {
        let handles = arrivals.into_iter().map(|arrival| arrival.handle);
        self.show(handles.map(|handle| (handle, None)).collect())
            .await;
    }

    /// Gives everything back that is not settled.
    pub(crate) async fn give_all_back(&self) {
        let leases = self.leases.end_all(Instant::now());
        let showing = leases
            .into_iter()
            .map(async |lease| (Arc::clone(&lease.handle), Some(lease.turn().await)));
        self.show(join_all(showing).await).await;
    }

    /// Makes messages visible at once.
    async fn show(&self, handles: Vec<(Arc<str>, Option<Turn>)>) {
        let entries: Vec<_> = handles
            .into_iter()
            .map(|(handle, turn)| Entry {
                handle,
                change: Change::Visibility(0),
                turn,
            })
            .collect();
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
        redrives: arrival.original.redrives,
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
