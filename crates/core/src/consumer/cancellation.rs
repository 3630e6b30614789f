//! The cancellation of one delivery's handling.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

/// Cancels what is done about one delivery.
///
/// Its token is made when somebody asks for it: most deliveries come to their end before.
#[derive(Clone, Default)]
pub(crate) struct Cancellation(Arc<OnceLock<CancellationToken>>);

impl Cancellation {
    pub(crate) fn token(&self) -> &CancellationToken {
        self.0.get_or_init(CancellationToken::new)
    }

    pub(crate) fn cancel(&self) {
        self.token().cancel();
    }

    /// Whether it was cancelled; asking makes no token.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.get().is_some_and(CancellationToken::is_cancelled)
    }

    /// Gives it away for another delivery, unless somebody else has it too or its token was made.
    pub(crate) fn give_away(&mut self) -> Option<Self> {
        let unused = Arc::get_mut(&mut self.0)?.get().is_none();
        unused.then(|| self.clone())
    }
}
