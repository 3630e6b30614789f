//! From a native message to a delivery or a dead letter.

use std::sync::Arc;

use aws_sdk_sqs::types::{Message as NativeMessage, MessageSystemAttributeName as System};
use backstop_core::{DeadLetter, DeadLetterReason, DeadLetterRecord, Message};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;

use crate::attributes::{
    self, Annotations, Attributes, BASE64, CONTENT_TYPE, EMPTY, Envelope, ID, text,
};

/// What a copy needs of the message as it came.
#[derive(Clone, Debug)]
pub(crate) struct Original {
    pub(crate) message_id: String,
    pub(crate) attributes: Attributes,
    pub(crate) group: Option<String>,
    pub(crate) deduplication: Option<String>,
    pub(crate) trace: Option<String>,
    /// Milliseconds since 1970.
    pub(crate) sent: Option<u64>,
    pub(crate) redrives: u32,
}

/// A native message, read.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) handle: Arc<str>,
    pub(crate) message: Arc<Message>,
    /// How often SQS has handed it out, this time included.
    pub(crate) receive_count: u32,
    /// The queue that SQS itself moved it from, at `maxReceiveCount`.
    pub(crate) moved_from: Option<String>,
    pub(crate) original: Original,
}

pub(crate) fn arrival(native: NativeMessage) -> Arrival {
    let mut system = native.attributes.unwrap_or_default();
    let attributes = native.message_attributes.unwrap_or_default();
    let moved_from = system.remove(&System::DeadLetterQueueSourceArn);
    let mut original = Original {
        message_id: native.message_id.unwrap_or_default(),
        attributes,
        group: system.remove(&System::MessageGroupId),
        deduplication: system.remove(&System::MessageDeduplicationId),
        trace: system.remove(&System::AwsTraceHeader),
        sent: number(system.get(&System::SentTimestamp)),
        redrives: 0,
    };
    let message = message(native.body.unwrap_or_default(), &original);
    original.redrives = redrives(&message, &original.attributes, moved_from.as_deref());
    Arrival {
        handle: native.receipt_handle.unwrap_or_default().into(),
        receive_count: number(system.get(&System::ApproximateReceiveCount)).unwrap_or(1),
        moved_from,
        message: Arc::new(message),
        original,
    }
}

/// How often a message was redriven. Whoever redrives by other means than backstop's (`StartMessageMoveTask`,
/// the console, a script) sets no header, but the annotations come along: without this count the message
/// would be taken for a repeat of the dead letter, and be deleted. Where SQS itself had dead-lettered it,
/// what may tell is the queue that it was moved from.
fn redrives(message: &Message, attributes: &Attributes, moved_from: Option<&str>) -> u32 {
    let header = message.headers.get(Message::REDRIVES_HEADER);
    let header = header.and_then(|text| text.parse().ok()).unwrap_or(0);
    let annotations = Annotations::of(attributes);
    let annotated = annotations.map_or(0, |annotations| annotations.redrives.saturating_add(1));
    header.max(annotated).max(u32::from(moved_from.is_some()))
}

fn number<T: std::str::FromStr>(text: Option<&String>) -> Option<T> {
    text?.parse().ok()
}

fn message(body: String, original: &Original) -> Message {
    let attributes = &original.attributes;
    let envelope = Envelope::of(attributes);
    let mut message = Message::without_id(self::body(body, attributes));
    message.id = id(original, envelope.as_ref()).map(Into::into);
    let key = match &envelope {
        Some(envelope) if envelope.keyless => None,
        Some(Envelope { key: Some(key), .. }) => Some(key.clone()),
        _ => original.group.clone(),
    };
    message.partition_key = key.map(Into::into);
    message.headers = attributes::headers(attributes, envelope.as_ref());
    message.published_at = original.sent.map(attributes::time);
    message
}

/// Our attribute, then the `MessageDeduplicationId`, then SQS's own id, which differs between two
/// sendings of one message.
fn id(original: &Original, envelope: Option<&Envelope>) -> Option<String> {
    let ours = text(&original.attributes, ID).filter(|id| !id.is_empty());
    if let Some(id) = ours {
        return Some(id.to_owned());
    }
    if let Some(envelope) = envelope {
        return envelope.id.clone();
    }
    let native = original.deduplication.as_ref();
    native
        .or(Some(&original.message_id))
        .filter(|id| !id.is_empty())
        .cloned()
}

/// Text as it was; what cannot be decoded is taken for text, too.
fn body(body: String, attributes: &Attributes) -> Bytes {
    match text(attributes, CONTENT_TYPE) {
        Some(EMPTY) => Bytes::new(),
        Some(BASE64) => BASE64_STANDARD
            .decode(&body)
            .map_or_else(|_| Bytes::from(body), Bytes::from),
        _ => Bytes::from(body),
    }
}

/// Reads a message of a dead-letter queue, whether it was put there by us or by SQS.
pub(crate) fn dead_letter(
    arrival: Arrival,
    origin: &str,
    max_receive_count: u32,
) -> DeadLetterRecord {
    let annotations = Annotations::of(&arrival.original.attributes);
    let mut message = arrival.message;
    let dead_letter = match (annotations, &arrival.moved_from) {
        (Some(annotations), None) => {
            if let Some(sent) = annotations.sent {
                Arc::make_mut(&mut message).published_at = Some(attributes::time(sent));
            }
            annotations.letter()
        }
        // A message that SQS moved may still have the annotations of an earlier time here.
        (_, Some(arn)) => DeadLetter {
            reason: DeadLetterReason::BrokerLimit,
            error: format!(
                "SQS dead-lettered it by itself: it was received {max_receive_count} times (maxReceiveCount)"
            ),
            attempts: max_receive_count,
            origin: arn.rsplit(':').next().unwrap_or(origin).to_owned(),
            consumer: String::new(),
            // SQS does not tell when it moved a message.
            at: attributes::time(arrival.original.sent.unwrap_or_default()),
        },
        (None, None) => DeadLetter {
            reason: DeadLetterReason::Other,
            error: "nothing says why it is here: neither backstop's attribute nor SQS".to_owned(),
            attempts: 0,
            origin: origin.to_owned(),
            consumer: String::new(),
            at: attributes::time(arrival.original.sent.unwrap_or_default()),
        },
    };
    DeadLetterRecord {
        message,
        dead_letter,
    }
}
