//! A connection that comes back.

use std::sync::{Arc, Weak};
use std::time::Duration;

use backstop_core::{Attempt, Backoff, Jitter, StoreErrorKind};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use crate::address::Address;
use crate::connection::{Connection, Dialer};
use crate::error::{Fault, Remedy};

const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

#[derive(Clone)]
enum State {
    /// Nobody has needed it yet.
    Idle,
    Up(Arc<Connection>),
    /// It is being dialled; why the last attempt failed.
    Down(Option<Fault>),
}

/// A way to a server, dialled again with backoff and jitter for as long as somebody holds it.
pub(crate) struct Link {
    dialer: Arc<Dialer>,
    /// Which node of a Cluster.
    node: Option<Address>,
    state: watch::Sender<State>,
}

impl Link {
    pub(crate) fn new(dialer: Arc<Dialer>, node: Option<Address>) -> Arc<Self> {
        let state = watch::Sender::new(State::Idle);
        Arc::new(Self {
            dialer,
            node,
            state,
        })
    }

    /// The connection, if there is one until then. A reason that time does not cure is told at once,
    /// while dialling goes on: somebody may change it.
    pub(crate) async fn connection(
        self: &Arc<Self>,
        until: Instant,
    ) -> Result<Arc<Connection>, Fault> {
        let mut states = self.state.subscribe();
        loop {
            let state = states.borrow_and_update().clone();
            let failure = match state {
                State::Up(connection) => return Ok(connection),
                State::Idle => {
                    self.replace(|state| matches!(state, State::Idle));
                    continue;
                }
                State::Down(Some(fault)) if !fault.is_transient() => return Err(fault),
                State::Down(failure) => failure,
            };
            if timeout_at(until, states.changed()).await.is_err() {
                return Err(failure.unwrap_or_else(|| self.late()));
            }
        }
    }

    /// Gives up a connection, and dials anew unless that is being done already.
    pub(crate) fn lost(self: &Arc<Self>, connection: &Arc<Connection>) {
        self.replace(
            |state| matches!(state, State::Up(current) if Arc::ptr_eq(current, connection)),
        );
    }

    fn replace(self: &Arc<Self>, is_wanted: impl FnOnce(&State) -> bool) {
        let replaced = self.state.send_if_modified(|state| {
            let replaces = is_wanted(state);
            if replaces {
                *state = State::Down(None);
            }
            replaces
        });
        if replaced {
            tokio::spawn(dial(Arc::downgrade(self)));
        }
    }

    fn late(&self) -> Fault {
        let target = self.dialer.target(self.node.as_ref());
        let text = format!("{target} cannot be reached in time");
        Fault::new(StoreErrorKind::Unreachable, Remedy::AskAgain, text)
    }
}

async fn dial(link: Weak<Link>) {
    let pauses = Backoff::new(SHORTEST_PAUSE, LONGEST_PAUSE, Jitter::Equal).unwrap_or_default();
    let mut attempt = Attempt::FIRST;
    loop {
        let Some(link) = link.upgrade() else { return };
        match link.dialer.dial(link.node.as_ref()).await {
            Ok(connection) => {
                tracing::debug!(address = %connection.address, "connected to redis");
                link.state.send_replace(State::Up(Arc::new(connection)));
                return;
            }
            Err(fault) => {
                if attempt == Attempt::FIRST {
                    tracing::warn!(%fault, "redis cannot be reached; trying again");
                }
                link.state.send_replace(State::Down(Some(fault)));
            }
        }
        drop(link);
        sleep(pauses.delay_after(attempt, rand::random())).await;
        attempt = Attempt::after(attempt.get());
    }
}
