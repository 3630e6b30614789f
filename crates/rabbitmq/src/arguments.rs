//! What a queue was declared with.

use std::collections::BTreeMap;

use backstop_core::{BrokerError, BrokerErrorKind};
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::connection::Live;
use crate::error::{failed, refusal};
use crate::headers;
use crate::topology::close;

/// Arguments of a queue, by name.
pub(crate) type Arguments = BTreeMap<String, String>;

/// The arguments that a queue was declared with.
///
/// AMQP has no question for that, but a declaration that differs is refused with the name and the
/// value of one argument: so they are learned one after the other, beginning with what is `usual`. Each refusal leaves a line in the server's log.
///
/// A queue that vanishes meanwhile must not come back by this: see [`NEVER`].
pub(crate) async fn arguments_of(
    live: &Live,
    queue: &str,
    usual: FieldTable,
) -> Result<Arguments, BrokerError> {
    /// More than RabbitMQ knows.
    const ROUNDS: usize = 32;
    let mut arguments = usual.inner().clone();
    let (name, value) = NEVER;
    arguments.insert(name.into(), AMQPValue::LongString(value.into()));
    for _ in 0..ROUNDS {
        let channel = live.channel().await?;
        let table = FieldTable::from(arguments.clone());
        let options = QueueDeclareOptions::durable();
        let declared = channel.queue_declare(queue.into(), options, table).await;
        let Err(error) = declared else {
            close(channel).await;
            break;
        };
        let told = refusal(&error).filter(|(precondition, _)| *precondition);
        if told
            .as_ref()
            .is_some_and(|(_, text)| text.contains(INVALID))
        {
            let text = format!("there is no queue {queue:?} any more: it has gone a moment ago");
            return Err(BrokerError::new(BrokerErrorKind::NotFound, text));
        }
        let Some(learned) = told.and_then(|(_, text)| learn(&text)) else {
            let text = format!("the queue {queue:?} cannot be looked at");
            return Err(failed(&text, error));
        };
        if learned.name == name {
            arguments.insert(
                "x-queue-type".into(),
                AMQPValue::LongString("stream".into()),
            );
            break;
        }
        match learned.value {
            Some((value, kind)) => {
                let sent = arguments.get(learned.name.as_str());
                let value = native(&value, kind.as_deref().or(sent.map(kind_of)));
                arguments.insert(learned.name.as_str().into(), value);
            }
            None => drop(arguments.remove(learned.name.as_str())),
        }
        // A queue of another type is refused for that alone: what else it has does not matter.
        if learned.name == "x-queue-type" {
            break;
        }
    }
    arguments.remove(name);
    let text = |(name, value): (&ShortString, &AMQPValue)| {
        (name.as_str().to_owned(), headers::text_of(value))
    };
    Ok(arguments.iter().map(text).collect())
}

/// An argument that lets no queue be created, and that no queue is refused for that exists: RabbitMQ
/// compares what queues of a type can have, which is an age for streams alone, but it takes no value
/// for a new queue that makes no sense. Measured on 3.10.8, 4.0.5 and 4.3.6, classic and quorum queues.
const NEVER: (&str, &str) = ("x-max-age", "this is a look, not a declaration");

/// How a new queue is refused for it.
const INVALID: &str = "invalid arg 'x-max-age'";

struct Learned {
    name: String,
    /// The value and its type's name, which is not told where it is that of what was sent; `None` if the
    /// queue has no such argument.
    value: Option<(String, Option<String>)>,
}

/// Reads a refusal such as `inequivalent arg 'x' for queue 'q' in vhost '/': received none but current
/// is the value '7' of type 'signedint'`; the end may also be `current is 'classic'` or `current is none`.
fn learn(text: &str) -> Option<Learned> {
    let name = text
        .split("inequivalent arg '")
        .nth(1)?
        .split('\'')
        .next()?
        .to_owned();
    let current = text.split("but current is ").nth(1)?;
    if current.trim_start().starts_with("none") {
        return Some(Learned { name, value: None });
    }
    let mut quoted = current.split('\'');
    let value = quoted.nth(1)?.to_owned();
    let kind = quoted.nth(1).map(ToOwned::to_owned);
    Some(Learned {
        name,
        value: Some((value, kind)),
    })
}

fn native(value: &str, kind: Option<&str>) -> AMQPValue {
    let number = value.parse::<i64>();
    match (kind, value, number) {
        (Some("bool"), "true", _) => AMQPValue::Boolean(true),
        (Some("bool"), _, _) => AMQPValue::Boolean(false),
        (None | Some("longstr"), _, _) | (_, _, Err(_)) => AMQPValue::LongString(value.into()),
        (_, _, Ok(number)) => AMQPValue::LongLongInt(number),
    }
}

/// The name that RabbitMQ has for a value's type, as far as it tells types apart.
const fn kind_of(value: &AMQPValue) -> &'static str {
    match value {
        AMQPValue::Boolean(_) => "bool",
        AMQPValue::LongString(_) => "longstr",
        _ => "long",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As 4.3.6 answers where both sides have the argument.
    #[test]
    fn a_value_without_a_type_has_that_of_what_was_sent() {
        let told = "inequivalent arg 'x-delivery-limit' for queue 'q' in vhost '/': received '-1' but current is '200'";
        let (value, kind) = learn(told).unwrap().value.unwrap();
        let sent = kind_of(&AMQPValue::LongInt(-1));
        let learned = native(&value, kind.as_deref().or(Some(sent)));
        assert_eq!(learned, AMQPValue::LongLongInt(200));
    }

    #[test]
    fn a_refused_declaration_tells_an_argument() {
        let prefix = "PRECONDITION_FAILED - inequivalent arg";
        for (text, name, value) in [
            (
                "'x-delivery-limit' for queue 'f3' in vhost '/': received none but current is the value '7' of type 'signedint'",
                "x-delivery-limit",
                Some(("7", Some("signedint"))),
            ),
            (
                "'x-dead-letter-exchange' for queue 'q' in vhost '/': received none but current is the value '' of type 'longstr'",
                "x-dead-letter-exchange",
                Some(("", Some("longstr"))),
            ),
            (
                "'x-queue-type' for queue 'f4' in vhost '/': received 'quorum' but current is 'classic'",
                "x-queue-type",
                Some(("classic", None)),
            ),
            (
                "'x-queue-type' for queue 'f4' in vhost '/': received the value 'quorum' of type 'longstr' but current is none",
                "x-queue-type",
                None,
            ),
        ] {
            let learned = learn(&format!("{prefix} {text}")).unwrap();
            assert_eq!(learned.name, name);
            let value = value.map(|(value, kind): (&str, Option<&str>)| {
                (value.to_owned(), kind.map(ToOwned::to_owned))
            });
            assert_eq!(learned.value, value, "{text}");
        }
        assert!(learn("NOT_FOUND - no queue 'q' in vhost '/'").is_none());
    }
}
