//! The broker as one process sees it: every call waits for the controller.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use async_trait::async_trait;
use backstop_core::{
    Broker, BrokerError, BrokerErrorKind, Capabilities, DeadLetterQueue, Finding, InProcessBroker,
    Outgoing, SubscribeOptions, Subscription,
};

use crate::call::Operation;
use crate::event::Pid;
use crate::fate::Fate;
use crate::keeping::KeeperTask;
use crate::sim::Sim;
use crate::subscription::SimSubscription;

/// A process's way to the broker.
pub(crate) struct SimBroker {
    pub(crate) sim: Arc<Sim>,
    pub(crate) pid: Pid,
    pub(crate) inner: Arc<InProcessBroker>,
    pub(crate) keeper: KeeperTask,
}

pub(crate) fn unreachable() -> BrokerError {
    BrokerError::new(
        BrokerErrorKind::Unreachable,
        "the simulated broker does not answer",
    )
}

#[async_trait]
impl Broker for SimBroker {
    fn queue(&self) -> &str {
        self.inner.queue()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn inspect(&self, options: &SubscribeOptions) -> Result<Vec<Finding>, BrokerError> {
        // Looking at the set-up is the subscription's first half: one step is enough for both.
        self.inner.inspect(options).await
    }

    async fn subscribe(
        &self,
        options: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>, BrokerError> {
        let (sim, pid) = (&self.sim, self.pid);
        let about = String::new;
        let Fate::Effect(answering) = sim.meet(pid, Operation::Subscribe, 0, about).await else {
            return Err(unreachable());
        };
        let inner: Arc<dyn Subscription> = self.inner.subscribe(options).await?.into();
        if !sim.answer(pid, answering, 0, about).await {
            return Err(unreachable());
        }
        // Kept: a process that dies does not say goodbye.
        sim.lock().orphans.push(Arc::clone(&inner));
        let cuts_seen = AtomicU64::new(sim.lock().cuts);
        let (sim, broker) = (Arc::clone(sim), Arc::clone(&self.inner));
        Ok(Box::new(SimSubscription {
            sim,
            pid,
            inner,
            broker,
            cuts_seen,
            keeper: self.keeper.clone(),
        }))
    }

    async fn publish(&self, messages: &[Outgoing]) -> Vec<Result<(), BrokerError>> {
        self.inner.publish(messages).await
    }

    async fn dead_letters(&self) -> Result<Box<dyn DeadLetterQueue>, BrokerError> {
        self.inner.dead_letters().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
