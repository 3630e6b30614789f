//! Messages, as a publisher writes them and a handler reads them.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use uuid::Uuid;

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// Cloning is cheap: the text is shared.
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Wraps the text as it is.
            pub fn new(text: impl Into<Arc<str>>) -> Self {
                Self(text.into())
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The shared text, for a holder that wants to keep it without a copy.
            pub fn shared(&self) -> Arc<str> {
                Arc::clone(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self::new(text)
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self::new(text)
            }
        }
    };
}

text_id! {
    /// Names a message for its whole life: through redelivery, retries, dead-lettering and redrive.
    MessageId
}

text_id! {
    /// Says within what order is kept: messages of one partition key are handled one at a time.
    PartitionKey
}

impl MessageId {
    /// Makes a new time-ordered id (UUID version 7).
    pub fn random() -> Self {
        let mut buffer = Uuid::encode_buffer();
        let text: &str = Uuid::now_v7().hyphenated().encode_lower(&mut buffer);
        Self(Arc::from(text))
    }
}

/// The headers of a message: text under case-sensitive names, in the order they were set.
///
/// Brokers carry richer values (AMQP tables, numbers, bytes); an adapter shows them here as text and
/// keeps the native values on every copy it makes.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(Arc<str>, Arc<str>)>);

impl Headers {
    /// No headers; allocates nothing.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The value of a header.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(n, _)| &**n == name)
            .map(|(_, value)| &**value)
    }

    /// Sets a header, replacing an earlier value of the same name.
    pub fn set(&mut self, name: impl Into<Arc<str>>, value: impl Into<Arc<str>>) {
        let (name, value) = (name.into(), value.into());
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some(slot) => slot.1 = value,
            None => self.0.push((name, value)),
        }
    }

    /// Removes a header and gives its value.
    pub fn remove(&mut self, name: &str) -> Option<Arc<str>> {
        let at = self.0.iter().position(|(n, _)| &**n == name)?;
        Some(self.0.remove(at).1)
    }

    /// All headers, in the order they were set.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// How many headers there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Shows names only: a header may hold a secret.
impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|(n, _)| n)).finish()
    }
}

impl<N: Into<Arc<str>>, V: Into<Arc<str>>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut headers = Self::new();
        for (name, value) in pairs {
            headers.set(name, value);
        }
        headers
    }
}

/// A message: what a publisher sent, the same on every delivery of it.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// The publisher's id; absent on a message from a publisher that sets none.
    pub id: Option<MessageId>,
    /// Orders this message behind earlier ones of the same key.
    pub partition_key: Option<PartitionKey>,
    /// Headers, trace context (`traceparent`) among them.
    pub headers: Headers,
    /// The payload, byte for byte.
    pub body: Bytes,
    /// When it was published, if the broker or the publisher says so.
    pub published_at: Option<SystemTime>,
}

impl Message {
    /// The header that says how often a message was redriven from a dead-letter queue.
    pub const REDRIVES_HEADER: &str = "backstop-redrives";

    /// A message with this body and a new time-ordered id.
    pub fn new(body: impl Into<Bytes>) -> Self {
        Self {
            id: Some(MessageId::random()),
            ..Self::without_id(body)
        }
    }

    /// A message as a foreign publisher may send it: without an id.
    pub fn without_id(body: impl Into<Bytes>) -> Self {
        Self {
            id: None,
            partition_key: None,
            headers: Headers::new(),
            body: body.into(),
            published_at: None,
        }
    }

    /// Sets the id.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<MessageId>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Sets the partition key.
    #[must_use]
    pub fn with_partition_key(mut self, key: impl Into<PartitionKey>) -> Self {
        self.partition_key = Some(key.into());
        self
    }

    /// Sets a header.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        self.headers.set(name, value);
        self
    }
}

/// Shows the size of the body, never the body.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("id", &self.id)
            .field("partition_key", &self.partition_key)
            .field("headers", &self.headers)
            .field("body_bytes", &self.body.len())
            .field("published_at", &self.published_at)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_neither_body_nor_header_values() {
        let message = Message::new("card 4111").with_header("authorization", "Bearer hunter2");
        let shown = format!("{message:?}");
        assert!(
            !shown.contains("4111") && !shown.contains("hunter2"),
            "{shown}"
        );
        assert!(
            shown.contains("authorization") && shown.contains("body_bytes: 9"),
            "{shown}"
        );
    }

    #[test]
    fn a_header_set_twice_keeps_the_last_value() {
        let mut headers: Headers = [("a", "1"), ("b", "2"), ("a", "3")].into_iter().collect();
        assert_eq!(headers.iter().collect::<Vec<_>>(), [("a", "3"), ("b", "2")]);
        assert_eq!(headers.remove("a").as_deref(), Some("3"));
        assert_eq!(headers.get("a"), None);
    }

    #[test]
    fn random_ids_sort_by_time() {
        let ids: Vec<_> = (0..100).map(|_| MessageId::random()).collect();
        assert!(ids.is_sorted());
    }
}
