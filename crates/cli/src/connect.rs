//! Connecting, with patience or without.

use std::time::Duration;

use backstop::{
    Attempt, Backoff, BrokerError, BrokerHandle, Jitter, Shutdown, StoreError, StoreHandle,
    with_causes,
};

use crate::exit::CommandError;

/// The queue that a `memory://` URL names.
pub(crate) fn memory_queue(url: &str) -> Option<&str> {
    let name = url.strip_prefix("memory://")?;
    Some(name.split('?').next().unwrap_or(name))
}

/// Connects to a queue, or fails.
pub(crate) async fn broker(url: &str) -> Result<BrokerHandle, CommandError> {
    let connected = backstop::connect(url).await;
    connected.map_err(|error| refused_broker(&error))
}

/// Connects to an idempotency store, or fails.
pub(crate) async fn store(url: &str) -> Result<StoreHandle, CommandError> {
    let connected = backstop::connect_store(url).await;
    connected.map_err(|error| refused_store(&error))
}

/// Connects to a queue; waits for a broker that cannot be reached. `None` if the shutdown begins
/// meanwhile.
pub(crate) async fn broker_with_patience(
    url: &str,
    shutdown: &Shutdown,
) -> Result<Option<BrokerHandle>, CommandError> {
    let mut pauses = Pauses::default();
    loop {
        let connected = tokio::select! {
            biased;
            () = shutdown.begun() => return Ok(None),
            connected = backstop::connect(url) => connected,
        };
        match connected {
            Ok(broker) => return Ok(Some(broker)),
            Err(error) if error.is_transient() => {
                let pause = pauses.next();
                tracing::warn!(error = %with_causes(&error), ?pause, "not ready: the broker cannot be reached yet");
                wait(pause, shutdown).await;
            }
            Err(error) => return Err(refused_broker(&error)),
        }
    }
}

/// Connects to an idempotency store; waits for one that cannot be reached. `None` if the shutdown
/// begins meanwhile.
pub(crate) async fn store_with_patience(
    url: &str,
    shutdown: &Shutdown,
) -> Result<Option<StoreHandle>, CommandError> {
    let mut pauses = Pauses::default();
    loop {
        let connected = tokio::select! {
            biased;
            () = shutdown.begun() => return Ok(None),
            connected = backstop::connect_store(url) => connected,
        };
        match connected {
            Ok(store) => return Ok(Some(store)),
            Err(error) if error.is_transient() => {
                let pause = pauses.next();
                tracing::warn!(error = %with_causes(&error), ?pause, "not ready: the idempotency store cannot be reached yet");
                wait(pause, shutdown).await;
            }
            Err(error) => return Err(refused_store(&error)),
        }
    }
}

fn refused_broker(error: &BrokerError) -> CommandError {
    CommandError::broker("cannot connect to the queue of --url", error)
}

fn refused_store(error: &StoreError) -> CommandError {
    CommandError::store("cannot connect to the idempotency store of --store", error)
}

async fn wait(pause: Duration, shutdown: &Shutdown) {
    tokio::select! {
        () = shutdown.begun() => {}
        () = tokio::time::sleep(pause) => {}
    }
}

/// Growing pauses between tries.
#[derive(Default)]
pub(crate) struct Pauses {
    used: u32,
}

impl Pauses {
    pub(crate) fn next(&mut self) -> Duration {
        let (base, cap) = (Duration::from_millis(200), Duration::from_secs(10));
        let backoff = Backoff::new(base, cap, Jitter::Equal).unwrap_or_default();
        self.used += 1;
        backoff.delay_after(Attempt::after(self.used - 1), rand::random())
    }
}
