//! From a body to what a handler wants, and back.

use std::marker::PhantomData;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::HandlerError;
use crate::message::Message;

/// Decodes bodies. A body that cannot be decoded is dead-lettered after one look, raw.
pub trait Codec: Send + Sync + 'static {
    /// What the handler gets.
    type Payload: Send + 'static;

    /// Decodes a message's body.
    ///
    /// # Errors
    ///
    /// Any error dead-letters the message as undecodable; its text is kept there, so it should not
    /// quote the body.
    fn decode(&self, message: &Message) -> Result<Self::Payload, HandlerError>;
}

/// Hands the body over as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Raw;

impl Codec for Raw {
    type Payload = Bytes;

    fn decode(&self, message: &Message) -> Result<Bytes, HandlerError> {
        Ok(message.body.clone())
    }
}

/// JSON, by serde.
#[derive(Debug)]
pub struct Json<T>(PhantomData<fn() -> T>);

impl<T> Json<T> {
    /// The codec for `T`.
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T> Default for Json<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: DeserializeOwned + Send + 'static> Codec for Json<T> {
    type Payload = T;

    fn decode(&self, message: &Message) -> Result<T, HandlerError> {
        serde_json::from_slice(&message.body).map_err(|error| {
            // serde's text may quote values of the body; where and what kind it was may not.
            let kind = match error.classify() {
                serde_json::error::Category::Syntax => "is not valid JSON",
                serde_json::error::Category::Eof => "ends in the middle of the JSON",
                serde_json::error::Category::Data => "is JSON of another shape than expected",
                serde_json::error::Category::Io => "cannot be read",
            };
            let (line, column) = (error.line(), error.column());
            HandlerError::permanent(format!("the body {kind}, at line {line} column {column}"))
        })
    }
}

impl Message {
    /// A message whose body is `payload` as JSON, with a new time-ordered id.
    ///
    /// # Errors
    ///
    /// When serde cannot represent `payload` as JSON.
    pub fn json<T: Serialize + ?Sized>(payload: &T) -> Result<Self, serde_json::Error> {
        let body = serde_json::to_vec(payload)?;
        Ok(Self::new(body).with_header("content-type", "application/json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_undecodable_body_is_not_quoted() {
        let message = Message::new(r#"{"amount": "secret"}"#);
        let error = Json::<std::collections::HashMap<String, u32>>::new()
            .decode(&message)
            .unwrap_err();
        let shown = error.to_string();
        assert!(!shown.contains("secret"), "{shown}");
        assert_eq!(
            shown,
            "the body is JSON of another shape than expected, at line 1 column 19"
        );
    }

    #[test]
    fn json_goes_there_and_back() {
        let message = Message::json(&[1, 2, 3]).unwrap();
        assert_eq!(Json::<Vec<u32>>::new().decode(&message).unwrap(), [1, 2, 3]);
    }
}
