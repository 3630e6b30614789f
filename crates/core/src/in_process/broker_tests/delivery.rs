//! What is delivered, how often, and what is given back.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_completed_message_stays_gone() {
    let broker = InProcessBroker::new("orders");
    publish(&broker, &["1", "2"]).await;
    let inbox = subscribe(&broker, Unordered).await;
    let received = receive(&inbox, 10).await;
    assert_eq!(names(&received), ["1", "2"]);
    assert_eq!(broker.counts().in_flight, 2);
    complete_all(&inbox, received).await;
    drop(inbox);
    let counts = broker.counts();
    assert!(counts.is_drained());
    assert_eq!(
        (counts.published, counts.delivered, counts.completed),
        (2, 2, 2)
    );
}

#[tokio::test(start_paused = true)]
async fn a_message_arrives_as_it_was_published() {
    let broker = InProcessBroker::new("orders");
    let sent = Message::new(vec![0, 159, 146, 150])
        .with_id("bestellung-ü")
        .with_partition_key("k")
        .with_header("traceparent", "00-1-2-01")
        .with_header(Message::REDRIVES_HEADER, "2");
    let message = sent.clone().into();
    let delay = Duration::ZERO;
    broker.publish(&[Outgoing { message, delay }]).await;
    let inbox = subscribe(&broker, Unordered).await;
    let delivery = receive_one(&inbox).await;
    assert_eq!(delivery.message.body, sent.body);
    assert_eq!(delivery.message.id, sent.id);
    assert_eq!(delivery.message.partition_key, sent.partition_key);
    assert_eq!(delivery.message.headers, sent.headers);
    assert!(delivery.message.published_at.is_some());
    assert_eq!((delivery.attempts_used, delivery.redrives), (0, 2));
    assert_eq!(delivery.lease, Some(LEASE));
}

#[tokio::test(start_paused = true)]
async fn competing_subscriptions_share_the_messages() {
    let broker = InProcessBroker::new("orders");
    publish(&broker, &["1", "2", "3"]).await;
    let (one, other) = (
        subscribe(&broker, Unordered).await,
        subscribe(&broker.clone(), Unordered).await,
    );
    assert_eq!(names(&receive(&one, 2).await), ["1", "2"]);
    assert_eq!(names(&receive_now(&other).await), ["3"]);
    assert!(receive_now(&one).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_a_dropped_subscription_held_is_delivered_again_in_its_place() {
    let broker = InProcessBroker::new("orders");
    publish(&broker, &["1", "2", "3", "4"]).await;
    let inbox = subscribe(&broker, Unordered).await;
    let mut received = receive(&inbox, 3).await;
    complete(&inbox, received.remove(1)).await;
    drop(inbox);
    let inbox = subscribe(&broker, Unordered).await;
    let received = receive(&inbox, 10).await;
    assert_eq!(names(&received), ["1", "3", "4"]);
    let used: Vec<_> = received.iter().map(|d| d.attempts_used).collect();
    assert_eq!(used, [1, 1, 0], "an end without a verdict uses an attempt");
    assert_eq!(broker.counts().lost_leases, 2);
}

#[tokio::test(start_paused = true)]
async fn closing_a_handle_gives_back_only_what_it_held() {
    let broker = InProcessBroker::new("orders");
    let other = broker.clone();
    publish(&broker, &["1", "2"]).await;
    let mine = subscribe(&broker, Unordered).await;
    let theirs = subscribe(&other, Unordered).await;
    let kept = receive_one(&mine).await;
    let lost = receive_one(&theirs).await;
    other.close().await;
    assert_eq!(receive_error(&theirs).await, BrokerErrorKind::Closed);
    assert_eq!(
        kind(settle(&theirs, lost, Verdict::Complete).await),
        BrokerErrorKind::LeaseLost
    );
    assert_eq!(
        publish_one(&other, "3").await.unwrap_err().kind(),
        BrokerErrorKind::Closed
    );
    assert!(other.subscribe(&options(Unordered)).await.is_err());
    complete(&mine, kept).await;
    let again = receive_one(&mine).await;
    assert_eq!((name(&again), again.attempts_used), ("2".to_owned(), 1));
}

#[tokio::test(start_paused = true)]
async fn a_stopped_subscription_can_still_settle_and_extend() {
    let broker = InProcessBroker::new("orders");
    publish(&broker, &["1", "2"]).await;
    let inbox = subscribe(&broker, Unordered).await;
    let delivery = receive_one(&inbox).await;
    inbox.stop().await;
    assert_eq!(receive_error(&inbox).await, BrokerErrorKind::Closed);
    assert!(inbox.extend(&[delivery.receipt.lease()]).await[0].is_ok());
    complete(&inbox, delivery).await;
    assert_eq!((broker.counts().ready, broker.counts().completed), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_a_waiting_receive() {
    let broker = InProcessBroker::new("orders");
    let inbox = subscribe(&broker, Unordered).await;
    let (error, ()) = tokio::join!(receive_error(&inbox), inbox.stop());
    assert_eq!(error, BrokerErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_receive_loses_nothing() {
    let broker = InProcessBroker::new("orders");
    let inbox = subscribe(&broker, Unordered).await;
    for _ in 0..100 {
        assert!(receive_now(&inbox).await.is_empty());
    }
    publish(&broker, &["1"]).await;
    assert_eq!(names(&receive_now(&inbox).await), ["1"]);
    assert_eq!(broker.counts().delivered, 1);
}

#[tokio::test(start_paused = true)]
async fn a_retry_carries_the_attempts_that_it_is_told() {
    let broker = InProcessBroker::new("orders");
    publish(&broker, &["1"]).await;
    let inbox = subscribe(&broker, Unordered).await;
    for used in 1..4 {
        let delivery = receive_one(&inbox).await;
        assert_eq!(delivery.attempts_used, used - 1);
        settle(&inbox, delivery, retry(SECOND, used)).await.unwrap();
    }
    assert_eq!((broker.counts().delayed, broker.counts().retried), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn a_release_uses_no_attempt_and_keeps_the_place() {
    let broker = InProcessBroker::new("orders");
    publish(&broker, &["1", "2"]).await;
    let inbox = subscribe(&broker, Unordered).await;
    let delivery = receive_one(&inbox).await;
    settle(&inbox, delivery, release(Duration::ZERO))
        .await
        .unwrap();
    let again = receive_one(&inbox).await;
    assert_eq!((name(&again), again.attempts_used), ("1".to_owned(), 0));
    assert_eq!(broker.counts().released, 1);
}

#[tokio::test(start_paused = true)]
async fn a_release_that_costs_counts() {
    let broker = InProcessBroker::builder("orders")
        .release_cost(crate::ports::ReleaseCost::Counted)
        .build();
    publish(&broker, &["1"]).await;
    let inbox = subscribe(&broker, Unordered).await;
    let delivery = receive_one(&inbox).await;
    settle(&inbox, delivery, release(Duration::ZERO))
        .await
        .unwrap();
    assert_eq!(receive_one(&inbox).await.attempts_used, 1);
}

#[tokio::test(start_paused = true)]
async fn dead_letters_are_browsed_oldest_first_and_stay() {
    let broker = InProcessBroker::new("orders");
    publish(&broker, &["1", "2", "3"]).await;
    let inbox = subscribe(&broker, Unordered).await;
    for delivery in receive(&inbox, 3).await {
        settle(&inbox, delivery, dead_letter()).await.unwrap();
    }
    let dead = broker.dead_letters().await.unwrap();
    let two = NonZeroUsize::new(2).unwrap();
    for _ in 0..2 {
        let records = dead.browse(two).await.unwrap();
        let bodies: Vec<_> = records.iter().map(|r| r.message.body.clone()).collect();
        assert_eq!(bodies, ["1", "2"]);
        assert_eq!(
            records[0].dead_letter.reason,
            DeadLetterReason::PermanentError
        );
    }
    assert_eq!(dead.depth().await.unwrap(), 3);
    assert_eq!(broker.counts().dead_lettered, 3);
    assert!(broker.counts().is_drained());
}

#[tokio::test(start_paused = true)]
async fn the_broker_dead_letters_what_exceeds_its_limit() {
    let broker = InProcessBroker::builder("orders").delivery_limit(3).build();
    publish(&broker, &["1"]).await;
    for used in 0..4 {
        let inbox = subscribe(&broker, Unordered).await;
        assert_eq!(receive_one(&inbox).await.attempts_used, used);
    }
    let records = broker.dead_letter_records();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].dead_letter.reason, DeadLetterReason::BrokerLimit);
    assert_eq!(records[0].dead_letter.attempts, 4);
    assert_eq!(records[0].dead_letter.origin, "orders");
}

#[tokio::test(start_paused = true)]
async fn without_a_dead_letter_queue_nothing_is_thrown_away() {
    let broker = InProcessBroker::builder("orders")
        .delivery_limit(1)
        .without_dead_letter_queue()
        .build();
    publish(&broker, &["1"]).await;
    for _ in 0..5 {
        let inbox = subscribe(&broker, Unordered).await;
        receive_one(&inbox).await;
    }
    let inbox = subscribe(&broker, Unordered).await;
    let delivery = receive_one(&inbox).await;
    assert_eq!(delivery.attempts_used, 5);
    let error = settle(&inbox, delivery, dead_letter()).await.unwrap_err();
    assert_eq!(error.cause.kind(), BrokerErrorKind::NotFound);
    let kept = error.kept.unwrap();
    complete(&inbox, kept.delivery).await;
}

#[tokio::test]
async fn receivers_on_many_threads_lose_nothing() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_time()
        .build()
        .unwrap();
    let broker = InProcessBroker::new("orders");
    let receivers: Vec<_> = (0..4)
        .map(|_| {
            let broker = broker.clone();
            runtime.spawn(async move {
                let inbox = subscribe(&broker, Unordered).await;
                loop {
                    let received = receive(&inbox, 7).await;
                    complete_all(&inbox, received).await;
                }
            })
        })
        .collect();
    for _ in 0..1000 {
        publish(&broker, &["1", "2"]).await;
    }
    broker.wait_for(|counts| counts.completed == 2000).await;
    assert_eq!(broker.counts().delivered, 2000);
    receivers.iter().for_each(tokio::task::JoinHandle::abort);
    runtime.shutdown_background();
}
