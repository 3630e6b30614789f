//! Any sequence of calls, compared with a simple model: nothing is lost, nothing is out twice, no
//! key is out of order, every count is exact.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use tokio::time::{Instant, advance};

use super::*;

const SUBSCRIPTIONS: usize = 3;
const LIMIT: u32 = 3;

#[derive(Clone, Debug)]
enum Step {
    Publish { key: Option<u8>, later: bool },
    Receive { by: usize, max: usize },
    Settle { which: usize, end: End },
    Extend { which: usize },
    Advance { seconds: u32 },
    Drop { whose: usize },
    ExpireAll,
    LoseAck { which: usize },
}

#[derive(Clone, Copy, Debug)]
enum End {
    Complete,
    Retry { seconds: u32 },
    Release { seconds: u32 },
    DeadLetter,
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        3 => Just(End::Complete),
        2 => (0..40_u32).prop_map(|seconds| End::Retry { seconds }),
        2 => (0..40_u32).prop_map(|seconds| End::Release { seconds }),
        1 => Just(End::DeadLetter),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let by = 0..SUBSCRIPTIONS;
    prop_oneof![
        6 => (proptest::option::weighted(0.8, 0..3_u8), any::<bool>())
            .prop_map(|(key, later)| Step::Publish { key, later: later && key.is_none() }),
        6 => (by.clone(), 1..4_usize).prop_map(|(by, max)| Step::Receive { by, max }),
        6 => (0..100_usize, end()).prop_map(|(which, end)| Step::Settle { which, end }),
        1 => (0..100_usize).prop_map(|which| Step::Extend { which }),
        2 => (1..40_u32).prop_map(|seconds| Step::Advance { seconds }),
        1 => by.prop_map(|whose| Step::Drop { whose }),
        1 => Just(Step::ExpireAll),
        1 => (0..100_usize).prop_map(|which| Step::LoseAck { which }),
    ]
}

/// A message that is neither completed nor dead-lettered.
struct Open {
    key: Option<u8>,
    attempts_used: u32,
    not_before: Instant,
    held: Option<Held>,
}

struct Held {
    by: usize,
    until: Instant,
}

struct Run {
    broker: InProcessBroker,
    order: SubscriptionOrder,
    inboxes: Vec<Inbox>,
    /// By the order of publication.
    open: BTreeMap<u64, Open>,
    deliveries: Vec<(u64, usize, Delivery)>,
    published: u64,
    completed: u64,
    dead: u64,
}

impl Run {
    async fn new(order: SubscriptionOrder) -> Self {
        let broker = InProcessBroker::builder("orders")
            .delivery_limit(LIMIT)
            .build();
        let mut inboxes = Vec::new();
        for _ in 0..SUBSCRIPTIONS {
            inboxes.push(subscribe(&broker, order).await);
        }
        Self {
            broker,
            order,
            inboxes,
            open: BTreeMap::new(),
            deliveries: Vec::new(),
            published: 0,
            completed: 0,
            dead: 0,
        }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Publish { key, later } => self.publish(key, later).await,
            Step::Receive { by, max } => self.receive(by, max).await,
            Step::Settle { which, end } => self.settle(which, end, false).await,
            Step::LoseAck { which } => self.settle(which, End::Complete, true).await,
            Step::Extend { which } => self.extend(which).await,
            Step::Advance { seconds } => advance(seconds * SECOND).await,
            Step::Drop { whose } => {
                self.inboxes[whose] = subscribe(&self.broker, self.order).await;
                self.lose(|held| held.by == whose);
            }
            Step::ExpireAll => {
                self.lose_expired();
                self.broker.expire_leases();
                self.lose(|_| true);
            }
        }
        self.check_counts();
    }

    async fn publish(&mut self, key: Option<u8>, later: bool) {
        let number = self.published;
        self.published += 1;
        let name = key.map_or(number.to_string(), |key| format!("{key}-{number}"));
        let delay = if later { 20 * SECOND } else { Duration::ZERO };
        publish_after(&self.broker, &[&name], delay).await;
        let open = Open {
            key,
            attempts_used: 0,
            not_before: Instant::now() + delay,
            held: None,
        };
        self.open.insert(number, open);
    }

    async fn receive(&mut self, by: usize, max: usize) {
        self.lose_expired();
        let max = NonZeroUsize::new(max).unwrap();
        let received = tokio::select! {
            biased;
            received = self.inboxes[by].receive(max) => received.unwrap(),
            () = tokio::task::yield_now() => Vec::new(),
        };
        if received.is_empty() {
            assert!(!self.open.keys().any(|number| self.is_due(*number, by)));
        }
        for delivery in received {
            let name = name(&delivery);
            let number = name.rsplit('-').next().unwrap().parse().unwrap();
            assert!(self.is_due(number, by), "{name} was not to be delivered");
            let open = self.open.get_mut(&number).unwrap();
            assert_eq!(delivery.attempts_used, open.attempts_used);
            let until = Instant::now() + LEASE;
            open.held = Some(Held { by, until });
            self.deliveries.push((number, by, delivery));
        }
    }

    /// Whether a message may be delivered, as the contract has it.
    fn is_due(&self, number: u64, by: usize) -> bool {
        let open = &self.open[&number];
        let free = open.held.is_none() && open.not_before <= Instant::now();
        let in_the_way = |(other, theirs): (&u64, &Open)| {
            let follows = *other < number && theirs.held.as_ref().is_some_and(|h| h.by == by);
            let behind = *other > number && theirs.held.is_none();
            *other != number && theirs.key == open.key && !follows && !behind
        };
        let unordered = self.order == Unordered || open.key.is_none();
        free && (unordered || !self.open.iter().any(in_the_way))
    }

    async fn settle(&mut self, which: usize, end: End, ack_lost: bool) {
        if self.deliveries.is_empty() {
            return;
        }
        self.lose_expired();
        let which = which % self.deliveries.len();
        let (number, by, delivery) = self.deliveries.swap_remove(which);
        let stands = self.stands(number, by, &delivery);
        if ack_lost {
            self.broker.faults().lose_acks(1);
        }
        let used = delivery.attempts_used + 1;
        let verdict = match end {
            End::Complete => Verdict::Complete,
            End::Retry { seconds } => retry(seconds * SECOND, used),
            End::Release { seconds } => release(seconds * SECOND),
            End::DeadLetter => dead_letter(),
        };
        let answer = settle(&self.inboxes[by], delivery, verdict).await;
        self.broker.faults().clear();
        assert_eq!(answer.is_ok(), stands);
        if !stands {
            return;
        }
        if ack_lost {
            return self.lose_one(number);
        }
        let open = self.open.get_mut(&number).unwrap();
        open.held = None;
        let (after, used) = match end {
            End::Retry { seconds } => (seconds, used),
            End::Release { seconds } => (seconds, open.attempts_used),
            End::Complete => {
                self.completed += 1;
                self.open.remove(&number);
                return;
            }
            End::DeadLetter => {
                self.dead += 1;
                self.open.remove(&number);
                return;
            }
        };
        open.attempts_used = used;
        open.not_before = Instant::now() + after * SECOND;
        if after == 0 {
            self.bury_what_is_over_the_limit(number);
        }
    }

    /// Whether a delivery is still ours, according to the model.
    fn stands(&self, number: u64, by: usize, delivery: &Delivery) -> bool {
        let newer = self
            .deliveries
            .iter()
            .any(|(other, _, d)| *other == number && d.receipt.lease() > delivery.receipt.lease());
        let held = self.open.get(&number).and_then(|open| open.held.as_ref());
        !newer && held.is_some_and(|held| held.by == by)
    }

    async fn extend(&mut self, which: usize) {
        self.lose_expired();
        if self.deliveries.is_empty() {
            return;
        }
        let (number, by, delivery) = &self.deliveries[which % self.deliveries.len()];
        let (number, stands) = (*number, self.stands(*number, *by, delivery));
        let lease = delivery.receipt.lease();
        let answer = self.inboxes[*by]
            .extend(&[lease])
            .await
            .pop()
            .unwrap()
            .unwrap();
        assert_eq!(answer != crate::ports::LeaseState::Lost, stands);
        if stands {
            let held = self.open.get_mut(&number).unwrap().held.as_mut().unwrap();
            held.until = Instant::now() + LEASE;
        }
    }

    fn lose_expired(&mut self) {
        let now = Instant::now();
        self.lose(|held| held.until <= now);
        let due: Vec<_> = self.open.keys().copied().collect();
        for number in due {
            if self.open[&number].not_before <= now {
                self.bury_what_is_over_the_limit(number);
            }
        }
    }

    fn lose(&mut self, which: impl Fn(&Held) -> bool) {
        let lost: Vec<_> = self
            .open
            .iter()
            .filter_map(|(number, open)| open.held.as_ref().is_some_and(&which).then_some(*number))
            .collect();
        for number in lost {
            self.lose_one(number);
        }
    }

    fn lose_one(&mut self, number: u64) {
        let open = self.open.get_mut(&number).unwrap();
        open.held = None;
        open.attempts_used += 1;
        self.bury_what_is_over_the_limit(number);
    }

    fn bury_what_is_over_the_limit(&mut self, number: u64) {
        let open = &self.open[&number];
        if open.held.is_none() && open.attempts_used > LIMIT {
            self.dead += 1;
            self.open.remove(&number);
        }
    }

    fn check_counts(&mut self) {
        self.lose_expired();
        let counts = self.broker.counts();
        let held = self
            .open
            .values()
            .filter(|open| open.held.is_some())
            .count();
        let there = counts.ready + counts.delayed + counts.in_flight;
        assert_eq!(
            (there, counts.in_flight),
            (self.open.len(), held),
            "{counts:?}"
        );
        assert_eq!(counts.completed, self.completed);
        assert_eq!(counts.dead_lettered, self.dead);
        assert_eq!(counts.published, self.published);
    }

    /// Completes what is left: everything comes to an end.
    async fn drain(mut self) {
        self.broker.expire_leases();
        self.lose(|_| true);
        advance(100 * SECOND).await;
        for _ in 0..self.published {
            self.receive(0, 1000).await;
            while !self.deliveries.is_empty() {
                self.settle(0, End::Complete, false).await;
            }
        }
        self.check_counts();
        assert_eq!(self.completed + self.dead, self.published);
    }
}

proptest! {
    #[test]
    fn every_message_is_in_one_place(ordered: bool, steps in vec(step(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let order = if ordered { ByPartitionKey } else { Unordered };
            let mut run = Run::new(order).await;
            for step in steps {
                run.step(step).await;
            }
            run.drain().await;
        });
    }
}
