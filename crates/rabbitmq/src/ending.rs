//! The end of a channel of an ordered subscription.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::runtime::Handle;

use crate::connection::Live;

/// Ends the channel of an ordered subscription so that RabbitMQ gets back what is unsettled before it
/// activates the next consumer of a partition.
///
/// Measured on 3.10.8, 4.0.5 and 4.3.6: after an orderly close of the channel or the connection (and
/// after `basic.cancel`) the next consumer first gets what this one never had, and then what comes
/// back. After an error on the channel, or a connection that breaks, everything comes back in order
/// first. So an error is made: a look at a queue that does not exist. The server's log has a line
/// about it.
pub(crate) struct Ending {
    live: Arc<Live>,
    channel: Channel,
    has_begun: AtomicBool,
}

type Failing = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Ending {
    pub(crate) const fn new(live: Arc<Live>, channel: Channel) -> Self {
        Self {
            live,
            channel,
            has_begun: AtomicBool::new(false),
        }
    }

    /// Ends the channel, if it still stands.
    pub(crate) async fn end(&self) {
        const LIMIT: Duration = Duration::from_secs(5);
        if let Some(failing) = self.begin() {
            let _ = tokio::time::timeout(LIMIT, failing).await;
        }
    }

    /// Ends the channel, if it still stands, and waits for nothing. What is dropped after this, such
    /// as a consumer, which cancels itself, comes too late to do harm.
    pub(crate) fn end_soon(&self) {
        if let (Some(failing), Ok(runtime)) = (self.begin(), Handle::try_current()) {
            runtime.spawn(failing);
        }
    }

    /// Puts the frame in line.
    fn begin(&self) -> Option<Failing> {
        let has_begun = self.has_begun.swap(true, Ordering::Relaxed);
        let stands = self.live.is_connected() && self.channel.status().connected();
        if has_begun || !stands {
            return None;
        }
        let mut failing: Failing = Box::pin(fail(Arc::clone(&self.live), self.channel.clone()));
        // lapin does that with the first poll.
        match (&mut failing).now_or_never() {
            Some(()) => None,
            None => Some(failing),
        }
    }
}

/// Holds the connection until its server has answered.
async fn fail(_live: Arc<Live>, channel: Channel) {
    let name = format!("backstop-ends-in-order-{:016x}", rand::random::<u64>());
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let _ = channel
        .queue_declare(name.into(), options, FieldTable::default())
        .await;
}
