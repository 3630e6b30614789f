//! AMQP's typed headers, and the text that handlers see.

use backstop_core::Headers;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

/// The id, where it is too long for the property `message_id` (255 bytes).
pub(crate) const MESSAGE_ID: &str = "backstop-message-id";
/// The partition key.
pub(crate) const PARTITION_KEY: &str = "backstop-partition-key";
/// Attempts used before this copy.
pub(crate) const ATTEMPTS: &str = "backstop-attempts";
/// The annotations of a dead letter.
pub(crate) const REASON: &str = "backstop-dead-letter-reason";
pub(crate) const ERROR: &str = "backstop-dead-letter-error";
pub(crate) const USED: &str = "backstop-dead-letter-attempts";
pub(crate) const ORIGIN: &str = "backstop-dead-letter-origin";
pub(crate) const CONSUMER: &str = "backstop-dead-letter-consumer";
/// Milliseconds since 1970, UTC.
pub(crate) const AT: &str = "backstop-dead-letter-at";
/// The names of headers that were too large to be kept on a copy.
pub(crate) const DROPPED: &str = "backstop-dropped-headers";

const OURS: [&str; 9] = [
    MESSAGE_ID,
    PARTITION_KEY,
    ATTEMPTS,
    REASON,
    ERROR,
    USED,
    ORIGIN,
    CONSUMER,
    AT,
];

/// The annotations of a dead letter.
pub(crate) const ANNOTATIONS: [&str; 6] = [REASON, ERROR, USED, ORIGIN, CONSUMER, AT];

/// The headers that RabbitMQ writes itself.
pub(crate) const DELIVERY_COUNT: &str = "x-delivery-count";
pub(crate) const DEATHS: &str = "x-death";

/// Whether RabbitMQ wrote a header. They are not the publisher's, and a copy must not carry them: an
/// old `x-death` makes RabbitMQ take a retry for a cycle and drop it
/// (<https://www.rabbitmq.com/docs/dlx#effects>).
pub(crate) fn is_brokers(name: &str) -> bool {
    const BROKERS: [&str; 4] = [
        DELIVERY_COUNT,
        DEATHS,
        "x-acquired-count",
        "x-opt-deliveries",
    ];
    BROKERS.contains(&name)
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
}

/// Whether RabbitMQ routes a message by a header (<https://www.rabbitmq.com/docs/sender-selected>).
pub(crate) fn routes(name: &str) -> bool {
    matches!(name, "CC" | "BCC")
}

/// Properties that AMQP has a place of its own for, by the names that HTTP gives them.
struct Property {
    name: &'static str,
    read: fn(&BasicProperties) -> &Option<ShortString>,
    write: fn(BasicProperties, ShortString) -> BasicProperties,
}

const PROPERTIES: [Property; 6] = [
    Property {
        name: "content-type",
        read: BasicProperties::content_type,
        write: BasicProperties::with_content_type,
    },
    Property {
        name: "content-encoding",
        read: BasicProperties::content_encoding,
        write: BasicProperties::with_content_encoding,
    },
    Property {
        name: "correlation-id",
        read: BasicProperties::correlation_id,
        write: BasicProperties::with_correlation_id,
    },
    Property {
        name: "reply-to",
        read: BasicProperties::reply_to,
        write: BasicProperties::with_reply_to,
    },
    Property {
        name: "type",
        read: BasicProperties::kind,
        write: BasicProperties::with_type,
    },
    Property {
        name: "app-id",
        read: BasicProperties::app_id,
        write: BasicProperties::with_app_id,
    },
];

/// What a handler sees of a native message's headers.
pub(crate) fn to_text(properties: &BasicProperties) -> Headers {
    let mut headers = Headers::new();
    for property in &PROPERTIES {
        if let Some(value) = (property.read)(properties) {
            headers.set(property.name, value.as_str());
        }
    }
    for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
        let name = name.as_str();
        if !OURS.contains(&name) && !is_brokers(name) {
            headers.set(name, text_of(value));
        }
    }
    headers
}

/// A publisher's headers as native ones.
pub(crate) fn from_text(
    headers: &Headers,
    mut properties: BasicProperties,
) -> (BasicProperties, FieldTable) {
    let mut table = FieldTable::default();
    for (name, value) in headers.iter() {
        let property = PROPERTIES.iter().find(|property| property.name == name);
        match (property, ShortString::try_new(value)) {
            (Some(property), Ok(value)) => properties = (property.write)(properties, value),
            _ => insert(&mut table, name, value),
        }
    }
    (properties, table)
}

/// Sets a header to a text. A name is a short string; a longer one is refused before, by [`size`].
pub(crate) fn insert(table: &mut FieldTable, name: &str, value: &str) {
    if let Ok(name) = ShortString::try_new(name) {
        table.insert(name, AMQPValue::LongString(value.into()));
    }
}

pub(crate) fn get<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a AMQPValue> {
    properties.headers().as_ref()?.inner().get(name)
}

pub(crate) fn get_text(properties: &BasicProperties, name: &str) -> Option<String> {
    get(properties, name).map(text_of)
}

pub(crate) fn get_number(properties: &BasicProperties, name: &str) -> Option<u64> {
    get(properties, name).and_then(number_of)
}

pub(crate) fn number_of(value: &AMQPValue) -> Option<u64> {
    match value {
        AMQPValue::ShortShortInt(n) => u64::try_from(*n).ok(),
        AMQPValue::ShortShortUInt(n) => Some(u64::from(*n)),
        AMQPValue::ShortInt(n) => u64::try_from(*n).ok(),
        AMQPValue::ShortUInt(n) => Some(u64::from(*n)),
        AMQPValue::LongInt(n) => u64::try_from(*n).ok(),
        AMQPValue::LongUInt(n) => Some(u64::from(*n)),
        AMQPValue::LongLongInt(n) => u64::try_from(*n).ok(),
        AMQPValue::Timestamp(n) => Some(*n),
        _ => text_of(value).parse().ok(),
    }
}

/// Numbers in decimal, truth as `true` and `false`, bytes that are no text in hexadecimal, what is
/// nested as JSON.
pub(crate) fn text_of(value: &AMQPValue) -> String {
    match value {
        AMQPValue::Boolean(b) => b.to_string(),
        AMQPValue::ShortShortInt(n) => n.to_string(),
        AMQPValue::ShortShortUInt(n) => n.to_string(),
        AMQPValue::ShortInt(n) => n.to_string(),
        AMQPValue::ShortUInt(n) => n.to_string(),
        AMQPValue::LongInt(n) => n.to_string(),
        AMQPValue::LongUInt(n) => n.to_string(),
        AMQPValue::LongLongInt(n) => n.to_string(),
        AMQPValue::Float(n) => n.to_string(),
        AMQPValue::Double(n) => n.to_string(),
        AMQPValue::DecimalValue(n) => decimal(n.value, n.scale),
        AMQPValue::Timestamp(seconds) => seconds.to_string(),
        AMQPValue::ShortString(text) => text.as_str().to_owned(),
        AMQPValue::LongString(text) => bytes(text.as_bytes()),
        AMQPValue::ByteArray(array) => bytes(array.as_slice()),
        AMQPValue::Void => String::new(),
        AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) => json(value),
    }
}

fn decimal(value: u32, scale: u8) -> String {
    let digits = format!("{value:0width$}", width = usize::from(scale) + 1);
    let (whole, part) = digits.split_at(digits.len() - usize::from(scale));
    if part.is_empty() {
        whole.to_owned()
    } else {
        format!("{whole}.{part}")
    }
}

fn bytes(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    std::str::from_utf8(bytes).map_or_else(
        |_| {
            bytes
                .iter()
                .fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
                    let _ = write!(hex, "{byte:02x}");
                    hex
                })
        },
        ToOwned::to_owned,
    )
}

fn json(value: &AMQPValue) -> String {
    match value {
        AMQPValue::FieldTable(table) => {
            let entries = table
                .inner()
                .iter()
                .map(|(name, value)| format!("{}:{}", quoted(name.as_str()), json(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
        }
        AMQPValue::FieldArray(array) => {
            let items = array.as_slice().iter().map(json);
            format!("[{}]", items.collect::<Vec<_>>().join(","))
        }
        AMQPValue::Void => "null".to_owned(),
        AMQPValue::Float(n) if !n.is_finite() => "null".to_owned(),
        AMQPValue::Double(n) if !n.is_finite() => "null".to_owned(),
        AMQPValue::ShortString(_)
        | AMQPValue::LongString(_)
        | AMQPValue::ByteArray(_)
        | AMQPValue::DecimalValue(_) => quoted(&text_of(value)),
        _ => text_of(value),
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Roughly how many bytes the headers take in their frame, or which one cannot be sent at all: one that
/// looks like the broker's would be believed, and count as attempts, say.
pub(crate) fn size(headers: &Headers) -> Result<usize, String> {
    let mut bytes = 0;
    for (name, value) in headers.iter() {
        if name.is_empty() || name.len() > 255 {
            return Err(format!(
                "a header's name has {} bytes: AMQP takes 1 to 255",
                name.len()
            ));
        }
        if OURS.contains(&name) || is_brokers(name) || routes(name) {
            return Err(format!(
                "the header {name:?} is backstop's or RabbitMQ's own: name it otherwise"
            ));
        }
        bytes += name.len() + value.len() + 6;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use lapin::types::{ByteArray, DecimalValue, FieldArray};

    use super::*;

    #[test]
    fn every_type_of_header_is_readable() {
        let mut inner = FieldTable::default();
        inner.insert("n".into(), AMQPValue::LongInt(-1));
        inner.insert("s".into(), AMQPValue::LongString("a\"b".into()));
        let array: FieldArray = vec![AMQPValue::Boolean(true), AMQPValue::Void].into();
        for (value, text) in [
            (AMQPValue::Boolean(true), "true"),
            (AMQPValue::ShortShortInt(-8), "-8"),
            (AMQPValue::ShortShortUInt(8), "8"),
            (AMQPValue::ShortInt(-16), "-16"),
            (AMQPValue::ShortUInt(16), "16"),
            (AMQPValue::LongInt(-32), "-32"),
            (AMQPValue::LongUInt(32), "32"),
            (AMQPValue::LongLongInt(-64), "-64"),
            (AMQPValue::Float(1.5), "1.5"),
            (AMQPValue::Double(2.5), "2.5"),
            (
                AMQPValue::DecimalValue(DecimalValue {
                    scale: 2,
                    value: 105,
                }),
                "1.05",
            ),
            (
                AMQPValue::DecimalValue(DecimalValue { scale: 3, value: 5 }),
                "0.005",
            ),
            (AMQPValue::ShortString("short".into()), "short"),
            (AMQPValue::LongString("long é".into()), "long é"),
            (AMQPValue::Timestamp(7), "7"),
            (
                AMQPValue::ByteArray(ByteArray::from(vec![0xff, 0x00])),
                "ff00",
            ),
            (AMQPValue::Void, ""),
            (AMQPValue::FieldArray(array), "[true,null]"),
            (AMQPValue::FieldTable(inner), r#"{"n":-1,"s":"a\"b"}"#),
        ] {
            assert_eq!(text_of(&value), text);
        }
    }

    #[test]
    fn headers_go_there_and_back() {
        let headers: Headers = [
            ("app-id", "shop"),
            ("content-type", "text/plain"),
            ("traceparent", "00-ab-cd-01"),
        ]
        .into_iter()
        .collect();
        let (properties, table) = from_text(&headers, BasicProperties::default());
        assert_eq!(
            properties.content_type().as_ref().map(ShortString::as_str),
            Some("text/plain")
        );
        let back = to_text(&properties.with_headers(table));
        for (name, value) in headers.iter() {
            assert_eq!(back.get(name), Some(value), "{name}");
        }
    }

    #[test]
    fn what_the_broker_wrote_is_not_shown() {
        let mut table = FieldTable::default();
        for name in [
            "x-death",
            "x-delivery-count",
            "x-first-death-queue",
            "x-acquired-count",
            ATTEMPTS,
        ] {
            insert(&mut table, name, "1");
        }
        insert(&mut table, "x-mine", "1");
        let properties = BasicProperties::default().with_headers(table);
        assert_eq!(
            to_text(&properties).iter().collect::<Vec<_>>(),
            [("x-mine", "1")]
        );
    }
}
