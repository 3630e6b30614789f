//! What a repeat is recognised by.

use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::Value;
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::xxh3_128;

use crate::error::ConfigError;
use crate::message::Message;
use crate::ports::Fingerprint;

/// Where a message's idempotency key comes from.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum KeySource {
    /// The message's id.
    #[default]
    MessageId,
    /// A header.
    Header(String),
    /// A string or a number inside a JSON body, by its JSON pointer (RFC 6901), `/order/id` say.
    JsonPointer(String),
    /// The SHA-256 of the body: equal bodies are repeats.
    BodyHash,
}

/// What happens to a message without the chosen key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MissingKey {
    /// It is dead-lettered with that reason.
    #[default]
    DeadLetter,
    /// It is handled without a claim: a repeat of it is handled again.
    HandleWithoutKey,
}

/// Whether one key with two bodies is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Fingerprints {
    /// The second body is dead-lettered as a conflict.
    #[default]
    Checked,
    /// The second body is taken for a repeat.
    Disabled,
}

impl KeySource {
    /// A key longer than this, in bytes, is replaced by its SHA-256.
    pub const MAX_KEY_BYTES: usize = 256;

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let allowed = match self {
            Self::Header(name) if name.is_empty() => "a header's name",
            Self::JsonPointer(pointer) if !pointer.starts_with('/') => {
                "a JSON pointer, which begins with a slash"
            }
            _ => return Ok(()),
        };
        Err(ConfigError::new("key", format!("{self:?}"), allowed))
    }

    /// The message's key; none if it has none. A key longer than [`KeySource::MAX_KEY_BYTES`] is given
    /// as its hash.
    pub fn extract(&self, message: &Message) -> Option<Arc<str>> {
        let key: Arc<str> = match self {
            Self::MessageId => message.id.as_ref()?.shared(),
            Self::Header(name) => message.headers.get(name)?.into(),
            Self::JsonPointer(pointer) => {
                let body: Value = serde_json::from_slice(&message.body).ok()?;
                match body.pointer(pointer)? {
                    Value::String(text) => text.as_str().into(),
                    Value::Number(number) => number.to_string().into(),
                    _ => return None,
                }
            }
            Self::BodyHash => sha256(&message.body).into(),
        };
        match key.len() {
            0 => None,
            n if n > Self::MAX_KEY_BYTES => Some(sha256(key.as_bytes()).into()),
            _ => Some(key),
        }
    }

    pub(crate) fn describe_missing(&self) -> String {
        match self {
            Self::MessageId => "the message has no id".to_owned(),
            Self::Header(name) => format!("the message has no header {name:?}"),
            Self::JsonPointer(pointer) => {
                format!("the body is not JSON with a string or a number at {pointer:?}")
            }
            Self::BodyHash => "the body cannot be hashed".to_owned(),
        }
    }
}

impl Fingerprints {
    pub(crate) fn of(self, body: &[u8]) -> Option<Fingerprint> {
        (self == Self::Checked).then(|| Fingerprint(xxh3_128(body)))
    }
}

fn sha256(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(71);
    text.push_str("sha256:");
    for byte in Sha256::digest(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(source: &KeySource, message: &Message) -> Option<String> {
        source.extract(message).map(|key| key.to_string())
    }

    #[test]
    fn each_source_finds_its_key() {
        let message = Message::new(r#"{"order": {"id": 17, "ref": "a"}}"#)
            .with_id("m1")
            .with_header("x-key", "h1");
        assert_eq!(key(&KeySource::MessageId, &message).as_deref(), Some("m1"));
        assert_eq!(
            key(&KeySource::Header("x-key".into()), &message).as_deref(),
            Some("h1")
        );
        let pointer = |p: &str| key(&KeySource::JsonPointer(p.into()), &message);
        assert_eq!(pointer("/order/id").as_deref(), Some("17"));
        assert_eq!(pointer("/order/ref").as_deref(), Some("a"));
        assert_eq!(pointer("/order"), None);
        assert!(
            key(&KeySource::BodyHash, &message)
                .unwrap()
                .starts_with("sha256:")
        );
    }

    #[test]
    fn a_missing_or_empty_key_is_none() {
        let message = Message::without_id("not json").with_header("empty", "");
        assert_eq!(key(&KeySource::MessageId, &message), None);
        assert_eq!(key(&KeySource::Header("empty".into()), &message), None);
        assert_eq!(key(&KeySource::JsonPointer("/id".into()), &message), None);
    }

    #[test]
    fn a_long_key_is_hashed() {
        let message = Message::new("").with_id("x".repeat(10_000));
        let key = key(&KeySource::MessageId, &message).unwrap();
        assert_eq!(key.len(), 71);
    }
}
