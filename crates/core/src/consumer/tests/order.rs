//! P5: order is chosen.

use super::*;
use crate::in_process::{BrokerCall, BrokerOperation};
use crate::ports::Fence;
use std::sync::atomic::{AtomicU32, Ordering};

/// Begins the shutdown when settling gets out of hand, so that a livelock fails and does not hang.
fn stop_after_settlements(scene: &Scene, limit: u32) -> Arc<AtomicU32> {
    let settled = Arc::new(AtomicU32::new(0));
    let (count, shutdown) = (Arc::clone(&settled), scene.shutdown.clone());
    scene.broker.faults().on_call(move |call: &BrokerCall<'_>| {
        if call.operation == BrokerOperation::Settle {
            let size = u32::try_from(call.size).unwrap();
            if count.fetch_add(size, Ordering::Relaxed) > limit {
                shutdown.begin();
            }
        }
        None
    });
    settled
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_is_given_back_comes_to_rest_and_goes_on_in_order() {
    // The lost lease is found out when the message is settled, or before, when it is extended.
    let cases = [
        (5 * SECOND, vec!["a-1", "a-2", "a-3", "a-4"]),
        (15 * SECOND, vec!["a-1", "a-1", "a-2", "a-3", "a-4"]),
    ];
    for (work, starts) in cases {
        let scene = Scene::new();
        scene.publish(&["a-1", "a-2", "a-3", "a-4"]).await;
        let settled = stop_after_settlements(&scene, 1000);
        let broker = scene.broker.clone();
        let running = scene.start(scene.builder().ordered(), move |name, context| {
            if name == "a-1" && context.fence() == Some(Fence(1)) {
                broker.expire_leases();
            }
            async move {
                tokio::time::sleep(work).await;
                Ok(())
            }
        });
        let stats = scene.finish(running).await;
        assert_eq!(scene.seen.names(), starts);
        let settled = settled.load(Ordering::Relaxed);
        assert!(
            settled < 30,
            "{settled} settlements of 4 messages: {stats:?}"
        );
    }
}
