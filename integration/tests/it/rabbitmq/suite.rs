//! The brokers' suite.

use std::sync::Arc;

use backstop_conformance::broker::{run_all, worker};
use backstop_core::StoreHandle;
use backstop_rabbitmq::RabbitMq;
use backstop_redis_dedupe::RedisStore;
use integration::Plugins;

use super::harness::{Harness, WORKER_BROKER, WORKER_STORE};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rabbitmq_passes_the_brokers_suite() {
    let harness = Harness::start(Plugins::ConsistentHash).await.unwrap();
    // Deliveries are held by their connection: there is no renewal whose end E4 could be about.
    run_all(Arc::new(harness)).await.assert_passed_but(&["E4"]);
}

/// The suite starts this test in processes of its own. By itself it has nothing to serve, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_serves() {
    let Ok(broker) = std::env::var(WORKER_BROKER) else {
        let broker = RabbitMq::open("amqp://127.0.0.1?queue=none").unwrap();
        let error = worker::serve(broker, None).await.unwrap_err();
        assert!(error.to_string().contains("BACKSTOP_WORKER"), "{error}");
        return;
    };
    let store: Option<StoreHandle> = match std::env::var(WORKER_STORE) {
        Ok(url) => Some(RedisStore::connect(&url).await.unwrap().into()),
        Err(_) => None,
    };
    worker::serve(RabbitMq::open(&broker).unwrap(), store)
        .await
        .unwrap();
}
