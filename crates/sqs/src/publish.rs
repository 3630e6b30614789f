//! Sending, in batches that SQS takes.

use std::time::Duration;

use aws_sdk_sqs::Client;
use backstop_core::BrokerError;
use futures_util::{StreamExt, stream};

use crate::config::QueueKind;
use crate::encode::{MAX_BYTES, Native};
use crate::error::{again, entry_failed, failed};

/// The most entries of a batch.
pub(crate) const BATCH: usize = 10;

/// The most batches under way at once.
const FLIGHTS: usize = 8;

/// How often an entry is sent that SQS refused for a reason of its own.
const TRIES: u32 = 4;

const DOING: &str = "the message cannot be sent";

/// A message, and its position.
type Placed = (usize, Native);
/// An answer, and its position.
type Sent = (usize, Result<(), BrokerError>);

/// Sends messages; answers stand at their positions. What follows a message on a FIFO queue that was not
/// sent, but may be later, is not sent ahead of it.
pub(crate) async fn send(
    client: &Client,
    url: &str,
    messages: Vec<Result<Native, BrokerError>>,
    kind: QueueKind,
) -> Vec<Result<(), BrokerError>> {
    let mut answers = Vec::with_capacity(messages.len());
    let mut natives = Vec::with_capacity(messages.len());
    for (at, message) in messages.into_iter().enumerate() {
        let answer = message.map(|native| natives.push((at, native)));
        answers.push(answer);
    }
    let batches = cut(natives);
    let sent = match kind {
        QueueKind::Standard => {
            let sending = stream::iter(batches).map(|batch| send_batch(client, url, batch));
            sending.buffer_unordered(FLIGHTS).concat().await
        }
        QueueKind::Fifo => send_in_order(client, url, batches).await,
    };
    for (at, answer) in sent {
        answers[at] = answer;
    }
    answers
}

async fn send_in_order(client: &Client, url: &str, batches: Vec<Vec<Placed>>) -> Vec<Sent> {
    let mut sent = Vec::new();
    let mut stopped: Option<BrokerError> = None;
    for batch in batches {
        if let Some(error) = &stopped {
            sent.extend(batch.iter().map(|(at, _)| (*at, Err(again(error)))));
            continue;
        }
        let answers = send_batch(client, url, batch).await;
        let may_be_sent_later = answers.iter().find_map(|(_, answer)| {
            let error = answer.as_ref().err()?;
            error.is_transient().then(|| again(error))
        });
        stopped = may_be_sent_later;
        sent.extend(answers);
    }
    sent
}

/// Cuts into batches of at most ten messages and 1 MiB.
fn cut(natives: Vec<Placed>) -> Vec<Vec<Placed>> {
    let mut batches: Vec<Vec<Placed>> = Vec::new();
    let mut room = 0;
    for (at, native) in natives {
        let bytes = native.bytes();
        match batches.last_mut() {
            Some(batch) if batch.len() < BATCH && bytes <= room => {
                room -= bytes;
                batch.push((at, native));
            }
            _ => {
                room = MAX_BYTES.saturating_sub(bytes);
                batches.push(vec![(at, native)]);
            }
        }
    }
    batches
}

/// Sends one batch, and again what SQS could not take this time.
async fn send_batch(client: &Client, url: &str, mut batch: Vec<Placed>) -> Vec<Sent> {
    let mut sent = Vec::with_capacity(batch.len());
    for attempt in 1..=TRIES {
        let (done, again) = try_batch(client, url, batch, attempt).await;
        sent.extend(done);
        if again.is_empty() {
            break;
        }
        batch = again;
        let pause = Duration::from_millis(100 << attempt).mul_f64(1.0 + rand::random::<f64>());
        tokio::time::sleep(pause).await;
    }
    sent
}

/// Gives what is done with, and what is worth another try.
async fn try_batch(
    client: &Client,
    url: &str,
    batch: Vec<Placed>,
    attempt: u32,
) -> (Vec<Sent>, Vec<Placed>) {
    let entries: Result<Vec<_>, _> = batch.iter().map(|(at, native)| native.entry(*at)).collect();
    let for_all = |error: &BrokerError| {
        let sent = batch.iter().map(|(at, _)| (*at, Err(again(error))));
        sent.collect()
    };
    let entries = match entries {
        Ok(entries) => entries,
        Err(error) => return (for_all(&error), Vec::new()),
    };
    let asked = client
        .send_message_batch()
        .queue_url(url)
        .set_entries(Some(entries))
        .send()
        .await;
    let answer = match asked {
        Ok(answer) => answer,
        Err(error) => return (for_all(&failed(DOING, &error)), Vec::new()),
    };
    let (mut done, mut rest) = (Vec::with_capacity(batch.len()), Vec::new());
    for (at, native) in batch {
        let id = at.to_string();
        if answer.successful().iter().any(|entry| entry.id() == id) {
            done.push((at, Ok(())));
            continue;
        }
        let error = match answer.failed().iter().find(|entry| entry.id() == id) {
            Some(entry) => entry_failed(DOING, entry),
            None => unanswered(),
        };
        if error.is_transient() && attempt < TRIES {
            rest.push((at, native));
        } else {
            done.push((at, Err(error)));
        }
    }
    (done, rest)
}

pub(crate) fn unanswered() -> BrokerError {
    let text = "SQS answered for fewer entries of a batch than it was asked";
    BrokerError::new(backstop_core::BrokerErrorKind::Other, text)
}

#[cfg(test)]
mod tests {
    use backstop_core::BrokerErrorKind;

    use super::*;
    use crate::attributes::Attributes;
    use crate::scripted::{Script, answer};

    fn native(bytes: usize) -> Native {
        Native {
            body: "x".repeat(bytes),
            attributes: Attributes::new(),
            group: None,
            deduplication: None,
            trace: None,
            delay: 0,
        }
    }

    fn cut_of(sizes: &[usize]) -> Vec<Vec<usize>> {
        let natives = sizes.iter().map(|bytes| native(*bytes)).enumerate();
        let batches = cut(natives.collect());
        let positions = |batch: &Vec<Placed>| batch.iter().map(|(at, _)| *at).collect();
        batches.iter().map(positions).collect()
    }

    #[test]
    fn a_batch_has_at_most_ten_messages() {
        let batches = cut_of(&[1; 21]);
        let sizes: Vec<_> = batches.iter().map(Vec::len).collect();
        assert_eq!(sizes, [10, 10, 1]);
    }

    #[test]
    fn a_batch_has_at_most_one_mebibyte() {
        let half = MAX_BYTES / 2;
        assert_eq!(cut_of(&[half, half, 1]), [vec![0, 1], vec![2]]);
        assert_eq!(cut_of(&[half, half + 1, 1]), [vec![0], vec![1, 2]]);
        assert_eq!(cut_of(&[MAX_BYTES, MAX_BYTES]), [vec![0], vec![1]]);
    }

    async fn send_all(
        script: &Script,
        count: usize,
        kind: QueueKind,
    ) -> Vec<Option<BrokerErrorKind>> {
        let messages = (0..count).map(|_| Ok(native(1))).collect();
        let answers = send(&script.client(), "https://q", messages, kind).await;
        let kind = |answer: Result<(), BrokerError>| answer.err().map(|error| error.kind());
        answers.into_iter().map(kind).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_batch_only_what_may_succeed_is_sent_again() {
        let partly = answer(&[0], &[(1, "InternalError"), (2, "InvalidMessageContents")]);
        let script = Script::new([partly, answer(&[1], &[])]);
        let answers = send_all(&script, 3, QueueKind::Standard).await;
        assert_eq!(answers, [None, None, Some(BrokerErrorKind::Unsupported)]);
        let batches = script.batches();
        assert_eq!(batches, [vec!["0", "1", "2"], vec!["1"]]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_that_fails_again_and_again_is_an_error() {
        let script = Script::new([answer(&[], &[(0, "InternalError")])]);
        let answers = send_all(&script, 1, QueueKind::Standard).await;
        assert_eq!(answers, [Some(BrokerErrorKind::Unreachable)]);
        assert_eq!(script.batches().len(), TRIES as usize);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_overtakes_what_was_not_sent_to_a_fifo_queue() {
        let script = Script::new([answer(
            &[0, 1, 2, 3, 4, 5, 6, 7, 8],
            &[(9, "InternalError")],
        )]);
        let answers = send_all(&script, 12, QueueKind::Fifo).await;
        let failed: Vec<_> = answers.iter().map(Option::is_some).collect();
        assert_eq!(failed.iter().position(|failed| *failed), Some(9));
        assert!(failed[9..].iter().all(|failed| *failed), "{answers:?}");
        let sent: Vec<_> = script.batches().concat();
        assert!(!sent.contains(&"10".to_owned()), "{sent:?}");
    }
}
