use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::{
    Message as NativeMessage, MessageAttributeValue, MessageSystemAttributeName as System,
};
use backstop_core::DeadLetterReason;

use proptest::prelude::*;

use super::*;
use crate::decode::{self, Arrival};

const STANDARD: QueueKind = QueueKind::Standard;
const FIFO: QueueKind = QueueKind::Fifo;

/// A body that leaves room for an id and some headers.
const MAX_BODY: usize = MAX_BYTES - 4096;

/// What SQS hands out of what was sent.
fn delivered(native: Native) -> NativeMessage {
    let mut message = NativeMessage::builder()
        .message_id("0f8fad5b-d9cb-469f-a165-70867728950e")
        .receipt_handle("handle")
        .body(native.body)
        .attributes(System::SentTimestamp, "1700000000123")
        .attributes(System::ApproximateReceiveCount, "3");
    for (name, value) in [
        (System::MessageGroupId, native.group),
        (System::MessageDeduplicationId, native.deduplication),
        (System::AwsTraceHeader, native.trace),
    ] {
        if let Some(value) = value {
            message = message.attributes(name, value);
        }
    }
    message
        .set_message_attributes(Some(native.attributes))
        .build()
}

fn arrived(sent: &Message, kind: QueueKind) -> Arrival {
    decode::arrival(delivered(message(sent, kind, 0).unwrap()))
}

fn table(message: &Message) -> BTreeMap<&str, &str> {
    message.headers.iter().collect()
}

fn must_be_the_same(seen: &Message, sent: &Message) {
    assert_eq!(seen.body, sent.body);
    assert_eq!(seen.id, sent.id);
    assert_eq!(seen.partition_key, sent.partition_key);
    assert_eq!(table(seen), table(sent));
}

fn letter(error: &str) -> DeadLetter {
    DeadLetter {
        reason: DeadLetterReason::PermanentError,
        error: error.to_owned(),
        attempts: 3,
        origin: "orders".to_owned(),
        consumer: "billing".to_owned(),
        at: UNIX_EPOCH + Duration::from_millis(1234),
    }
}

fn foreign(attributes: usize) -> NativeMessage {
    let mut message = NativeMessage::builder()
        .message_id("native-id")
        .receipt_handle("handle")
        .body("plain text")
        .attributes(System::SentTimestamp, "1700000000123");
    for n in 0..attributes {
        message = message.message_attributes(format!("a{n}"), attributes::string(n.to_string()));
    }
    message.build()
}

#[test]
fn a_message_arrives_as_it_was_sent() {
    let many = (0..12).map(|n| (format!("h{n}"), n.to_string()));
    let mut crowded = Message::new("x").with_id("crowded");
    crowded.headers = many.collect();
    let sent = [
        Message::new("größer, 鍵, 🔑\n\t")
            .with_id("ünï 鍵")
            .with_partition_key("Schlüssel 鍵"),
        Message::new((0..=255).collect::<Vec<u8>>()).with_partition_key("customer-7"),
        Message::new("")
            .with_header("empty", "")
            .with_header("not legal!", "\0"),
        Message::new("control \u{1}").with_id("\u{1}"),
        Message::new("-"),
        Message::new("x").with_id("long-".repeat(100)),
        Message::without_id("no id"),
        Message::without_id("no id").with_partition_key("k"),
        crowded,
    ];
    for message in &sent {
        for kind in [STANDARD, FIFO] {
            let arrival = arrived(message, kind);
            must_be_the_same(&arrival.message, message);
            assert_eq!((arrival.receive_count, arrival.original.redrives), (3, 0));
        }
    }
}

#[test]
fn others_see_text_headers_id_and_group_as_they_are() {
    let sent = Message::new("{}")
        .with_id("m-1")
        .with_partition_key("tenant-7")
        .with_header("traceparent", "00-1");
    let native = message(&sent, FIFO, 0).unwrap();
    assert_eq!(native.body, "{}");
    assert_eq!(native.group.as_deref(), Some("tenant-7"));
    assert_eq!(native.deduplication.as_deref(), Some("m-1"));
    let mut names: Vec<_> = native.attributes.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, [ID, "traceparent"]);
    let fair = message(&sent, STANDARD, 0).unwrap();
    assert_eq!(
        (fair.group.as_deref(), fair.deduplication),
        (Some("tenant-7"), None)
    );
}

#[test]
fn the_id_of_anothers_message_is_ours_then_the_deduplications_then_sqss() {
    let plain = foreign(0);
    assert_eq!(
        decode::arrival(plain.clone()).message.id,
        Some("native-id".into())
    );
    let mut fifo = plain.clone();
    let system = fifo.attributes.get_or_insert_default();
    system.insert(System::MessageDeduplicationId, "dedup".to_owned());
    assert_eq!(
        decode::arrival(fifo.clone()).message.id,
        Some("dedup".into())
    );
    let given = attributes::string("given");
    fifo.message_attributes = Some([(ID.to_owned(), given)].into());
    assert_eq!(decode::arrival(fifo).message.id, Some("given".into()));
}

#[test]
fn attributes_of_others_are_shown_as_text() {
    let bytes = MessageAttributeValue::builder()
        .data_type("Binary")
        .binary_value(Blob::new([1, 2]));
    let number = MessageAttributeValue::builder()
        .data_type("Number")
        .string_value("42");
    let mut native = foreign(0);
    native.message_attributes = Some(
        [
            ("b".to_owned(), bytes.build().unwrap()),
            ("n".to_owned(), number.build().unwrap()),
        ]
        .into(),
    );
    let arrival = decode::arrival(native);
    assert_eq!(table(&arrival.message), [("b", "AQI="), ("n", "42")].into());
    assert_eq!(arrival.message.body, "plain text");
}

#[test]
fn what_only_claims_to_be_base64_is_text() {
    let mut native = foreign(0);
    let claim = attributes::string(BASE64);
    native.message_attributes = Some([(CONTENT_TYPE.to_owned(), claim)].into());
    assert_eq!(decode::arrival(native).message.body, "plain text");
}

#[test]
fn what_sqs_cannot_carry_is_refused_with_its_size() {
    let text = Message::new("x".repeat(MAX_BODY)).with_id("at-the-limit");
    message(&text, FIFO, 0).unwrap();
    for sent in [
        Message::new("x".repeat(MAX_BYTES)),
        Message::new(vec![0; MAX_BODY]),
        Message::new("x".repeat(MAX_BODY)).with_header("large", "h".repeat(5000)),
    ] {
        let error = message(&sent, STANDARD, 0).unwrap_err();
        assert_eq!(error.kind(), BrokerErrorKind::TooLarge);
        assert!(error.to_string().contains("1048576"), "{error}");
    }
}

#[test]
fn a_publisher_cannot_pass_a_header_off_as_ours() {
    for name in [ID, ENVELOPE, CONTENT_TYPE, DEAD_LETTER] {
        let error = message(&Message::new("x").with_header(name, "1"), STANDARD, 0).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn a_dead_letter_reads_back_as_it_was_written() {
    for sent in [
        Message::new(vec![0, 1, 255])
            .with_id("l1 größer")
            .with_partition_key("customer-7")
            .with_header("tenant", "鍵"),
        Message::without_id("x"),
    ] {
        for kind in [STANDARD, FIFO] {
            let arrival = arrived(&sent, kind);
            let copy = dead_letter(&arrival.original, &arrival.message, &letter("boom"), kind);
            assert!(copy.attributes.len() <= MOST);
            let record = decode::dead_letter(decode::arrival(delivered(copy)), "elsewhere", 50);
            must_be_the_same(&record.message, &sent);
            assert_eq!(record.dead_letter, letter("boom"));
        }
    }
}

#[test]
fn a_copy_keeps_the_id_that_sqs_gave() {
    let arrival = decode::arrival(foreign(0));
    let copy = dead_letter(
        &arrival.original,
        &arrival.message,
        &letter("boom"),
        STANDARD,
    );
    let mut copy = delivered(copy);
    copy.message_id = Some("the copy's own".to_owned());
    assert_eq!(decode::arrival(copy).message.id, Some("native-id".into()));
}

#[test]
fn a_copy_of_ten_attributes_has_no_more_and_loses_none() {
    for count in 7..=10 {
        let arrival = decode::arrival(foreign(count));
        let copy = dead_letter(
            &arrival.original,
            &arrival.message,
            &letter("boom"),
            STANDARD,
        );
        assert!(
            copy.attributes.len() <= MOST,
            "{count}: {}",
            copy.attributes.len()
        );
        let record = decode::dead_letter(decode::arrival(delivered(copy)), "orders", 50);
        must_be_the_same(&record.message, &arrival.message);
        assert_eq!(record.dead_letter.reason, DeadLetterReason::PermanentError);
    }
}

#[test]
fn a_second_sending_of_a_message_has_a_dead_letter_of_its_own() {
    let first = arrived(
        &Message::new("x").with_id("7").with_partition_key("k"),
        FIFO,
    );
    let mut second = first.original.clone();
    second.sent = Some(1_700_000_999_999);
    let copy = |original| dead_letter(original, &first.message, &letter("boom"), FIFO);
    let (one, same, other) = (copy(&first.original), copy(&first.original), copy(&second));
    assert_eq!(one.deduplication, same.deduplication);
    assert_ne!(one.deduplication, other.deduplication);
    assert!(attributes::is_token(one.deduplication.as_deref().unwrap()));
    assert_eq!(one.group.as_deref(), Some("k"));
}

#[test]
fn annotations_give_way_to_the_message_and_the_id_to_the_annotations() {
    let long = letter(&"e".repeat(4000));
    let mut seen = Vec::new();
    for room in (0..300).step_by(4).chain([1500]) {
        let mut native = foreign(0);
        native.body = Some("x".repeat(MAX_BYTES - room));
        let arrival = decode::arrival(native);
        let copy = dead_letter(&arrival.original, &arrival.message, &long, STANDARD);
        assert!(copy.bytes() <= MAX_BYTES, "{room}: {}", copy.bytes());
        let named = copy.attributes.contains_key(ID);
        let record = decode::dead_letter(decode::arrival(delivered(copy)), "orders", 50);
        assert_eq!(record.message.body, arrival.message.body);
        let letter = record.dead_letter;
        let annotated = letter.reason == DeadLetterReason::PermanentError;
        assert!(
            room < 1500 || letter.error.ends_with("[4000 bytes in all]"),
            "{}",
            letter.error
        );
        seen.push((annotated, named));
    }
    seen.dedup();
    assert_eq!(seen, [(false, false), (true, false), (true, true)]);
}

#[test]
fn what_sqs_moved_itself_says_so() {
    let mut native = foreign(1);
    let system = native.attributes.get_or_insert_default();
    system.insert(
        System::DeadLetterQueueSourceArn,
        "arn:aws:sqs:r:1:orders".to_owned(),
    );
    let record = decode::dead_letter(decode::arrival(native), "elsewhere", 9);
    assert_eq!(record.dead_letter.reason, DeadLetterReason::BrokerLimit);
    assert_eq!(
        (
            record.dead_letter.origin.as_str(),
            record.dead_letter.attempts
        ),
        ("orders", 9)
    );
    assert_eq!(record.message.headers.get("a0"), Some("0"));
}

/// What anybody sends back to the queue as it is in the dead-letter queue.
fn sent_back(copy: Native) -> Arrival {
    decode::arrival(delivered(copy))
}

#[test]
fn a_dead_letter_that_comes_back_by_any_means_counts_as_redriven() {
    let message = Message::new("x").with_id("7").with_partition_key("k");
    let mut arrival = arrived(&message, FIFO);
    for redrives in 1..=3 {
        let copy = dead_letter(&arrival.original, &arrival.message, &letter("boom"), FIFO);
        arrival = sent_back(copy);
        assert_eq!(arrival.original.redrives, redrives);
        assert_eq!(arrival.message.id, Some("7".into()));
        assert!(arrival.message.headers.is_empty(), "annotations are none");
    }
    // Backstop's own way says it by a header, which may be ahead.
    let header = attributes::string("9");
    let mut copy = dead_letter(&arrival.original, &arrival.message, &letter("boom"), FIFO);
    copy.attributes
        .insert(Message::REDRIVES_HEADER.to_owned(), header);
    assert_eq!(sent_back(copy.clone()).original.redrives, 9);
    copy.attributes.remove(Message::REDRIVES_HEADER);
    assert_eq!(sent_back(copy).original.redrives, 4);
}

#[test]
fn annotations_of_an_older_version_have_no_count() {
    let mut native = foreign(0);
    let json = r#"{"reason":"other","error":"","attempts":1,"origin":"q","consumer":"c","at":0}"#;
    native.message_attributes = Some([(DEAD_LETTER.to_owned(), attributes::string(json))].into());
    assert_eq!(decode::arrival(native).original.redrives, 1);
}

#[test]
fn a_dead_letter_that_is_dead_lettered_again_has_the_new_annotations_only() {
    let first = arrived(&Message::new("x").with_id("7"), STANDARD);
    let copy = dead_letter(&first.original, &first.message, &letter("first"), STANDARD);
    let back = sent_back(copy);
    let again = dead_letter(&back.original, &back.message, &letter("second"), STANDARD);
    let annotations = Annotations::of(&again.attributes).unwrap();
    assert_eq!(
        (annotations.error.as_str(), annotations.redrives),
        ("second", 1)
    );
    let count = again.attributes.keys().filter(|name| *name == DEAD_LETTER);
    assert_eq!(count.count(), 1);
}

/// A copy without annotations that came back with its id would be a repeat, and be deleted unhandled.
#[test]
fn a_copy_without_annotations_has_no_id_of_ours_either() {
    let room_for_an_id = 60;
    let body = "x".repeat(MAX_BYTES - room_for_an_id);
    let envelope = Envelope {
        id: Some("\u{1}".to_owned()),
        ..Envelope::default()
    };
    for (name, value) in [
        (ID, "order-7".to_owned()),
        (ENVELOPE, attributes::json(&envelope)),
    ] {
        let mut native = foreign(0);
        native.body = Some(body.clone());
        native.message_attributes = Some([(name.to_owned(), attributes::string(value))].into());
        let arrival = decode::arrival(native);
        let copy = dead_letter(&arrival.original, &arrival.message, &letter("no"), STANDARD);
        assert!(Annotations::of(&copy.attributes).is_none() && copy.bytes() <= MAX_BYTES);
        assert_ne!(sent_back(copy).message.id, arrival.message.id, "{name}");
    }
}

#[test]
fn what_sqs_moved_itself_and_somebody_moved_back_counts_as_redriven() {
    let mut native = foreign(0);
    let system = native.attributes.get_or_insert_default();
    let arn = "arn:aws:sqs:r:1:orders".to_owned();
    system.insert(System::DeadLetterQueueSourceArn, arn);
    assert_eq!(decode::arrival(native).original.redrives, 1);
}

proptest! {
    #[test]
    fn any_message_survives(
        body in prop::collection::vec(any::<u8>(), 0..200),
        id in prop::option::of("\\PC{1,150}"),
        key in prop::option::of("\\PC{1,150}"),
        headers in prop::collection::btree_map("\\PC{1,12}", ".{0,20}", 0..14),
    ) {
        let mut sent = Message::without_id(body);
        sent.id = id.map(Into::into);
        sent.partition_key = key.map(Into::into);
        sent.headers = headers.into_iter().collect();
        for kind in [STANDARD, FIFO] {
            let native = message(&sent, kind, 0).unwrap();
            prop_assert!(native.attributes.len() <= MOST);
            prop_assert!(attributes::is_value(&native.body));
            for (name, value) in &native.attributes {
                prop_assert!(attributes::is_name(name));
                prop_assert!(attributes::is_value(value.string_value().unwrap_or_default()));
            }
            prop_assert!(native.group.as_deref().is_none_or(attributes::is_token));
            prop_assert!(native.deduplication.as_deref().is_none_or(attributes::is_token));
            let arrival = decode::arrival(delivered(native));
            must_be_the_same(&arrival.message, &sent);
            let copy = dead_letter(&arrival.original, &arrival.message, &letter("boom"), kind);
            prop_assert!(copy.attributes.len() <= MOST);
            let record = decode::dead_letter(decode::arrival(delivered(copy)), "orders", 50);
            must_be_the_same(&record.message, &sent);
        }
    }
}
