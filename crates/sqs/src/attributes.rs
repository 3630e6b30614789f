//! SQS's typed attributes, and the text that handlers see.

use std::collections::{BTreeMap, HashMap};

use aws_sdk_sqs::types::MessageAttributeValue;
use backstop_core::{DeadLetter, DeadLetterReason, Headers};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The message's id, where SQS can carry it as it is.
pub(crate) const ID: &str = "backstop-id";
/// What else a message of ours has that no attribute can carry, as JSON; see [`Envelope`].
pub(crate) const ENVELOPE: &str = "backstop";
/// What a body is that is not plain text: one of the two below.
pub(crate) const CONTENT_TYPE: &str = "backstop-content-type";
pub(crate) const BASE64: &str = "application/octet-stream; base64";
/// SQS takes no empty body.
pub(crate) const EMPTY: &str = "application/octet-stream; empty";
/// The annotations of a dead letter, as JSON; see [`Annotations`].
pub(crate) const DEAD_LETTER: &str = "backstop-dead-letter";

const OURS: [&str; 4] = [ID, ENVELOPE, CONTENT_TYPE, DEAD_LETTER];

/// The most attributes that SQS takes
/// (<https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-message-metadata.html>).
pub(crate) const MOST: usize = 10;

pub(crate) type Attributes = HashMap<String, MessageAttributeValue>;

/// What no attribute can carry. A message that has one was published by backstop: without an id here or
/// in [`ID`] it has none.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Envelope {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    /// The partition key, where it cannot be a `MessageGroupId`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    /// The `MessageGroupId` was made up: the message has no partition key.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) keyless: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) headers: BTreeMap<String, String>,
}

impl Envelope {
    pub(crate) fn of(attributes: &Attributes) -> Option<Self> {
        serde_json::from_str(text(attributes, ENVELOPE)?).ok()
    }
}

/// The annotations of a dead letter.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Annotations {
    pub(crate) reason: String,
    pub(crate) error: String,
    pub(crate) attempts: u32,
    pub(crate) origin: String,
    pub(crate) consumer: String,
    /// Milliseconds since 1970, as is `sent`.
    pub(crate) at: u64,
    /// When the message was sent to the queue that it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sent: Option<u64>,
    /// Its `MessageDeduplicationId` there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) deduplication: Option<String>,
    /// How often it had been redriven before.
    #[serde(default)]
    pub(crate) redrives: u32,
}

impl Annotations {
    pub(crate) fn of(attributes: &Attributes) -> Option<Self> {
        serde_json::from_str(text(attributes, DEAD_LETTER)?).ok()
    }

    pub(crate) fn letter(self) -> DeadLetter {
        DeadLetter {
            reason: DeadLetterReason::from_wire(&self.reason),
            error: self.error,
            attempts: self.attempts,
            origin: self.origin,
            consumer: self.consumer,
            at: time(self.at),
        }
    }
}

pub(crate) fn time(since_1970: u64) -> SystemTime {
    let time = UNIX_EPOCH.checked_add(Duration::from_millis(since_1970));
    time.unwrap_or(UNIX_EPOCH)
}

pub(crate) fn since_1970(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Text, for an attribute.
pub(crate) fn string(value: impl Into<String>) -> MessageAttributeValue {
    let value = MessageAttributeValue::builder()
        .data_type("String")
        .string_value(value);
    value.build().expect("an attribute with a type")
}

/// JSON in the characters that SQS takes.
pub(crate) fn json(value: &impl Serialize) -> String {
    let json = serde_json::to_string(value).expect("plain data is JSON");
    if json.contains(['\u{fffe}', '\u{ffff}']) {
        return json
            .replace('\u{fffe}', "\\ufffe")
            .replace('\u{ffff}', "\\uffff");
    }
    json
}

pub(crate) fn text<'a>(attributes: &'a Attributes, name: &str) -> Option<&'a str> {
    attributes.get(name)?.string_value()
}

pub(crate) fn is_ours(name: &str) -> bool {
    OURS.contains(&name)
}

/// What a handler sees of the attributes: text and numbers as they are, bytes in base64.
pub(crate) fn headers(attributes: &Attributes, envelope: Option<&Envelope>) -> Headers {
    let mut names: Vec<_> = attributes.keys().filter(|name| !is_ours(name)).collect();
    names.sort();
    let native = names.into_iter().filter_map(|name| {
        let value = attributes.get(name)?;
        let text = match (value.string_value(), value.binary_value()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(bytes)) => BASE64_STANDARD.encode(bytes),
            (None, None) => return None,
        };
        Some((name.clone(), text))
    });
    let packed = envelope.into_iter().flat_map(|envelope| &envelope.headers);
    let packed = packed.map(|(name, value)| (name.clone(), value.clone()));
    native.chain(packed).collect()
}

/// The bytes that attributes add to a message: names, types and values.
pub(crate) fn size(attributes: &Attributes) -> usize {
    attributes
        .iter()
        .map(|(name, value)| weight(name, value))
        .sum()
}

pub(crate) fn weight(name: &str, value: &MessageAttributeValue) -> usize {
    let text = value.string_value().map_or(0, str::len);
    let bytes = value.binary_value().map_or(0, |bytes| bytes.as_ref().len());
    name.len() + value.data_type().len() + text + bytes
}

/// Whether SQS takes an attribute of this name.
pub(crate) fn is_name(name: &str) -> bool {
    let is_legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let lower = name.to_ascii_lowercase();
    (1..=256).contains(&name.len())
        && name.bytes().all(is_legal)
        && !name.starts_with('.')
        && !name.ends_with('.')
        && !name.contains("..")
        && !lower.starts_with("aws.")
        && !lower.starts_with("amazon.")
}

/// Whether SQS takes this as the value of an attribute.
pub(crate) fn is_value(text: &str) -> bool {
    !text.is_empty() && is_text(text)
}

/// Whether SQS takes these characters: those of XML 1.0.
pub(crate) fn is_text(text: &str) -> bool {
    let is_control = |b: u8| b < 0x20 && !matches!(b, b'\t' | b'\n' | b'\r');
    !text.bytes().any(is_control) && !text.contains(['\u{fffe}', '\u{ffff}'])
}

/// Whether SQS takes this as a group's or a deduplication's id: up to 128 letters, digits and
/// punctuation of ASCII.
pub(crate) fn is_token(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_values_and_tokens_are_those_that_sqs_takes() {
        for name in ["a", "x-y_z.1", "traceparent", "Amazonas"] {
            assert!(is_name(name), "{name}");
        }
        let long = "n".repeat(257);
        for name in [
            "", ".a", "a.", "a..b", "AWS.x", "amazon.y", "größe", "a b", &long,
        ] {
            assert!(!is_name(name), "{name}");
        }
        assert!(is_value("größer 鍵 🔑\t\r\n"));
        for value in ["", "\0", "\u{1b}", "\u{fffe}", "a\u{ffff}"] {
            assert!(!is_value(value), "{value:?}");
        }
        assert!(is_token("customer:7/~!") && is_token(&"k".repeat(128)));
        for token in ["", "a b", "鍵", &"k".repeat(129)] {
            assert!(!is_token(token), "{token}");
        }
    }

    #[test]
    fn json_keeps_to_the_characters_that_sqs_takes() {
        let envelope = Envelope {
            id: Some("\0\u{fffe}\u{ffff}\u{7f}鍵".to_owned()),
            ..Envelope::default()
        };
        let json = json(&envelope);
        assert!(is_value(&json), "{json}");
        assert_eq!(serde_json::from_str::<Envelope>(&json).unwrap(), envelope);
    }
}
