//! The consumer's settings, as options.

use std::time::Duration;

use backstop::{Backoff, ConsumerBuilder, Fingerprints, Jitter, KeySource, MissingKey};
use clap::{Args, ValueEnum};

use crate::exit::{Code, CommandError};

/// The shortest time that a handler can be given.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(1);
/// The longest time that core gives a handler.
const LONGEST_HANDLING: Duration = Duration::from_hours(24);

/// The consumer's settings.
#[derive(Args)]
pub(crate) struct Settings {
    /// The consumer's name: processes that share the work share it, and with it what was handled.
    /// Default: the queue's name
    #[arg(long)]
    name: Option<String>,
    /// What a repeat is recognised by: `id`, `header:<name>`, `json:<pointer>` (such as
    /// `json:/order/id`) or `body`
    #[arg(long = "key-from", value_name = "SOURCE", value_parser = key_source, default_value = "id")]
    key: KeySource,
    /// What becomes of a message without that key
    #[arg(long, value_enum, default_value_t = Missing::DeadLetter)]
    missing_key: Missing,
    /// Take a message with a known key but another body for a repeat, instead of dead-lettering it
    #[arg(long)]
    no_fingerprints: bool,
    /// Handle messages of one partition key one at a time and in order
    #[arg(long)]
    ordered: bool,
    /// Start a message at most this often, then dead-letter it; 1 to 1000
    #[arg(long, default_value_t = 5)]
    max_attempts: u32,
    /// The wait before the second attempt; it doubles with each further one
    #[arg(long, value_parser = humantime::parse_duration, default_value = "1s")]
    base: Duration,
    /// The longest wait between two attempts, at most 7 days
    #[arg(long, value_parser = humantime::parse_duration, default_value = "5min")]
    cap: Duration,
    /// How chance spreads the waits
    #[arg(long, value_enum, default_value_t = Spread::Additive)]
    jitter: Spread,
    /// Handle at most this many messages at once; 1 to 10000
    #[arg(long, default_value_t = 64)]
    pub(super) max_in_flight: usize,
    /// Hold at most this many messages, running ones included; for --ordered. Default: four times
    /// --max-in-flight
    #[arg(long)]
    max_buffered: Option<usize>,
    /// Dead-letter bodies of more bytes, unread. Default: the broker's own limit
    #[arg(long, value_name = "BYTES")]
    max_body: Option<usize>,
    /// End the handling of a message that takes longer, and count it as failed
    #[arg(long, value_parser = humantime::parse_duration, default_value = "60s")]
    pub(super) handler_timeout: Duration,
    /// How long a crashed process keeps its messages from being handled by another; at least 100ms
    #[arg(long, value_parser = humantime::parse_duration, default_value = "30s")]
    claim_lease: Duration,
    /// How long a handled message is remembered: a later repeat of it is handled again
    #[arg(long, value_parser = humantime::parse_duration, default_value = "24h")]
    retention: Duration,
    /// Let running handlers finish for this long at Ctrl-C or SIGTERM; a program gets SIGTERM before
    /// its end, by --kill-after, but not in its first half
    #[arg(long, value_parser = humantime::parse_duration, default_value = "30s")]
    pub(super) grace: Duration,
}

/// What becomes of a message without its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Missing {
    /// It is dead-lettered
    DeadLetter,
    /// It is handled, and a repeat of it is handled again
    Handle,
}

/// How waits are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Spread {
    /// The wait and up to half of it more
    Additive,
    /// Between nothing and the wait
    Full,
    /// Between half the wait and the wait
    Equal,
    /// The bare wait
    None,
}

impl Settings {
    /// Refuses what can be refused without a broker, for a handler that needs `spare` to end.
    pub(super) fn check(&self, spare: Duration) -> Result<(), CommandError> {
        let longest = LONGEST_HANDLING.saturating_sub(spare);
        if !(SHORTEST_TIMEOUT..=longest).contains(&self.handler_timeout) {
            let [given, shortest, longest] = [self.handler_timeout, SHORTEST_TIMEOUT, longest]
                .map(|time| humantime::format_duration(time).to_string());
            let text = format!(
                "--handler-timeout cannot be {given}: {shortest} to {longest}, a day less the time that \
                 its end may take"
            );
            return Err(CommandError::new(Code::Usage, text));
        }
        self.backoff().map(drop)
    }

    pub(super) fn key_source(&self) -> KeySource {
        self.key.clone()
    }

    /// How long an endpoint may ask to wait: half the retention, so that the count of attempts
    /// outlives the wait.
    pub(super) fn longest_wait_asked(&self) -> Duration {
        self.retention / 2
    }

    /// Tells a builder. The handler has `spare` beyond its timeout to end by itself, because its end
    /// takes a while and the next attempt must not overlap with it.
    pub(super) fn apply(
        &self,
        builder: ConsumerBuilder,
        spare: Duration,
    ) -> Result<ConsumerBuilder, CommandError> {
        let mut builder = builder
            .key(self.key.clone())
            .missing_key(match self.missing_key {
                Missing::DeadLetter => MissingKey::DeadLetter,
                Missing::Handle => MissingKey::HandleWithoutKey,
            })
            .fingerprints(if self.no_fingerprints {
                Fingerprints::Disabled
            } else {
                Fingerprints::Checked
            })
            .max_attempts(self.max_attempts)
            .backoff(self.backoff()?)
            .max_in_flight(self.max_in_flight)
            .handler_timeout(self.handler_timeout.saturating_add(spare))
            .claim_lease(self.claim_lease)
            .retention(self.retention)
            .shutdown_grace(self.grace);
        if let Some(name) = &self.name {
            builder = builder.name(name.as_str());
        }
        if self.ordered {
            builder = builder.ordered();
        }
        if let Some(deliveries) = self.max_buffered {
            builder = builder.max_buffered(deliveries);
        }
        if let Some(bytes) = self.max_body {
            builder = builder.max_body(bytes);
        }
        Ok(builder)
    }

    fn backoff(&self) -> Result<Backoff, CommandError> {
        let jitter = match self.jitter {
            Spread::Additive => Jitter::Additive,
            Spread::Full => Jitter::Full,
            Spread::Equal => Jitter::Equal,
            Spread::None => Jitter::None,
        };
        Backoff::new(self.base, self.cap, jitter).map_err(|error| CommandError::setting(&error))
    }
}

fn key_source(text: &str) -> Result<KeySource, String> {
    match text.split_once(':') {
        None if text == "id" => Ok(KeySource::MessageId),
        None if text == "body" => Ok(KeySource::BodyHash),
        Some(("header", name)) if !name.is_empty() => Ok(KeySource::Header(name.to_owned())),
        Some(("json", pointer)) if pointer.starts_with('/') => {
            Ok(KeySource::JsonPointer(pointer.to_owned()))
        }
        _ => Err(
            "allowed are id, body, header:<name>, and json:<pointer> such as json:/order/id"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_sources_are_read() {
        assert_eq!(key_source("id"), Ok(KeySource::MessageId));
        assert_eq!(key_source("body"), Ok(KeySource::BodyHash));
        assert_eq!(
            key_source("header:x-id"),
            Ok(KeySource::Header("x-id".into()))
        );
        assert_eq!(
            key_source("json:/a/b"),
            Ok(KeySource::JsonPointer("/a/b".into()))
        );
        for text in ["", "ids", "header:", "json:a", "header"] {
            assert!(key_source(text).is_err(), "{text}");
        }
    }
}
