//! Injected faults.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::time::Instant;

use super::*;
use crate::in_process::{BrokerFault, BrokerOperation};

async fn broker_with_one() -> (InProcessBroker, Inbox) {
    let broker = InProcessBroker::new("orders");
    publish(&broker, &["1"]).await;
    let inbox = subscribe(&broker, Unordered).await;
    (broker, inbox)
}

#[tokio::test(start_paused = true)]
async fn a_dropped_connection_revokes_stale_settles_and_heals() {
    let (broker, inbox) = broker_with_one().await;
    let stale = receive_one(&inbox).await;
    broker.drop_connections();
    let answer = settle(&inbox, stale, Verdict::Complete).await;
    assert_eq!(kind(answer), BrokerErrorKind::LeaseLost);
    assert_eq!(receive_error(&inbox).await, BrokerErrorKind::Unreachable);
    assert_eq!(receive_one(&inbox).await.attempts_used, 1);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_connection_ends_a_waiting_receive() {
    let broker = InProcessBroker::new("orders");
    let inbox = subscribe(&broker, Unordered).await;
    let cut = async { broker.drop_connections() };
    let (error, ()) = tokio::join!(receive_error(&inbox), cut);
    assert_eq!(error, BrokerErrorKind::Unreachable);
}

#[tokio::test(start_paused = true)]
async fn one_connection_can_be_cut_alone() {
    let broker = InProcessBroker::new("orders");
    let other = broker.clone();
    publish(&broker, &["1", "2"]).await;
    let mine = subscribe(&broker, Unordered).await;
    let theirs = subscribe(&other, Unordered).await;
    let kept = receive_one(&mine).await;
    receive_one(&theirs).await;
    other.drop_own_connection();
    assert_eq!(receive_error(&theirs).await, BrokerErrorKind::Unreachable);
    complete(&mine, kept).await;
    assert_eq!(name(&receive_one(&mine).await), "2");
}

#[tokio::test(start_paused = true)]
async fn a_lost_ack_repeats_the_message() {
    let (broker, inbox) = broker_with_one().await;
    broker.faults().lose_acks(1);
    let delivery = receive_one(&inbox).await;
    complete(&inbox, delivery).await;
    let again = receive_one(&inbox).await;
    assert_eq!(again.attempts_used, 1);
    complete(&inbox, again).await;
    assert_eq!(broker.counts().completed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_has_taken_effect() {
    let (broker, inbox) = broker_with_one().await;
    broker.faults().lose_answers(1);
    let delivery = receive_one(&inbox).await;
    let error = settle(&inbox, delivery, Verdict::Complete)
        .await
        .unwrap_err();
    assert_eq!(error.cause.kind(), BrokerErrorKind::Unreachable);
    assert!(error.kept.is_none());
    assert!(broker.counts().is_drained());
    assert_eq!(broker.counts().completed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_settle_keeps_the_delivery() {
    let (broker, inbox) = broker_with_one().await;
    broker.faults().fail_settles(1);
    let delivery = receive_one(&inbox).await;
    let error = settle(&inbox, delivery, Verdict::Complete)
        .await
        .unwrap_err();
    assert!(error.cause.is_transient());
    complete(&inbox, error.kept.unwrap().delivery).await;
    assert_eq!(broker.counts().completed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_queue_that_refuses_keeps_the_original() {
    let (broker, inbox) = broker_with_one().await;
    broker.faults().refuse_dead_letters(1);
    let delivery = receive_one(&inbox).await;
    let error = settle(&inbox, delivery, dead_letter()).await.unwrap_err();
    assert!(error.cause.is_transient());
    assert_eq!((broker.counts().in_flight, broker.counts().dead), (1, 0));
    let kept = error.kept.unwrap();
    settle(&inbox, kept.delivery, kept.verdict).await.unwrap();
    assert_eq!(broker.counts().dead, 1);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_whose_original_is_kept_comes_again() {
    let (broker, inbox) = broker_with_one().await;
    broker.faults().keep_originals(1);
    for dead in 1..=2 {
        let delivery = receive_one(&inbox).await;
        settle(&inbox, delivery, dead_letter()).await.unwrap();
        assert_eq!(broker.counts().dead, dead);
    }
    let counts = broker.counts();
    assert!(counts.is_drained());
    assert_eq!((counts.published, counts.repeated), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_repeat_stands_behind_its_original() {
    for order in [Unordered, ByPartitionKey] {
        let broker = InProcessBroker::new("orders");
        publish(&broker, &["a-1", "a-2", "a-3"]).await;
        let inbox = subscribe(&broker, order).await;
        broker.faults().repeat_deliveries(2);
        let first = receive(&inbox, 2).await;
        let rest = receive_now(&inbox).await;
        let all = [names(&first), names(&rest)].concat();
        let behind_what_is_out = order == ByPartitionKey;
        assert_eq!(all.len(), if behind_what_is_out { 2 } else { 5 }, "{all:?}");
        complete_all(&inbox, first).await;
        complete_all(&inbox, rest).await;
        complete_all(&inbox, receive_now(&inbox).await).await;
        let counts = broker.counts();
        assert!(counts.is_drained());
        assert_eq!(
            (counts.published, counts.repeated, counts.completed),
            (3, 2, 5)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn each_operation_fails_as_often_as_planned() {
    let (broker, inbox) = broker_with_one().await;
    let faults = broker.faults();
    let kind = BrokerErrorKind::Throttled;
    for operation in [
        BrokerOperation::Inspect,
        BrokerOperation::Subscribe,
        BrokerOperation::Receive,
        BrokerOperation::Extend,
        BrokerOperation::Publish,
        BrokerOperation::DeadLetters,
    ] {
        faults.fail(operation, kind, 1);
    }
    let options = options(Unordered);
    assert_eq!(broker.inspect(&options).await.unwrap_err().kind(), kind);
    assert!(broker.inspect(&options).await.is_ok());
    assert_eq!(broker.subscribe(&options).await.err().unwrap().kind(), kind);
    assert!(broker.subscribe(&options).await.is_ok());
    assert_eq!(receive_error(&inbox).await, kind);
    let lease = receive_one(&inbox).await.receipt.lease();
    assert!(inbox.extend(&[lease]).await[0].is_err());
    assert!(inbox.extend(&[lease]).await[0].is_ok());
    assert_eq!(publish_one(&broker, "2").await.unwrap_err().kind(), kind);
    publish_one(&broker, "2").await.unwrap();
    let dead = broker.dead_letters().await.unwrap();
    assert_eq!(dead.depth().await.unwrap_err().kind(), kind);
    assert_eq!(dead.depth().await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_delayed_settle_can_come_too_late() {
    let (broker, inbox) = broker_with_one().await;
    broker.faults().delay_settles(LEASE);
    let delivery = receive_one(&inbox).await;
    let answer = settle(&inbox, delivery, Verdict::Complete).await;
    assert_eq!(kind(answer), BrokerErrorKind::LeaseLost);
    broker.faults().clear();
    let again = receive_one(&inbox).await;
    complete(&inbox, again).await;
}

#[tokio::test(start_paused = true)]
async fn leases_can_be_ended_early() {
    let (broker, inbox) = broker_with_one().await;
    let stale = receive_one(&inbox).await;
    broker.expire_leases();
    assert_eq!(broker.counts().ready, 1);
    let answer = settle(&inbox, stale, Verdict::Complete).await;
    assert_eq!(kind(answer), BrokerErrorKind::LeaseLost);
}

#[tokio::test(start_paused = true)]
async fn a_hook_sees_every_call_and_decides() {
    let (broker, inbox) = broker_with_one().await;
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&seen);
    broker.faults().on_call(move |call| {
        assert_eq!((call.consumer, call.size), ("tests", 1));
        match (call.operation, counter.fetch_add(1, Ordering::Relaxed)) {
            (BrokerOperation::Receive, 1) => Some(BrokerFault::Fail(BrokerErrorKind::Throttled)),
            (BrokerOperation::Receive, 2) => Some(BrokerFault::CutConnection),
            (BrokerOperation::Receive, 3) => Some(BrokerFault::Delay(SECOND)),
            (BrokerOperation::Receive, 0) | (BrokerOperation::Settle, 4) => {
                Some(BrokerFault::LoseAnswer)
            }
            _ => None,
        }
    });
    let one = NonZeroUsize::MIN;
    let mut errors = Vec::new();
    for _ in 0..3 {
        errors.push(inbox.receive(one).await.unwrap_err().kind());
    }
    let unreachable = BrokerErrorKind::Unreachable;
    assert_eq!(
        errors,
        [unreachable, BrokerErrorKind::Throttled, unreachable]
    );
    let start = Instant::now();
    let delivery = receive_one(&inbox).await;
    assert!(start.elapsed() >= SECOND);
    assert_eq!(
        delivery.attempts_used, 1,
        "a lost hand-over counts, as a crash does"
    );
    let error = settle(&inbox, delivery, Verdict::Complete)
        .await
        .unwrap_err();
    assert!(error.kept.is_none());
    assert_eq!(broker.counts().completed, 1);
    assert_eq!(seen.load(Ordering::Relaxed), 5);
}
