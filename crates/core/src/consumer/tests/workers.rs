//! Workers outlive a delivery, but neither a burst nor the run, and deliveries share nothing by them.

use std::ops::Range;

use tokio::runtime::Handle;

use super::*;

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

async fn publish(scene: &Scene, names: Range<usize>) {
    let names: Vec<_> = names.map(|name| name.to_string()).collect();
    scene
        .publish(&names.iter().map(String::as_str).collect::<Vec<_>>())
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_handles_one_delivery_after_the_other() {
    let scene = Scene::new();
    let running = scene.start(scene.builder().max_in_flight(4), |_, _| async {
        tokio::time::sleep(SECOND).await;
        Ok(())
    });
    tokio::time::sleep(SECOND).await;
    let before = tasks();
    for round in 0..3 {
        publish(&scene, 10 * round..10 * (round + 1)).await;
        scene.drained().await;
        assert!(tasks() <= before + 4, "round {round}: {}", tasks());
    }
    assert_eq!(scene.end(running).await.completed, 30);
}

#[tokio::test(start_paused = true)]
async fn workers_end_after_a_burst_and_with_their_run() {
    for aborted in [false, true] {
        let scene = Scene::new();
        let before = tasks();
        let running = scene.start(scene.builder().max_in_flight(1000), |_, _| async {
            tokio::time::sleep(SECOND).await;
            Ok(())
        });
        publish(&scene, 0..1000).await;
        tokio::time::sleep(SECOND / 2).await;
        assert!(tasks() >= before + 1000);
        scene.drained().await;
        tokio::time::sleep(SECOND).await;
        assert!(tasks() < before + 300, "{} are kept", tasks());
        if aborted {
            running.task.abort();
            let _ = running.task.await;
        } else {
            scene.end(running).await;
        }
        // Those that are idle see it when they run next.
        tokio::time::sleep(SECOND).await;
        assert_eq!(tasks(), before, "aborted: {aborted}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_context_that_is_kept_is_not_cancelled_with_a_later_delivery() {
    for asked in [false, true] {
        let scene = Scene::new();
        scene.publish(&["1"]).await;
        let contexts = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&contexts);
        let builder = scene.builder().max_in_flight(1);
        let running = scene.start(builder, move |name, context| {
            if asked {
                assert!(!context.cancellation().is_cancelled());
            }
            kept.lock().push(context);
            async move {
                if name == "2" {
                    std::future::pending::<()>().await;
                }
                Ok(())
            }
        });
        scene.drained().await;
        scene.publish(&["2"]).await;
        tokio::time::sleep(SECOND).await;
        scene.broker.expire_leases();
        // The keeper looks at a third of the lease.
        tokio::time::sleep(15 * SECOND).await;
        let cancelled: Vec<_> = contexts
            .lock()
            .iter()
            .map(|context| context.cancellation().is_cancelled())
            .collect();
        assert_eq!(cancelled[..2], [false, true], "asked: {asked}");
        running.task.abort();
    }
}
