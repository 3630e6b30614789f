//! The brokers' suite.

use std::sync::Arc;

use backstop_conformance::broker::{run_all, worker};
use backstop_core::StoreHandle;
use backstop_redis_dedupe::RedisStore;

use super::harness::{Harness, WORKER_BROKER, WORKER_STORE, connect};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sqs_passes_the_brokers_suite() {
    let harness = Harness::start().await.unwrap();
    // Standard and FIFO queues can do everything between them. LocalStack's FIFO queues cannot.
    let left_out: &[&str] = if harness.is_localstack() {
        &["O4", "O7"]
    } else {
        &[]
    };
    let report = run_all(Arc::new(harness)).await;
    report.assert_passed_but(left_out);
}

/// The suite starts this test in processes of its own. By itself it has nothing to serve, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_serves() {
    let Ok(broker) = std::env::var(WORKER_BROKER) else {
        let broker = connect("sqs://127.0.0.1:1/000000000000/none").unwrap();
        let error = worker::serve(broker, None).await.unwrap_err();
        assert!(error.to_string().contains("BACKSTOP_WORKER"), "{error}");
        return;
    };
    let store: Option<StoreHandle> = match std::env::var(WORKER_STORE) {
        Ok(url) => Some(RedisStore::connect(&url).await.unwrap().into()),
        Err(_) => None,
    };
    worker::serve(connect(&broker).unwrap(), store)
        .await
        .unwrap();
}
