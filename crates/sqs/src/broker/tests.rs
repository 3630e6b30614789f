//! Settling and extending, with answers that no emulator gives.

use std::time::SystemTime;

use aws_sdk_sqs::types::Message as NativeMessage;
use backstop_core::{
    DeadLetter, DeadLetterReason, Delivery, LeaseId, LeaseState, Settlement, Verdict,
};
use serde_json::Value;
use tokio::time::Instant;

use super::*;
use crate::decode;
use crate::scripted::{Answer, Script, answer};
use crate::settle::{self, Desk};

/// What settles the deliveries of a queue whose dead-letter queue is known.
fn desk(script: &Script) -> Arc<Desk> {
    let config = SqsConfig::from_url("sqs://sqs.us-east-1.amazonaws.com/123456789012/q").unwrap();
    let shared = Sqs::new(config).shared;
    *shared.target.lock() = Some(Arc::new(Target {
        name: "q-dead".to_owned(),
        url: "https://q-dead".into(),
        max_receive_count: 100,
    }));
    Arc::new(Desk::scripted(shared, script))
}

fn delivery(desk: &Desk) -> (LeaseId, Delivery) {
    let native = NativeMessage::builder().message_id("m").body("x");
    let arrival = decode::arrival(native.receipt_handle("handle").build());
    let lease = desk
        .leases
        .begin(Arc::clone(&arrival.handle), Instant::now());
    let delivery = settle::delivery(arrival, lease, Duration::from_secs(30), 0);
    (lease, delivery)
}

/// A delivery that is to be dead-lettered.
fn dead_letter(desk: &Desk) -> (LeaseId, Settlement) {
    let (lease, delivery) = delivery(desk);
    let letter = DeadLetter {
        reason: DeadLetterReason::PermanentError,
        error: "no".to_owned(),
        attempts: 1,
        origin: "q".to_owned(),
        consumer: "c".to_owned(),
        at: SystemTime::now(),
    };
    let verdict = Verdict::DeadLetter(Box::new(letter));
    (lease, Settlement { delivery, verdict })
}

#[tokio::test(start_paused = true)]
async fn a_copy_in_the_dead_letter_queue_counts_even_if_the_original_stays() {
    for code in ["ReceiptHandleIsInvalid", "AccessDenied", "InternalError"] {
        let script = Script::new([answer(&[0], &[]), answer(&[], &[(0, code)])]);
        let desk = desk(&script);
        let (lease, settlement) = dead_letter(&desk);
        let answers = desk.settle(vec![settlement]).await;
        assert!(answers[0].is_ok(), "{code}: it would be copied again");
        assert_eq!(script.batches().len(), 2, "{code}: a copy and a deletion");
        assert!(desk.leases.get(lease, Instant::now()).is_none(), "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_without_a_copy_is_kept() {
    let script = Script::new([answer(&[], &[(0, "AccessDenied")])]);
    let desk = desk(&script);
    let (lease, settlement) = dead_letter(&desk);
    let answers = desk.settle(vec![settlement]).await;
    assert!(answers[0].as_ref().is_err_and(|error| error.kept.is_some()));
    assert_eq!(script.batches().len(), 1, "nothing is deleted");
    assert!(desk.leases.get(lease, Instant::now()).is_some());
}

const SECOND: Duration = Duration::from_secs(1);

fn retry(delivery: Delivery, after: Duration) -> Vec<Settlement> {
    let verdict = Verdict::Retry {
        after,
        attempts_used: 1,
    };
    vec![Settlement { delivery, verdict }]
}

/// The visibilities that were asked for, one after the other.
fn visibilities(script: &Script) -> Vec<u64> {
    let visibility = |asked: &Value| asked["Entries"][0]["VisibilityTimeout"].as_u64();
    let asked = script.asked("ChangeMessageVisibilityBatch");
    asked.iter().filter_map(visibility).collect()
}

#[tokio::test(start_paused = true)]
async fn no_extension_overtakes_a_retry() {
    let script = Script::new([Answer::from(answer(&[0], &[])).late(5 * SECOND)]);
    let desk = desk(&script);
    let (lease, delivery) = delivery(&desk);
    let settling = desk.settle(retry(delivery, 9 * SECOND));
    let extending = async {
        tokio::time::sleep(SECOND).await;
        desk.extend(&[lease]).await
    };
    let (settled, extended) = tokio::join!(settling, extending);
    assert!(settled[0].is_ok());
    // It is ours meanwhile, for as long as it was.
    let left = Duration::from_millis(28_500);
    assert_eq!(*extended[0].as_ref().unwrap(), LeaseState::Held(Some(left)));
    assert_eq!(visibilities(&script), [9], "it would come at another time");
}

#[tokio::test(start_paused = true)]
async fn a_retry_waits_for_an_extension_that_is_under_way_and_comes_when_it_is_due() {
    let late = Answer::from(answer(&[0], &[])).late(5 * SECOND);
    let script = Script::new([late, answer(&[0], &[]).into()]);
    let desk = desk(&script);
    let (lease, delivery) = delivery(&desk);
    let begun = Instant::now();
    let settling = async {
        tokio::time::sleep(SECOND).await;
        let settled = desk.settle(retry(delivery, 20 * SECOND)).await;
        (settled, begun.elapsed())
    };
    let leases = [lease];
    let (extended, (settled, took)) = tokio::join!(desk.extend(&leases), settling);
    assert!(matches!(extended[0], Ok(LeaseState::Held(Some(_)))));
    assert!(settled[0].is_ok() && took >= 5 * SECOND, "{took:?}");
    assert_eq!(visibilities(&script), [30, 16], "four seconds have gone");
}

/// The consumer does not wait for ever for an answer; SQS may carry the extension out all the same.
#[tokio::test(start_paused = true)]
async fn a_retry_waits_for_an_extension_that_nobody_waits_for_but_not_for_ever() {
    let late = Answer::from(answer(&[0], &[])).late(5 * SECOND);
    let script = Script::new([late, answer(&[0], &[]).into()]);
    let desk = desk(&script);
    let (lease, delivery) = delivery(&desk);
    let begun = Instant::now();
    let extending = tokio::time::timeout(SECOND, desk.extend(&[lease])).await;
    assert!(extending.is_err());
    let settled = desk.settle(retry(delivery, SECOND)).await;
    assert!(settled[0].is_ok() && begun.elapsed() >= 5 * SECOND);
    assert_eq!(visibilities(&script), [30, 0], "it has waited already");
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_sqs_did_not_take_can_be_extended_and_tried_again() {
    let refused = answer(&[], &[(0, "InternalError")]);
    let script = Script::new([refused, answer(&[0], &[])]);
    let desk = desk(&script);
    let (lease, delivery) = delivery(&desk);
    let mut settled = desk.settle(retry(delivery, SECOND)).await;
    let kept = settled.remove(0).unwrap_err().kept.expect("it is ours");
    let extended = desk.extend(&[lease]).await;
    assert!(matches!(extended[0], Ok(LeaseState::Held(Some(_)))));
    assert!(desk.settle(vec![*kept]).await[0].is_ok());
    assert_eq!(visibilities(&script), [1, 30, 1]);
}

#[tokio::test(start_paused = true)]
async fn what_is_given_back_at_the_end_waits_for_its_extension() {
    let late = Answer::from(answer(&[0], &[])).late(5 * SECOND);
    let script = Script::new([late, answer(&[0], &[]).into()]);
    let desk = desk(&script);
    let (lease, _delivery) = delivery(&desk);
    let begun = Instant::now();
    let closing = async {
        tokio::time::sleep(SECOND).await;
        desk.give_all_back().await;
        assert!(begun.elapsed() >= 5 * SECOND);
    };
    let leases = [lease];
    let (extended, ()) = tokio::join!(desk.extend(&leases), closing);
    assert_eq!(*extended[0].as_ref().unwrap(), LeaseState::Lost);
    assert_eq!(visibilities(&script), [30, 0]);
}

#[tokio::test(start_paused = true)]
async fn an_expired_receipt_handle_is_a_lost_lease() {
    for code in ["ReceiptHandleIsInvalid", "MessageNotInflight"] {
        let script = Script::new([answer(&[], &[(0, code)])]);
        let desk = desk(&script);
        let (lease, _delivery) = delivery(&desk);
        let extended = desk.extend(&[lease]).await;
        assert_eq!(*extended[0].as_ref().unwrap(), LeaseState::Lost, "{code}");
        assert!(desk.leases.get(lease, Instant::now()).is_none(), "{code}");
        let extended = desk.extend(&[lease]).await;
        assert_eq!(*extended[0].as_ref().unwrap(), LeaseState::Lost, "{code}");
        assert_eq!(script.batches().len(), 1, "{code}: SQS need not be asked");

        let (_, settled) = delivery(&desk);
        let error = desk.settle(retry(settled, SECOND)).await.remove(0);
        let error = error.unwrap_err();
        assert_eq!(error.cause.kind(), BrokerErrorKind::LeaseLost, "{code}");
        assert!(error.kept.is_none(), "{code}: it is not ours any more");
    }
}

#[tokio::test(start_paused = true)]
async fn many_leases_are_extended_by_tens_each_with_its_own_answer() {
    let script = Script::new([
        answer(&[0, 1, 2, 3, 4, 5, 6, 7, 8], &[(9, "InternalError")]),
        answer(&[0], &[(1, "ReceiptHandleIsInvalid")]),
    ]);
    let desk = desk(&script);
    let leases: Vec<_> = (0..12).map(|_| delivery(&desk).0).collect();
    let extended = desk.extend(&leases).await;
    let is_held =
        |answer: &Result<LeaseState, BrokerError>| matches!(answer, Ok(LeaseState::Held(_)));
    let held = extended.iter().filter(|answer| is_held(answer)).count();
    assert_eq!(held, 10);
    assert!(extended[9].is_err() && matches!(extended[11], Ok(LeaseState::Lost)));
}

async fn refusal_to_subscribe(url: &str, order: SubscriptionOrder) -> BrokerError {
    let broker = Sqs::open(url).unwrap();
    let options = SubscribeOptions {
        consumer: "billing".into(),
        order,
        max_buffered: std::num::NonZeroUsize::MIN,
        max_attempts: std::num::NonZeroU32::MIN,
        handler_timeout: SECOND,
        longest_wait: SECOND,
    };
    match broker.subscribe(&options).await {
        Ok(_) => panic!("{url} was subscribed to"),
        Err(error) => error,
    }
}

/// Nothing listens there: it is refused before SQS is asked.
const NOBODY: &str = "sqs://127.0.0.1:1/000000000000";

#[tokio::test]
async fn order_on_a_standard_queue_is_refused() {
    let url = format!("{NOBODY}/orders");
    let error = refusal_to_subscribe(&url, SubscriptionOrder::ByPartitionKey).await;
    assert_eq!(error.kind(), BrokerErrorKind::Unsupported);
    assert!(error.to_string().contains(".fifo"), "{error}");
    let broker = Sqs::open(&url).unwrap();
    assert_eq!(broker.capabilities().order, OrderScope::WithinProcess);
    let ordered = backstop_core::Consumer::builder(broker)
        .idempotent_by_nature()
        .ordered()
        .raw(async |_: bytes::Bytes, _: backstop_core::Context| {
            Ok::<_, backstop_core::HandlerError>(())
        });
    let Err(error) = ordered else {
        panic!("it is not refused");
    };
    assert!(error.to_string().contains("ordered"), "{error}");
}

#[test]
fn delays_that_sqs_does_not_have_are_refused() {
    let native = |queue: &str, delay| {
        let broker = Sqs::open(&format!("{NOBODY}/{queue}")).unwrap();
        let message = Arc::new(backstop_core::Message::new("x"));
        broker.shared.native(&Outgoing { message, delay })
    };
    for (queue, delay, told) in [
        (
            "orders.fifo",
            SECOND,
            "a FIFO queue delays no single message",
        ),
        ("orders", LONGEST_DELAY + SECOND, "at most 900s"),
    ] {
        let error = native(queue, delay).unwrap_err();
        assert_eq!(error.kind(), BrokerErrorKind::Unsupported);
        assert!(error.to_string().contains(told), "{error}");
    }
    assert_eq!(native("orders.fifo", Duration::ZERO).unwrap().delay, 0);
    assert_eq!(native("orders", LONGEST_DELAY).unwrap().delay, 900);
    assert_eq!(native("orders", Duration::from_millis(1)).unwrap().delay, 1);
}

#[test]
fn bodies_are_received_up_to_the_limit_of_sqs_itself() {
    let broker = Sqs::open(&format!("{NOBODY}/orders")).unwrap();
    assert_eq!(broker.capabilities().max_body, 1_048_576);
}
