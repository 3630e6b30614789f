//! Receiving: never more than there is room for, and only while the gate is open.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::breaker::Width;
use super::engine::{Engine, Held};
use super::monitor::Readiness;
use super::workers::Workers;
use crate::causes::with_causes;
use crate::codec::Codec;
use crate::delivery::{Attempt, Delivery};
use crate::error::BrokerError;
use crate::handler::Handler;
use crate::policy::{Backoff, Jitter};
use crate::ports::SubscriptionOrder;

/// Receives for an engine.
pub(crate) struct Intake<C, H> {
    pub(crate) engine: Arc<Engine<C, H>>,
    pub(crate) places: Arc<Semaphore>,
    pub(crate) tasks: TaskTracker,
    pub(crate) workers: Workers<C, H>,
    pub(crate) readiness: Arc<Readiness>,
}

impl<C: Codec, H: Handler<C::Payload>> Intake<C, H> {
    /// Receives until the shutdown begins.
    ///
    /// # Errors
    ///
    /// The broker's error, when the subscription is of no more use.
    pub(crate) async fn run(&self) -> Result<(), BrokerError> {
        let shutdown = self.engine.shutdown.clone();
        tokio::select! {
            biased;
            () = shutdown.begun() => Ok(()),
            error = self.receive_all() => Err(error),
        }
    }

    /// # Cancel safety
    ///
    /// Cancel-safe: what is received is handed on without an await in between.
    async fn receive_all(&self) -> BrokerError {
        let pauses = Backoff::new(
            Duration::from_millis(100),
            Duration::from_secs(30),
            Jitter::Equal,
        )
        .unwrap_or_default();
        let mut failures = 0;
        loop {
            let width = self.engine.gate.opening().await;
            let (mut places, room) = self.room(width).await;
            let received = tokio::select! {
                biased;
                // Nothing is taken that would have to be given back at once.
                () = self.engine.gate.other_than(width) => continue,
                received = self.engine.subscription.receive(room) => received,
            };
            match received {
                Ok(deliveries) => {
                    failures = 0;
                    self.readiness.set_receiving(true);
                    self.engine.counters.received.add(deliveries.len() as u64);
                    let now = Instant::now();
                    let mut last = None;
                    for delivery in deliveries {
                        let Some(place) = places.split(1) else { break };
                        last = self.start(delivery, place, width, now);
                    }
                    drop(places);
                    if let (Width::Probe, Some(probe)) = (width, last) {
                        self.end_of_probe(probe).await;
                    }
                }
                Err(error) if error.is_transient() => {
                    self.readiness.set_receiving(false);
                    let pause =
                        pauses.delay_after(Attempt::after(failures), (self.engine.randomness)());
                    failures += 1;
                    tracing::warn!(error = %with_causes(&error), ?pause, "receiving failed; trying again");
                    tokio::time::sleep(pause).await;
                }
                Err(error) => return error,
            }
        }
    }

    /// Waits until a probe has ended, or has shown before that intake may go on.
    async fn end_of_probe(&self, mut probe: JoinHandle<()>) {
        loop {
            let gate = &self.engine.gate;
            tokio::select! {
                biased;
                _ = &mut probe => return,
                () = gate.other_than(Width::Probe) => {}
            }
            if gate.opening().await == Width::Full {
                return;
            }
        }
    }

    /// Waits for a free place, and takes as many as are free.
    async fn room(&self, width: Width) -> (OwnedSemaphorePermit, NonZeroUsize) {
        let places = Arc::clone(&self.places);
        let mut taken = places
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        if width == Width::Full {
            let free = u32::try_from(self.places.available_permits()).unwrap_or(u32::MAX);
            if let Ok(more) = Arc::clone(&self.places).try_acquire_many_owned(free) {
                taken.merge(more);
            }
        }
        let room = NonZeroUsize::new(taken.num_permits()).unwrap_or(NonZeroUsize::MIN);
        (taken, room)
    }

    /// Hands a delivery on; synchronously, so that order is that of receipt. A probe gets a task of its
    /// own, whose end can be waited for.
    fn start(
        &self,
        delivery: Delivery,
        place: OwnedSemaphorePermit,
        width: Width,
        now: Instant,
    ) -> Option<JoinHandle<()>> {
        let lease = delivery.receipt.lease();
        let hold = self.engine.keeper.hold(lease, delivery.lease, now);
        let mut held = Held::new(delivery, hold, place);
        if self.engine.settings.order == SubscriptionOrder::Unordered && width == Width::Full {
            self.workers.process(held);
            return None;
        }
        let engine = Arc::clone(&self.engine);
        let key = held.delivery().message.partition_key.clone();
        match (engine.settings.order, key) {
            (SubscriptionOrder::Unordered, _) => Some(self.tasks.spawn(async move {
                engine.process(&mut held).await;
            })),
            (SubscriptionOrder::ByPartitionKey, None) => Some(self.tasks.spawn(async move {
                engine.run_in_order(&mut held).await;
            })),
            (SubscriptionOrder::ByPartitionKey, Some(key)) => {
                let first = engine.lanes.enter(&key, held)?;
                Some(self.tasks.spawn(engine.run_lane(key, first)))
            }
        }
    }
}
