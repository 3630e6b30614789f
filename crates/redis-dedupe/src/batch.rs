//! Carries a batch of commands to the servers, and asks again while there is time.

use std::time::Duration;

use backstop_core::{Attempt, Backoff, Jitter, StoreErrorKind};
use futures_util::future::join_all;
use redis::{Cmd, Pipeline, ServerError, Value};
use tokio::time::{Instant, sleep, timeout_at};

use crate::address::Address;
use crate::config::{Deployment, ReplicaWait};
use crate::connection::{Connection, no_error};
use crate::error::{Fault, Remedy};
use crate::scripts::Scripts;
use crate::servers::{Redirect, Route, Servers};

/// A command on the keys of one slot.
pub(crate) struct Call {
    pub(crate) slot: u16,
    pub(crate) command: Cmd,
}

/// A call that has no answer yet.
struct Pending {
    at: usize,
    call: Call,
    /// The node that takes the slot over: asked once, by `ASKING`.
    ask_at: Option<Address>,
}

enum Outcome {
    Answered(Vec<Answer>),
    Failed(Fault),
    /// `MOVED`: the slot is elsewhere from now on.
    Moved(Redirect),
    /// `ASK`: these keys are elsewhere already.
    Ask(Address),
}

/// What a server says of one key of a call. A failure here is none that asking again would mend.
pub(crate) type Answer = Result<Value, Fault>;

/// The answers for the keys of a call, or why there are none.
pub(crate) type Answers = Result<Vec<Answer>, Fault>;

impl Servers {
    /// Answers every call at its position, within the response timeout. All that can be repeated is,
    /// which every call of the store can.
    pub(crate) async fn ask(&self, calls: Vec<Call>) -> Vec<Answers> {
        let until = Instant::now() + self.dialer.config.response_timeout;
        let mut answers: Vec<Option<Answers>> = calls.iter().map(|_| None).collect();
        let mut pending: Vec<_> = calls
            .into_iter()
            .enumerate()
            .map(|(at, call)| Pending {
                at,
                call,
                ask_at: None,
            })
            .collect();
        let mut round = Attempt::FIRST;
        while !pending.is_empty() {
            let version = self.version();
            let mut unanswered = Vec::new();
            let mut moved = Vec::new();
            let is_late = |fault: &Fault| {
                let is_final = fault.remedy == Remedy::Tell || !fault.is_transient();
                is_final || Instant::now() + pause(round) >= until
            };
            for (mut call, outcome) in self.ask_once(pending, until).await {
                call.ask_at = None;
                let place = &mut answers[call.at];
                match outcome {
                    Outcome::Answered(answers) => *place = Some(Ok(answers)),
                    Outcome::Failed(fault) if is_late(&fault) => *place = Some(Err(fault)),
                    Outcome::Failed(fault) => {
                        *place = Some(Err(fault));
                        unanswered.push(call);
                    }
                    Outcome::Moved(redirect) => {
                        *place = Some(Err(restless()));
                        moved.push(redirect);
                        unanswered.push(call);
                    }
                    Outcome::Ask(address) => {
                        *place = Some(Err(restless()));
                        unanswered.push(Pending {
                            ask_at: Some(address),
                            ..call
                        });
                    }
                }
            }
            pending = unanswered;
            if pending.is_empty() || Instant::now() + pause(round) >= until {
                break;
            }
            if pending.iter().any(|call| call.ask_at.is_none()) {
                // The first time that a slot moved its new node is known; later the nodes disagree.
                if moved.is_empty() || round > Attempt::FIRST {
                    sleep(pause(round)).await;
                }
                self.learn(version, &moved, until).await;
            }
            round = Attempt::after(round.get());
        }
        let answers = answers.into_iter();
        answers
            .map(|answer| answer.unwrap_or_else(|| Err(Fault::senseless())))
            .collect()
    }

    async fn ask_once(&self, calls: Vec<Pending>, until: Instant) -> Vec<(Pending, Outcome)> {
        let mut groups: Vec<(Route<'_>, Vec<Pending>)> = Vec::new();
        let mut outcomes = Vec::new();
        for call in calls {
            let named = call.ask_at.as_ref().and_then(|node| self.route_to(node));
            let route = match named {
                Some(route) => Ok(route),
                None => self.route(call.call.slot, until).await,
            };
            match route {
                Err(fault) => outcomes.push((call, Outcome::Failed(fault))),
                Ok(route) => match groups.iter_mut().find(|(known, _)| known.is_same(&route)) {
                    Some((_, calls)) => calls.push(call),
                    None => groups.push((route, vec![call])),
                },
            }
        }
        let asked = groups
            .into_iter()
            .map(|(route, calls)| self.ask_one(route, calls, until));
        outcomes.extend(join_all(asked).await.into_iter().flatten());
        outcomes
    }

    /// Asks one server for all that it has to answer, in one pipeline.
    async fn ask_one(
        &self,
        route: Route<'_>,
        mut calls: Vec<Pending>,
        until: Instant,
    ) -> Vec<(Pending, Outcome)> {
        let link = route.lanes().next();
        let connection = match link.connection(self.patience(until)).await {
            Ok(connection) => connection,
            Err(fault) => return all_fail(calls, &fault),
        };
        let wait = self.dialer.config.replica_wait;
        let (commands, skipped) = self.pack(&connection, &mut calls, wait);
        let asked = Instant::now();
        let answers = match timeout_at(until, connection.ask(&commands)).await {
            Ok(Ok(answers)) => answers,
            Ok(Err(fault)) => {
                link.lost(&connection);
                unpack(&commands, skipped, &mut calls);
                return all_fail(calls, &fault);
            }
            Err(_) => {
                // A connection that had most of the time is at fault, or half open; one that was
                // late itself is not.
                if asked.elapsed() * 2 >= self.dialer.config.response_timeout {
                    link.lost(&connection);
                }
                let target = format!("redis at {}", connection.address);
                return all_fail(calls, &Fault::silent(target));
            }
        };
        let mut answers = answers.into_iter().skip(skipped);
        let mut outcomes = Vec::with_capacity(calls.len());
        for call in &calls {
            if call.ask_at.is_some() {
                answers.next();
            }
            let answer = answers.next().unwrap_or_default();
            outcomes.push(self.judge(&connection, answer));
        }
        if let Some(wait) = wait
            && let Err(fault) = judge_wait(&connection, wait, answers.next())
        {
            for outcome in &mut outcomes {
                if matches!(outcome, Outcome::Answered(_)) {
                    *outcome = Outcome::Failed(fault.clone());
                }
            }
        }
        if !outcomes
            .iter()
            .all(|outcome| matches!(outcome, Outcome::Answered(_)))
        {
            unpack(&commands, skipped, &mut calls);
        }
        for outcome in &outcomes {
            match outcome {
                Outcome::Failed(fault) if fault.remedy == Remedy::Reconnect => {
                    link.lost(&connection);
                }
                Outcome::Failed(fault) if fault.remedy == Remedy::LoadScripts => {
                    connection.miss_scripts();
                }
                _ => {}
            }
        }
        calls.into_iter().zip(outcomes).collect()
    }

    /// Moves the calls' commands into one pipeline; returns how many others come before theirs, too.
    fn pack(
        &self,
        connection: &Connection,
        calls: &mut [Pending],
        wait: Option<ReplicaWait>,
    ) -> (Pipeline, usize) {
        let mut commands = Pipeline::with_capacity(calls.len() + 1);
        let skipped = if connection.takes_scripts() {
            self.dialer.scripts.load(&mut commands);
            Scripts::COUNT
        } else {
            0
        };
        for call in calls {
            if call.ask_at.is_some() {
                commands.cmd("ASKING");
            }
            commands.add_command(std::mem::take(&mut call.call.command));
        }
        if let Some(ReplicaWait { replicas, timeout }) = wait {
            let timeout = timeout.as_millis().max(1);
            let timeout = u64::try_from(timeout).unwrap_or(u64::MAX);
            commands.cmd("WAIT").arg(replicas.get()).arg(timeout);
        }
        (commands, skipped)
    }

    fn judge(&self, connection: &Connection, answer: Value) -> Outcome {
        let address = &connection.address;
        let error = match answer {
            Value::ServerError(error) => error,
            Value::Array(answers) => {
                let answers = answers.into_iter();
                return Outcome::Answered(answers.map(|one| no_error(address, one)).collect());
            }
            answer => return Outcome::Answered(vec![Ok(answer)]),
        };
        // Slots matter in a Cluster alone, where the keys of a call are of one.
        if !matches!(error.code(), "MOVED" | "ASK" | "CROSSSLOT") {
            return Outcome::Failed(Fault::refused(address, &error));
        }
        if self.dialer.config.deployment != Deployment::Cluster {
            let text = format!(
                "redis at {address} is a node of a Cluster: give a URL that begins redis+cluster://"
            );
            let kind = StoreErrorKind::Configuration;
            return Outcome::Failed(Fault::new(kind, Remedy::Tell, text));
        }
        match (error.code(), redirect(connection, &error)) {
            (_, None) => Outcome::Failed(Fault::senseless()),
            ("MOVED", Some(redirect)) => Outcome::Moved(redirect),
            (_, Some(redirect)) => Outcome::Ask(redirect.address),
        }
    }
}

/// Gives calls their commands back, so that they can be asked again.
fn unpack(commands: &Pipeline, skipped: usize, calls: &mut [Pending]) {
    let mut commands = commands.cmd_iter().skip(skipped);
    for call in calls {
        if call.ask_at.is_some() {
            commands.next();
        }
        if let Some(command) = commands.next() {
            call.call.command = command.clone();
        }
    }
}

/// The redirect that an error tells of: `MOVED slot host:port`.
fn redirect(connection: &Connection, error: &ServerError) -> Option<Redirect> {
    let (slot, address) = error.details()?.split_once(' ')?;
    let address = address.split(' ').next()?;
    Some(Redirect {
        slot: slot.parse().ok()?,
        address: Address::parse_redirect(address, &connection.address)?,
    })
}

fn all_fail(calls: Vec<Pending>, fault: &Fault) -> Vec<(Pending, Outcome)> {
    let fail = |call| (call, Outcome::Failed(fault.clone()));
    calls.into_iter().map(fail).collect()
}

/// Whether enough replicas have what this connection wrote.
fn judge_wait(
    connection: &Connection,
    wait: ReplicaWait,
    answer: Option<Value>,
) -> Result<(), Fault> {
    let address = &connection.address;
    match answer {
        Some(Value::Int(have)) if have >= i64::from(wait.replicas.get()) => Ok(()),
        Some(Value::Int(have)) => {
            let text = format!(
                "{have} of the {} replicas that wait_for_replicas wants have the write to redis at \
                 {address} after {:?}",
                wait.replicas, wait.timeout
            );
            let kind = StoreErrorKind::Unreachable;
            Err(Fault::new(kind, Remedy::Tell, text))
        }
        Some(Value::ServerError(error)) => Err(Fault::refused(address, &error)),
        _ => Err(Fault::senseless()),
    }
}

fn restless() -> Fault {
    let text = "the Redis Cluster moves the key's slot about";
    Fault::new(StoreErrorKind::Unreachable, Remedy::AskAgain, text)
}

/// How long to wait before the next round.
fn pause(round: Attempt) -> Duration {
    const SHORTEST: Duration = Duration::from_millis(5);
    const LONGEST: Duration = Duration::from_millis(100);
    let pauses = Backoff::new(SHORTEST, LONGEST, Jitter::None).unwrap_or_default();
    pauses.delay_after(round, 0.0)
}
