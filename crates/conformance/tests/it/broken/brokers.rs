//! Brokers that are broken in one way each.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use backstop_core::{
    Broker, BrokerError, BrokerErrorKind, BrokerHandle, Capabilities, DeadLetter, DeadLetterQueue,
    DeadLetterReason, DeadLetterRecord, Delivery, Finding, Headers, LeaseId, LeaseState, Outgoing,
    Receipt, SettleError, Settlement, SubscribeOptions, Subscription, SubscriptionOrder, Survival,
    Verdict,
};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

/// What is wrong with a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    DropsAcks,
    NeverAnswersCompletions,
    /// Sends acks with the next settlement: the last ones never.
    LosesLastAcks,
    AcksOnReceipt,
    AltersBodies,
    /// Every seventh time.
    ConfirmsWithoutPublishing,
    /// Every fifth time.
    PublishesTwice,
    MixesQueues,
    TakesStaleSettlements,
    LosesWhatIsCancelled,
    GivesMoreThanAsked,
    RetriesEarly,
    RetriesLate,
    LosesRetries,
    DeadLettersRetries,
    /// Instead of refusing them.
    CutsLongDelays,
    ForgetsAttempts,
    CountsRetriesTwice,
    HoldsSlotsWhileBackingOff,
    QueuesDelaysBehindEachOther,
    DropsHeadersOnRetry,
    LosesDeadLetters,
    RepeatsDeadLetters,
    DropsAnnotations,
    DropsWhatCannotBeDeadLettered,
    CutsErrorsSilently,
    MisreadsItsOwnDeadLetters,
    NeverExtends,
    KeepsLossesToItself,
    CountsReleases,
    ReversesBatches,
    KeepsNoOrder,
    /// Has one partition key for all.
    MixesKeys,
    PollsOnAfterStop,
    StopsLate,
    /// What it holds is delivered again.
    ClosesOnStop,
    /// Fetches more than it is asked for, and settles the rest when it is closed.
    LosesWhatItFetchedAhead,
    /// And says that its queues outlive its process.
    MakesMissingQueues,
}

/// A broker with a flaw.
pub(crate) struct Broken {
    sound: BrokerHandle,
    flaw: Flaw,
    published: AtomicU64,
}

impl Broken {
    pub(crate) fn over(sound: BrokerHandle, flaw: Flaw) -> BrokerHandle {
        Arc::new(Self {
            sound,
            flaw,
            published: AtomicU64::new(0),
        })
    }
}

#[async_trait]
impl Broker for Broken {
    fn queue(&self) -> &str {
        self.sound.queue()
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.sound.capabilities();
        if self.flaw == Flaw::MakesMissingQueues {
            capabilities.survival = Survival::Durable;
        }
        capabilities
    }

    async fn inspect(&self, options: &SubscribeOptions) -> Result<Vec<Finding>, BrokerError> {
        self.sound.inspect(options).await
    }

    async fn subscribe(
        &self,
        options: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>, BrokerError> {
        let mut options = options.clone();
        if self.flaw == Flaw::KeepsNoOrder {
            options.order = SubscriptionOrder::Unordered;
        }
        Ok(Box::new(BrokenSubscription {
            sound: self.sound.subscribe(&options).await?,
            flaw: self.flaw,
            held: Mutex::default(),
            ahead: Mutex::default(),
            longest: Mutex::new(Instant::now()),
        }))
    }

    async fn publish(&self, messages: &[Outgoing]) -> Vec<Result<(), BrokerError>> {
        let mut answers = Vec::new();
        for outgoing in messages {
            let mut outgoing = outgoing.clone();
            let nth = self.published.fetch_add(1, Ordering::Relaxed) + 1;
            match self.flaw {
                Flaw::ConfirmsWithoutPublishing if nth.is_multiple_of(7) => {
                    answers.push(Ok(()));
                    continue;
                }
                Flaw::PublishesTwice if nth.is_multiple_of(5) => {
                    self.sound.publish(std::slice::from_ref(&outgoing)).await;
                }
                Flaw::AltersBodies => {
                    let message = Arc::make_mut(&mut outgoing.message);
                    message.body = altered(&message.body);
                }
                Flaw::CutsLongDelays => {
                    let longest = self.capabilities().max_publication_delay;
                    outgoing.delay = outgoing.delay.min(longest.unwrap_or(Duration::MAX));
                }
                _ => {}
            }
            answers.extend(self.sound.publish(&[outgoing]).await);
        }
        answers
    }

    async fn dead_letters(&self) -> Result<Box<dyn DeadLetterQueue>, BrokerError> {
        let sound = self.sound.dead_letters().await?;
        let flaw = self.flaw;
        Ok(Box::new(BrokenDeadLetters { sound, flaw }))
    }

    async fn close(&self) {
        self.sound.close().await;
    }
}

/// As if it were text.
fn altered(body: &Bytes) -> Bytes {
    match std::str::from_utf8(body) {
        Ok(_) => body.clone(),
        Err(_) => String::from_utf8_lossy(body).into_owned().into(),
    }
}

struct BrokenSubscription {
    sound: Box<dyn Subscription>,
    flaw: Flaw,
    held: Mutex<Vec<Settlement>>,
    ahead: Mutex<Vec<Delivery>>,
    longest: Mutex<Instant>,
}

#[async_trait]
impl Subscription for BrokenSubscription {
    async fn receive(&self, max: NonZeroUsize) -> Result<Vec<Delivery>, BrokerError> {
        let asked = match self.flaw {
            Flaw::GivesMoreThanAsked | Flaw::LosesWhatItFetchedAhead => max.saturating_add(3),
            _ => max,
        };
        if let Some(ahead) = self.ahead.lock().pop() {
            return Ok(vec![ahead]);
        }
        let mut received = loop {
            match self.sound.receive(asked).await {
                Err(error)
                    if self.flaw == Flaw::PollsOnAfterStop
                        && error.kind() == BrokerErrorKind::Closed =>
                {
                    tokio::time::sleep(Duration::from_mins(10)).await;
                }
                received => break received?,
            }
        };
        match self.flaw {
            Flaw::LosesWhatIsCancelled => tokio::time::sleep(Duration::from_millis(1)).await,
            Flaw::ReversesBatches => received.reverse(),
            Flaw::AcksOnReceipt => received = self.ack(received).await,
            Flaw::LosesWhatItFetchedAhead => {
                let keep = max.get().min(received.len());
                self.ahead.lock().extend(received.split_off(keep));
            }
            _ => {}
        }
        for delivery in &mut received {
            match self.flaw {
                Flaw::ForgetsAttempts => delivery.attempts_used = 0,
                Flaw::DropsHeadersOnRetry if delivery.attempts_used > 0 => {
                    Arc::make_mut(&mut delivery.message).headers = Headers::new();
                }
                Flaw::MixesKeys => {
                    Arc::make_mut(&mut delivery.message).partition_key = Some("key".into());
                }
                _ => {}
            }
        }
        Ok(received)
    }

    async fn settle(&self, batch: Vec<Settlement>) -> Vec<Result<(), SettleError>> {
        let mut answers = Vec::new();
        for settlement in batch {
            answers.push(self.settle_one(settlement).await);
        }
        answers
    }

    async fn extend(&self, leases: &[LeaseId]) -> Vec<Result<LeaseState, BrokerError>> {
        let held = || LeaseState::Held(Some(Duration::from_hours(1)));
        match self.flaw {
            Flaw::NeverExtends | Flaw::KeepsLossesToItself => {
                if self.flaw == Flaw::KeepsLossesToItself {
                    self.sound.extend(leases).await;
                }
                leases.iter().map(|_| Ok(held())).collect()
            }
            _ => self.sound.extend(leases).await,
        }
    }

    async fn stop(&self) {
        match self.flaw {
            Flaw::PollsOnAfterStop => return,
            Flaw::StopsLate => tokio::time::sleep(Duration::from_secs(1)).await,
            Flaw::ClosesOnStop => self.sound.close().await,
            _ => {}
        }
        self.sound.stop().await;
    }

    async fn close(&self) {
        let ahead = std::mem::take(&mut *self.ahead.lock());
        self.ack(ahead).await;
        self.sound.close().await;
    }
}

impl BrokenSubscription {
    async fn ack(&self, received: Vec<Delivery>) -> Vec<Delivery> {
        let mut copies = Vec::new();
        for delivery in received {
            let lease = delivery.receipt.lease();
            copies.push(Delivery {
                message: Arc::clone(&delivery.message),
                receipt: Receipt::new(lease),
                ..delivery
            });
            let verdict = Verdict::Complete;
            let settlement = Settlement { delivery, verdict };
            self.sound.settle(vec![settlement]).await;
        }
        copies
    }

    async fn pass_on(&self, settlement: Settlement) -> Result<(), SettleError> {
        let mut answers = self.sound.settle(vec![settlement]).await;
        answers.pop().expect("one answer to one settlement")
    }

    async fn settle_one(&self, mut settlement: Settlement) -> Result<(), SettleError> {
        let used = settlement.delivery.attempts_used;
        match (self.flaw, &mut settlement.verdict) {
            (Flaw::DropsAcks, Verdict::Complete) | (Flaw::AcksOnReceipt, _) => return Ok(()),
            (Flaw::NeverAnswersCompletions, Verdict::Complete) => std::future::pending().await,
            (Flaw::LosesLastAcks, Verdict::Complete) => {
                let earlier = std::mem::take(&mut *self.held.lock());
                self.held.lock().push(settlement);
                self.sound.settle(earlier).await;
                return Ok(());
            }
            (Flaw::RetriesEarly, Verdict::Retry { after, .. }) => *after = after.mul_f64(0.8),
            (Flaw::RetriesLate, Verdict::Retry { after, .. }) => *after = after.mul_f64(1.25),
            (Flaw::LosesRetries, verdict @ Verdict::Retry { .. })
            | (Flaw::LosesDeadLetters, verdict @ Verdict::DeadLetter(_)) => {
                *verdict = Verdict::Complete;
            }
            (Flaw::CountsRetriesTwice, Verdict::Retry { attempts_used, .. }) => {
                *attempts_used += 1;
            }
            (Flaw::HoldsSlotsWhileBackingOff, Verdict::Retry { after, .. }) => {
                tokio::time::sleep(std::mem::take(after)).await;
            }
            (Flaw::QueuesDelaysBehindEachOther, Verdict::Retry { after, .. }) => {
                let mut longest = self.longest.lock();
                *longest = longest.max(Instant::now() + *after);
                *after = longest.duration_since(Instant::now());
            }
            (Flaw::CountsReleases, verdict @ Verdict::Release { .. }) => {
                let Verdict::Release { after } = *verdict else {
                    return Ok(());
                };
                let attempts_used = used + 1;
                *verdict = Verdict::Retry {
                    after,
                    attempts_used,
                };
            }
            (Flaw::DropsAnnotations, Verdict::DeadLetter(letter)) => **letter = blank(),
            (Flaw::DeadLettersRetries, verdict @ Verdict::Retry { .. }) => {
                *verdict = Verdict::DeadLetter(Box::new(blank()));
            }
            (Flaw::CutsErrorsSilently, Verdict::DeadLetter(letter)) => {
                letter.error.truncate(letter.error.floor_char_boundary(100));
            }
            _ => {}
        }
        match (self.flaw, self.pass_on(settlement).await) {
            (Flaw::TakesStaleSettlements, Err(_)) => Ok(()),
            (Flaw::DropsWhatCannotBeDeadLettered, Err(error)) if error.kept.is_some() => {
                self.drop_it(error).await
            }
            (_, answer) => answer,
        }
    }

    async fn drop_it(&self, error: SettleError) -> Result<(), SettleError> {
        let Some(mut settlement) = error.kept else {
            return Err(error);
        };
        settlement.verdict = Verdict::Complete;
        self.pass_on(*settlement).await
    }
}

/// Annotations that say nothing.
fn blank() -> DeadLetter {
    DeadLetter {
        reason: DeadLetterReason::Other,
        error: String::new(),
        attempts: 0,
        origin: String::new(),
        consumer: String::new(),
        at: SystemTime::now(),
    }
}

struct BrokenDeadLetters {
    sound: Box<dyn DeadLetterQueue>,
    flaw: Flaw,
}

#[async_trait]
impl DeadLetterQueue for BrokenDeadLetters {
    async fn depth(&self) -> Result<u64, BrokerError> {
        let depth = self.sound.depth().await?;
        Ok(match self.flaw {
            Flaw::RepeatsDeadLetters => depth * 2,
            _ => depth,
        })
    }

    async fn browse(&self, max: NonZeroUsize) -> Result<Vec<DeadLetterRecord>, BrokerError> {
        let mut records = self.sound.browse(max).await?;
        if self.flaw == Flaw::RepeatsDeadLetters {
            records.extend_from_within(..);
        }
        for record in &mut records {
            let letter = &mut record.dead_letter;
            if self.flaw == Flaw::MisreadsItsOwnDeadLetters
                && letter.reason == DeadLetterReason::BrokerLimit
            {
                *letter = blank();
            }
        }
        Ok(records)
    }
}
