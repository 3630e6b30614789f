//! From our message to a native one, and from a native one to its copies.

use std::time::{SystemTime, UNIX_EPOCH};

use backstop_core::{
    BrokerError, BrokerErrorKind, DeadLetter, Message, MessageId, truncate_visibly,
};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::headers;

/// The most that properties and headers may take together. They travel in one frame, and a frame
/// has at most 131,072 bytes by default (`frame_max`); what is left is for annotations.
const MAX_HEADERS: usize = 110_000;

/// The most that the headers of a copy may take: a frame less properties, which have at most 255 bytes
/// each.
const MAX_FRAME: usize = 131_072 - 3_500;

/// What annotations take at least, with an origin and a consumer of up to 255 bytes each.
const ANNOTATIONS: usize = 1_500;

const PERSISTENT: u8 = 2;

/// The native properties of a message that a publisher hands in.
///
/// # Errors
///
/// When AMQP cannot carry the message: a body or headers that are too large, an impossible name.
pub(crate) fn properties(
    message: &Message,
    max_body: usize,
) -> Result<BasicProperties, BrokerError> {
    let too_large = |text| BrokerError::new(BrokerErrorKind::TooLarge, text);
    if message.body.len() > max_body {
        let size = message.body.len();
        return Err(too_large(format!(
            "the body has {size} bytes, and the limit is {max_body}: the server's max_message_size, \
             or the URL's max_body"
        )));
    }
    let size = headers::size(&message.headers).map_err(too_large)?;
    let ids = message.id.as_ref().map_or(0, |id| id.as_str().len())
        + message
            .partition_key
            .as_ref()
            .map_or(0, |key| key.as_str().len());
    if size + ids > MAX_HEADERS {
        let size = size + ids;
        return Err(too_large(format!(
            "headers, id and partition key have {size} bytes, and at most {MAX_HEADERS} fit into a frame"
        )));
    }
    let properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_timestamp(since_1970(SystemTime::now()).as_secs());
    let (mut properties, mut table) = headers::from_text(&message.headers, properties);
    if let Some(id) = &message.id {
        properties = with_id(properties, &mut table, id);
    }
    if let Some(key) = &message.partition_key {
        headers::insert(&mut table, headers::PARTITION_KEY, key.as_str());
    }
    Ok(properties.with_headers(table))
}

fn with_id(properties: BasicProperties, table: &mut FieldTable, id: &MessageId) -> BasicProperties {
    if let Ok(short) = ShortString::try_new(id.as_str()) {
        return properties.with_message_id(short);
    }
    headers::insert(table, headers::MESSAGE_ID, id.as_str());
    properties
}

/// The properties of a copy that is delivered again, with the attempts that were used.
pub(crate) fn retry(original: &BasicProperties, attempts_used: u32) -> BasicProperties {
    let mut table = kept_headers(original);
    // An operator may have moved the message here from the dead-letter queue.
    table = without(&table, |name| headers::ANNOTATIONS.contains(&name));
    fit(&mut table, MAX_FRAME);
    insert_number(&mut table, headers::ATTEMPTS, i64::from(attempts_used));
    copy(original).with_headers(table)
}

/// The properties of a dead letter: the original's, and the annotations.
pub(crate) fn dead_letter(original: &BasicProperties, letter: &DeadLetter) -> BasicProperties {
    // Whoever moves it back to its queue wants it handled, as often as any other message.
    let mut table = without(&kept_headers(original), |name| name == headers::ATTEMPTS);
    let taken = fit(&mut table, MAX_FRAME - ANNOTATIONS);
    // Never nothing: somebody has to be able to tell why it is there.
    let room = MAX_HEADERS
        .saturating_sub(taken)
        .clamp(256, DeadLetter::MAX_ERROR_BYTES);
    headers::insert(&mut table, headers::REASON, letter.reason.as_str());
    headers::insert(
        &mut table,
        headers::ERROR,
        &truncate_visibly(&letter.error, room),
    );
    headers::insert(&mut table, headers::ORIGIN, &letter.origin);
    headers::insert(&mut table, headers::CONSUMER, &letter.consumer);
    insert_number(&mut table, headers::USED, i64::from(letter.attempts));
    let at = i64::try_from(since_1970(letter.at).as_millis()).unwrap_or(i64::MAX);
    insert_number(&mut table, headers::AT, at);
    copy(original).with_headers(table)
}

/// The properties that a copy keeps. Not the expiration, which would end its wait too early, and not
/// the user id, which RabbitMQ compares with the user of the connection.
fn copy(original: &BasicProperties) -> BasicProperties {
    let mut copy = BasicProperties::default().with_delivery_mode(PERSISTENT);
    macro_rules! keep {
        ($($read:ident $write:ident),*) => {
            $(if let Some(value) = original.$read().clone() { copy = copy.$write(value); })*
        };
    }
    keep!(
        content_type with_content_type,
        content_encoding with_content_encoding,
        priority with_priority,
        correlation_id with_correlation_id,
        reply_to with_reply_to,
        message_id with_message_id,
        timestamp with_timestamp,
        kind with_type,
        app_id with_app_id,
        cluster_id with_cluster_id
    );
    copy
}

/// The native headers, but for what the broker wrote and what would route the copy elsewhere
/// (`CC` and `BCC`, <https://www.rabbitmq.com/docs/sender-selected>).
fn kept_headers(original: &BasicProperties) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in original.headers().iter().flat_map(FieldTable::inner) {
        let text = name.as_str();
        if !headers::is_brokers(text) && !headers::routes(text) {
            table.insert(name.clone(), value.clone());
        }
    }
    table
}

fn without(table: &FieldTable, is_dropped: impl Fn(&str) -> bool) -> FieldTable {
    let mut kept = FieldTable::default();
    for (name, value) in table.inner() {
        if !is_dropped(name.as_str()) {
            kept.insert(name.clone(), value.clone());
        }
    }
    kept
}

/// Makes headers fit, and says how many bytes they take: the largest give way, and their names are
/// told. A frame that is too large would end the connection, again with every try.
fn fit(table: &mut FieldTable, most: usize) -> usize {
    let mut dropped = Vec::new();
    loop {
        let taken = table.inner().iter().map(size).sum();
        if taken <= most {
            return taken;
        }
        let largest = table
            .inner()
            .iter()
            .filter(|(name, _)| name.as_str() != headers::DROPPED)
            .max_by_key(|entry| size(*entry))
            .map(|(name, _)| name.as_str().to_owned());
        let Some(largest) = largest else { return taken };
        *table = without(table, |name| name == largest);
        dropped.push(largest);
        headers::insert(table, headers::DROPPED, &dropped.join(","));
    }
}

/// Roughly how many bytes the headers of a message take.
pub(crate) fn headers_size(properties: &BasicProperties) -> usize {
    let headers = properties.headers().iter().flat_map(FieldTable::inner);
    headers.map(size).sum()
}

fn size((name, value): (&ShortString, &AMQPValue)) -> usize {
    name.as_str().len() + 1 + weight(value)
}

fn weight(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::LongString(text) => text.len() + 6,
        AMQPValue::ByteArray(array) => array.as_slice().len() + 6,
        AMQPValue::FieldTable(table) => {
            let each =
                |(name, value): (&ShortString, &AMQPValue)| name.as_str().len() + weight(value);
            6 + table.inner().iter().map(each).sum::<usize>()
        }
        AMQPValue::FieldArray(array) => 6 + array.as_slice().iter().map(weight).sum::<usize>(),
        _ => 10,
    }
}

fn insert_number(table: &mut FieldTable, name: &str, number: i64) {
    table.insert(name.into(), AMQPValue::LongLongInt(number));
}

fn since_1970(time: SystemTime) -> std::time::Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use backstop_core::DeadLetterReason;

    use super::*;

    fn letter(error: &str) -> DeadLetter {
        DeadLetter {
            reason: DeadLetterReason::PermanentError,
            error: error.to_owned(),
            attempts: 3,
            origin: "orders".to_owned(),
            consumer: "billing".to_owned(),
            at: UNIX_EPOCH + std::time::Duration::from_millis(1234),
        }
    }

    #[test]
    fn a_dead_letter_reads_back_as_it_was_written() {
        let native = properties(&Message::new("x").with_id("7"), 10).unwrap();
        let copy = dead_letter(&native, &letter("boom"));
        let config = crate::RabbitMqConfig::from_url("amqp://h?queue=orders").unwrap();
        let read = crate::decode::dead_letter(&copy, b"x".to_vec(), &config);
        assert_eq!(read.dead_letter, letter("boom"));
        assert_eq!(read.message.id, Some("7".into()));
        assert!(
            read.message.headers.is_empty(),
            "{:?}",
            read.message.headers
        );
    }

    #[test]
    fn annotations_are_cut_visibly_where_the_frame_is_full() {
        let message = Message::new("x").with_header("big", "h".repeat(MAX_HEADERS - 1000));
        let native = properties(&message, 10).unwrap();
        let copy = dead_letter(&native, &letter(&"e".repeat(4000)));
        let error = headers::get_text(&copy, headers::ERROR).unwrap();
        assert!(
            error.len() <= 1000 && error.ends_with("[4000 bytes in all]"),
            "{error}"
        );
    }

    #[test]
    fn a_copy_of_the_largest_headers_fits_into_a_frame() {
        let mut table = FieldTable::default();
        headers::insert(&mut table, "large", &"h".repeat(130_000));
        headers::insert(&mut table, "small", "kept");
        let native = BasicProperties::default().with_headers(table);
        for copy in [retry(&native, 2), dead_letter(&native, &letter("boom"))] {
            let table = copy.headers().clone().unwrap();
            let taken: usize = table.inner().iter().map(size).sum();
            assert!(taken < MAX_FRAME, "{taken}");
            assert_eq!(headers::get_text(&copy, "small").as_deref(), Some("kept"));
            assert_eq!(
                headers::get_text(&copy, headers::DROPPED).as_deref(),
                Some("large")
            );
        }
    }

    #[test]
    fn what_an_operator_moves_back_has_no_past() {
        let native = properties(&Message::new("x"), 10).unwrap();
        let dead = dead_letter(&retry(&native, 4), &letter("boom"));
        assert_eq!(headers::get(&dead, headers::ATTEMPTS), None);
        let again = retry(&dead, 1);
        for name in headers::ANNOTATIONS {
            assert_eq!(headers::get(&again, name), None, "{name}");
        }
    }

    #[test]
    fn a_publisher_cannot_pass_a_header_off_as_the_brokers() {
        for name in ["x-delivery-count", "x-death", "CC", "backstop-attempts"] {
            let message = Message::new("x").with_header(name, "99");
            let error = properties(&message, 10).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn a_copy_is_routed_and_kept_as_we_say() {
        let mut table = FieldTable::default();
        headers::insert(&mut table, "CC", "elsewhere");
        headers::insert(&mut table, "x-death", "once");
        headers::insert(&mut table, "kept", "yes");
        let native = BasicProperties::default()
            .with_headers(table)
            .with_expiration("10".into())
            .with_user_id("somebody".into())
            .with_priority(3);
        let copy = retry(&native, 2);
        assert_eq!(copy.expiration(), &None);
        assert_eq!(copy.user_id(), &None);
        assert_eq!(
            (copy.priority(), copy.delivery_mode()),
            (&Some(3), &Some(PERSISTENT))
        );
        let names: Vec<_> = copy
            .headers()
            .iter()
            .flat_map(FieldTable::inner)
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(names, ["backstop-attempts", "kept"]);
    }

    #[test]
    fn a_long_id_travels_in_a_header() {
        let id = "i".repeat(10_000);
        let native = properties(&Message::new("x").with_id(id.as_str()), 10).unwrap();
        assert_eq!(native.message_id(), &None);
        assert_eq!(headers::get_text(&native, headers::MESSAGE_ID), Some(id));
    }

    #[test]
    fn what_amqp_cannot_carry_is_refused_with_its_size() {
        for (message, told) in [
            (
                Message::new("x".repeat(11)),
                "the body has 11 bytes, and the limit is 10",
            ),
            (
                Message::new("x").with_header("n".repeat(256), "v"),
                "name has 256 bytes: AMQP takes 1 to 255",
            ),
            (
                Message::new("x").with_header("n", "v".repeat(MAX_HEADERS)),
                "fit into a frame",
            ),
        ] {
            let error = properties(&message, 10).unwrap_err();
            assert_eq!(error.kind(), BrokerErrorKind::TooLarge);
            assert!(error.to_string().contains(told), "{error}");
        }
    }
}
