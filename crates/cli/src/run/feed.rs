//! Filling a `memory://` queue, for a dry run without a server.

use std::convert::Infallible;
use std::path::Path;

use backstop::{Broker as _, InProcessBroker, Publisher, QueueCounts, Shutdown, in_process_queue};

use crate::connect;
use crate::exit::{Code, CommandError};
use crate::publish::{Defaults, Lines, Sender, open};

/// A queue that ends the run when it is empty; or nothing, for a real broker.
pub(super) struct Feed {
    queue: Option<InProcessBroker>,
}

/// Refuses a feed for a real broker, and a memory queue that nothing can ever arrive in.
pub(super) fn check(file: Option<&Path>, url: &str) -> Result<(), CommandError> {
    let refuse = |text: &str| Err(CommandError::new(Code::Usage, text));
    match (file, connect::memory_queue(url)) {
        (None, Some(_)) => refuse(
            "a memory:// queue lives inside this command, so nobody else can publish to it: give \
             its messages with --feed FILE",
        ),
        (Some(_), None) => refuse(
            "--feed fills a memory:// queue only: fill this one with `backstop publish --file`",
        ),
        (Some(file), Some(_)) => open(file).map(drop),
        (None, None) => Ok(()),
    }
}

impl Feed {
    /// Publishes the messages of a file, if there is one.
    pub(super) async fn begin(file: Option<&Path>, url: &str) -> Result<Self, CommandError> {
        let (Some(file), Some(name)) = (file, connect::memory_queue(url)) else {
            return Ok(Self { queue: None });
        };
        let queue = in_process_queue(name);
        let shown = file.display().to_string();
        let mut sender = Sender::new(Publisher::new(queue.clone()), true);
        let defaults = Defaults::for_feed(queue.capabilities().max_body);
        for entry in Lines::new(open(file)?, shown, defaults) {
            sender.send(entry.map_err(|bad| bad.in_file())?).await?;
        }
        sender.flush().await?;
        Ok(Self { queue: Some(queue) })
    }

    /// Begins the shutdown when all messages are settled for good; then, or if there is no feed,
    /// waits.
    pub(super) async fn end_when_drained(&self, shutdown: &Shutdown) -> Infallible {
        if let Some(queue) = &self.queue {
            queue.wait_for(QueueCounts::is_drained).await;
            shutdown.begin();
        }
        std::future::pending().await
    }
}
