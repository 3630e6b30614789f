//! Shutting down: first drain, then stop.

use std::io;

use tokio_util::sync::CancellationToken;

/// Tells consumers to end. Clones tell the same consumers.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    drain: CancellationToken,
    now: CancellationToken,
}

impl Shutdown {
    /// A shutdown that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// A shutdown that begins at Ctrl-C or SIGTERM, and is at once at the second of them.
    ///
    /// # Errors
    ///
    /// When the signals cannot be listened to.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::new();
        let mut signals = Signals::new()?;
        let told = shutdown.clone();
        tokio::spawn(async move {
            signals.next().await;
            tracing::info!(
                "shutting down: running handlers may finish; a second signal stops at once"
            );
            told.begin();
            signals.next().await;
            tracing::warn!("stopping at once");
            told.now();
        });
        Ok(shutdown)
    }

    /// One that begins with this one, or alone.
    pub(crate) fn child(&self) -> Self {
        Self {
            drain: self.drain.child_token(),
            now: self.now.child_token(),
        }
    }

    /// Begins the drain: intake stops, running handlers have the grace period to finish.
    pub fn begin(&self) {
        self.drain.cancel();
    }

    /// Ends the grace period: running handlers are cancelled and their messages given back.
    pub fn now(&self) {
        self.drain.cancel();
        self.now.cancel();
    }

    /// Whether it has begun.
    pub fn has_begun(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Waits until it begins.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn begun(&self) {
        self.drain.cancelled().await;
    }

    /// Waits until the grace period is cut short.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn cut_short(&self) {
        self.now.cancelled().await;
    }
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
