//! What a program or an endpoint is told about its message.

use std::sync::Arc;

use backstop::{Context, KeySource};
use serde_json::{Map, Value};

/// Tells what is known of a message.
#[derive(Clone)]
pub(super) struct Metadata {
    queue: Arc<str>,
    key: KeySource,
}

/// One thing that is known of a message.
pub(super) struct Fact {
    /// Its name in a program's environment.
    pub(super) variable: &'static str,
    /// Its name among the headers of a request.
    pub(super) header: &'static str,
    pub(super) value: Option<String>,
}

impl Metadata {
    pub(super) fn new(queue: &str, key: KeySource) -> Self {
        Self {
            queue: queue.into(),
            key,
        }
    }

    /// What is known beside the headers.
    pub(super) fn facts(&self, context: &Context) -> [Fact; 7] {
        let message = context.message();
        let key = self.idempotency_key(context);
        let partition_key = message.partition_key.as_ref();
        let fact = |variable, header, value| Fact {
            variable,
            header,
            value,
        };
        [
            fact(
                "BACKSTOP_MESSAGE_ID",
                "backstop-message-id",
                context.id().map(ToString::to_string),
            ),
            fact(
                "BACKSTOP_IDEMPOTENCY_KEY",
                "idempotency-key",
                key.map(|key| key.to_string()),
            ),
            fact(
                "BACKSTOP_ATTEMPT",
                "backstop-attempt",
                Some(context.attempt().to_string()),
            ),
            fact(
                "BACKSTOP_FENCE",
                "backstop-fence",
                context.fence().map(|fence| fence.to_string()),
            ),
            fact(
                "BACKSTOP_PARTITION_KEY",
                "backstop-partition-key",
                partition_key.map(ToString::to_string),
            ),
            fact(
                "BACKSTOP_REDRIVES",
                "backstop-redrives",
                Some(context.redrives().to_string()),
            ),
            fact(
                "BACKSTOP_QUEUE",
                "backstop-queue",
                Some(self.queue.to_string()),
            ),
        ]
    }

    /// The key that repeats of the message are recognised by.
    fn idempotency_key(&self, context: &Context) -> Option<Arc<str>> {
        self.key.extract(context.message())
    }
}

/// All headers as one JSON object.
pub(super) fn headers_as_json(context: &Context) -> String {
    let pairs = context.headers().iter();
    let object: Map<String, Value> = pairs
        .map(|(name, value)| (name.to_owned(), Value::from(value)))
        .collect();
    Value::Object(object).to_string()
}
