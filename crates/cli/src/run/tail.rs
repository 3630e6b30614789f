//! The end of what a program says on stderr.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::task::JoinHandle;

/// How long the last words of a program are waited for: something that it has left behind may keep
/// its stderr open for ever.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Listens to a program until it is dropped. It has to outlive the program: who writes to a stderr
/// that nobody reads is killed by SIGPIPE, in the midst of its cleaning up.
pub(super) struct Ear {
    tail: Arc<Mutex<Tail>>,
    task: JoinHandle<()>,
}

impl Ear {
    pub(super) fn of(stderr: Option<impl AsyncRead + Unpin + Send + 'static>) -> Self {
        let tail = Arc::new(Mutex::new(Tail::new(to_stderr)));
        let heard = Arc::clone(&tail);
        let task = tokio::spawn(async move {
            if let Some(stderr) = stderr {
                listen(stderr, &heard).await;
            }
        });
        Self { tail, task }
    }

    /// What was said at the end, behind a colon; nothing if nothing was said.
    pub(super) async fn last_words(mut self) -> String {
        let _ = tokio::time::timeout(LAST_WORDS, &mut self.task).await;
        self.tail.lock().end()
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(mut stderr: impl AsyncRead + Unpin, tail: &Mutex<Tail>) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        tail.lock().take(&buffer[..read]);
    }
}

/// Keeps the last bytes, and hands all of them on, line by line.
struct Tail {
    hand_on: fn(&[u8]),
    kept: Vec<u8>,
    cut: bool,
    line: Vec<u8>,
}

impl Tail {
    /// The most that is kept: what a dead letter has room for, and a little for what stands before.
    const BYTES: usize = 3_840;
    /// A line that is longer is handed on in pieces.
    const LONGEST_LINE: usize = 64 << 10;

    const fn new(hand_on: fn(&[u8])) -> Self {
        Self {
            hand_on,
            kept: Vec::new(),
            cut: false,
            line: Vec::new(),
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.kept.extend_from_slice(bytes);
        if self.kept.len() > Self::BYTES {
            self.kept.drain(..self.kept.len() - Self::BYTES);
            self.cut = true;
        }
        self.line.extend_from_slice(bytes);
        if let Some(end) = self.line.iter().rposition(|byte| *byte == b'\n') {
            (self.hand_on)(&self.line[..=end]);
            self.line.drain(..=end);
        } else if self.line.len() > Self::LONGEST_LINE {
            (self.hand_on)(&self.line);
            self.line.clear();
        }
    }

    /// Hands on what is left of a line, and gives what was kept.
    fn end(&mut self) -> String {
        if !self.line.is_empty() {
            self.line.push(b'\n');
            (self.hand_on)(&self.line);
            self.line.clear();
        }
        let text = String::from_utf8_lossy(&self.kept);
        let text = text.trim();
        let mark = if self.cut { "…" } else { "" };
        if text.is_empty() {
            return String::new();
        }
        format!(": {mark}{text}")
    }
}

fn to_stderr(bytes: &[u8]) {
    let _ = std::io::stderr().lock().write_all(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end_of(said: &[u8]) -> String {
        let mut tail = Tail::new(|_| {});
        said.chunks(4096).for_each(|chunk| tail.take(chunk));
        tail.end()
    }

    #[test]
    fn the_end_is_kept_and_what_is_missing_shows() {
        assert_eq!(end_of(b"  out of paper\n"), ": out of paper");
        assert_eq!(end_of(b""), "");

        let mut long = vec![b'x'; 10_000];
        long.extend(b"the reason");
        let text = end_of(&long);
        assert!(
            text.starts_with(": …x") && text.ends_with("the reason"),
            "{text}"
        );
        assert!(text.len() <= Tail::BYTES + 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stderr_that_stays_open_is_not_waited_for() {
        let (mut program, ours) = tokio::io::duplex(64);
        tokio::io::AsyncWriteExt::write_all(&mut program, b"bye")
            .await
            .unwrap();
        assert_eq!(Ear::of(Some(ours)).last_words().await, ": bye");
    }
}
