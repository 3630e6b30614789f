//! What the stub reads and writes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Finds a queue.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Find {
    pub(crate) queue_name: String,
}

/// Looks at a queue's attributes; all of them are told.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Look {
    pub(crate) queue_url: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Receive {
    pub(crate) queue_url: String,
    #[serde(default = "one")]
    pub(crate) max_number_of_messages: usize,
    pub(crate) visibility_timeout: Option<u64>,
    pub(crate) wait_time_seconds: Option<u64>,
    #[serde(default)]
    pub(crate) message_system_attribute_names: Vec<String>,
}

const fn one() -> usize {
    1
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Batch<T> {
    pub(crate) queue_url: String,
    pub(crate) entries: Vec<T>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Deletion {
    pub(crate) id: String,
    pub(crate) receipt_handle: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Change {
    pub(crate) id: String,
    pub(crate) receipt_handle: String,
    pub(crate) visibility_timeout: u64,
}

/// A message to take. One with anything else, an attribute or a delay, is refused rather than cut.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Outgoing {
    pub(crate) id: String,
    pub(crate) message_body: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Handed<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) messages: Vec<Received<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Received<'a> {
    pub(crate) message_id: &'a str,
    pub(crate) receipt_handle: String,
    #[serde(rename = "MD5OfBody")]
    pub(crate) md5: &'a str,
    pub(crate) body: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) attributes: BTreeMap<&'static str, String>,
}

/// The answer to a batch.
#[derive(Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Answered {
    pub(crate) successful: Vec<Value>,
    pub(crate) failed: Vec<Failed>,
}

/// An entry that was not carried out.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Failed {
    id: String,
    code: &'static str,
    message: &'static str,
    sender_fault: bool,
}

impl Failed {
    /// The receipt is of no message that is in flight.
    pub(crate) const fn receipt(id: String) -> Self {
        Self {
            id,
            code: "ReceiptHandleIsInvalid",
            message: "the receipt handle is unknown or has expired",
            sender_fault: true,
        }
    }
}

/// A call that is not answered.
#[derive(Debug, Serialize)]
pub(crate) struct Refusal {
    #[serde(rename = "__type")]
    code: String,
    message: String,
}

impl Refusal {
    pub(crate) fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: format!("com.amazonaws.sqs#{code}"),
            message: message.into(),
        }
    }
}
