use std::sync::Arc;
use std::time::Duration;

use backstop_conformance::broker::run_all;

use crate::in_process::{Dress, InProcess};

#[tokio::test(start_paused = true)]
async fn the_in_process_broker_passes_the_suite() {
    let harness = InProcess::new(Dress::Own, Duration::from_millis(20));
    run_all(Arc::new(harness)).await.assert_passed();
}

#[tokio::test(start_paused = true)]
async fn the_in_process_broker_passes_the_suite_in_the_dress_of_a_hosted_one() {
    let harness = InProcess::new(Dress::Hosted, Duration::from_millis(20));
    run_all(Arc::new(harness)).await.assert_passed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_in_process_broker_passes_the_suite_in_real_time() {
    let harness = InProcess::new(Dress::Own, Duration::from_millis(100));
    run_all(Arc::new(harness)).await.assert_passed();
}
