//! `backstop demo`.

use serde_json::Value;

use crate::command::run;

fn count(outcome: &Value, name: &str) -> u64 {
    let value = outcome[name].as_u64();
    value.unwrap_or_else(|| panic!("no {name} in {outcome}"))
}

fn assert_it_adds_up(outcome: &Value, orders: u64) {
    let count = |name| count(outcome, name);
    assert_eq!(outcome["passed"], true, "{outcome}");
    assert_eq!(count("orders"), orders + 3, "{outcome}");
    assert_eq!(
        count("published"),
        orders + 3 + count("repeats_sent"),
        "{outcome}"
    );
    assert_eq!(count("handled_once"), orders, "{outcome}");
    assert_eq!(
        (count("order_violations"), count("lost")),
        (0, 0),
        "{outcome}"
    );
    assert!(count("delivered") >= count("published"), "{outcome}");
    // A worker that crashes may have settled what it did not come to count.
    assert!(
        count("repeats_absorbed") + 64 >= count("repeats_sent"),
        "{outcome}"
    );
    assert!(
        count("repeats_sent") > 0 && count("breaker_opened") > 0,
        "{outcome}"
    );
    let retries = outcome["retries"].as_array().unwrap();
    assert!(!retries.is_empty(), "{outcome}");
    for retry in retries {
        assert!(retry["shortest_wait_ms"].as_u64() >= Some(100), "{outcome}");
        assert!(retry["longest_wait_ms"].as_u64() >= retry["shortest_wait_ms"].as_u64());
    }
    let promises = outcome["promises"].as_array().unwrap();
    assert!(
        promises.iter().all(|promise| promise["kept"] == true),
        "{outcome}"
    );
    let mut reasons: Vec<_> = outcome["dead_letters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|letter| letter["reason"].as_str().unwrap())
        .collect();
    reasons.sort_unstable();
    assert_eq!(
        reasons,
        ["attempts-exhausted", "permanent-error", "undecodable"]
    );
}

#[tokio::test]
async fn the_demo_keeps_every_promise_and_its_json_adds_up() {
    let ended = run(["demo", "--json", "--messages", "1500", "--seed", "7"]).await;
    let ended = ended.with_code(0);
    assert_it_adds_up(&ended.json(), 1_500);
    assert_eq!(ended.stderr, "", "it says nothing else");
}

#[tokio::test]
async fn the_demo_tells_its_story_and_ends_in_a_table() {
    let ended = run(["demo", "--messages", "300"]).await.with_code(0);
    for text in [
        "orders of",
        "the worker crashes with",
        "another worker has taken over",
        "the bank is out of service",
        "the bank is back",
    ] {
        assert!(
            ended.stderr.contains(text),
            "no {text:?} in {}",
            ended.stderr
        );
    }
    for text in [
        "published",
        "delivered",
        "handled once",
        "repeats absorbed",
        "retries",
        "order violations",
        "lost",
        "3 messages to look at when you are awake",
        "attempts-exhausted",
        "permanent-error",
        "undecodable",
    ] {
        assert!(
            ended.stdout.contains(text),
            "no {text:?} in {}",
            ended.stdout
        );
    }
    assert!(!ended.stdout.contains("BROKEN"), "{}", ended.stdout);
}

#[tokio::test]
async fn the_same_story_is_played_on_the_queue_of_a_url() {
    let ended = run([
        "demo",
        "--json",
        "--messages",
        "300",
        "--url",
        "memory://backstop-demo",
    ])
    .await;
    assert_it_adds_up(&ended.with_code(0).json(), 300);
}
