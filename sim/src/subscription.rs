//! A subscription as one process sees it: every call waits for the controller.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use backstop_core::{
    BrokerError, Delivery, InProcessBroker, LeaseId, LeaseState, SettleError, Settlement,
    Subscription, Verdict,
};
use futures_util::FutureExt;

use crate::broker::unreachable;
use crate::call::Operation;
use crate::event::{Event, Pid, Settling};
use crate::fate::Fate;
use crate::keeping::KeeperTask;
use crate::publishing::COPY;
use crate::sim::Sim;

/// The number of a delivery's message among all published.
pub(crate) fn copy_of(delivery: &Delivery) -> usize {
    let text = delivery.message.headers.get(COPY);
    text.and_then(|text| text.parse().ok())
        .expect("every message of a simulation is numbered")
}

pub(crate) struct SimSubscription {
    pub(crate) sim: Arc<Sim>,
    pub(crate) pid: Pid,
    pub(crate) inner: Arc<dyn Subscription>,
    pub(crate) broker: Arc<InProcessBroker>,
    /// The cuts that a receive has met.
    pub(crate) cuts_seen: AtomicU64,
    pub(crate) keeper: KeeperTask,
}

/// Says that the next receive has something to tell, whatever is in the queue.
const NEWS: u64 = u64::MAX;

impl SimSubscription {
    /// Waits until it makes sense to ask for deliveries.
    async fn until_ready(&self, seen: Option<backstop_core::QueueCounts>) {
        let kicked = self.sim.kicked.notified();
        let cuts = self.sim.lock().cuts;
        if self.cuts_seen.swap(cuts, Ordering::Relaxed) != cuts {
            return;
        }
        let ready = self
            .broker
            .wait_for(|counts| counts.ready > 0 && Some(*counts) != seen);
        tokio::select! {
            biased;
            _ = ready => {}
            () = kicked => {}
        }
    }

    fn settled(&self, batch: &[(LeaseId, Settling)], answers: &[Result<(), SettleError>]) {
        for ((lease, settling), answer) in batch.iter().zip(answers) {
            let (pid, lease, settling) = (self.pid, *lease, *settling);
            let done = answer.is_ok();
            self.sim.see(Event::Settled {
                pid,
                lease,
                settling,
                done,
            });
        }
    }

    fn ids(&self, deliveries: impl Iterator<Item = usize>) -> u64 {
        let state = self.sim.lock();
        deliveries.fold(0, |ids, copy| ids | 1 << state.facts.id_of(copy))
    }
}

#[async_trait]
impl Subscription for SimSubscription {
    async fn receive(&self, max: NonZeroUsize) -> Result<Vec<Delivery>, BrokerError> {
        let mut seen = None;
        loop {
            self.until_ready(seen).await;
            let about = || format!("up to {max}");
            match self.sim.meet(self.pid, Operation::Receive, 0, about).await {
                Fate::Failure => {
                    self.cuts_seen.store(NEWS, Ordering::Relaxed);
                    return Err(unreachable());
                }
                Fate::Effect(answering) => {
                    let Some(received) = self.inner.receive(max).now_or_never() else {
                        seen = Some(self.broker.counts());
                        self.sim.lock().memory(self.pid).seen = seen;
                        continue;
                    };
                    for delivery in received.as_deref().unwrap_or_default() {
                        let (pid, lease) = (self.pid, delivery.receipt.lease());
                        self.sim.see(Event::Delivered {
                            pid,
                            lease,
                            copy: copy_of(delivery),
                            attempts_used: delivery.attempts_used,
                        });
                    }
                    if received.is_err() {
                        self.cuts_seen.store(NEWS, Ordering::Relaxed);
                    }
                    self.sim.answer(self.pid, answering, 0, about).await;
                    return received;
                }
            }
        }
    }

    async fn settle(&self, batch: Vec<Settlement>) -> Vec<Result<(), SettleError>> {
        let (sim, pid) = (&self.sim, self.pid);
        let known: Vec<_> = batch.iter().map(brief).collect();
        let copies: Vec<_> = batch.iter().map(|one| copy_of(&one.delivery)).collect();
        for (lease, settling) in &known {
            let (lease, settling) = (*lease, *settling);
            sim.see(Event::SettleAsked {
                pid,
                lease,
                settling,
            });
        }
        let ids = self.ids(copies.iter().copied());
        let about = || {
            let each = copies
                .iter()
                .zip(&known)
                .map(|(copy, (_, how))| format!("{copy} {how:?}"));
            each.collect::<Vec<_>>().join(", ")
        };
        match sim.meet(pid, Operation::Settle, ids, about).await {
            Fate::Failure => batch.into_iter().map(kept).collect(),
            Fate::Effect(answering) => {
                let answers = self.inner.settle(batch).await;
                self.settled(&known, &answers);
                let arrives = sim.answer(pid, answering, ids, about).await;
                // Done, or lost: no answer is worth another try.
                for (lease, _) in &known {
                    sim.lock().memory(pid).is_done_with(*lease);
                }
                if !arrives {
                    return known.iter().map(|_| Err(unanswered())).collect();
                }
                for ((lease, _), _) in known
                    .iter()
                    .zip(&answers)
                    .filter(|(_, answer)| answer.is_ok())
                {
                    sim.see(Event::SettleTold { lease: *lease });
                }
                answers
            }
        }
    }

    async fn extend(&self, leases: &[LeaseId]) -> Vec<Result<LeaseState, BrokerError>> {
        let (sim, pid) = (&self.sim, self.pid);
        self.keeper.shows_itself();
        for lease in leases {
            sim.see(Event::ExtensionAsked { pid, lease: *lease });
        }
        let fail = || leases.iter().map(|_| Err(unreachable())).collect();
        let about = || {
            let state = sim.lock();
            let copies = leases
                .iter()
                .map(|lease| state.facts.deliveries[lease].copy);
            format!("the leases of {:?}", copies.collect::<Vec<_>>())
        };
        let ids = {
            let state = sim.lock();
            let copies = leases
                .iter()
                .map(|lease| state.facts.deliveries[lease].copy);
            copies.fold(0, |ids, copy| ids | 1 << state.facts.id_of(copy))
        };
        // The controller's lock is held while a call is registered: the text is made before.
        let text = if sim.lock().trace.is_some() {
            about()
        } else {
            String::new()
        };
        let Fate::Effect(answering) = sim.meet(pid, Operation::Extend, ids, || text.clone()).await
        else {
            return fail();
        };
        let answers = self.inner.extend(leases).await;
        for (lease, answer) in leases.iter().zip(&answers) {
            let (lease, held) = (*lease, matches!(answer, Ok(LeaseState::Held(_))));
            sim.see(Event::Extended { pid, lease, held });
        }
        if !sim.answer(pid, answering, ids, || text.clone()).await {
            return fail();
        }
        for (lease, answer) in leases.iter().zip(&answers) {
            let lease = *lease;
            match answer {
                Ok(LeaseState::Held(_)) => sim.see(Event::ExtensionTold { pid, lease }),
                Ok(LeaseState::Lost) => sim.see(Event::LeaseLossTold { lease }),
                Err(_) => {}
            }
        }
        answers
    }

    async fn stop(&self) {
        if self.sim.lives(self.pid) {
            self.inner.stop().await;
        }
    }

    async fn close(&self) {
        if self.sim.lives(self.pid) {
            self.inner.close().await;
        }
    }
}

impl Drop for SimSubscription {
    /// A run that ends or is dropped says goodbye; a process that dies does not.
    fn drop(&mut self) {
        if self.sim.lives(self.pid) {
            let closed = self.inner.close().now_or_never();
            debug_assert!(closed.is_some(), "closing waits for nothing");
        }
    }
}

fn brief(settlement: &Settlement) -> (LeaseId, Settling) {
    let settling = match &settlement.verdict {
        Verdict::Complete => Settling::Complete,
        Verdict::Retry {
            after,
            attempts_used,
        } => {
            let (after, attempts_used) = (*after, *attempts_used);
            Settling::Retry {
                after,
                attempts_used,
            }
        }
        Verdict::Release { after } => Settling::Release { after: *after },
        Verdict::DeadLetter(letter) => {
            let (reason, attempts) = (letter.reason, letter.attempts);
            Settling::DeadLetter { reason, attempts }
        }
    };
    (settlement.delivery.receipt.lease(), settling)
}

fn kept(settlement: Settlement) -> Result<(), SettleError> {
    let kept = Some(Box::new(settlement));
    Err(SettleError {
        cause: unreachable(),
        kept,
    })
}

fn unanswered() -> SettleError {
    SettleError {
        cause: unreachable(),
        kept: None,
    }
}
