//! P1, P2 and P5 under faults of every kind at random.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::consumer::Randomness;
use crate::in_process::{BrokerCall, BrokerFault, BrokerOperation};
use crate::{BrokerErrorKind, OrderedRetry};

/// Numbers that look random and repeat with their seed (`SplitMix64`).
#[derive(Clone)]
struct Dice(Arc<AtomicU64>);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(Arc::new(AtomicU64::new(seed << 32)))
    }

    fn roll(&self, sides: u64) -> u64 {
        let step = 0x9E37_79B9_7F4A_7C15;
        let mut n = self.0.fetch_add(step, Ordering::Relaxed).wrapping_add(step);
        n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (n ^ (n >> 31)) % sides
    }

    fn randomness(&self) -> Randomness {
        let dice = self.clone();
        Arc::new(move || f64::from(u32::try_from(dice.roll(1000)).unwrap()) / 1000.0)
    }

    fn fault(&self, call: &BrokerCall<'_>) -> Option<BrokerFault> {
        if call.operation == BrokerOperation::Publish {
            return None;
        }
        match self.roll(60) {
            0 => Some(BrokerFault::Fail(BrokerErrorKind::Unreachable)),
            1 => Some(BrokerFault::LoseAnswer),
            2 => Some(BrokerFault::CutConnection),
            3..6 => Some(BrokerFault::Delay(
                SECOND * u32::try_from(self.roll(4)).unwrap(),
            )),
            _ => None,
        }
    }
}

/// Two consumers, sometimes replaced, on a broker and a store that fail.
async fn run(scene: &mut Scene, ordered: bool, dice: &Dice) {
    let faults = dice.clone();
    scene
        .broker
        .faults()
        .on_call(move |call| faults.fault(call));
    while !scene.broker.counts().is_drained() {
        let consumers = [0, 1].map(|_| {
            let own = Scene {
                broker: scene.broker.clone(),
                ..scene.clone()
            };
            let builder = own.builder_in(ordered).max_in_flight(5).max_attempts(90);
            let dice = dice.clone();
            own.start(builder.randomness(dice.randomness()), move |_, _| {
                let dice = dice.clone();
                async move {
                    tokio::time::sleep(SECOND / 10 * u32::try_from(dice.roll(30)).unwrap()).await;
                    if dice.roll(5) == 0 {
                        Err("no".into())
                    } else {
                        Ok(())
                    }
                }
            })
        });
        for _ in 0..5 {
            tokio::time::sleep(10 * SECOND).await;
            match dice.roll(4) {
                0 => scene
                    .store
                    .faults()
                    .lose_answers(u32::try_from(dice.roll(5)).unwrap()),
                1 => scene.store.faults().go_down(),
                _ => scene.store.faults().come_back(),
            }
        }
        scene.store.faults().come_back();
        if dice.roll(2) == 0 {
            for running in &consumers {
                running.task.abort();
            }
        }
        scene.shutdown.begin();
        for running in consumers {
            let _ = running.task.await;
        }
        scene.shutdown = Shutdown::new();
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_and_order_holds_whatever_fails() {
    for seed in 0..24 {
        let ordered = seed % 3 != 0;
        let retry = if seed % 2 == 0 {
            OrderedRetry::Native
        } else {
            OrderedRetry::HeldInLane
        };
        let broker = InProcessBroker::builder("orders")
            .ordered_retry(retry)
            .delivery_limit(1000);
        let mut scene = Scene::on(broker.build());
        let names: Vec<_> = (0..60).map(|n| format!("{}-{n:02}", n % 7)).collect();
        scene
            .publish(&names.iter().map(String::as_str).collect::<Vec<_>>())
            .await;
        run(&mut scene, ordered, &Dice::new(seed)).await;

        let counts = scene.broker.counts();
        assert_eq!(
            (counts.completed, counts.dead),
            (60, 0),
            "seed {seed}: {counts:?}"
        );
        let mut fences = HashMap::new();
        let mut latest = HashMap::new();
        for start in scene.seen.all() {
            let before = fences.insert(start.name.clone(), start.fence);
            assert!(
                before < Some(start.fence),
                "seed {seed}: {start:?} after {before:?}"
            );
            let key = start.name.split_once('-').unwrap().0.to_owned();
            let before = latest.insert(key, start.name.clone());
            assert!(
                !ordered || before.as_ref() <= Some(&start.name),
                "seed {seed}: {start:?} after {before:?}"
            );
        }
        assert_eq!(fences.len(), 60);
    }
}
