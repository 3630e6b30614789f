//! The store as one process sees it: every call waits for the controller.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backstop_core::{
    Claim, ClaimRequest, Finding, IdempotencyKey, IdempotencyStore, InProcessStore, Ownership,
    ReleaseKind, StoreError, StoreErrorKind, Survival, Ticket,
};

use crate::call::Operation;
use crate::event::{Event, Hold, Pid, TicketCall};
use crate::fate::Fate;
use crate::keeping::KeeperTask;
use crate::sim::Sim;

/// A process's way to the store.
pub(crate) struct SimStore {
    pub(crate) sim: Arc<Sim>,
    pub(crate) pid: Pid,
    pub(crate) inner: InProcessStore,
    pub(crate) keeper: KeeperTask,
}

type Answers<T> = Vec<Result<T, StoreError>>;

/// The number in a message's id.
fn id_of(key: &IdempotencyKey) -> usize {
    let number = key
        .key()
        .strip_prefix('m')
        .and_then(|text| text.parse().ok());
    number.expect("every id of a simulation is numbered")
}

fn unreachable<T>() -> Result<T, StoreError> {
    let text = "the simulated store does not answer";
    Err(StoreError::new(StoreErrorKind::Unreachable, text))
}

const fn hold(ticket: &Ticket, id: usize) -> Hold {
    Hold {
        id,
        fence: ticket.fence,
    }
}

impl SimStore {
    /// What is done with claims: asked, perhaps done, perhaps told.
    async fn use_tickets(
        &self,
        operation: Operation,
        calls: Vec<(&Ticket, TicketCall)>,
        effect: impl Future<Output = Answers<Ownership>>,
    ) -> Answers<Ownership> {
        let (sim, pid) = (&self.sim, self.pid);
        let known: Vec<_> = calls
            .iter()
            .map(|(ticket, call)| (hold(ticket, id_of(&ticket.key)), *call))
            .collect();
        for (hold, call) in &known {
            let (hold, call) = (*hold, *call);
            sim.see(Event::TicketAsked { pid, hold, call });
        }
        let ids = known.iter().fold(0, |ids, (hold, _)| ids | 1 << hold.id);
        let about = || {
            let each = known.iter().map(|(hold, call)| match call {
                TicketCall::Release(kind) => format!("m{} fence {} {kind:?}", hold.id, hold.fence),
                _ => format!("m{} fence {}", hold.id, hold.fence),
            });
            each.collect::<Vec<_>>().join(", ")
        };
        let fail = || known.iter().map(|_| unreachable()).collect();
        let Fate::Effect(answering) = sim.meet(pid, operation, ids, about).await else {
            return fail();
        };
        let answers = effect.await;
        for ((hold, call), answer) in known.iter().zip(&answers) {
            if let Ok(ownership) = answer {
                let (hold, call, ownership) = (*hold, *call, *ownership);
                sim.see(Event::TicketUsed {
                    pid,
                    hold,
                    call,
                    ownership,
                });
            }
        }
        if !sim.answer(pid, answering, ids, about).await {
            return fail();
        }
        for ((hold, call), answer) in known.iter().zip(&answers) {
            if let Ok(ownership) = answer {
                let (hold, call, ownership) = (*hold, *call, *ownership);
                sim.see(Event::TicketTold {
                    pid,
                    hold,
                    call,
                    ownership,
                });
            }
        }
        answers
    }
}

#[async_trait]
impl IdempotencyStore for SimStore {
    /// Every process of a world sees the one store, and it outlives them.
    fn survival(&self) -> Survival {
        Survival::Durable
    }

    async fn inspect(&self) -> Result<Vec<Finding>, StoreError> {
        self.inner.inspect().await
    }

    async fn claim(&self, requests: &[ClaimRequest]) -> Vec<Result<Claim, StoreError>> {
        let (sim, pid) = (&self.sim, self.pid);
        let known: Vec<_> = requests
            .iter()
            .map(|request| (id_of(&request.key), request.nonce, request.redrives))
            .collect();
        let ids = known.iter().fold(0, |ids, (id, ..)| ids | 1 << id);
        let about = || {
            let each = known.iter().map(|(id, ..)| format!("m{id}"));
            each.collect::<Vec<_>>().join(", ")
        };
        let fail = || requests.iter().map(|_| unreachable()).collect();
        let Fate::Effect(answering) = sim.meet(pid, Operation::Claim, ids, about).await else {
            return fail();
        };
        let answers = self.inner.claim(requests).await;
        for ((id, nonce, redrives), answer) in known.iter().zip(&answers) {
            if let Ok(claim) = answer {
                let (id, nonce, redrives, claim) = (*id, *nonce, *redrives, *claim);
                sim.see(Event::Claimed {
                    pid,
                    id,
                    nonce,
                    redrives,
                    claim,
                });
            }
        }
        if !sim.answer(pid, answering, ids, about).await {
            return fail();
        }
        for (id, ..) in &known {
            sim.see(Event::ClaimTold { pid, id: *id });
        }
        answers
    }

    async fn renew(
        &self,
        tickets: &[Ticket],
        lease: Duration,
    ) -> Vec<Result<Ownership, StoreError>> {
        // Elsewhere whose it is makes no difference.
        let call = if self.sim.world.is_enumerated() {
            self.keeper.renewal()
        } else {
            TicketCall::Renew
        };
        let calls = tickets.iter().map(|ticket| (ticket, call)).collect();
        let effect = self.inner.renew(tickets, lease);
        self.use_tickets(call.operation(), calls, effect).await
    }

    async fn complete(
        &self,
        tickets: &[Ticket],
        retention: Duration,
    ) -> Vec<Result<Ownership, StoreError>> {
        let calls = tickets
            .iter()
            .map(|ticket| (ticket, TicketCall::Complete))
            .collect();
        let effect = self.inner.complete(tickets, retention);
        self.use_tickets(Operation::Complete, calls, effect).await
    }

    async fn release(
        &self,
        tickets: &[(Ticket, ReleaseKind)],
        retention: Duration,
    ) -> Vec<Result<Ownership, StoreError>> {
        let calls = tickets
            .iter()
            .map(|(ticket, kind)| (ticket, TicketCall::Release(*kind)))
            .collect();
        let effect = self.inner.release(tickets, retention);
        self.use_tickets(Operation::Release, calls, effect).await
    }

    async fn forget(&self, keys: &[IdempotencyKey]) -> Vec<Result<(), StoreError>> {
        self.inner.forget(keys).await
    }
}
