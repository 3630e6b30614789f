//! Publishing in batches, each message confirmed.

use std::time::Duration;

use backstop::{BrokerError, Message, Publisher, with_causes};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::lines::Entry;
use crate::connect::Pauses;
use crate::exit::CommandError;
use crate::output;

/// Messages that go to the broker at once, at most.
const BATCH: usize = 500;
/// Bytes that go to the broker at once, at most; the last message may go beyond.
const BATCH_BYTES: usize = 4 << 20;
/// How often a message is sent that the broker does not confirm, with the same id each time.
const TRIES: u32 = 5;
const NOT_WAITED_FOR: &str = "interrupted before the broker answered";

/// A message that the broker did not confirm.
pub(crate) struct Unconfirmed {
    line: usize,
    /// Nothing, where the answer was not waited for.
    error: Option<BrokerError>,
}

impl Unconfirmed {
    pub(crate) fn json(&self) -> Value {
        let error = self.error.as_ref();
        let error = error.map_or_else(|| NOT_WAITED_FOR.to_owned(), |error| with_causes(error));
        json!({"line": self.line, "error": error})
    }
}

/// Publishes what it is given, and counts.
pub(crate) struct Sender {
    publisher: Publisher,
    batch: Vec<Entry>,
    bytes: usize,
    published: u64,
    last_line: usize,
    unconfirmed: Vec<Unconfirmed>,
    progress: ProgressBar,
    quiet: bool,
}

impl Sender {
    pub(crate) fn new(publisher: Publisher, quiet: bool) -> Self {
        Self {
            publisher,
            batch: Vec::new(),
            bytes: 0,
            published: 0,
            last_line: 0,
            unconfirmed: Vec::new(),
            progress: ProgressBar::hidden(),
            quiet,
        }
    }

    /// Shows progress, if a person looks: towards this many bytes, or without an end.
    pub(crate) fn expect(&mut self, bytes: Option<u64>) {
        if self.quiet || !output::is_watched() {
            return;
        }
        let (bar, template) = match bytes {
            Some(bytes) => (
                ProgressBar::new(bytes),
                "{bar:40} {percent:>3} %  {msg}  {eta} left",
            ),
            None => (ProgressBar::new_spinner(), "{spinner} {msg}"),
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        self.progress = bar;
    }

    /// Publishes a message, now or with those that follow.
    pub(crate) async fn send(&mut self, entry: Entry) -> Result<(), CommandError> {
        self.bytes += entry.message.body.len();
        self.last_line = entry.line;
        self.batch.push(entry);
        if self.batch.len() >= BATCH || self.bytes >= BATCH_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// Publishes what was kept back, and returns when all of it is confirmed.
    ///
    /// # Cancel safety
    ///
    /// What is not known to be confirmed is kept, and counted by [`Sender::pending`].
    pub(crate) async fn flush(&mut self) -> Result<(), CommandError> {
        self.bytes = 0;
        let mut pauses = Pauses::default();
        for attempt in 1..=TRIES {
            let errors = self.publish().await;
            let Some(first) = errors.first() else {
                return Ok(());
            };
            let may_help = errors.iter().all(BrokerError::is_transient);
            if attempt == TRIES || !may_help {
                let error = self.give_up(first);
                let failed = std::mem::take(&mut self.batch).into_iter().zip(errors);
                self.unconfirmed = failed
                    .map(|(entry, error)| Unconfirmed {
                        line: entry.line,
                        error: Some(error),
                    })
                    .collect();
                return Err(error);
            }
            let pause = pauses.next();
            tracing::warn!(error = %with_causes(first), unconfirmed = errors.len(), ?pause, "publishing again what was not confirmed");
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    /// Publishes what was kept back, and keeps what was not confirmed, for these reasons.
    async fn publish(&mut self) -> Vec<BrokerError> {
        let messages: Vec<(Message, Duration)> = self
            .batch
            .iter()
            .map(|entry| (entry.message.clone(), entry.delay))
            .collect();
        let answers = self.publisher.publish_batch(messages).await;
        let mut errors = Vec::new();
        for (entry, answer) in std::mem::take(&mut self.batch).into_iter().zip(answers) {
            match answer {
                Ok(_) => {
                    self.published += 1;
                    self.progress.inc(entry.read as u64);
                }
                Err(error) => {
                    self.batch.push(entry);
                    errors.push(error);
                }
            }
        }
        let count = output::counted(self.published, "message");
        tracing::debug!("{count} confirmed");
        self.progress.set_message(format!("{count} confirmed"));
        errors
    }

    fn give_up(&self, error: &BrokerError) -> CommandError {
        let published = output::counted(self.published, "message");
        let failed = output::counted(self.pending(), "message");
        // A message from the arguments has no line.
        let place = match self.batch.iter().map(|entry| entry.line).min() {
            Some(line @ 1..) => format!(" (the first is line {line})"),
            _ => String::new(),
        };
        let text = format!(
            "{published} confirmed; {failed}{place} not, and may or may not have arrived; nothing \
             further was sent"
        );
        CommandError::broker(&text, error)
    }

    /// How many messages were confirmed.
    pub(crate) const fn published(&self) -> u64 {
        self.published
    }

    /// How many messages were taken and are not known to be confirmed.
    pub(crate) const fn pending(&self) -> u64 {
        self.batch.len() as u64
    }

    /// What is pending is waited for no more.
    pub(crate) fn abandon(&mut self) {
        let pending = std::mem::take(&mut self.batch).into_iter();
        self.unconfirmed = pending
            .map(|entry| Unconfirmed {
                line: entry.line,
                error: None,
            })
            .collect();
    }

    /// The first line that is not known to be confirmed, or not taken yet.
    pub(crate) fn next_line(&self) -> usize {
        let pending = self.batch.iter().map(|entry| entry.line);
        let unconfirmed = self.unconfirmed.iter().map(|message| message.line);
        let first = pending.chain(unconfirmed).min();
        first.unwrap_or(self.last_line + 1)
    }

    /// What was not confirmed, of the batch that ended it.
    pub(crate) fn unconfirmed(&self) -> &[Unconfirmed] {
        &self.unconfirmed
    }

    /// Takes the progress bar away.
    pub(crate) fn finish(&self) {
        self.progress.finish_and_clear();
    }
}
