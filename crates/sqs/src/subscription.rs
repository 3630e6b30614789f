//! Receiving.

use std::num::NonZeroUsize;
use std::sync::Arc;

use async_trait::async_trait;
use backstop_core::{
    BrokerError, BrokerErrorKind, Delivery, LeaseId, LeaseState, SettleError, Settlement,
    SubscribeOptions, Subscription, SubscriptionOrder,
};
use tokio::time::Instant;

use crate::broker::Shared;
use crate::decode::Arrival;
use crate::pace::Pace;
use crate::polls::Polls;
use crate::settle::{self, Desk};
use crate::topology;

/// What consumes a queue.
pub(crate) struct SqsSubscription {
    order: SubscriptionOrder,
    desk: Arc<Desk>,
    polls: Arc<Polls>,
}

/// The consumer's hold on a subscription: receives end with it.
pub(crate) struct Handle(pub(crate) Arc<SqsSubscription>);

impl SqsSubscription {
    pub(crate) async fn start(
        shared: &Arc<Shared>,
        options: &SubscribeOptions,
    ) -> Result<Arc<Self>, BrokerError> {
        let config = &shared.link.config;
        let (url, queue) = topology::look_at_source(&shared.link).await?;
        let native = u32::try_from(queue.visibility.as_secs()).unwrap_or(u32::MAX);
        let seconds = config.lease.unwrap_or(native);
        if seconds == 0 {
            let text =
                "the queue's VisibilityTimeout is zero: set it, or give the URL lease=<seconds>";
            return Err(BrokerError::new(BrokerErrorKind::UnsafeTopology, text));
        }
        let clients = shared.link.clients().await?.clone();
        let desk = Desk::new(
            Arc::clone(shared),
            clients.clone(),
            Arc::clone(&url),
            seconds,
        );
        let desk = Arc::new(desk);
        let pace = Pace::new(config.receives.get(), options.max_buffered.get());
        let kind = (config.kind(), config.wait);
        Ok(Arc::new(Self {
            order: options.order,
            polls: Arc::new(Polls::new(clients, url, kind, pace, Arc::clone(&desk))),
            desk,
        }))
    }

    /// Hands an arrival out.
    fn deliver(&self, (arrival, received): (Arrival, Instant), now: Instant) -> Option<Delivery> {
        let lease = self
            .desk
            .leases
            .begin(Arc::clone(&arrival.handle), received);
        let lasts = self.desk.leases.get(lease, now)?.left(now);
        // SQS counts whatever it hands out: in order, that is also what waited behind the first of its
        // group when a process ended.
        let used = match self.order {
            SubscriptionOrder::Unordered => arrival.receive_count.saturating_sub(1),
            SubscriptionOrder::ByPartitionKey => 0,
        };
        Some(settle::delivery(arrival, lease, lasts, used))
    }

    /// Stops, and gives back what is not settled.
    pub(crate) async fn end(&self) {
        self.polls.stop();
        tokio::join!(self.polls.clear(), self.desk.give_all_back());
    }
}

#[async_trait]
impl Subscription for Handle {
    async fn receive(&self, max: NonZeroUsize) -> Result<Vec<Delivery>, BrokerError> {
        let arrivals = self.0.polls.receive(max.get()).await?;
        // No await from here on: what is taken is handed over.
        let now = Instant::now();
        let deliveries = arrivals.into_iter();
        Ok(deliveries
            .filter_map(|arrival| self.0.deliver(arrival, now))
            .collect())
    }

    async fn settle(&self, batch: Vec<Settlement>) -> Vec<Result<(), SettleError>> {
        self.0.desk.settle(batch).await
    }

    async fn extend(&self, leases: &[LeaseId]) -> Vec<Result<LeaseState, BrokerError>> {
        Desk::extend(&self.0.desk, leases).await
    }

    async fn stop(&self) {
        self.0.polls.stop();
        self.0.polls.clear().await;
    }

    async fn close(&self) {
        self.0.end().await;
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.polls.stop();
    }
}
