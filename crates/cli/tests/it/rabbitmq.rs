//! The command on a real RabbitMQ.

use serde_json::Value;

use crate::command::{Files, nobody, run};
use crate::peer::Peer;

/// A queue's name that no other test has.
pub(crate) fn queue(name: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("{name}-{}-{number}", std::process::id())
}

/// The URL of a queue.
pub(crate) async fn url(queue: &str) -> String {
    format!("{}?queue={queue}", integration::rabbitmq().await)
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_refused_without_showing_them() {
    let url = url("q").await.replace("guest:guest", "guest:hunter2");
    let program = ["--idempotent-by-nature", "--", "true"];
    let consumed = run(["run", "--url", &url].iter().chain(&program)).await;
    let published = run(["publish", "--url", &url, "1"]).await;
    for ended in [consumed, published] {
        let ended = ended.with_code(77).saying("check user, password");
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_queue_is_named_with_what_to_do() {
    let queue = queue("missing");
    let url = url(&queue).await;
    let program = ["--idempotent-by-nature", "--", "true"];
    let consumed = run(["run", "--url", &url].iter().chain(&program)).await;
    let published = run(["publish", "--url", &url, "1"]).await;
    for ended in [consumed, published] {
        ended.with_code(78).saying(&queue).saying("declare=true");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_without_a_queue_is_refused() {
    let url = integration::rabbitmq().await;
    let ended = run(["publish", "--url", url, "1"]).await;
    ended.with_code(64).saying("queue");
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_unavailable_to_a_publisher() {
    let (_socket, address) = nobody();
    let url = format!("amqp://guest:hunter2@{address}?queue=q");
    let ended = run(["publish", "--url", &url, "1"]).await;
    let ended = ended.with_code(69).saying(&address.to_string());
    assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_classic_queue_is_refused_with_the_fix() {
    let queue = queue("classic");
    Peer::of(&queue).await.declare_classic().await;
    let url = url(&queue).await;
    let ended = run(["run", "--url", &url, "--idempotent-by-nature", "--", "true"]);
    ended.await.with_code(78).saying("classic").saying("fix:");
}

#[tokio::test(flavor = "multi_thread")]
async fn order_on_a_queue_that_cannot_keep_it_is_refused_with_what_to_add() {
    let url = url(&queue("unordered")).await + "&declare=true";
    let options = ["--idempotent-by-nature", "--ordered", "--", "true"];
    let ended = run(["run", "--url", &url].iter().chain(&options)).await;
    ended
        .with_code(64)
        .saying("--ordered")
        .saying("partitions=");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_arrives_whole_and_persistent() {
    let files = Files::new();
    let queue = queue("published");
    let url = url(&queue).await + "&declare=true";
    let lines = r#"{"id":"a","key":"k","headers":{"tenant":"t"},"body":{"n": 1}}
        {"body_base64":"aGk="}"#;
    let file = files.write("lines", lines);
    let ended = run([
        "publish",
        "--json",
        "--url",
        &url,
        "--file",
        file.to_str().unwrap(),
    ])
    .await;
    assert_eq!(ended.with_code(0).json()["published"], 2);
    let ended = run([
        "publish", "--url", &url, "--id", "c", "--header", "h=v", "hello",
    ])
    .await;
    ended.with_code(0);

    let taken = Peer::of(&queue).await.take().await;
    let bodies: Vec<_> = taken.iter().map(|message| &message["body"]).collect();
    assert_eq!(bodies, ["{\"n\": 1}", "hi", "hello"]);
    assert_eq!(
        (&taken[0]["id"], &taken[2]["id"]),
        (&"a".into(), &"c".into())
    );
    assert!(
        taken[1]["id"].is_string(),
        "a message without an id gets one"
    );
    assert_eq!(taken[0]["headers"]["tenant"], "t");
    assert_eq!(taken[2]["headers"]["h"], "v");
    assert!(
        taken
            .iter()
            .all(|message| message["persistent"] == Value::Bool(true))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_confirmed_is_named_by_its_lines() {
    let files = Files::new();
    let url = url(&queue("ordered")).await + "&declare=true&partitions=2";
    let lines = "{\"id\":\"a\",\"body\":1}\n{\"id\":\"b\",\"body\":2,\"delay\":\"5s\"}\n";
    let file = files.write("lines", lines);
    let ended = run([
        "publish",
        "--json",
        "--url",
        &url,
        "--file",
        file.to_str().unwrap(),
    ])
    .await;
    // An ordered queue takes no delayed message.
    let ended = ended.with_code(78).saying("(the first is line 2) not");
    let result = ended.json();
    assert_eq!(result["published"], 1, "{result}");
    assert_eq!(result["not_confirmed"][0]["line"], 2, "{result}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_keeps_its_promises_on_rabbitmq_and_redis() {
    let queue = queue("backstop-demo");
    let url = url(&queue).await + "&declare=true&partitions=4";
    let store = integration::redis().await;
    let options = [
        "--json",
        "--messages",
        "300",
        "--url",
        &url,
        "--store",
        store,
    ];
    let ended = run(["demo"].iter().chain(&options)).await.with_code(0);
    let outcome = ended.json();
    assert_eq!(outcome["passed"], true, "{outcome}");
    assert_eq!(outcome["handled_once"], 300, "{outcome}");
    assert_eq!(outcome["place"], "on amqp and redis", "{outcome}");
}
