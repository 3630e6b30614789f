//! From our message to a native one, and from a native one to its copy.

use std::borrow::Cow;
use std::fmt::Write as _;

use aws_sdk_sqs::types::{
    MessageSystemAttributeNameForSends, MessageSystemAttributeValue, SendMessageBatchRequestEntry,
};
use backstop_core::{
    BrokerError, BrokerErrorKind, DeadLetter, Message, MessageId, PartitionKey, truncate_visibly,
};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use crate::attributes::{
    self, Annotations, Attributes, BASE64, CONTENT_TYPE, DEAD_LETTER, EMPTY, ENVELOPE, Envelope,
    ID, MOST,
};
use crate::config::QueueKind;
use crate::decode::Original;
use crate::error::unwritable;

/// The most that a message may have, attributes included, and a batch in all
/// (<https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html>).
pub(crate) const MAX_BYTES: usize = 1024 * 1024;

/// The most headers that become attributes of their own, for consumers that are not backstop's: with
/// ours, also on a dead letter, there are never more than SQS takes.
const NATIVE_HEADERS: usize = MOST - 4;

/// A message as SQS takes it.
#[derive(Clone, Debug)]
pub(crate) struct Native {
    pub(crate) body: String,
    pub(crate) attributes: Attributes,
    pub(crate) group: Option<String>,
    pub(crate) deduplication: Option<String>,
    pub(crate) trace: Option<String>,
    /// Seconds.
    pub(crate) delay: i32,
}

impl Native {
    pub(crate) fn bytes(&self) -> usize {
        self.body.len() + attributes::size(&self.attributes)
    }

    pub(crate) fn entry(&self, id: usize) -> Result<SendMessageBatchRequestEntry, BrokerError> {
        let trace = self.trace.clone().and_then(trace_attribute);
        let entry = SendMessageBatchRequestEntry::builder()
            .id(id.to_string())
            .message_body(&self.body)
            .set_message_attributes((!self.attributes.is_empty()).then(|| self.attributes.clone()))
            .set_message_system_attributes(trace.map(|trace| [trace].into()))
            .set_message_group_id(self.group.clone())
            .set_message_deduplication_id(self.deduplication.clone())
            .set_delay_seconds((self.delay > 0).then_some(self.delay))
            .build();
        entry.map_err(|error| unwritable(&error))
    }
}

fn trace_attribute(
    header: String,
) -> Option<(
    MessageSystemAttributeNameForSends,
    MessageSystemAttributeValue,
)> {
    let value = MessageSystemAttributeValue::builder()
        .data_type("String")
        .string_value(header)
        .build();
    Some((
        MessageSystemAttributeNameForSends::AwsTraceHeader,
        value.ok()?,
    ))
}

/// A message that a publisher hands in.
///
/// # Errors
///
/// When SQS cannot carry it: it is too large, or has a header of a name that is ours.
pub(crate) fn message(
    message: &Message,
    kind: QueueKind,
    delay: i32,
) -> Result<Native, BrokerError> {
    let mut attributes = Attributes::new();
    let mut envelope = Envelope::default();
    for (name, value) in message.headers.iter() {
        if attributes::is_ours(name) {
            let text = format!("the header {name:?} is backstop's own: publish without it");
            return Err(BrokerError::new(BrokerErrorKind::Unsupported, text));
        }
        let is_native = attributes::is_name(name) && attributes::is_value(value);
        if is_native && attributes.len() < NATIVE_HEADERS {
            attributes.insert(name.to_owned(), attributes::string(value));
        } else {
            envelope.headers.insert(name.to_owned(), value.to_owned());
        }
    }
    match message.id.as_ref().map(MessageId::as_str) {
        Some(id) if attributes::is_value(id) => {
            attributes.insert(ID.to_owned(), attributes::string(id));
        }
        id => envelope.id = id.map(str::to_owned),
    }
    let key = message.partition_key.as_ref().map(PartitionKey::as_str);
    let group = group(key, kind, message, &mut envelope);
    if message.id.is_none() || envelope != Envelope::default() {
        let json = attributes::json(&envelope);
        attributes.insert(ENVELOPE.to_owned(), attributes::string(json));
    }
    let deduplication = (kind == QueueKind::Fifo).then(|| deduplication(message));
    let native = Native {
        body: body(&message.body, &mut attributes),
        attributes,
        group,
        deduplication,
        trace: None,
        delay,
    };
    let bytes = native.bytes();
    if bytes > MAX_BYTES {
        let text = format!(
            "the message has {bytes} bytes with its attributes, and SQS takes {MAX_BYTES}; a body that \
             is not text is a third larger there, in base64"
        );
        return Err(BrokerError::new(BrokerErrorKind::TooLarge, text));
    }
    Ok(native)
}

/// The group: the key, or its hash where SQS would not take it, or one of the message's own where a
/// FIFO queue asks for one.
fn group(
    key: Option<&str>,
    kind: QueueKind,
    message: &Message,
    envelope: &mut Envelope,
) -> Option<String> {
    match key {
        Some(key) if attributes::is_token(key) => Some(key.to_owned()),
        Some(key) => {
            envelope.key = Some(key.to_owned());
            Some(sha256(key.as_bytes()))
        }
        None if kind == QueueKind::Fifo => {
            envelope.keyless = true;
            Some(deduplication(message))
        }
        None => None,
    }
}

/// A message without an id is never taken for another.
fn deduplication(message: &Message) -> String {
    match message.id.as_ref().map(MessageId::as_str) {
        Some(id) => token(id).into_owned(),
        None => format!("{:032x}", rand::random::<u128>()),
    }
}

fn token(text: &str) -> Cow<'_, str> {
    if attributes::is_token(text) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(sha256(text.as_bytes()))
}

fn sha256(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(71);
    text.push_str("sha256:");
    for byte in Sha256::digest(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Text as it is; anything else in base64, which an attribute says.
fn body(bytes: &[u8], attributes: &mut Attributes) -> String {
    if bytes.is_empty() {
        attributes.insert(CONTENT_TYPE.to_owned(), attributes::string(EMPTY));
        return "-".to_owned();
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if attributes::is_text(text) => text.to_owned(),
        _ => {
            attributes.insert(CONTENT_TYPE.to_owned(), attributes::string(BASE64));
            BASE64_STANDARD.encode(bytes)
        }
    }
}

/// The copy of a message in the dead-letter queue: as it was, with the annotations.
///
/// SQS deduplicates what a FIFO dead-letter queue takes for five minutes. The copy's id there is that of
/// the one sending of the original: a copy that is made twice is one, and a message that is dead-lettered
/// again after a redrive is another.
pub(crate) fn dead_letter(
    original: &Original,
    message: &Message,
    letter: &DeadLetter,
    kind: QueueKind,
) -> Native {
    let mut attributes = original.attributes.clone();
    attributes.remove(DEAD_LETTER);
    attributes.remove(CONTENT_TYPE);
    let body = body(&message.body, &mut attributes);
    let attributes = annotated(attributes, original, message, letter, body.len());
    let own = match original.sent {
        Some(sent) => format!("{}:{sent}", original.message_id),
        None => original.message_id.clone(),
    };
    let is_fifo = kind == QueueKind::Fifo;
    Native {
        body,
        attributes,
        group: original
            .group
            .clone()
            .or_else(|| is_fifo.then(|| original.message_id.clone())),
        deduplication: is_fifo.then(|| token(&own).into_owned()),
        trace: original.trace.clone(),
        delay: 0,
    }
}

/// Adds the id and the annotations, as far as they fit beside a body of so many bytes. A copy that comes
/// back with its id, and without a count of its redrives, would be taken for a repeat of the dead letter:
/// the id goes before the annotations do.
fn annotated(
    attributes: Attributes,
    original: &Original,
    message: &Message,
    letter: &DeadLetter,
    body_bytes: usize,
) -> Attributes {
    let mut nameless = attributes.clone();
    forget_id(&mut nameless);
    let mut named = attributes;
    name(&mut named, message);
    for mut attributes in [named, nameless.clone()] {
        make_room(&mut attributes);
        let room = MAX_BYTES.saturating_sub(body_bytes + attributes::size(&attributes));
        if let Some(annotations) = annotations(original, letter, room) {
            attributes.insert(DEAD_LETTER.to_owned(), attributes::string(annotations));
            return attributes;
        }
    }
    tracing::warn!(
        message = original.message_id,
        reason = letter.reason.as_str(),
        "a message fills the mebibyte of SQS: its copy in the dead-letter queue has neither annotations nor an id of ours"
    );
    nameless
}

/// The id of a message that is not ours is SQS's own, and the copy gets another.
fn name(attributes: &mut Attributes, message: &Message) {
    let id = message.id.as_ref().map(MessageId::as_str);
    if let Some(id) = id.filter(|id| attributes::is_value(id))
        && Envelope::of(attributes).is_none()
    {
        attributes.insert(ID.to_owned(), attributes::string(id));
    }
}

fn forget_id(attributes: &mut Attributes) {
    attributes.remove(ID);
    if let Some(envelope) = Envelope::of(attributes)
        && envelope.id.is_some()
    {
        let json = attributes::json(&Envelope {
            id: None,
            ..envelope
        });
        attributes.insert(ENVELOPE.to_owned(), attributes::string(json));
    }
}

/// Packs what is too much for SQS, ours included, into the envelope. A number is text there.
fn make_room(attributes: &mut Attributes) {
    // One for the annotations, and one for the envelope.
    if attributes.len() < MOST {
        return;
    }
    let mut envelope = Envelope::of(attributes).unwrap_or_default();
    if let Some(id) = attributes.remove(ID) {
        envelope.id = id.string_value().map(str::to_owned);
    }
    let mut names: Vec<_> = attributes
        .keys()
        .filter(|name| !attributes::is_ours(name))
        .cloned()
        .collect();
    names.sort();
    for name in names.into_iter().rev() {
        if attributes.len() + 2 <= MOST {
            break;
        }
        let packed = attributes
            .remove_entry(&name)
            .map(|entry| Attributes::from([entry]));
        let packed = attributes::headers(&packed.unwrap_or_default(), None);
        let packed = packed
            .iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        envelope.headers.extend(packed);
    }
    let json = attributes::json(&envelope);
    attributes.insert(ENVELOPE.to_owned(), attributes::string(json));
}

/// The annotations, cut to what is left; none where nothing is.
fn annotations(original: &Original, letter: &DeadLetter, room: usize) -> Option<String> {
    let mut error_bytes = DeadLetter::MAX_ERROR_BYTES;
    loop {
        let annotations = Annotations {
            reason: letter.reason.as_str().to_owned(),
            error: truncate_visibly(&letter.error, error_bytes),
            attempts: letter.attempts,
            origin: letter.origin.clone(),
            consumer: letter.consumer.clone(),
            at: attributes::since_1970(letter.at),
            sent: original.sent,
            deduplication: original.deduplication.clone(),
            redrives: original.redrives,
        };
        let json = attributes::json(&annotations);
        if attributes::weight(DEAD_LETTER, &attributes::string(json.as_str())) <= room {
            return Some(json);
        }
        if error_bytes == 0 {
            return None;
        }
        error_bytes /= 2;
    }
}

#[cfg(test)]
mod tests;
