//! Lanes: deliveries of one partition key, one behind the other.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::engine::{Engine, Held};
use super::pipeline::Step;
use super::settlements::Settled;
use crate::codec::Codec;
use crate::handler::Handler;
use crate::message::PartitionKey;
use crate::sync::Mutex;

/// How long the first message of a lane rests that is given back.
const LANE_REST: Duration = Duration::from_millis(100);

/// The lanes that are in use. A lane exists while one of its messages is with us.
pub(crate) struct Lanes<T = Held> {
    waiting: Mutex<HashMap<PartitionKey, VecDeque<T>>>,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        let waiting = Mutex::default();
        Self { waiting }
    }
}

impl<T> Lanes<T> {
    /// Queues a delivery behind the earlier ones of its key, or gives it back to be run first in a
    /// new lane. Called in the order of receipt.
    pub(crate) fn enter(&self, key: &PartitionKey, held: T) -> Option<T> {
        let mut waiting = self.waiting.lock();
        if let Some(lane) = waiting.get_mut(key).filter(|_| !planted!(LaneFreedEarly)) {
            lane.push_back(held);
            return None;
        }
        waiting.insert(key.clone(), VecDeque::new());
        Some(held)
    }

    /// The next delivery of a lane; the lane ends if there is none.
    pub(super) fn next(&self, key: &PartitionKey) -> Option<T> {
        let mut waiting = self.waiting.lock();
        let next = waiting.get_mut(key)?.pop_front();
        if next.is_none() {
            waiting.remove(key);
        }
        next
    }

    /// Takes all that waits in a lane, which stays in use until nothing more arrives in it.
    pub(super) fn drain(&self, key: &PartitionKey) -> VecDeque<T> {
        let mut waiting = self.waiting.lock();
        let lane = waiting.get_mut(key).map(std::mem::take).unwrap_or_default();
        if lane.is_empty() {
            waiting.remove(key);
        }
        lane
    }
}

impl<C: Codec, H: Handler<C::Payload>> Engine<C, H> {
    /// Runs the first delivery of a lane, and all that queue up behind it meanwhile.
    pub(crate) async fn run_lane(self: Arc<Self>, key: PartitionKey, first: Held) {
        let mut next = Some(first);
        while let Some(mut held) = next {
            next = match self.run_in_order(&mut held).await {
                Step::Settled | Step::Wait(_) => self.lanes.next(&key),
                Step::GivenBack => {
                    let lingers = held.hold.lingers_until();
                    drop(held);
                    self.outlast(lingers).await;
                    self.give_lane_back(&key).await;
                    None
                }
            };
        }
    }

    /// Keeps a lane in use for as long as the broker may take its first message for ours: what it hands
    /// out meanwhile follows that message, and must not be started before it.
    async fn outlast(&self, lingers: Option<Instant>) {
        let Some(until) = lingers else { return };
        tokio::select! {
            biased;
            () = self.shutdown.begun() => {}
            () = tokio::time::sleep_until(until) => {}
        }
    }

    pub(crate) async fn run_in_order(&self, held: &mut Held) -> Step {
        loop {
            let Some(slot) = self.slot(held).await else {
                self.give_back(held, Duration::ZERO).await;
                return Step::GivenBack;
            };
            let step = self.process(held).await;
            drop(slot);
            let Step::Wait(after) = step else {
                return step;
            };
            if let Some(left) = self.wait_in_lane(after, held).await {
                self.give_back(held, left).await;
                return Step::GivenBack;
            }
        }
    }

    /// Waits without a slot; if that has no more sense, says how much of the wait was left.
    async fn wait_in_lane(&self, after: Duration, held: &Held) -> Option<Duration> {
        let until = Instant::now() + after;
        tokio::select! {
            biased;
            () = held.hold.cancellation().token().cancelled() => {}
            () = self.shutdown.begun() => {}
            () = tokio::time::sleep_until(until) => return None,
        }
        Some(until.saturating_duration_since(Instant::now()))
    }

    /// What was not started follows its predecessor back to the queue.
    ///
    /// The lane stays in use meanwhile, so that nothing new overtakes what is given back. But what
    /// the broker hands out again as soon as the last of the lane is back also lands here, and would
    /// go back and forth for ever: so the first rests, and with it all that follow it.
    async fn give_lane_back(&self, key: &PartitionKey) {
        loop {
            let lane = self.lanes.drain(key);
            if lane.is_empty() {
                return;
            }
            let rest = if self.shutdown.has_begun() {
                Duration::ZERO
            } else {
                LANE_REST
            };
            let rests = std::iter::once(rest).chain(std::iter::repeat(Duration::ZERO));
            let given_back = lane.into_iter().zip(rests);
            let give_back = async |(mut held, rest)| self.give_back(&mut held, rest).await;
            join_all(given_back.map(give_back)).await;
        }
    }

    pub(crate) async fn give_back(&self, held: &mut Held, after: Duration) {
        if planted!(DrainDropsBuffer) && self.shutdown.has_begun() {
            return;
        }
        let verdict = held.back(after);
        if let Some(delivery) = held.take() {
            let settled = self.settlements.settle(delivery, verdict, &held.hold).await;
            let count = match settled {
                Settled::AsDecided => &self.counters.released,
                Settled::GivenBack => &self.counters.abandoned,
            };
            count.raise();
        }
    }
}
