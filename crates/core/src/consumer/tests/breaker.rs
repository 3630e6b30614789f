//! P7: an outage downstream costs no messages.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::consumer::BreakerSettings;

/// Something that handlers depend on.
#[derive(Clone, Default)]
struct Downstream(Arc<AtomicBool>);

impl Downstream {
    fn go_down(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn come_back(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    fn call(&self) -> Ready<Result<(), HandlerError>> {
        if self.0.load(Ordering::Relaxed) {
            fails()
        } else {
            succeeds()
        }
    }
}

fn settings() -> BreakerSettings {
    BreakerSettings {
        window: 10,
        failure_ratio: 0.8,
        first_pause: SECOND,
        longest_pause: 60 * SECOND,
    }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{}-{n}", n % 5)).collect()
}

async fn publish(scene: &Scene, count: usize) {
    let names = names(count);
    scene
        .publish(&names.iter().map(String::as_str).collect::<Vec<_>>())
        .await;
}

#[tokio::test(start_paused = true)]
async fn it_stops_intake_probes_and_resumes_and_costs_no_message() {
    for ordered in [false, true] {
        let scene = Scene::new();
        let downstream = Downstream::default();
        downstream.go_down();
        publish(&scene, 200).await;
        let builder = scene
            .builder_in(ordered)
            .max_in_flight(5)
            .breaker(settings());
        let call = downstream.clone();
        let running = scene.start(builder, move |_, _| call.call());
        let monitor = running.monitor.clone();
        tokio::time::sleep(Duration::from_mins(10)).await;

        let starts = scene.seen.seconds();
        let before = starts.iter().filter(|at| **at < 2.0).count();
        assert!((10..20).contains(&before), "{ordered}: {starts:?}");
        // Ten minutes of pauses that double up to a minute: 1, 2, 4, 8, 16, 32, 60, 60 …
        assert!(starts.len() < before + 20, "{ordered}: {starts:?}");
        assert!(!monitor.is_ready() && monitor.stats().breaker_opened > 5);
        assert_eq!(scene.broker.counts().dead, 0);

        downstream.come_back();
        let stats = scene.finish(running).await;
        assert_eq!(
            (stats.completed, stats.dead_lettered),
            (200, 0),
            "{ordered}"
        );
        assert_eq!(scene.broker.counts().lost_leases, 0);
        let attempts = scene
            .seen
            .attempts()
            .into_iter()
            .map(u64::from)
            .sum::<u64>();
        assert!(attempts >= stats.started && stats.started == 200 + stats.failed);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_not_started_is_given_back_without_an_attempt() {
    let scene = Scene::new();
    let names: Vec<_> = (0..100).map(|n| format!("{n}-1")).collect();
    scene
        .publish(&names.iter().map(String::as_str).collect::<Vec<_>>())
        .await;
    let downstream = Downstream::default();
    downstream.go_down();
    let builder = scene.builder().ordered().max_in_flight(5).max_buffered(60);
    let call = downstream.clone();
    let running = scene.start(builder.breaker(settings()), move |_, _| {
        let call = call.clone();
        async move {
            tokio::time::sleep(SECOND).await;
            call.call().await
        }
    });
    tokio::time::sleep(SECOND * 5 / 2).await;
    let stats = running.monitor.stats();
    assert!(stats.released > 40 && stats.failed < 20, "{stats:?}");
    downstream.come_back();
    let stats = scene.finish(running).await;
    assert_eq!(stats.completed, 100);
    let starts = scene.seen.all();
    let second = starts.iter().filter(|start| start.attempt == 2).count() as u64;
    assert_eq!(second, stats.failed, "attempts are those that were started");
}

#[tokio::test(start_paused = true)]
async fn a_receive_under_way_ends_when_it_opens() {
    let scene = Scene::new();
    publish(&scene, 10).await;
    let builder = scene.builder().max_in_flight(20).breaker(BreakerSettings {
        first_pause: 60 * SECOND,
        ..settings()
    });
    let running = scene.start(builder, |_, _| async {
        tokio::time::sleep(SECOND).await;
        Err(HandlerError::retry_after("no", Duration::from_hours(1)))
    });
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(running.monitor.stats().breaker_opened, 1);
    let delivered = scene.broker.counts().delivered;
    publish(&scene, 5).await;
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(
        scene.broker.counts().delivered,
        delivered,
        "nothing is taken to be given back"
    );
    running.task.abort();
}

#[tokio::test(start_paused = true)]
async fn poison_alone_does_not_open_it() {
    let scene = Scene::new();
    publish(&scene, 100).await;
    let builder = scene.builder().breaker(settings());
    let running = scene.start(builder, |_, _| ready(Err(HandlerError::permanent("no"))));
    let stats = scene.finish(running).await;
    assert_eq!((stats.breaker_opened, stats.dead_lettered), (0, 100));
}

#[tokio::test(start_paused = true)]
async fn a_queue_of_nothing_but_failures_drains_in_the_end() {
    for ordered in [false, true] {
        let scene = Scene::new();
        publish(&scene, 12).await;
        let builder = scene
            .builder_in(ordered)
            .max_attempts(2)
            .breaker(BreakerSettings {
                longest_pause: SECOND,
                ..settings()
            });
        let running = scene.start(builder, |_, _| fails());
        let stats = scene.finish(running).await;
        assert_eq!((stats.dead_lettered, stats.started), (12, 24));
    }
}

#[tokio::test(start_paused = true)]
async fn intake_resumes_when_the_store_answers_and_not_when_the_probe_ends() {
    let scene = Scene::new();
    scene.store.faults().go_down();
    publish(&scene, 20).await;
    let running = scene.start(scene.builder().max_in_flight(4), |_, _| async {
        tokio::time::sleep(20 * SECOND).await;
        Ok(())
    });
    tokio::time::sleep(Duration::from_mins(5)).await;
    scene.store.faults().come_back();
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(scene.seen.names().len(), 4, "every slot is used");
    scene.finish(running).await;
}
