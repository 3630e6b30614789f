use std::error::Error;

use super::*;
use backstop_core::{Message, Publisher};

async fn refused(url: &str) -> String {
    let Err(error) = connect(url).await else {
        panic!("{url} was accepted");
    };
    assert_eq!(error.kind(), BrokerErrorKind::Configuration, "{error}");
    with_cause(&error)
}

async fn refused_store(url: &str) -> String {
    let Err(error) = connect_store(url).await else {
        panic!("{url} was accepted");
    };
    assert_eq!(error.kind(), StoreErrorKind::Configuration, "{error}");
    with_cause(&error)
}

fn with_cause(error: &dyn Error) -> String {
    let cause = error.source().map(ToString::to_string);
    format!("{error}: {}", cause.unwrap_or_default())
}

#[tokio::test]
async fn an_unknown_scheme_is_named_with_what_is_allowed() {
    let text = refused("kafka://user:hunter2@host/orders").await;
    assert!(
        text.contains("kafka://") && text.contains("memory://<queue>"),
        "{text}"
    );
    assert!(text.contains("amqp://"), "{text}");
    let text = refused_store("memcached://user:hunter2@host").await;
    assert!(
        text.contains("memcached://") && text.contains("redis://"),
        "{text}"
    );
}

#[tokio::test]
async fn no_refusal_shows_a_password() {
    for url in [
        "kafka://user:hunter2@host/orders",
        "user:hunter2@host/orders",
        "user:hunter2://host",
        "memory://user:hunter2@host",
        "redis://user:hunter2@host",
        "sqs://user:hunter2@host/orders",
        "",
    ] {
        let text = refused(url).await;
        assert!(!text.contains("hunter2"), "{text}");
    }
    for url in [
        "amqp://user:hunter2@host",
        "sqs://user:hunter2@host/q",
        "user:hunter2@host",
        "hunter2",
    ] {
        let text = refused_store(url).await;
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[tokio::test]
async fn a_store_is_no_broker_and_a_broker_no_store() {
    let text = refused("redis://host").await;
    assert!(
        text.contains("redis:// names an idempotency store"),
        "{text}"
    );
    let text = refused_store("amqp://host").await;
    assert!(text.contains("amqp:// names a broker"), "{text}");
}

#[cfg(not(feature = "rabbitmq"))]
#[tokio::test]
async fn a_feature_that_is_off_is_named() {
    let text = refused("amqp://guest:guest@host?queue=orders").await;
    assert!(text.contains("features = [\"rabbitmq\"]"), "{text}");
}

#[cfg(not(feature = "sqs"))]
#[tokio::test]
async fn the_feature_for_sqs_is_named_where_it_is_off() {
    let text = refused("sqs:///orders").await;
    assert!(text.contains("features = [\"sqs\"]"), "{text}");
}

#[cfg(feature = "sqs")]
#[tokio::test]
async fn the_scheme_of_sqs_reaches_sqs() {
    let text = refused("sqs:///orders?prefetch=3").await;
    assert!(text.contains("\"prefetch\""), "{text}");
}

#[cfg(not(feature = "redis"))]
#[tokio::test]
async fn a_stores_feature_that_is_off_is_named() {
    let text = refused_store("redis+cluster://host").await;
    assert!(text.contains("features = [\"redis\"]"), "{text}");
}

#[tokio::test]
async fn a_memory_queue_is_the_same_for_all_who_name_it() {
    let broker = connect("memory://same?declare=true").await.unwrap();
    Publisher::new(broker)
        .publish(Message::new("1"))
        .await
        .unwrap();
    assert_eq!(in_process_queue("same").counts().ready, 1);
    assert_eq!(in_process_queue("other").counts().ready, 0);
}

#[tokio::test]
async fn a_memory_url_without_a_queue_or_with_unknown_parameters_is_refused() {
    assert!(refused("memory://").await.contains("names no queue"));
    assert!(refused("memory://q?quue=x").await.contains("\"quue\""));
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn every_redis_scheme_reaches_the_redis_store() {
    for url in [
        "redis://user:hunter2@host/nonsense",
        "rediss://user:hunter2@host/nonsense",
        "redis+cluster://user:hunter2@host/7",
        "rediss+cluster://user:hunter2@host/7",
        "redis+sentinel://user:hunter2@host",
        "rediss+sentinel://user:hunter2@host",
    ] {
        let text = refused_store(url).await;
        assert!(text.contains("the Redis URL"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[cfg(feature = "rabbitmq")]
#[tokio::test]
async fn both_amqp_schemes_reach_rabbitmq() {
    for url in [
        "amqp://user:hunter2@host?queue=q&prefetch=3",
        "amqps://user:hunter2@host?queue=q&prefetch=3",
    ] {
        let text = refused(url).await;
        assert!(text.contains("\"prefetch\""), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}
