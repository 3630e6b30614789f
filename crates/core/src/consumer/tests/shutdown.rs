//! P9: shutdown is clean.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};

use super::stubborn::{Stubborn, Where};
use super::*;
use crate::BrokerErrorKind;
use crate::in_process::{BrokerCall, BrokerOperation};

const GRACE: Duration = Duration::from_secs(30);

async fn sleep_for(seconds: u32) -> Result<(), HandlerError> {
    tokio::time::sleep(seconds * SECOND).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_what_runs_and_gives_back_the_rest_at_once() {
    for ordered in [false, true] {
        let mut scene = Scene::new();
        scene.publish(&["a-1", "a-2", "a-3", "b-1"]).await;
        let builder = scene.builder_in(ordered).max_in_flight(2);
        let running = scene.start(builder, |_, _| sleep_for(10));
        tokio::time::sleep(SECOND).await;
        scene.shutdown.begin();
        scene.publish(&["c-1"]).await;
        // What follows a running message can go to nobody else before its end.
        let followers = if ordered { 2 } else { 0 };
        let rest = 3 - followers;
        let counts = scene.broker.wait_for(|counts| counts.ready == rest).await;
        assert_eq!((counts.in_flight, counts.completed), (2 + followers, 0));
        let begun = Instant::now();
        let stats = scene.restart(running).await;
        assert_eq!(begun.elapsed().as_secs(), 9);
        assert_eq!((stats.started, stats.completed), (2, 2));
        assert_eq!(scene.broker.counts().lost_leases, 0);

        let running = scene.start(scene.builder_in(ordered), |_, _| succeeds());
        scene.finish(running).await;
        assert_eq!(scene.seen.attempts(), [1; 5], "no attempt was used");
    }
}

#[tokio::test(start_paused = true)]
async fn past_the_grace_handlers_are_cancelled_and_use_no_attempt() {
    for by_nature in [false, true] {
        let mut scene = Scene::new();
        scene.publish(&["1"]).await;
        let builder = |scene: &Scene| {
            if by_nature {
                scene.builder().idempotent_by_nature()
            } else {
                scene.builder()
            }
        };
        let running = scene.start(builder(&scene), |_, _| std::future::pending());
        tokio::time::sleep(SECOND).await;
        let begun = Instant::now();
        let stats = scene.restart(running).await;
        assert_eq!(begun.elapsed().as_secs(), GRACE.as_secs());
        assert_eq!((stats.released, stats.failed), (1, 0));
        let counts = scene.broker.counts();
        assert_eq!((counts.ready, counts.lost_leases), (1, 0));
        let running = scene.start(builder(&scene), |_, _| succeeds());
        scene.finish(running).await;
        assert_eq!(scene.seen.attempts(), [1, 1]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_signal_ends_the_grace() {
    let scene = Scene::new();
    scene.publish(&["1"]).await;
    let running = scene.start(scene.builder(), |_, _| std::future::pending());
    tokio::time::sleep(SECOND).await;
    scene.shutdown.begin();
    tokio::time::sleep(SECOND).await;
    assert_eq!(scene.broker.counts().in_flight, 1);
    let begun = Instant::now();
    scene.shutdown.now();
    scene.end(running).await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(scene.broker.counts().ready, 1);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_message_or_a_broker_ends_at_once() {
    for absent in [false, true] {
        let scene = Scene::new();
        if absent {
            let kind = BrokerErrorKind::Unreachable;
            let faults = scene.broker.faults();
            faults.fail(BrokerOperation::Subscribe, kind, u32::MAX);
        }
        let running = scene.start(scene.builder(), |_, _| succeeds());
        let monitor = running.monitor.clone();
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert_eq!(monitor.is_ready(), !absent);
        let begun = Instant::now();
        scene.end(running).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert!(!monitor.is_ready());
    }
}

#[tokio::test(start_paused = true)]
async fn settlements_are_flushed_before_the_end() {
    let scene = Scene::new();
    scene.publish(&["1", "2"]).await;
    scene.broker.faults().delay_settles(2 * SECOND);
    let running = scene.start(scene.builder(), |_, _| sleep_for(1));
    tokio::time::sleep(3 * SECOND / 2).await;
    let stats = scene.end(running).await;
    let counts = scene.broker.counts();
    assert_eq!(
        (stats.completed, counts.completed, counts.lost_leases),
        (2, 2, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn one_consumers_end_is_not_that_of_others() {
    let scene = Scene::new();
    let other = Scene {
        broker: InProcessBroker::new("invoices"),
        ..scene.clone()
    };
    let running = scene.start(scene.builder(), |_, _| succeeds());
    let others = other.start(other.builder(), |_, _| succeeds());
    let kind = BrokerErrorKind::AccessDenied;
    scene
        .broker
        .faults()
        .fail(BrokerOperation::Receive, kind, 1);
    scene.publish(&["1"]).await;
    let error = running.task.await.unwrap().unwrap_err();
    assert_eq!(error.broker_error().unwrap().kind(), kind);
    assert!(!scene.shutdown.has_begun());
    other.publish(&["2"]).await;
    other.finish(others).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_that_hangs_keeps_a_run_from_ending() {
    for at in [Where::Stop, Where::Close, Where::Settle] {
        let scene = Scene::new();
        scene.publish(&["1"]).await;
        let broker = scene.broker.clone();
        let builder = Consumer::builder(Stubborn { broker, at }).store(scene.store.clone());
        let running = scene.start(builder, |_, _| succeeds());
        tokio::time::sleep(SECOND).await;
        let end = tokio::time::timeout(2 * GRACE, scene.end(running)).await;
        assert_eq!(end.unwrap().received, 1, "{at:?}");
        // Whoever else consumes the queue gets what was not settled: no task holds it any more.
        let left = u64::from(at == Where::Settle);
        scene
            .broker
            .wait_for(|counts| counts.lost_leases == left)
            .await;
        assert_eq!(scene.broker.counts().in_flight, 0, "{at:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_keeps_neither_the_run_nor_the_message() {
    let scene = Scene::new();
    scene.publish(&["1"]).await;
    scene.store.faults().delay_calls(Duration::from_hours(1));
    let running = scene.start(scene.builder(), |_, _| succeeds());
    tokio::time::sleep(SECOND).await;
    let stats = tokio::time::timeout(2 * GRACE, scene.end(running))
        .await
        .unwrap();
    let counts = scene.broker.counts();
    assert_eq!(
        (stats.started, stats.released),
        (0, 1),
        "{stats:?} {counts:?}"
    );
    assert_eq!((counts.ready, counts.lost_leases), (1, 0));
}

/// Work of every kind, over two seconds.
async fn work(name: String, context: Context) -> Result<(), HandlerError> {
    let number: u32 = name.split_once('-').unwrap().1.parse()?;
    tokio::time::sleep(number % 7 * SECOND / 5).await;
    match number % 5 {
        0 if context.attempt().get() < 3 => Err(HandlerError::retry_after("busy", SECOND)),
        1 => Err(HandlerError::permanent("no")),
        _ => Ok(()),
    }
}

/// Runs a consumer for a while, ends it somehow, and lets another one finish.
async fn interrupted(ordered: bool, moment: Duration, end: fn(&Scene, &Running)) -> Scene {
    let mut scene = Scene::new();
    let names: Vec<_> = (0..40).map(|n| format!("{}-{n}", n % 4)).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    scene.publish(&names).await;
    scene.broker.faults().delay_settles(SECOND / 20);
    scene.store.faults().delay_calls(SECOND / 40);
    let builder = |scene: &Scene| scene.builder_in(ordered).max_in_flight(6).max_attempts(4);
    let running = scene.start(builder(&scene), work);
    tokio::time::sleep(moment).await;
    end(&scene, &running);
    let _ = running.task.await;
    scene.shutdown = Shutdown::new();
    let running = scene.start(builder(&scene), work);
    scene.finish(running).await;
    scene
}

fn assert_nothing_is_lost(scene: &Scene, moment: Duration) {
    let counts = scene.broker.counts();
    assert_eq!(
        (counts.completed, counts.dead),
        (32, 8),
        "{moment:?}: {counts:?}"
    );
    let mut last = HashMap::new();
    for start in scene.seen.all() {
        let before = last.insert(start.name.clone(), start.fence);
        assert!(before < Some(start.fence), "{moment:?}: {start:?}");
    }
    assert_eq!(last.len(), 40);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_at_any_moment_loses_nothing_and_uses_no_attempt() {
    type End = fn(&Scene, &Running);
    let ends: [End; 2] = [
        |scene, _| scene.shutdown.begin(),
        |scene, _| scene.shutdown.now(),
    ];
    for end in ends {
        for ordered in [false, true] {
            for moment in (0..50).map(|n| n * SECOND / 23) {
                let scene = interrupted(ordered, moment, end).await;
                assert_nothing_is_lost(&scene, moment);
                assert_eq!(scene.broker.counts().lost_leases, 0, "{ordered} {moment:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_dropped_at_any_moment_loses_nothing() {
    for ordered in [false, true] {
        for moment in (0..50).map(|n| n * SECOND / 23) {
            let scene = interrupted(ordered, moment, |_, running| running.task.abort()).await;
            assert_nothing_is_lost(&scene, moment);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_run_settles_nothing_more() {
    for moment in (0..50).map(|n| n * SECOND / 23) {
        let scene = Scene::new();
        scene
            .publish(&["a-0", "a-1", "a-2", "a-3", "b-5", "b-6", "b-7"])
            .await;
        scene.store.faults().delay_calls(SECOND / 40);
        let running = scene.start(scene.builder().ordered(), work);
        tokio::time::sleep(moment).await;
        running.task.abort();
        let _ = running.task.await;
        let settled = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&settled);
        scene.broker.faults().on_call(move |call: &BrokerCall<'_>| {
            seen.fetch_add(
                u32::from(call.operation == BrokerOperation::Settle),
                Ordering::Relaxed,
            );
            None
        });
        let starts = scene.seen.all().len();
        tokio::time::sleep(Duration::from_mins(2)).await;
        assert_eq!(settled.load(Ordering::Relaxed), 0, "{moment:?}");
        assert_eq!(scene.seen.all().len(), starts);
        assert_eq!(scene.broker.counts().in_flight, 0, "no task holds anything");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_run_starts_nothing_that_it_was_claiming() {
    let scene = Scene::new();
    scene.publish(&["1"]).await;
    // The claim is made, and found out about so late that it has to be confirmed.
    scene.store.faults().lose_answers(1);
    let running = scene.start(scene.builder().claim_lease(6 * SECOND), |_, _| succeeds());
    scene.broker.wait_for(|counts| counts.in_flight == 1).await;
    tokio::time::sleep(SECOND / 100).await;
    assert_eq!(scene.store.len(), 1, "claimed");
    scene.store.faults().delay_calls(3 * SECOND);
    tokio::time::sleep(4 * SECOND).await;
    running.task.abort();
    let _ = running.task.await;
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!(scene.seen.names(), <[&str; 0]>::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_run_that_is_dropped_among_threads_gives_nothing_back() {
    for _ in 0..40 {
        let scene = Scene::new();
        scene
            .publish(&["1", "2", "3", "4", "5", "6", "7", "8"])
            .await;
        let running = scene.start(scene.builder(), |_, _| std::future::pending());
        while scene.seen.all().len() < 8 {
            tokio::task::yield_now().await;
        }
        running.task.abort();
        let _ = running.task.await;
        let counts = scene.broker.wait_for(|counts| counts.in_flight == 0).await;
        assert_eq!((counts.released, counts.lost_leases), (0, 8));
    }
}
