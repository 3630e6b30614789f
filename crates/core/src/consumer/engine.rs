//! What the stages of a running consumer share.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::claims::Claims;
use super::gate::Gate;
use super::keeper::{Hold, Keeper, Standing};
use super::lanes::Lanes;
use super::pipeline::Step;
use super::settings::Settings;
use super::settlements::Settlements;
use super::stats::Counters;
use super::{Randomness, Shutdown};
use crate::codec::Codec;
use crate::delivery::Delivery;
use crate::handler::Handler;
use crate::ports::{OrderedRetry, Subscription, SubscriptionOrder};
use crate::verdict::Verdict;

/// A running consumer.
pub(crate) struct Engine<C, H> {
    pub(crate) settings: Settings,
    pub(crate) codec: C,
    pub(crate) handler: H,
    pub(crate) queue: Arc<str>,
    pub(crate) ordered_retry: OrderedRetry,
    pub(crate) max_delay: Duration,
    pub(crate) longest_wait: Duration,
    pub(crate) subscription: Box<dyn Subscription>,
    pub(crate) claims: Option<Claims>,
    pub(crate) settlements: Settlements,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) lanes: Lanes,
    pub(crate) slots: Semaphore,
    pub(crate) counters: Arc<Counters>,
    pub(crate) shutdown: Shutdown,
    pub(crate) randomness: Randomness,
}

/// Whether the broker knows of all attempts of a delivery.
#[derive(Clone, Copy)]
enum Attempts {
    Known,
    /// One was used here, in the lane.
    Raised,
}

/// A delivery that is with us, under the keeper's care.
pub(crate) struct Held {
    delivery: Option<Delivery>,
    attempts: Attempts,
    pub(crate) hold: Hold,
    // Its place among what may be with us at once.
    _place: OwnedSemaphorePermit,
}

impl Held {
    pub(crate) const fn new(delivery: Delivery, hold: Hold, place: OwnedSemaphorePermit) -> Self {
        Self {
            delivery: Some(delivery),
            attempts: Attempts::Known,
            hold,
            _place: place,
        }
    }

    /// The delivery.
    ///
    /// # Panics
    ///
    /// After [`Held::take`]: settling is the last thing that happens to a delivery.
    pub(crate) fn delivery(&self) -> &Delivery {
        self.delivery
            .as_ref()
            .expect("a delivery is settled once, at the end")
    }

    /// Counts an attempt after which the delivery stays with us.
    pub(crate) const fn set_attempts_used(&mut self, attempts: u32) {
        if let Some(delivery) = &mut self.delivery {
            delivery.attempts_used = attempts;
            self.attempts = Attempts::Raised;
        }
    }

    /// The verdict that gives it back without using an attempt, beside those that were used here.
    pub(crate) fn back(&self, after: Duration) -> Verdict {
        match self.attempts {
            Attempts::Known => Verdict::Release { after },
            Attempts::Raised => Verdict::Retry {
                after,
                attempts_used: self.delivery().attempts_used,
            },
        }
    }

    pub(crate) const fn take(&mut self) -> Option<Delivery> {
        self.delivery.take()
    }
}

impl<C, H> Engine<C, H> {
    /// Cancels everything that is held.
    pub(crate) fn stop_handling(&self) {
        self.keeper.stop_all();
    }

    /// Waits no longer for claims that the store owes an answer to.
    pub(crate) fn stop_asking(&self) {
        if let Some(claims) = &self.claims {
            claims.stop_asking();
        }
    }
}

impl<C: Codec, H: Handler<C::Payload>> Engine<C, H> {
    /// A handler slot; none if the delivery should not be started any more.
    pub(crate) async fn slot(&self, held: &Held) -> Option<SemaphorePermit<'_>> {
        let slot = tokio::select! {
            biased;
            () = held.hold.cancellation().token().cancelled() => None,
            () = self.shutdown.begun() => None,
            slot = self.slots.acquire() => slot.ok(),
        };
        // A lease may have run out since the keeper last looked.
        slot.filter(|_| held.hold.standing() == Standing::Held)
    }

    /// Whether a message that has to wait stays with us, ahead of its followers.
    pub(crate) fn holds_in_lane(&self, standing: Standing) -> bool {
        self.settings.order == SubscriptionOrder::ByPartitionKey
            && self.ordered_retry == OrderedRetry::HeldInLane
            && standing == Standing::Held
            && !self.shutdown.has_begun()
            && !self.gate.is_tripped()
    }

    /// After a native retry the broker withholds the followers of an ordered message; those that it
    /// handed out before have to go back.
    pub(crate) const fn after_native_retry(&self) -> Step {
        match self.settings.order {
            SubscriptionOrder::Unordered => Step::Settled,
            SubscriptionOrder::ByPartitionKey => Step::GivenBack,
        }
    }
}
