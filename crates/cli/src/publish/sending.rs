//! Sending lines, until they end or a signal comes.

use std::future::Future;
use std::io::BufRead;
use std::time::Duration;

use backstop::Shutdown;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};

use super::lines::{BadLine, Entry, Lines};
use super::sender::Sender;
use crate::exit::CommandError;

/// How long a first signal waits for what the broker has not confirmed.
pub(super) const GRACE: Duration = Duration::from_secs(5);
/// Lines that are read ahead: few, since each may be as large as a body.
const AHEAD: usize = 16;

/// How it ended, if nothing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// All was confirmed.
    Complete,
    /// A signal came before.
    Interrupted,
}

/// Sends, but not for longer after a first signal than [`GRACE`], and not beyond a second one.
pub(super) async fn until_interrupted(
    sending: impl Future<Output = Result<Ended, CommandError>>,
    shutdown: &Shutdown,
) -> Result<Ended, CommandError> {
    let overdue = async {
        shutdown.begun().await;
        tokio::select! {
            () = shutdown.cut_short() => {}
            () = tokio::time::sleep(GRACE) => {}
        }
    };
    tokio::select! {
        biased;
        ended = sending => ended,
        () = overdue => Ok(Ended::Interrupted),
    }
}

/// Sends lines; after a signal no further one is taken, and what was taken is sent.
pub(super) async fn send_lines<R: BufRead + Send + 'static>(
    lines: Lines<R>,
    sender: &mut Sender,
    shutdown: &Shutdown,
) -> Result<Ended, CommandError> {
    let mut reading = Reading::begin(lines);
    let ended = loop {
        let entry = tokio::select! {
            biased;
            () = shutdown.begun() => break Ended::Interrupted,
            entry = reading.next() => entry,
        };
        match entry {
            Some(Ok(entry)) => sender.send(entry).await?,
            Some(Err(bad)) => {
                sender.flush().await?;
                return Err(bad.in_stream(sender.published()));
            }
            None => break Ended::Complete,
        }
    };
    sender.flush().await?;
    Ok(ended)
}

/// Reads lines to their end and counts their bytes; `None` if a signal comes before.
pub(super) async fn measure<R: BufRead + Send + 'static>(
    lines: Lines<R>,
    shutdown: &Shutdown,
) -> Result<Option<u64>, CommandError> {
    let measuring = tokio::task::spawn_blocking(move || {
        let mut bytes = 0;
        for entry in lines {
            bytes += entry.map_err(|bad| bad.in_file())?.read as u64;
        }
        Ok(bytes)
    });
    tokio::select! {
        biased;
        () = shutdown.begun() => Ok(None),
        measured = measuring => measured.unwrap_or_else(|error| resume(error)).map(Some),
    }
}

/// Reads lines on a thread of its own: a read of stdin may never end, and nothing else waits for it.
struct Reading {
    entries: mpsc::Receiver<Result<Entry, BadLine>>,
    thread: JoinHandle<()>,
}

impl Reading {
    fn begin<R: BufRead + Send + 'static>(lines: Lines<R>) -> Self {
        let (to, entries) = mpsc::channel(AHEAD);
        let thread = tokio::task::spawn_blocking(move || {
            for entry in lines {
                if to.blocking_send(entry).is_err() {
                    return;
                }
            }
        });
        Self { entries, thread }
    }

    /// The next line; `None` behind the last one.
    async fn next(&mut self) -> Option<Result<Entry, BadLine>> {
        let entry = self.entries.recv().await;
        if entry.is_none()
            && let Err(error) = (&mut self.thread).await
        {
            resume(error);
        }
        entry
    }
}

/// A panic stays one: input that was not read to its end must not look complete.
fn resume(error: JoinError) -> ! {
    std::panic::resume_unwind(error.into_panic())
}

#[cfg(test)]
mod tests;
