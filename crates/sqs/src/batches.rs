//! Deletions and changes of visibility: ten a call, or what there is after 20 ms.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry,
};
use backstop_core::{BrokerError, BrokerErrorKind};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::error::{again, entry_failed, failed, unwritable};
use crate::publish::{BATCH, unanswered};

/// How long an entry waits for others: SQS bills by call.
const GATHER: Duration = Duration::from_millis(20);

/// What a batch does to its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Delete,
    /// Makes it visible after so many seconds.
    Visibility(i32),
}

/// One message's entry.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) handle: Arc<str>,
    pub(crate) change: Change,
}

type Answer = Result<(), BrokerError>;
type Waiting = (Entry, oneshot::Sender<Answer>);

/// An entry that is being carried out.
pub(crate) struct Underway(oneshot::Receiver<Answer>);

impl Underway {
    /// The entry's own answer.
    pub(crate) async fn answer(self) -> Answer {
        self.0.await.unwrap_or_else(|_| Err(interrupted()))
    }
}

/// Gathers entries of one kind into batches.
pub(crate) struct Batches {
    shared: Arc<Gathering>,
}

struct Gathering {
    client: Client,
    url: Arc<str>,
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    entries: Vec<Waiting>,
    /// Numbers the batches, so that a timer meets none but its own.
    batch: u64,
}

impl Pending {
    fn take(&mut self) -> Vec<Waiting> {
        self.batch += 1;
        std::mem::take(&mut self.entries)
    }
}

impl Batches {
    pub(crate) fn new(client: Client, url: Arc<str>) -> Self {
        let pending = Mutex::default();
        Self {
            shared: Arc::new(Gathering {
                client,
                url,
                pending,
            }),
        }
    }

    /// Has an entry carried out, whether its answer is waited for or not.
    pub(crate) fn begin(&self, entry: Entry) -> Underway {
        let (told, answer) = oneshot::channel();
        let full = {
            let mut pending = self.shared.pending.lock();
            pending.entries.push((entry, told));
            match pending.entries.len() {
                1 => {
                    self.flush_later(pending.batch);
                    None
                }
                BATCH => Some(pending.take()),
                _ => None,
            }
        };
        if let Some(full) = full {
            self.shared.clone().start(full);
        }
        Underway(answer)
    }

    fn flush_later(&self, batch: u64) {
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            tokio::time::sleep(GATHER).await;
            let due = {
                let mut pending = shared.pending.lock();
                (pending.batch == batch).then(|| pending.take())
            };
            if let Some(due) = due {
                shared.carry(due).await;
            }
        });
    }
}

impl Gathering {
    fn start(self: Arc<Self>, batch: Vec<Waiting>) {
        tokio::spawn(async move { self.carry(batch).await });
    }

    async fn carry(&self, batch: Vec<Waiting>) {
        let (entries, told): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let answers = carry_out(&self.client, &self.url, &entries).await;
        for (told, answer) in told.into_iter().zip(answers) {
            // Who does not wait any more need not know.
            let _ = told.send(answer);
        }
    }
}

/// Carries out at most ten entries of one kind by one call; answers stand at their positions.
pub(crate) async fn carry_out(client: &Client, url: &str, entries: &[Entry]) -> Vec<Answer> {
    let carried_out = match entries.first().map(|entry| entry.change) {
        None => return Vec::new(),
        Some(Change::Delete) => delete(client, url, entries).await,
        Some(Change::Visibility(_)) => change_visibility(client, url, entries).await,
    };
    match carried_out {
        Err(error) => entries.iter().map(|_| Err(again(&error))).collect(),
        Ok(outcome) => (0..entries.len()).map(|at| outcome.answer(at)).collect(),
    }
}

/// What SQS answered for each entry.
struct Outcome {
    doing: &'static str,
    successful: Vec<String>,
    failed: Vec<BatchResultErrorEntry>,
}

impl Outcome {
    fn answer(&self, at: usize) -> Answer {
        let id = at.to_string();
        if self.successful.contains(&id) {
            return Ok(());
        }
        match self.failed.iter().find(|entry| entry.id() == id) {
            Some(entry) => Err(entry_failed(self.doing, entry)),
            None => Err(unanswered()),
        }
    }
}

async fn delete(client: &Client, url: &str, entries: &[Entry]) -> Result<Outcome, BrokerError> {
    let doing = "the message cannot be deleted";
    let native = entries.iter().enumerate().map(|(id, entry)| {
        DeleteMessageBatchRequestEntry::builder()
            .id(id.to_string())
            .receipt_handle(&*entry.handle)
            .build()
    });
    let native: Result<Vec<_>, _> = native.collect();
    let asked = client
        .delete_message_batch()
        .queue_url(url)
        .set_entries(Some(native.map_err(|error| unwritable(&error))?))
        .send()
        .await;
    let answer = asked.map_err(|error| failed(doing, &error))?;
    Ok(Outcome {
        doing,
        successful: answer
            .successful
            .into_iter()
            .map(|entry| entry.id)
            .collect(),
        failed: answer.failed,
    })
}

async fn change_visibility(
    client: &Client,
    url: &str,
    entries: &[Entry],
) -> Result<Outcome, BrokerError> {
    let doing = "the message's visibility cannot be changed";
    let native = entries.iter().enumerate().map(|(id, entry)| {
        let seconds = match entry.change {
            Change::Visibility(seconds) => seconds,
            Change::Delete => 0,
        };
        ChangeMessageVisibilityBatchRequestEntry::builder()
            .id(id.to_string())
            .receipt_handle(&*entry.handle)
            .visibility_timeout(seconds)
            .build()
    });
    let native: Result<Vec<_>, _> = native.collect();
    let asked = client
        .change_message_visibility_batch()
        .queue_url(url)
        .set_entries(Some(native.map_err(|error| unwritable(&error))?))
        .send()
        .await;
    let answer = asked.map_err(|error| failed(doing, &error))?;
    Ok(Outcome {
        doing,
        successful: answer
            .successful
            .into_iter()
            .map(|entry| entry.id)
            .collect(),
        failed: answer.failed,
    })
}

fn interrupted() -> BrokerError {
    let text = "the runtime ended before SQS answered";
    BrokerError::new(BrokerErrorKind::Closed, text)
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;
    use crate::scripted::{Script, answer};

    async fn delete(script: &Script, count: usize) -> Vec<Option<BrokerErrorKind>> {
        let batches = Batches::new(script.client(), "https://q".into());
        let deletions = (0..count).map(|n| {
            let entry = Entry {
                handle: n.to_string().into(),
                change: Change::Delete,
            };
            batches.begin(entry).answer()
        });
        let answers = join_all(deletions).await;
        let kind = |answer: Answer| answer.err().map(|error| error.kind());
        answers.into_iter().map(kind).collect()
    }

    const TEN: [usize; 10] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];

    #[tokio::test(start_paused = true)]
    async fn ten_go_by_one_call_and_the_rest_soon_by_another() {
        let script = Script::new([answer(&TEN, &[])]);
        let begun = tokio::time::Instant::now();
        assert_eq!(delete(&script, 23).await, [None; 23]);
        let sizes: Vec<_> = script.batches().iter().map(Vec::len).collect();
        assert_eq!(sizes, [10, 10, 3]);
        assert!(begun.elapsed() >= GATHER);
    }

    #[tokio::test(start_paused = true)]
    async fn each_entry_has_its_own_answer() {
        let script = Script::new([answer(
            &[0],
            &[(1, "ReceiptHandleIsInvalid"), (2, "InternalError")],
        )]);
        let lost = Some(BrokerErrorKind::LeaseLost);
        let again = Some(BrokerErrorKind::Unreachable);
        let unanswered = Some(BrokerErrorKind::Other);
        assert_eq!(delete(&script, 4).await, [None, lost, again, unanswered]);
    }
}
