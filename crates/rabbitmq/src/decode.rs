//! From a native message to ours.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backstop_core::{
    DeadLetter, DeadLetterReason, DeadLetterRecord, Delivery, LeaseId, Message, Receipt,
};
use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::config::RabbitMqConfig;
use crate::headers;

/// What settling needs of the native message.
pub(crate) struct Native {
    pub(crate) properties: BasicProperties,
}

/// Whether the native count of failed deliveries says how many attempts were used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NativeCount {
    /// It does: retries and crashes raise it.
    Counts,
    /// It does not: on an ordered queue every hand-over raises it, also for what was never started.
    Ignored,
}

/// How the messages of a subscription are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading<'a> {
    /// The exchange whose routing key is the partition key, on a partitioned queue.
    pub(crate) by_key: Option<&'a str>,
    pub(crate) count: NativeCount,
}

pub(crate) fn delivery(
    native: lapin::message::Delivery,
    lease: LeaseId,
    reading: Reading<'_>,
) -> Delivery {
    let properties = native.properties;
    let routed_by_key = reading.by_key == Some(native.exchange.as_str());
    let mut message = message(&properties, native.data.into());
    if message.partition_key.is_none() && routed_by_key {
        message.partition_key = Some(native.routing_key.as_str().into());
    }
    let own = headers::get_number(&properties, headers::ATTEMPTS).unwrap_or(0);
    let broker = match reading.count {
        // RabbitMQ writes the header with a redelivery only. On any other it is a publisher's, or came
        // along when somebody moved the message here from another queue.
        NativeCount::Counts if native.redelivered => {
            headers::get_number(&properties, headers::DELIVERY_COUNT).unwrap_or(0)
        }
        NativeCount::Counts | NativeCount::Ignored => 0,
    };
    Delivery {
        redrives: redrives(&message),
        message: Arc::new(message),
        attempts_used: u32::try_from(own.saturating_add(broker)).unwrap_or(u32::MAX),
        lease: None,
        receipt: Receipt::with_native(lease, Native { properties }),
    }
}

fn redrives(message: &Message) -> u32 {
    let header = message.headers.get(Message::REDRIVES_HEADER);
    header.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn message(properties: &BasicProperties, body: Bytes) -> Message {
    let long_id = headers::get_text(properties, headers::MESSAGE_ID);
    let id = long_id.or_else(|| {
        properties
            .message_id()
            .as_ref()
            .map(|id| id.as_str().to_owned())
    });
    let mut message = Message::without_id(body);
    message.id = id.filter(|id| !id.is_empty()).map(Into::into);
    message.partition_key = headers::get_text(properties, headers::PARTITION_KEY).map(Into::into);
    message.headers = headers::to_text(properties);
    message.published_at = properties.timestamp().and_then(seconds);
    message
}

fn seconds(since_1970: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(since_1970))
}

/// Reads a message of a dead-letter queue, whether it was put there by us or by the broker.
pub(crate) fn dead_letter(
    properties: &BasicProperties,
    body: Vec<u8>,
    config: &RabbitMqConfig,
) -> DeadLetterRecord {
    let text = |name| headers::get_text(properties, name).unwrap_or_default();
    let dead_letter = match headers::get_text(properties, headers::REASON) {
        Some(reason) => DeadLetter {
            reason: DeadLetterReason::from_wire(&reason),
            error: text(headers::ERROR),
            attempts: attempts(properties, headers::USED),
            origin: text(headers::ORIGIN),
            consumer: text(headers::CONSUMER),
            at: headers::get_number(properties, headers::AT)
                .and_then(|at| UNIX_EPOCH.checked_add(Duration::from_millis(at)))
                .unwrap_or(UNIX_EPOCH),
        },
        None => brokers_own(properties, config),
    };
    DeadLetterRecord {
        message: Arc::new(message(properties, body.into())),
        dead_letter,
    }
}

fn attempts(properties: &BasicProperties, name: &str) -> u32 {
    let number = headers::get_number(properties, name).unwrap_or(0);
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// What RabbitMQ dead-lettered itself says so in `x-death`, newest first
/// (<https://www.rabbitmq.com/docs/dlx#effects>).
fn brokers_own(properties: &BasicProperties, config: &RabbitMqConfig) -> DeadLetter {
    let death = match headers::get(properties, headers::DEATHS) {
        Some(AMQPValue::FieldArray(deaths)) => deaths.as_slice().first(),
        _ => None,
    };
    let empty = FieldTable::default();
    let death = match death {
        Some(AMQPValue::FieldTable(death)) => death,
        _ => &empty,
    };
    let text = |name: &str| death.inner().get(name).map(headers::text_of);
    let native = text("reason").unwrap_or_default();
    let reason = match native.as_str() {
        "delivery_limit" => DeadLetterReason::BrokerLimit,
        "expired" => DeadLetterReason::Expired,
        _ => DeadLetterReason::Other,
    };
    let error = if native.is_empty() {
        "nothing says why it is here: neither backstop's headers nor RabbitMQ's x-death".to_owned()
    } else {
        format!("RabbitMQ dead-lettered it by itself: {native}")
    };
    let count = headers::get_number(properties, headers::DELIVERY_COUNT).filter(|count| *count > 0);
    // 3.10.8 does not keep the count on what it dead-letters (measured).
    let count = count
        .or((reason == DeadLetterReason::BrokerLimit).then_some(u64::from(config.delivery_limit)));
    let own = headers::get_number(properties, headers::ATTEMPTS);
    let used = own.unwrap_or(0).saturating_add(count.unwrap_or(0));
    DeadLetter {
        reason,
        error,
        attempts: u32::try_from(used).unwrap_or(u32::MAX),
        origin: text("queue").unwrap_or_else(|| config.queue().to_owned()),
        consumer: String::new(),
        at: death
            .inner()
            .get("time")
            .and_then(headers::number_of)
            .and_then(seconds)
            .unwrap_or(UNIX_EPOCH),
    }
}
