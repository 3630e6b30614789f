//! What messages are handed to.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use backstop::{Context, Handler, HandlerError};
use bytes::Bytes;

use super::endpoint::Endpoint;
use super::program::Program;

/// How an attempt ended, when it failed.
pub(super) enum Ended {
    Failed(HandlerError),
    TimedOut(HandlerError),
}

/// What messages are handed to, with a count of its timeouts.
pub(super) struct Target {
    to: To,
    timed_out: AtomicU64,
}

pub(super) enum To {
    Program(Program),
    Endpoint(Endpoint),
}

impl Target {
    pub(super) const fn new(to: To) -> Self {
        Self {
            to,
            timed_out: AtomicU64::new(0),
        }
    }

    /// Attempts that took longer than the handler timeout. The consumer's own timeout lies behind
    /// ours, and counts only what does not end even then.
    pub(super) fn timed_out(&self) -> u64 {
        self.timed_out.load(Ordering::Relaxed)
    }

    async fn handle(&self, body: Bytes, context: Context) -> Result<(), HandlerError> {
        let ended = match &self.to {
            To::Program(program) => program.handle(body, &context).await,
            To::Endpoint(endpoint) => endpoint.handle(body, &context).await,
        };
        ended.map_err(|ended| match ended {
            Ended::Failed(error) => error,
            Ended::TimedOut(error) => {
                self.timed_out.fetch_add(1, Ordering::Relaxed);
                error
            }
        })
    }
}

/// A handler that hands to a target.
pub(super) fn handler(target: Arc<Target>) -> impl Handler<Bytes> {
    move |body: Bytes, context: Context| {
        let target = Arc::clone(&target);
        async move { target.handle(body, context).await }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            To::Program(program) => program.fmt(f),
            To::Endpoint(endpoint) => endpoint.fmt(f),
        }
    }
}
