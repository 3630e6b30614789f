//! Delays and leases.

use tokio::time::{Instant, advance};

use super::*;
use crate::ports::LeaseState;

#[tokio::test(start_paused = true)]
async fn a_delayed_message_is_not_delivered_before_its_time() {
    let broker = InProcessBroker::new("orders");
    let start = Instant::now();
    publish_after(&broker, &["late"], 10 * SECOND).await;
    publish_after(&broker, &["soon"], SECOND).await;
    let inbox = subscribe(&broker, Unordered).await;
    assert!(receive_now(&inbox).await.is_empty());
    assert_eq!(broker.counts().delayed, 2);
    assert_eq!(name(&receive_one(&inbox).await), "soon");
    assert!(start.elapsed() >= SECOND && start.elapsed() < 2 * SECOND);
    assert_eq!(name(&receive_one(&inbox).await), "late");
    assert!(start.elapsed() >= 10 * SECOND && start.elapsed() < 11 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_short_retry_does_not_wait_for_a_long_one() {
    let broker = InProcessBroker::new("orders");
    publish(&broker, &["long", "short"]).await;
    let inbox = subscribe(&broker, Unordered).await;
    let start = Instant::now();
    for (delivery, wait) in receive(&inbox, 2).await.into_iter().zip([100, 1]) {
        let verdict = retry(wait * SECOND, 1);
        settle(&inbox, delivery, verdict).await.unwrap();
    }
    assert_eq!(name(&receive_one(&inbox).await), "short");
    assert!(start.elapsed() >= SECOND && start.elapsed() < 2 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_shorter_delay_wakes_a_receive_that_waits_for_a_longer_one() {
    let broker = InProcessBroker::new("orders");
    publish_after(&broker, &["late"], 100 * SECOND).await;
    let inbox = subscribe(&broker, Unordered).await;
    let later = async {
        advance(SECOND).await;
        publish_after(&broker, &["soon"], SECOND).await;
    };
    let (delivery, ()) = tokio::join!(receive_one(&inbox), later);
    assert_eq!(name(&delivery), "soon");
}

#[tokio::test(start_paused = true)]
async fn a_delay_that_no_clock_shows_is_no_panic() {
    let broker = InProcessBroker::new("orders");
    publish_after(&broker, &["never"], Duration::MAX).await;
    let inbox = subscribe(&broker, Unordered).await;
    assert!(receive_now(&inbox).await.is_empty());
    assert_eq!(broker.counts().delayed, 1);
}

#[tokio::test(start_paused = true)]
async fn an_expired_lease_is_redelivered() {
    let broker = InProcessBroker::new("orders");
    publish(&broker, &["1"]).await;
    let inbox = subscribe(&broker, Unordered).await;
    let stale = receive_one(&inbox).await;
    let start = Instant::now();
    let again = receive_one(&inbox).await;
    assert!(start.elapsed() >= LEASE && start.elapsed() < LEASE + SECOND);
    assert_eq!(again.attempts_used, 1);
    let extended = inbox.extend(&[stale.receipt.lease()]).await;
    assert!(matches!(extended[..], [Ok(LeaseState::Lost)]));
    for verdict in [Verdict::Complete, retry(SECOND, 1)] {
        let stale = Delivery {
            message: stale.message.clone(),
            receipt: crate::delivery::Receipt::new(stale.receipt.lease()),
            ..stale
        };
        let error = settle(&inbox, stale, verdict).await.unwrap_err();
        assert_eq!(error.cause.kind(), BrokerErrorKind::LeaseLost);
        assert!(error.kept.is_none());
    }
    complete(&inbox, again).await;
    let counts = broker.counts();
    assert_eq!(
        (counts.delivered, counts.completed, counts.lost_leases),
        (2, 1, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_over_at_its_end_even_if_nobody_received_since() {
    let broker = InProcessBroker::new("orders");
    publish(&broker, &["1"]).await;
    let inbox = subscribe(&broker, Unordered).await;
    let delivery = receive_one(&inbox).await;
    advance(LEASE).await;
    let answer = settle(&inbox, delivery, Verdict::Complete).await;
    assert_eq!(kind(answer), BrokerErrorKind::LeaseLost);
    let counts = broker.counts();
    assert_eq!(
        (counts.ready, counts.in_flight, counts.completed),
        (1, 0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn an_extended_lease_lasts_from_its_extension() {
    let broker = InProcessBroker::new("orders");
    publish(&broker, &["kept", "lost"]).await;
    let inbox = subscribe(&broker, Unordered).await;
    let mut received = receive(&inbox, 2).await;
    let kept = received.remove(0);
    for _ in 0..5 {
        advance(20 * SECOND).await;
        let answers = inbox.extend(&[kept.receipt.lease()]).await;
        assert!(matches!(answers[..], [Ok(LeaseState::Held(Some(LEASE)))]));
    }
    assert_eq!(names(&receive_now(&inbox).await), ["lost"]);
    complete(&inbox, kept).await;
}

#[tokio::test(start_paused = true)]
async fn counts_are_as_of_now() {
    let broker = InProcessBroker::new("orders");
    publish_after(&broker, &["1"], SECOND).await;
    advance(2 * SECOND).await;
    assert_eq!((broker.counts().delayed, broker.counts().ready), (0, 1));
    let counts = tokio::time::timeout(LEASE, broker.wait_for(|counts| counts.ready == 1)).await;
    assert_eq!(counts.unwrap().published, 1);
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_counts_sees_what_time_brings() {
    let broker = InProcessBroker::new("orders");
    publish_after(&broker, &["1"], 5 * SECOND).await;
    let start = Instant::now();
    broker.wait_for(|counts| counts.ready == 1).await;
    assert!(start.elapsed() >= 5 * SECOND && start.elapsed() < 6 * SECOND);
}
