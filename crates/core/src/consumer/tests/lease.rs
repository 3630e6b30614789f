//! P8: leases outlive handlers.

use std::sync::atomic::{AtomicU32, Ordering};

use super::stubborn::{Stubborn, Where};
use super::*;
use crate::ports::{IdempotencyKey, IdempotencyStore};

const LEASE: Duration = Duration::from_secs(30);

/// Counts the handlers that were dropped in the middle.
#[derive(Clone, Default)]
struct Cancelled(Arc<AtomicU32>);

impl Cancelled {
    async fn sleep(self, time: Duration) -> Result<(), HandlerError> {
        let guard = Guard(self.0);
        tokio::time::sleep(time).await;
        std::mem::forget(guard);
        Ok(())
    }

    fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

struct Guard(Arc<AtomicU32>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn patient(builder: ConsumerBuilder) -> ConsumerBuilder {
    builder.handler_timeout(Duration::from_mins(10))
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_takes_many_leases_runs_once() {
    let scene = Scene::new();
    scene.publish(&["a-1", "a-2"]).await;
    for _ in 0..2 {
        // Whatever else consumes the queue gets neither the running message nor what waits for it.
        let builder = patient(scene.builder().ordered());
        drop(scene.start(builder, |_, _| async {
            tokio::time::sleep(4 * LEASE).await;
            Ok(())
        }));
    }
    let counts = scene.drained().await;
    assert_eq!(scene.seen.names(), ["a-1", "a-2"]);
    assert_eq!((counts.lost_leases, counts.delivered), (0, 2));
    scene.shutdown.begin();
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_cancels_the_handler_and_nothing_is_settled() {
    let scene = Scene::new();
    scene.publish(&["1"]).await;
    let cancelled = Cancelled::default();
    let sleeping = cancelled.clone();
    let running = scene.start(patient(scene.builder()), move |_, _| {
        sleeping.clone().sleep(3 * LEASE)
    });
    tokio::time::sleep(SECOND).await;
    scene.broker.expire_leases();
    tokio::time::sleep(LEASE / 2).await;
    assert_eq!(cancelled.count(), 1);
    let stats = scene.finish(running).await;
    assert_eq!(
        (stats.lost_leases, stats.abandoned, stats.completed),
        (1, 1, 1)
    );
    assert_eq!(stats.settle_errors, 0);
    // The next delivery waited for the end of the first one's claim.
    assert_eq!((stats.released, scene.seen.attempts()), (1, vec![1, 2]));
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_another_has_taken_cancels_the_handler() {
    let scene = Scene::new();
    scene.publish(&["1"]).await;
    let cancelled = Cancelled::default();
    let sleeping = cancelled.clone();
    let running = scene.start(patient(scene.builder()), move |_, _| {
        sleeping.clone().sleep(3 * LEASE)
    });
    tokio::time::sleep(SECOND).await;
    scene
        .store
        .forget(&[IdempotencyKey::new("orders", "1")])
        .await;
    tokio::time::sleep(LEASE / 2).await;
    assert_eq!(cancelled.count(), 1);
    let stats = scene.finish(running).await;
    assert_eq!((stats.fenced, stats.released, stats.completed), (1, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_cannot_be_renewed_cancels_the_handler_before_another_can_claim() {
    for hangs in [false, true] {
        let scene = Scene::new();
        scene.publish(&["1"]).await;
        let cancelled = Cancelled::default();
        let sleeping = cancelled.clone();
        let running = scene.start(patient(scene.builder()), move |_, _| {
            sleeping.clone().sleep(3 * LEASE)
        });
        tokio::time::sleep(SECOND).await;
        if hangs {
            scene.store.faults().delay_calls(Duration::from_hours(1));
        } else {
            scene.store.faults().go_down();
        }
        tokio::time::sleep(Duration::from_millis(28_500)).await;
        assert_eq!(cancelled.count(), 1, "hangs: {hangs}");
        assert!(running.monitor.stats().renewal_errors > 0);
        assert_eq!(scene.broker.counts().lost_leases, 0);
        running.task.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_took_long_to_get_lasts_as_long_as_any() {
    // Up to more than the asking lasts that a claim can be waited for.
    for lost in 1..=25 {
        let scene = Scene::new();
        scene.publish(&["1"]).await;
        scene.store.faults().lose_answers(lost);
        let running = scene.start(scene.builder(), |_, _| async {
            tokio::time::sleep(2 * LEASE / 3).await;
            Ok(())
        });
        let stats = scene.finish(running).await;
        assert_eq!(
            (stats.started, stats.completed),
            (1, 1),
            "{lost}: {stats:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_fails_shows_and_is_tried_again() {
    let scene = Scene::new();
    scene.publish(&["1"]).await;
    scene.broker.faults().fail_extensions(5);
    let running = scene.start(patient(scene.builder()), |_, _| async {
        tokio::time::sleep(2 * LEASE).await;
        Ok(())
    });
    let stats = scene.finish(running).await;
    assert_eq!(
        (stats.renewal_errors, stats.lost_leases, stats.started),
        (5, 0, 1)
    );
}

/// A handler on a broker with this quirk, for as long as two leases.
async fn with_quirk(at: Where) -> (Scene, Running, Cancelled) {
    let scene = Scene::new();
    scene.publish(&["1"]).await;
    let broker = scene.broker.clone();
    let builder = Consumer::builder(Stubborn { broker, at }).store(scene.store.clone());
    let cancelled = Cancelled::default();
    let sleeping = cancelled.clone();
    let running = scene.start(patient(builder), move |_, _| {
        sleeping.clone().sleep(2 * LEASE)
    });
    tokio::time::sleep(SECOND).await;
    (scene, running, cancelled)
}

#[tokio::test(start_paused = true)]
async fn extensions_end_at_the_brokers_limit() {
    let limit = LEASE + LEASE / 2;
    let (scene, running, cancelled) = with_quirk(Where::Limit(limit)).await;
    tokio::time::sleep(LEASE + 8 * SECOND).await;
    assert_eq!(scene.broker.counts().lost_leases, 0, "it was extended once");
    tokio::time::sleep(3 * SECOND).await;
    assert_eq!(
        (cancelled.count(), scene.broker.counts().lost_leases),
        (1, 1)
    );
    assert_eq!(running.monitor.stats().lost_leases, 1);
    running.task.abort();
}

#[tokio::test(start_paused = true)]
async fn an_extension_that_hangs_or_panics_hides_neither_lost_leases_nor_lost_claims() {
    for at in [Where::Extend, Where::ExtendPanics] {
        let (_scene, running, cancelled) = with_quirk(at).await;
        tokio::time::sleep(LEASE).await;
        assert_eq!(cancelled.count(), 1, "{at:?}: the lease");
        assert!(running.monitor.stats().renewal_errors > 0);
        running.task.abort();

        let (scene, running, cancelled) = with_quirk(at).await;
        scene
            .store
            .forget(&[IdempotencyKey::new("orders", "1")])
            .await;
        tokio::time::sleep(LEASE * 2 / 3).await;
        assert_eq!(cancelled.count(), 1, "{at:?}: the claim");
        running.task.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn what_lost_its_lease_in_the_lane_is_not_started_late() {
    let scene = Scene::new();
    scene.publish(&["a-1"]).await;
    let running = scene.start(patient(scene.builder().ordered()), |name, _| async move {
        if name == "a-1" {
            // After the end of the second one's lease, and before the keeper looks again.
            tokio::time::sleep(Duration::from_millis(35_700)).await;
        }
        Ok(())
    });
    tokio::time::sleep(Duration::from_millis(5_500)).await;
    scene.publish(&["a-2"]).await;
    tokio::time::sleep(Duration::from_millis(6_500)).await;
    // The first one's lease has been extended; the second one's is not.
    scene.broker.faults().fail_extensions(u32::MAX);
    let stats = scene.finish(running).await;
    assert_eq!(scene.seen.names(), ["a-1", "a-2"]);
    assert_eq!((stats.started, stats.lost_leases), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_settlement_that_panics_in_the_adapter_stalls_nobody() {
    let scene = Scene::new();
    scene.publish(&["1"]).await;
    let (broker, at) = (scene.broker.clone(), Where::SettlePanics);
    let builder = Consumer::builder(Stubborn { broker, at }).store(scene.store.clone());
    let running = scene.start(builder, |_, _| succeeds());
    tokio::time::sleep(4 * LEASE).await;
    let stats = scene.end(running).await;
    assert!(
        stats.received > 2 && stats.abandoned == stats.received,
        "{stats:?}"
    );
    assert_eq!(stats.started, 1, "what was completed is not handled again");
}

#[tokio::test(start_paused = true)]
async fn a_handler_whose_end_panics_has_failed_and_its_key_goes_on() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(std::thread::panicking(), "at the end");
        }
    }
    let scene = Scene::new();
    scene.publish(&["a-1", "a-2"]).await;
    let running = scene.start(scene.builder().ordered(), |name, context| async move {
        if name == "a-1" && context.attempt().get() < 3 {
            let _bomb = Bomb;
            std::future::pending::<()>().await;
        }
        Ok(())
    });
    let stats = scene.finish(running).await;
    assert_eq!(scene.seen.names(), ["a-1", "a-1", "a-1", "a-2"]);
    assert_eq!((stats.failed, stats.panicked, stats.completed), (2, 2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_settlement_that_fails_is_tried_until_the_message_is_back() {
    // Five tries to complete it, then others to give it back.
    for failures in [1, 4, 20] {
        let scene = Scene::new();
        scene.publish(&["1"]).await;
        scene.broker.faults().fail_settles(failures);
        let running = scene.start(scene.builder(), |_, _| succeeds());
        let stats = scene.finish(running).await;
        assert_eq!((stats.started, stats.settle_errors), (1, failures.into()));
        let given_back = u64::from(failures >= 5);
        assert_eq!((stats.abandoned, stats.repeats), (given_back, given_back));
        let counts = scene.broker.counts();
        assert_eq!((counts.lost_leases, counts.released), (0, given_back));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_lost_leads_to_no_second_settlement() {
    let scene = Scene::new();
    scene.publish(&["1"]).await;
    scene.broker.faults().lose_answers(1);
    let running = scene.start(scene.builder(), |_, _| succeeds());
    let stats = scene.finish(running).await;
    assert_eq!(
        (stats.settle_errors, stats.abandoned, stats.completed),
        (1, 1, 0)
    );
    assert_eq!(scene.broker.counts().completed, 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_lost_while_it_was_claimed_is_not_started() {
    let scene = Scene::on(InProcessBroker::builder("orders").lease(3 * SECOND).build());
    scene.publish(&["1"]).await;
    scene.store.faults().delay_calls(5 * SECOND);
    let running = scene.start(scene.builder(), |_, _| succeeds());
    scene.broker.wait_for(|counts| counts.in_flight == 1).await;
    scene.broker.expire_leases();
    scene.finish(running).await;
    let starts = scene.seen.all();
    let claims: Vec<_> = starts.iter().map(|one| (one.attempt, one.fence)).collect();
    assert_eq!(claims, [(1, Some(2))], "the first claim was given back");
}

#[tokio::test(start_paused = true)]
async fn a_lease_without_end_is_no_harm() {
    let scene = Scene::on(
        InProcessBroker::builder("orders")
            .lease(Duration::MAX)
            .build(),
    );
    scene.publish(&["1"]).await;
    let running = scene.start(scene.builder(), |_, _| async {
        tokio::time::sleep(Duration::from_secs(50)).await;
        Ok(())
    });
    let stats = scene.finish(running).await;
    assert_eq!((stats.completed, stats.lost_leases), (1, 0));
}
