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

/// A message that the broker did not confirm.
pub(crate) struct Unconfirmed {
    line: usize,
    error: BrokerError,
}

impl Unconfirmed {
    pub(crate) fn json(&self) -> Value {
        json!({"line": self.line, "error": with_causes(&self.error)})
    }
}

/// Publishes what it is given, and counts.
pub(crate) struct Sender {
    publisher: Publisher,
    batch: Vec<Entry>,
    bytes: usize,
    published: u64,
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
        self.batch.push(entry);
        if self.batch.len() >= BATCH || self.bytes >= BATCH_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// Publishes what was kept back, and returns when all of it is confirmed.
    pub(crate) async fn flush(&mut self) -> Result<(), CommandError> {
        let mut batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        let mut pauses = Pauses::default();
        for attempt in 1..=TRIES {
            let failed = self.publish(batch).await;
            let Some((_, first)) = failed.first() else {
                return Ok(());
            };
            let may_help = failed.iter().all(|(_, error)| error.is_transient());
            if attempt == TRIES || !may_help {
                let error = self.give_up(&failed[..], first);
                self.unconfirmed = failed
                    .into_iter()
                    .map(|(entry, error)| Unconfirmed {
                        line: entry.line,
                        error,
                    })
                    .collect();
                return Err(error);
            }
            let pause = pauses.next();
            tracing::warn!(error = %with_causes(first), unconfirmed = failed.len(), ?pause, "publishing again what was not confirmed");
            batch = failed.into_iter().map(|(entry, _)| entry).collect();
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    /// Publishes, and gives back what was not confirmed.
    async fn publish(&mut self, batch: Vec<Entry>) -> Vec<(Entry, BrokerError)> {
        let messages: Vec<(Message, Duration)> = batch
            .iter()
            .map(|entry| (entry.message.clone(), entry.delay))
            .collect();
        let answers = self.publisher.publish_batch(messages).await;
        let mut failed = Vec::new();
        for (entry, answer) in batch.into_iter().zip(answers) {
            match answer {
                Ok(_) => {
                    self.published += 1;
                    self.progress.inc(entry.read as u64);
                }
                Err(error) => failed.push((entry, error)),
            }
        }
        let count = output::counted(self.published, "message");
        self.progress.set_message(format!("{count} confirmed"));
        failed
    }

    fn give_up(&self, failed: &[(Entry, BrokerError)], error: &BrokerError) -> CommandError {
        let published = output::counted(self.published, "message");
        let failed_count = output::counted(failed.len() as u64, "message");
        // A message from the arguments has no line.
        let place = match failed.first() {
            Some((Entry { line: 1.., .. }, _)) => {
                let lines = failed.iter().map(|(entry, _)| entry.line);
                format!(" (the first is line {})", lines.min().unwrap_or_default())
            }
            _ => String::new(),
        };
        let text = format!(
            "{published} confirmed; {failed_count}{place} not, and may or may not have arrived; \
             nothing further was sent"
        );
        CommandError::broker(&text, error)
    }

    /// How many messages were confirmed.
    pub(crate) const fn published(&self) -> u64 {
        self.published
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
