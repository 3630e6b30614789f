//! A broker that is watched, and whose leases can be kept from being extended.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backstop_core::{
    Broker, BrokerError, BrokerErrorKind, BrokerHandle, Capabilities, DeadLetterQueue, Delivery,
    DeliveryLease, Finding, LeaseId, LeaseState, Outgoing, SettleError, Settlement,
    SubscribeOptions, Subscription,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::stage::id_of;

/// What passed between a consumer and its broker. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Watch {
    shared: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    received: usize,
    settled: usize,
    most_held: usize,
    first_receipt: Option<Instant>,
    last_extension: Option<Instant>,
    ids: HashMap<LeaseId, String>,
    unextendable: Option<String>,
    severed: bool,
}

/// What a watched broker declares instead of its own limits.
#[derive(Clone, Copy, Default)]
pub(crate) struct Limits {
    /// Timed leases can be extended up to this in all.
    pub(crate) max_total: Option<Duration>,
    /// The longest delay of a retry.
    pub(crate) max_delay: Option<Duration>,
}

impl Watch {
    /// A watched connection.
    pub(crate) fn over(&self, inner: BrokerHandle) -> BrokerHandle {
        self.limited(inner, Limits::default())
    }

    /// A watched connection that declares these limits.
    pub(crate) fn limited(&self, inner: BrokerHandle, limits: Limits) -> BrokerHandle {
        let watch = self.clone();
        Arc::new(Watched {
            inner,
            watch,
            limits,
        })
    }

    /// Fails every extension of this message's leases from now on.
    pub(crate) fn fail_extensions_of(&self, id: &str) {
        self.shared.lock().unextendable = Some(id.to_owned());
    }

    /// Lets leases be extended again.
    pub(crate) fn allow_extensions(&self) {
        self.shared.lock().unextendable = None;
    }

    /// Lets nothing through to the broker any more, and answers nothing: as for a process that is
    /// killed now.
    pub(crate) fn sever(&self) {
        self.shared.lock().severed = true;
    }

    async fn pass(&self) {
        if self.shared.lock().severed {
            std::future::pending::<()>().await;
        }
    }

    /// How many deliveries were received and never settled, or not yet.
    pub(crate) fn unsettled(&self) -> usize {
        let seen = self.shared.lock();
        seen.received - seen.settled
    }

    /// The most deliveries that were with the consumer at once.
    pub(crate) fn most_held(&self) -> usize {
        self.shared.lock().most_held
    }

    /// From the first receipt to the last extension of any lease.
    pub(crate) fn extended_for(&self) -> Option<Duration> {
        let seen = self.shared.lock();
        Some(seen.last_extension?.duration_since(seen.first_receipt?))
    }
}

struct Watched {
    inner: BrokerHandle,
    watch: Watch,
    limits: Limits,
}

#[async_trait]
impl Broker for Watched {
    fn queue(&self) -> &str {
        self.inner.queue()
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.inner.capabilities();
        if let (DeliveryLease::Timed { max_total }, Some(_)) =
            (&mut capabilities.lease, self.limits.max_total)
        {
            *max_total = self.limits.max_total;
        }
        capabilities.max_delay = self.limits.max_delay.or(capabilities.max_delay);
        capabilities
    }

    async fn inspect(&self, options: &SubscribeOptions) -> Result<Vec<Finding>, BrokerError> {
        self.inner.inspect(options).await
    }

    async fn subscribe(
        &self,
        options: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>, BrokerError> {
        let inner = self.inner.subscribe(options).await?;
        let watch = self.watch.clone();
        Ok(Box::new(WatchedSubscription { inner, watch }))
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

struct WatchedSubscription {
    inner: Box<dyn Subscription>,
    watch: Watch,
}

#[async_trait]
impl Subscription for WatchedSubscription {
    async fn receive(&self, max: NonZeroUsize) -> Result<Vec<Delivery>, BrokerError> {
        let received = self.inner.receive(max).await?;
        let mut seen = self.watch.shared.lock();
        seen.received += received.len();
        seen.most_held = seen.most_held.max(seen.received - seen.settled);
        seen.first_receipt.get_or_insert_with(Instant::now);
        for delivery in &received {
            let id = id_of(&delivery.message);
            seen.ids.insert(delivery.receipt.lease(), id);
        }
        drop(seen);
        Ok(received)
    }

    async fn settle(&self, batch: Vec<Settlement>) -> Vec<Result<(), SettleError>> {
        self.watch.pass().await;
        self.watch.shared.lock().settled += batch.len();
        let answers = self.inner.settle(batch).await;
        let kept = |answer: &&Result<(), SettleError>| matches!(answer, Err(error) if error.kept.is_some());
        self.watch.shared.lock().settled -= answers.iter().filter(kept).count();
        answers
    }

    async fn extend(&self, leases: &[LeaseId]) -> Vec<Result<LeaseState, BrokerError>> {
        self.watch.pass().await;
        let kept_from_it: Vec<_> = {
            let seen = self.watch.shared.lock();
            let kept_from_it = |lease| {
                let id: Option<&String> = seen.ids.get(lease);
                id.is_some() && id == seen.unextendable.as_ref()
            };
            leases.iter().map(kept_from_it).collect()
        };
        let allowed: Vec<_> = leases
            .iter()
            .zip(&kept_from_it)
            .filter_map(|(lease, kept)| (!kept).then_some(*lease))
            .collect();
        let mut answers = Vec::new().into_iter();
        if !allowed.is_empty() {
            self.watch.shared.lock().last_extension = Some(Instant::now());
            answers = self.inner.extend(&allowed).await.into_iter();
        }
        let answer = |kept: bool| {
            let answer = if kept { None } else { answers.next() };
            answer.unwrap_or_else(|| Err(refusal()))
        };
        kept_from_it.into_iter().map(answer).collect()
    }

    async fn stop(&self) {
        self.inner.stop().await;
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

fn refusal() -> BrokerError {
    let text = "the conformance suite keeps this lease from being extended";
    BrokerError::new(BrokerErrorKind::Unreachable, text)
}
