//! Order within a partition key.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_key_goes_to_one_subscription_at_a_time() {
    let broker = InProcessBroker::new("orders");
    publish(&broker, &["a-1", "a-2", "b-1", "a-3", "b-2"]).await;
    let one = subscribe(&broker, ByPartitionKey).await;
    let other = subscribe(&broker.clone(), ByPartitionKey).await;
    let first = receive_one(&one).await;
    assert_eq!(name(&first), "a-1");
    assert_eq!(names(&receive_now(&other).await), ["b-1", "b-2"]);
    let followers = receive_now(&one).await;
    assert_eq!(names(&followers), ["a-2", "a-3"]);
}

#[tokio::test(start_paused = true)]
async fn a_key_is_handed_over_when_nothing_of_it_is_out() {
    let broker = InProcessBroker::new("orders");
    publish(&broker, &["a-1", "a-2", "a-3"]).await;
    let one = subscribe(&broker, ByPartitionKey).await;
    let other = subscribe(&broker, ByPartitionKey).await;
    let first = receive_one(&one).await;
    assert!(receive_now(&other).await.is_empty());
    let (received, ()) = tokio::join!(receive(&other, 10), complete(&one, first));
    assert_eq!(names(&received), ["a-2", "a-3"]);
    assert!(receive_now(&one).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_key_moves_on_after_a_crash_in_order() {
    let broker = InProcessBroker::new("orders");
    publish(&broker, &["a-1", "a-2", "a-3"]).await;
    let crashing = subscribe(&broker, ByPartitionKey).await;
    let mut received = receive(&crashing, 2).await;
    complete(&crashing, received.remove(0)).await;
    let other = subscribe(&broker, ByPartitionKey).await;
    assert!(receive_now(&other).await.is_empty());
    drop(crashing);
    let received = receive(&other, 10).await;
    assert_eq!(names(&received), ["a-2", "a-3"]);
    assert_eq!(
        [received[0].attempts_used, received[1].attempts_used],
        [1, 0]
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_given_back_waits_for_its_later_ones_to_come_back_too() {
    let broker = InProcessBroker::new("orders");
    publish(&broker, &["a-1", "a-2", "a-3"]).await;
    let inbox = subscribe(&broker, ByPartitionKey).await;
    let mut received = receive(&inbox, 2).await;
    let second = received.remove(1);
    let first = received.remove(0);
    settle(&inbox, first, release(Duration::ZERO))
        .await
        .unwrap();
    assert!(receive_now(&inbox).await.is_empty(), "a-2 is still out");
    settle(&inbox, second, release(Duration::ZERO))
        .await
        .unwrap();
    assert_eq!(names(&receive_now(&inbox).await), ["a-1", "a-2", "a-3"]);
}

#[tokio::test(start_paused = true)]
async fn the_last_one_given_back_follows_the_earlier_ones() {
    let broker = InProcessBroker::new("orders");
    publish(&broker, &["a-1", "a-2", "a-3"]).await;
    let one = subscribe(&broker, ByPartitionKey).await;
    let other = subscribe(&broker, ByPartitionKey).await;
    let mut received = receive(&one, 2).await;
    let second = received.remove(1);
    settle(&one, second, release(Duration::ZERO)).await.unwrap();
    assert!(receive_now(&other).await.is_empty());
    assert_eq!(names(&receive_now(&one).await), ["a-2", "a-3"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_overtakes_a_retry_and_other_keys_go_on() {
    let broker = InProcessBroker::new("orders");
    publish(&broker, &["a-1", "a-2", "b-1"]).await;
    let one = subscribe(&broker, ByPartitionKey).await;
    let other = subscribe(&broker, ByPartitionKey).await;
    let first = receive_one(&one).await;
    settle(&one, first, retry(10 * SECOND, 1)).await.unwrap();
    assert_eq!(names(&receive_now(&other).await), ["b-1"]);
    assert!(receive_now(&one).await.is_empty());
    let received = receive(&one, 10).await;
    assert_eq!(names(&received), ["a-1", "a-2"]);
    assert_eq!(
        [received[0].attempts_used, received[1].attempts_used],
        [1, 0]
    );
}

#[tokio::test(start_paused = true)]
async fn after_a_dead_letter_its_key_goes_on() {
    let broker = InProcessBroker::new("orders");
    publish(&broker, &["a-1", "a-2"]).await;
    let inbox = subscribe(&broker, ByPartitionKey).await;
    let other = subscribe(&broker, ByPartitionKey).await;
    let first = receive_one(&inbox).await;
    settle(&inbox, first, dead_letter()).await.unwrap();
    assert_eq!(names(&receive_now(&other).await), ["a-2"]);
}

#[tokio::test(start_paused = true)]
async fn messages_without_a_key_follow_nobody() {
    let broker = InProcessBroker::new("orders");
    publish(&broker, &["1", "2", "3"]).await;
    let one = subscribe(&broker, ByPartitionKey).await;
    let other = subscribe(&broker, ByPartitionKey).await;
    let first = receive_one(&one).await;
    settle(&one, first, retry(SECOND, 1)).await.unwrap();
    assert_eq!(name(&receive_one(&one).await), "2");
    assert_eq!(name(&receive_one(&other).await), "3");
    assert_eq!(name(&receive_one(&other).await), "1");
}

#[tokio::test(start_paused = true)]
async fn an_unordered_subscription_hands_out_any_key() {
    let broker = InProcessBroker::new("orders");
    publish(&broker, &["a-1", "a-2"]).await;
    let one = subscribe(&broker, Unordered).await;
    let other = subscribe(&broker, Unordered).await;
    assert_eq!(name(&receive_one(&one).await), "a-1");
    assert_eq!(name(&receive_one(&other).await), "a-2");
}

#[tokio::test(start_paused = true)]
async fn a_queue_can_change_over_to_order_at_any_time() {
    let broker = InProcessBroker::new("orders");
    publish(&broker, &["a-1", "a-2", "b-1", "a-3"]).await;
    let unordered = subscribe(&broker, Unordered).await;
    let out = receive(&unordered, 2).await;
    let ordered = subscribe(&broker, ByPartitionKey).await;
    drop(unordered);
    drop(out);
    let received = receive(&ordered, 10).await;
    assert_eq!(names(&received), ["a-1", "a-2", "b-1", "a-3"]);
    complete_all(&ordered, received).await;
    assert!(broker.counts().is_drained());
}

#[tokio::test(start_paused = true)]
async fn what_joins_late_is_behind_what_was_there() {
    let broker = InProcessBroker::new("orders");
    publish_after(&broker, &["a-late"], SECOND).await;
    publish(&broker, &["a-1", "a-2"]).await;
    let inbox = subscribe(&broker, ByPartitionKey).await;
    let first = receive_one(&inbox).await;
    tokio::time::advance(2 * SECOND).await;
    assert_eq!(names(&receive_now(&inbox).await), ["a-2", "a-late"]);
    complete(&inbox, first).await;
}
