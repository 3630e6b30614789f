//! As much of the SQS protocol (AWS JSON 1.0) as consumers need, answered at once: every emulator is
//! slower than the client. It carries bodies without attributes.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use md5::{Digest as _, Md5};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::queue::{Queue, Sent};
use super::wire::{
    Answered, Batch, Change, Deletion, Failed, Find, Look, Outgoing, Receive, Received, Refusal,
};

/// The queue's name; SQS's own account number of an emulator stands before it.
pub(crate) const QUEUE: &str = "bench";
pub(crate) const DEAD_LETTERS: &str = "bench-dead-letters";
pub(crate) const ACCOUNT: &str = "000000000000";

/// A batch has at most so many entries, and a receive brings at most so many messages.
pub(crate) const BATCH: usize = 10;

const VISIBILITY: u64 = 30;
const LONGEST_WAIT: u64 = 20;

/// A queue and its dead-letter queue, and which calls were made.
pub(crate) struct Stub {
    endpoint: String,
    pub(crate) queue: Queue,
    pub(crate) dead_letters: Queue,
    calls: Mutex<BTreeMap<String, u64>>,
}

impl Stub {
    /// One that is reached at `http://<host>`.
    pub(crate) fn new(endpoint: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            queue: Queue::default(),
            dead_letters: Queue::default(),
            calls: Mutex::default(),
        }
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// How often an operation was called.
    pub(crate) fn calls(&self, operation: &str) -> u64 {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.get(operation).copied().unwrap_or(0)
    }

    /// Answers a call: `target` is the header `X-Amz-Target`.
    ///
    /// # Errors
    ///
    /// What SQS would refuse, and what this stub does not know.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe, see [`Queue::receive`].
    pub(crate) async fn answer(&self, target: &str, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        let operation = target.strip_prefix("AmazonSQS.").unwrap_or(target);
        self.count(operation);
        match operation {
            "GetQueueUrl" => self.find(&read(body)?),
            "GetQueueAttributes" => self.look(&read(body)?),
            "ReceiveMessage" => self.receive(read(body)?).await,
            "DeleteMessageBatch" => self.delete(read(body)?),
            "ChangeMessageVisibilityBatch" => self.change_visibility(read(body)?),
            "SendMessageBatch" => self.send(read(body)?),
            other => Err(Refusal::new(
                "InvalidAction",
                format!("{other} is not in the stub"),
            )),
        }
    }

    fn count(&self, operation: &str) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = calls.get_mut(operation) {
            *count += 1;
        } else {
            calls.insert(operation.to_owned(), 1);
        }
    }

    fn find(&self, asked: &Find) -> Result<Vec<u8>, Refusal> {
        let name = &*asked.queue_name;
        self.named(name)?;
        let url = format!("{}/{ACCOUNT}/{name}", self.endpoint);
        write(&json!({"QueueUrl": url}))
    }

    fn look(&self, asked: &Look) -> Result<Vec<u8>, Refusal> {
        let queue = self.at(&asked.queue_url)?;
        let arn = |name| format!("arn:aws:sqs:us-east-1:{ACCOUNT}:{name}");
        let (visible, in_flight) = queue.depth();
        let mut attributes = json!({
            "VisibilityTimeout": VISIBILITY.to_string(),
            "MessageRetentionPeriod": "1209600",
            "MaximumMessageSize": "1048576",
            "ApproximateNumberOfMessages": visible.to_string(),
            "ApproximateNumberOfMessagesNotVisible": in_flight.to_string(),
            "ApproximateNumberOfMessagesDelayed": "0",
        });
        if std::ptr::eq(queue, &raw const self.queue) {
            let redrive =
                json!({"deadLetterTargetArn": arn(DEAD_LETTERS), "maxReceiveCount": 1000});
            attributes["QueueArn"] = Value::String(arn(QUEUE));
            attributes["RedrivePolicy"] = Value::String(redrive.to_string());
        } else {
            attributes["QueueArn"] = Value::String(arn(DEAD_LETTERS));
        }
        write(&json!({"Attributes": attributes}))
    }

    async fn receive(&self, asked: Receive) -> Result<Vec<u8>, Refusal> {
        let queue = self.at(&asked.queue_url)?;
        let wait = asked.wait_time_seconds.unwrap_or(0);
        if !(1..=BATCH).contains(&asked.max_number_of_messages) || wait > LONGEST_WAIT {
            let text = "MaxNumberOfMessages is 1 to 10, WaitTimeSeconds at most 20";
            return Err(Refusal::new("InvalidParameterValue", text));
        }
        let visibility = Duration::from_secs(asked.visibility_timeout.unwrap_or(VISIBILITY));
        let wait = Duration::from_secs(wait);
        let handed = queue
            .receive(asked.max_number_of_messages, visibility, wait)
            .await;
        let messages = handed
            .iter()
            .map(|(receipt, message)| Received {
                message_id: &message.id,
                receipt_handle: format!("{receipt:016x}"),
                md5: &message.md5,
                body: &message.body,
                attributes: attributes(message, &asked.message_system_attribute_names),
            })
            .collect();
        write(&super::wire::Handed { messages })
    }

    fn delete(&self, asked: Batch<Deletion>) -> Result<Vec<u8>, Refusal> {
        let queue = self.at(&asked.queue_url)?;
        each(asked.entries, |entry| {
            let receipt = receipt(&entry.receipt_handle);
            done(entry.id, receipt.is_some_and(|it| queue.delete(it)))
        })
    }

    fn change_visibility(&self, asked: Batch<Change>) -> Result<Vec<u8>, Refusal> {
        let queue = self.at(&asked.queue_url)?;
        each(asked.entries, |entry| {
            let visibility = Duration::from_secs(entry.visibility_timeout);
            let receipt = receipt(&entry.receipt_handle);
            let is_held = receipt.is_some_and(|it| queue.change_visibility(it, visibility));
            done(entry.id, is_held)
        })
    }

    fn send(&self, asked: Batch<Outgoing>) -> Result<Vec<u8>, Refusal> {
        let queue = self.at(&asked.queue_url)?;
        each(asked.entries, |entry| {
            let md5 = hex(&Md5::digest(&entry.message_body));
            let id = queue.send(entry.message_body, &md5);
            Ok(json!({"Id": entry.id, "MessageId": &*id, "MD5OfMessageBody": md5}))
        })
    }

    fn named(&self, name: &str) -> Result<&Queue, Refusal> {
        match name {
            QUEUE => Ok(&self.queue),
            DEAD_LETTERS => Ok(&self.dead_letters),
            _ => Err(Refusal::new(
                "QueueDoesNotExist",
                format!("no queue {name:?}"),
            )),
        }
    }

    fn at(&self, url: &str) -> Result<&Queue, Refusal> {
        self.named(url.rsplit('/').next().unwrap_or_default())
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    let read = serde_json::from_slice(body);
    read.map_err(|error| Refusal::new("SerializationException", error.to_string()))
}

fn write(answer: &impl serde::Serialize) -> Result<Vec<u8>, Refusal> {
    let written = serde_json::to_vec(answer);
    written.map_err(|error| Refusal::new("InternalFailure", error.to_string()))
}

/// Carries out the entries of a batch, each for itself.
fn each<T>(
    entries: Vec<T>,
    mut carry_out: impl FnMut(T) -> Result<Value, Failed>,
) -> Result<Vec<u8>, Refusal> {
    if entries.is_empty() {
        return Err(Refusal::new("EmptyBatchRequest", "no entries"));
    }
    if entries.len() > BATCH {
        let text = format!("{} entries, {BATCH} at most", entries.len());
        return Err(Refusal::new("TooManyEntriesInBatchRequest", text));
    }
    let mut answered = Answered::default();
    for entry in entries {
        match carry_out(entry) {
            Ok(done) => answered.successful.push(done),
            Err(failed) => answered.failed.push(failed),
        }
    }
    write(&answered)
}

/// What became of an entry that names a receipt.
fn done(id: String, is_held: bool) -> Result<Value, Failed> {
    if is_held {
        Ok(json!({"Id": id}))
    } else {
        Err(Failed::receipt(id))
    }
}

/// The system attributes that were asked for.
fn attributes(message: &Sent, wanted: &[String]) -> BTreeMap<&'static str, String> {
    if wanted.is_empty() {
        return BTreeMap::new();
    }
    let all = [
        ("ApproximateFirstReceiveTimestamp", message.first_received),
        ("ApproximateReceiveCount", message.receives.into()),
        ("SentTimestamp", message.at),
    ];
    let all = all.map(|(name, value)| (name, value.to_string()));
    let is_wanted = |name: &str| wanted.iter().any(|it| it == "All" || it == name);
    all.into_iter()
        .chain([("SenderId", ACCOUNT.to_owned())])
        .filter(|(name, _)| is_wanted(name))
        .collect()
}

fn receipt(handle: &str) -> Option<u64> {
    u64::from_str_radix(handle, 16).ok()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
