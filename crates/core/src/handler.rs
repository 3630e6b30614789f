//! The port for users: a handler and what it is told.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::consumer::Cancellation;
use crate::delivery::Attempt;
use crate::error::HandlerError;
use crate::message::{Headers, Message, MessageId};
use crate::ports::Fence;

/// Handles the messages of a queue.
///
/// Every `async fn(payload, Context) -> Result<(), HandlerError>` is one.
///
/// # Cancel safety
///
/// The future is dropped at an `.await` when it runs into the handler timeout, when the delivery's
/// lease or claim is lost, and when the shutdown grace is over. What it had done stays done.
pub trait Handler<P>: Send + Sync + 'static {
    /// Handles one message.
    ///
    /// # Errors
    ///
    /// See [`HandlerError`] for what an error means for the message.
    fn handle(
        &self,
        payload: P,
        context: Context,
    ) -> impl Future<Output = Result<(), HandlerError>> + Send;
}

impl<P, F, Fut> Handler<P> for F
where
    F: Fn(P, Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), HandlerError>> + Send,
{
    fn handle(
        &self,
        payload: P,
        context: Context,
    ) -> impl Future<Output = Result<(), HandlerError>> + Send {
        self(payload, context)
    }
}

/// What a handler is told about its delivery.
#[derive(Clone)]
pub struct Context {
    pub(crate) message: Arc<Message>,
    pub(crate) attempt: Attempt,
    pub(crate) fence: Option<Fence>,
    pub(crate) redrives: u32,
    pub(crate) cancellation: Cancellation,
}

impl Context {
    /// Which attempt this is, from 1.
    pub const fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// The fence of this attempt's claim; `None` for a consumer without an idempotency store.
    ///
    /// Write it next to the effect, and let the database refuse a write whose fence is lower than
    /// the one it has: then a stalled process cannot overwrite what its successor did.
    pub const fn fence(&self) -> Option<Fence> {
        self.fence
    }

    /// How often the message was redriven from a dead-letter queue.
    pub const fn redrives(&self) -> u32 {
        self.redrives
    }

    /// The whole message.
    pub fn message(&self) -> &Arc<Message> {
        &self.message
    }

    /// The message's id, if its publisher gave it one.
    pub fn id(&self) -> Option<&MessageId> {
        self.message.id.as_ref()
    }

    /// The message's headers; `traceparent` (W3C trace context) is among them if it was sent.
    pub fn headers(&self) -> &Headers {
        &self.message.headers
    }

    /// Is cancelled together with the handler. The handler's own future is simply dropped; this is
    /// for work that it has handed to other tasks or threads.
    pub fn cancellation(&self) -> &CancellationToken {
        self.cancellation.token()
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("message", &self.message)
            .field("attempt", &self.attempt)
            .field("fence", &self.fence)
            .field("redrives", &self.redrives)
            .finish_non_exhaustive()
    }
}
