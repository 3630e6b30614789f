//! A broker whose subscriptions hang where a test wants it.

use std::num::NonZeroUsize;

use async_trait::async_trait;

use super::*;
use crate::delivery::{Delivery, LeaseId};
use crate::error::{BrokerError, BrokerErrorKind};
use crate::ports::{
    Broker, BrokerHandle, Capabilities, DeadLetterQueue, DeliveryLease, Finding, LeaseState,
    Outgoing, SettleError, SubscribeOptions, Subscription,
};
use crate::verdict::{Settlement, Verdict};

/// Where it hangs, or worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Where {
    Stop,
    Close,
    Settle,
    /// In settling what may be published elsewhere first.
    Copy,
    Extend,
    /// Nowhere, but leases can be extended by no more than this in all.
    Limit(Duration),
    /// Nowhere, but leases cannot be extended, for a reason.
    ExtendRefused,
    /// A bug in the adapter.
    SettlePanics,
    /// A bug in the adapter.
    ExtendPanics,
}

pub(super) struct Stubborn {
    pub(super) broker: InProcessBroker,
    pub(super) at: Where,
}

struct Stuck {
    subscription: Box<dyn Subscription>,
    at: Where,
}

impl From<Stubborn> for BrokerHandle {
    fn from(broker: Stubborn) -> Self {
        Arc::new(broker)
    }
}

impl Stuck {
    async fn hang(&self, at: Where) {
        if self.at == at {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl Broker for Stubborn {
    fn queue(&self) -> &str {
        self.broker.queue()
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.broker.capabilities();
        if let Where::Limit(limit) = self.at {
            let max_total = Some(limit);
            capabilities.lease = DeliveryLease::Timed { max_total };
        }
        capabilities
    }

    async fn inspect(&self, options: &SubscribeOptions) -> Result<Vec<Finding>, BrokerError> {
        self.broker.inspect(options).await
    }

    async fn subscribe(
        &self,
        options: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>, BrokerError> {
        let subscription = self.broker.subscribe(options).await?;
        let at = self.at;
        Ok(Box::new(Stuck { subscription, at }))
    }

    async fn publish(&self, messages: &[Outgoing]) -> Vec<Result<(), BrokerError>> {
        self.broker.publish(messages).await
    }

    async fn dead_letters(&self) -> Result<Box<dyn DeadLetterQueue>, BrokerError> {
        self.broker.dead_letters().await
    }

    async fn close(&self) {
        self.broker.close().await;
    }
}

#[async_trait]
impl Subscription for Stuck {
    async fn receive(&self, max: NonZeroUsize) -> Result<Vec<Delivery>, BrokerError> {
        self.subscription.receive(max).await
    }

    async fn settle(&self, batch: Vec<Settlement>) -> Vec<Result<(), SettleError>> {
        assert_ne!(self.at, Where::SettlePanics, "a bug in the adapter");
        self.hang(Where::Settle).await;
        let is_plain = |settlement: &Settlement| {
            matches!(
                settlement.verdict,
                Verdict::Complete | Verdict::Release { .. }
            )
        };
        if !batch.iter().all(is_plain) {
            self.hang(Where::Copy).await;
        }
        self.subscription.settle(batch).await
    }

    async fn extend(&self, leases: &[LeaseId]) -> Vec<Result<LeaseState, BrokerError>> {
        assert_ne!(self.at, Where::ExtendPanics, "a bug in the adapter");
        if self.at == Where::ExtendRefused {
            return leases.iter().map(|_| Err(refused())).collect();
        }
        self.hang(Where::Extend).await;
        self.subscription.extend(leases).await
    }

    async fn stop(&self) {
        self.hang(Where::Stop).await;
        self.subscription.stop().await;
    }

    async fn close(&self) {
        self.hang(Where::Close).await;
        self.subscription.close().await;
    }
}

fn refused() -> BrokerError {
    let reason = std::io::Error::other("connection refused");
    BrokerError::new(BrokerErrorKind::Unreachable, "no way to the broker").with_source(reason)
}
