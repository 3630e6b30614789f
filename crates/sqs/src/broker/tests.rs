//! Dead-lettering, with answers that no emulator gives.

use std::time::SystemTime;

use aws_sdk_sqs::types::Message as NativeMessage;
use backstop_core::{DeadLetter, DeadLetterReason, LeaseId, Settlement, Verdict};
use tokio::time::Instant;

use super::*;
use crate::connection::Clients;
use crate::decode;
use crate::scripted::{Script, answer};
use crate::settle::{self, Desk};

/// What settles the deliveries of a queue whose dead-letter queue is known.
fn desk(script: &Script) -> Desk {
    let config = SqsConfig::from_url("sqs://sqs.us-east-1.amazonaws.com/123456789012/q").unwrap();
    let shared = Sqs::new(config).shared;
    *shared.target.lock() = Some(Arc::new(Target {
        name: "q-dead".to_owned(),
        url: "https://q-dead".into(),
        max_receive_count: 100,
    }));
    let clients = Clients {
        prompt: script.client(),
        polling: script.client(),
    };
    Desk::new(shared, clients, "https://q".into(), 30)
}

/// A delivery that is to be dead-lettered.
fn dead_letter(desk: &Desk) -> (LeaseId, Settlement) {
    let native = NativeMessage::builder().message_id("m").body("x");
    let arrival = decode::arrival(native.receipt_handle("handle").build());
    let now = Instant::now();
    let lease = desk.leases.begin(Arc::clone(&arrival.handle), now);
    let delivery = settle::delivery(arrival, lease, Duration::from_secs(30), 0);
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

/// Nothing listens there: it is refused before SQS is asked.
const NOBODY: &str = "sqs://127.0.0.1:1/000000000000";

#[test]
fn bodies_are_received_up_to_the_limit_of_sqs_itself() {
    let broker = Sqs::open(&format!("{NOBODY}/orders")).unwrap();
    assert_eq!(broker.capabilities().max_body, 1_048_576);
}
