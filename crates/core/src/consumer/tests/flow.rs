//! F1 and P10: limits are kept, and faults heal.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::stubborn::{Stubborn, Where};
use super::*;
use crate::BrokerErrorKind;
use crate::consumer::RunErrorKind;
use crate::in_process::BrokerOperation;

#[tokio::test(start_paused = true)]
async fn handlers_and_buffered_messages_keep_to_their_limits() {
    for (ordered, held) in [(false, 3), (true, 8)] {
        let scene = Scene::new();
        let names: Vec<_> = (0..60).map(|n| format!("{}-{n}", n % 6)).collect();
        scene
            .publish(&names.iter().map(String::as_str).collect::<Vec<_>>())
            .await;
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (running_now, seen_most, broker) = (now, Arc::clone(&most), scene.broker.clone());
        let builder = scene.builder_in(ordered).max_in_flight(3).max_buffered(8);
        let running = scene.start(builder, move |_, _| {
            let (now, most, broker) = (running_now.clone(), seen_most.clone(), broker.clone());
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                tokio::time::sleep(SECOND).await;
                now.fetch_sub(1, Ordering::Relaxed);
                assert!(broker.counts().in_flight <= held);
                Ok(())
            }
        });
        let stats = scene.finish(running).await;
        assert_eq!((stats.completed, stats.panicked), (60, 0));
        assert_eq!(most.load(Ordering::Relaxed), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_absent_is_waited_for_and_reported() {
    for operation in [
        BrokerOperation::Inspect,
        BrokerOperation::Subscribe,
        BrokerOperation::Receive,
    ] {
        let scene = Scene::new();
        scene.publish(&["1"]).await;
        let faults = scene.broker.faults();
        faults.fail(operation, BrokerErrorKind::Unreachable, u32::MAX);
        let running = scene.start(scene.builder(), |_, _| succeeds());
        tokio::time::sleep(Duration::from_mins(5)).await;
        assert!(!running.monitor.is_ready(), "{operation:?}");
        faults.clear();
        scene.drained().await;
        assert!(running.monitor.is_ready());
        assert_eq!(scene.end(running).await.completed, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_consumer_of_an_idle_queue_is_ready_again_after_a_cut() {
    let scene = Scene::new();
    let running = scene.start(scene.builder(), |_, _| succeeds());
    tokio::time::sleep(Duration::from_secs(1)).await;
    scene.broker.faults().fail(
        BrokerOperation::Receive,
        BrokerErrorKind::Unreachable,
        u32::MAX,
    );
    scene.broker.drop_connections();
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert!(!running.monitor.is_ready());
    scene.broker.faults().clear();
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert!(running.monitor.is_ready());
    scene.end(running).await;
}

#[tokio::test(start_paused = true)]
async fn an_error_for_good_ends_the_run_and_gives_back_what_it_holds() {
    let operations = [
        BrokerOperation::Inspect,
        BrokerOperation::Subscribe,
        BrokerOperation::Receive,
    ];
    for operation in operations {
        let scene = Scene::new();
        scene.publish(&["a-1", "a-2"]).await;
        let faults = scene.broker.faults().clone();
        let kind = BrokerErrorKind::NotFound;
        if operation != BrokerOperation::Receive {
            faults.fail(operation, kind, 1);
        }
        let running = scene.start(scene.builder().ordered(), move |_, _| {
            faults.fail(BrokerOperation::Receive, kind, 1);
            async {
                tokio::time::sleep(SECOND).await;
                Ok(())
            }
        });
        scene
            .broker
            .wait_for(|counts| counts.in_flight == 2 || operation != BrokerOperation::Receive)
            .await;
        tokio::time::sleep(SECOND / 2).await;
        scene.publish(&["b-1"]).await;
        let error = running.task.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), RunErrorKind::Broker);
        assert_eq!(error.broker_error().unwrap().kind(), kind);
        let counts = scene.broker.counts();
        assert_eq!(
            (counts.in_flight, counts.lost_leases),
            (0, 0),
            "{operation:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_unsafe_set_up_is_refused_at_start() {
    let broker = InProcessBroker::builder("orders").without_dead_letter_queue();
    let scene = Scene::on(broker.build());
    let running = scene.start(scene.builder(), |_, _| succeeds());
    let error = running.task.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), RunErrorKind::Refused);
    assert!(!error.findings().is_empty());
    assert!(
        error.to_string().starts_with("the set-up is unsafe; "),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn connections_that_are_cut_lose_nothing() {
    for ordered in [false, true] {
        let scene = Scene::new();
        let names: Vec<_> = (0..50).map(|n| format!("{}-{n}", n % 5)).collect();
        scene
            .publish(&names.iter().map(String::as_str).collect::<Vec<_>>())
            .await;
        let builder = scene.builder_in(ordered).max_in_flight(4).max_attempts(50);
        let running = scene.start(builder, |_, _| async {
            tokio::time::sleep(3 * SECOND).await;
            Ok(())
        });
        for _ in 0..10 {
            tokio::time::sleep(4 * SECOND).await;
            scene.broker.drop_connections();
        }
        let stats = scene.finish(running).await;
        assert_eq!(scene.broker.counts().completed, 50);
        assert_eq!(stats.dead_lettered, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn copies_that_hang_keep_no_message_from_being_completed() {
    let scene = Scene::new();
    let (broker, at) = (scene.broker.clone(), Where::Copy);
    let builder = Consumer::builder(Stubborn { broker, at }).store(scene.store.clone());
    let running = scene.start(builder, |name, _| {
        let fails = name.starts_with("bad");
        async move { if fails { Err("no".into()) } else { Ok(()) } }
    });
    // One after the other, so that each is settled in a batch of its own.
    for n in 0..20_u64 {
        scene.publish(&[&format!("bad-{n}")]).await;
        scene.broker.wait_for(|counts| counts.delivered > n).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    scene.publish(&["good"]).await;
    let completed = scene.broker.wait_for(|counts| counts.completed == 1);
    let completed = tokio::time::timeout(Duration::from_mins(1), completed).await;
    assert!(completed.is_ok(), "{:?}", scene.broker.counts());
    running.task.abort();
}
