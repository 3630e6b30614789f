//! Receives under way. They go on when nobody waits for them: a receive that is dropped halfway would
//! leave messages invisible that nobody has.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::types::MessageSystemAttributeName as System;
use backstop_core::{BrokerError, BrokerErrorKind};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::QueueKind;
use crate::connection::Clients;
use crate::decode::{self, Arrival};
use crate::error::{closed, failed};
use crate::pace::{Pace, Plan};
use crate::settle::Desk;

/// How long messages wait for somebody to ask for them before they are given back.
const UNATTENDED: Duration = Duration::from_millis(500);

/// The receives of a subscription.
pub(crate) struct Polls {
    clients: Clients,
    url: Arc<str>,
    kind: QueueKind,
    wait: i32,
    desk: Arc<Desk>,
    state: Mutex<State>,
    changed: Notify,
    stopped: CancellationToken,
}

struct State {
    pace: Pace,
    under_way: usize,
    /// What the receives under way may bring.
    asked: usize,
    ready: VecDeque<(Arrival, Instant)>,
    failure: Option<BrokerError>,
    health: Health,
    /// Counts failures that were reported: what was begun before tells nothing new.
    era: u64,
    askers: usize,
    /// The attempt of a receive from a FIFO queue whose answer did not come: asked for again, SQS gives
    /// the messages that are otherwise blocked, with their groups, until their leases end.
    unanswered: Option<u128>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Well,
    Failing,
    /// It works again, and nobody has been told.
    Recovered,
}

/// One receive.
#[derive(Clone, Copy, Debug)]
struct Poll {
    ask: usize,
    wait: i32,
    era: u64,
    /// Names the attempt on a FIFO queue.
    attempt: Option<u128>,
}

/// What a look brought.
enum Look {
    Ready(Vec<(Arrival, Instant)>),
    /// Nothing, for now at the longest until then.
    Nothing(Option<Instant>),
}

impl Polls {
    pub(crate) fn new(
        clients: Clients,
        url: Arc<str>,
        (kind, wait): (QueueKind, u32),
        pace: Pace,
        desk: Arc<Desk>,
    ) -> Self {
        Self {
            clients,
            url,
            kind,
            wait: i32::try_from(wait).unwrap_or(20),
            desk,
            state: Mutex::new(State {
                pace,
                under_way: 0,
                asked: 0,
                ready: VecDeque::new(),
                failure: None,
                health: Health::Well,
                era: 0,
                askers: 0,
                unanswered: None,
            }),
            changed: Notify::new(),
            stopped: CancellationToken::new(),
        }
    }

    /// Waits for at most `max` messages. It answers with none when it receives again after a failure, and
    /// when more room would make fuller batches.
    pub(crate) async fn receive(
        self: &Arc<Self>,
        max: usize,
    ) -> Result<Vec<(Arrival, Instant)>, BrokerError> {
        let _asking = Asking::begin(self);
        loop {
            let changed = self.changed.notified();
            let until = match self.look(max)? {
                Look::Ready(ready) => return Ok(ready),
                Look::Nothing(until) => until,
            };
            let enough = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.stopped.cancelled() => return Err(closed()),
                () = changed => {}
                () = enough => return Ok(Vec::new()),
            }
        }
    }

    fn look(self: &Arc<Self>, max: usize) -> Result<Look, BrokerError> {
        if self.stopped.is_cancelled() {
            return Err(closed());
        }
        let mut state = self.state.lock();
        // What is there is handed out first: whoever is told of a failure pauses.
        if state.ready.is_empty()
            && let Some(error) = state.failure.take()
        {
            return Err(error);
        }
        let count = state.ready.len().min(max);
        let ready: Vec<_> = state.ready.drain(..count).collect();
        let room = max.saturating_sub(ready.len() + state.ready.len() + state.asked);
        let until = self.begin_receives(&mut state, room);
        if !ready.is_empty() {
            return Ok(Look::Ready(ready));
        }
        if state.health == Health::Recovered {
            state.health = Health::Well;
            return Ok(Look::Ready(Vec::new()));
        }
        Ok(Look::Nothing(until))
    }

    /// Begins what fits into the room; says until when it is better to wait for more.
    fn begin_receives(self: &Arc<Self>, state: &mut State, room: usize) -> Option<Instant> {
        let receives = match state.pace.plan(room, state.under_way, Instant::now()) {
            Plan::Receive(receives) => receives,
            Plan::Gather(until) => return Some(until),
        };
        // Whether it works again is to be known soon.
        let wait = if state.health == Health::Failing {
            0
        } else {
            self.wait
        };
        for ask in receives {
            state.under_way += 1;
            state.asked += ask;
            let poll = Poll {
                ask,
                wait,
                era: state.era,
                attempt: self.attempt(state),
            };
            tokio::spawn(Arc::clone(self).poll(poll));
        }
        None
    }

    fn attempt(&self, state: &mut State) -> Option<u128> {
        match self.kind {
            QueueKind::Standard => None,
            QueueKind::Fifo => state.unanswered.take().or_else(|| Some(rand::random())),
        }
    }

    async fn poll(self: Arc<Self>, poll: Poll) {
        let received = self.ask(poll).await;
        let given_back = self.arrived(poll, received);
        if !given_back.is_empty() {
            self.desk.give_back(given_back).await;
        } else if self.is_unattended() {
            self.give_back_unattended().await;
        }
    }

    /// Gives back what nobody asks for in time.
    async fn give_back_unattended(self: Arc<Self>) {
        tokio::time::sleep(UNATTENDED).await;
        if self.is_unattended() {
            self.clear().await;
        }
    }

    async fn ask(&self, poll: Poll) -> Result<Vec<Arrival>, BrokerError> {
        let asked = self
            .clients
            .polling
            .receive_message()
            .queue_url(&*self.url)
            .max_number_of_messages(i32::try_from(poll.ask).unwrap_or(1))
            .wait_time_seconds(poll.wait)
            .visibility_timeout(i32::try_from(self.desk.leases.seconds()).unwrap_or(30))
            .message_attribute_names("All")
            .message_system_attribute_names(System::All)
            .set_receive_request_attempt_id(poll.attempt.map(|id| format!("{id:032x}")))
            .send()
            .await;
        let answer = asked.map_err(|error| failed("receiving from SQS fails", &error))?;
        let messages = answer.messages.unwrap_or_default();
        Ok(messages.into_iter().map(decode::arrival).collect())
    }

    /// Takes note of what a receive brought, and gives what came too late.
    fn arrived(&self, poll: Poll, received: Result<Vec<Arrival>, BrokerError>) -> Vec<Arrival> {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.under_way -= 1;
        state.asked -= poll.ask;
        let mut late = Vec::new();
        match received {
            Ok(arrivals) if self.stopped.is_cancelled() => late = arrivals,
            Ok(arrivals) => {
                state.pace.brought(arrivals.len(), poll.ask);
                if state.health == Health::Failing {
                    state.health = Health::Recovered;
                }
                let arrivals = arrivals.into_iter().map(|arrival| (arrival, now));
                state.ready.extend(arrivals);
            }
            Err(error) => {
                state.pace.failed();
                state.unanswered = poll.attempt;
                if poll.era == state.era {
                    state.era += 1;
                    state.health = Health::Failing;
                    state.failure = Some(waited_for(error));
                }
            }
        }
        drop(state);
        self.changed.notify_one();
        late
    }

    fn is_unattended(&self) -> bool {
        let state = self.state.lock();
        state.askers == 0 && !state.ready.is_empty()
    }

    /// Ends receives that are waited for. What those under way still bring is given back.
    pub(crate) fn stop(&self) {
        self.stopped.cancel();
    }

    /// Gives back what nobody has asked for.
    pub(crate) async fn clear(&self) {
        let ready = std::mem::take(&mut self.state.lock().ready);
        let arrivals = ready.into_iter().map(|(arrival, _)| arrival);
        self.desk.give_back(arrivals.collect()).await;
    }
}

/// A queue that is gone while it is consumed is waited for: whoever deleted it may be about to make it
/// anew.
fn waited_for(error: BrokerError) -> BrokerError {
    match error.kind() {
        BrokerErrorKind::NotFound => {
            let text = "the queue has gone; waiting for it to come back";
            BrokerError::new(BrokerErrorKind::Other, text).with_source(error)
        }
        _ => error,
    }
}

/// Somebody waits for messages.
struct Asking<'a>(&'a Arc<Polls>);

impl<'a> Asking<'a> {
    fn begin(polls: &'a Arc<Polls>) -> Self {
        polls.state.lock().askers += 1;
        Self(polls)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.state.lock().askers -= 1;
        if self.0.is_unattended()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(Arc::clone(self.0).give_back_unattended());
        }
    }
}

#[cfg(test)]
mod tests;
