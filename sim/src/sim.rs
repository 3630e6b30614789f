//! The controller: it acts only when every task is idle, and decides what happens next.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::{InProcessBroker, InProcessStore};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::action::Action;
use crate::call::{Go, Operation};
use crate::choices::Choices;
use crate::digest::digest;
use crate::event::{Event, Pid};
use crate::facts::Facts;
use crate::options::options;
use crate::state::{Phase, SlotLife, State};
use crate::world::{Chaos, Dedupe, World};

/// One run of a world.
pub(crate) struct Sim {
    pub(crate) world: World,
    pub(crate) broker: InProcessBroker,
    pub(crate) store: InProcessStore,
    /// Keeps time from passing after an action that wakes nobody.
    pub(crate) nudged: Notify,
    /// Receives that wait look again.
    pub(crate) kicked: Notify,
    state: Mutex<State>,
}

/// The most virtual time that a queue may take to drain once all is well.
const DRAIN_LIMIT: Duration = Duration::from_mins(20);

/// The most steps of a run: more of them go round in a circle.
const STEP_LIMIT: u64 = 40_000;

impl Sim {
    pub(crate) fn new(
        world: World,
        choices: Choices,
        broker: InProcessBroker,
        traced: bool,
    ) -> Self {
        let now = Instant::now();
        let chaos = world.chaos != Chaos::Steps(0);
        let state = State {
            choices,
            pending: Vec::new(),
            slots: Vec::new(),
            slot_of: Vec::new(),
            phase: if chaos {
                Phase::Chaos
            } else {
                Phase::Calm { since: now }
            },
            budget: world.fault_budget,
            steps: 0,
            facts: Facts::new(now),
            published: 0,
            redriven: Vec::new(),
            store_away: None,
            broker_away: None,
            cuts: 0,
            saved: None,
            last: None,
            violation: None,
            is_cut_off: false,
            trace: traced.then(Vec::new),
            begun: now,
            orphans: Vec::new(),
        };
        Self {
            world,
            broker,
            store: InProcessStore::default(),
            nudged: Notify::new(),
            kicked: Notify::new(),
            state: Mutex::new(state),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Says that something happened.
    pub(crate) fn see(&self, event: Event) {
        self.lock().see(&self.world, event);
    }

    /// Waits for the controller; for ever in a process that is dead.
    pub(crate) async fn call(
        &self,
        pid: Pid,
        operation: Operation,
        ids: u64,
        about: impl FnOnce() -> String,
    ) -> Go {
        let answer = {
            let mut state = self.lock();
            state.facts.lives(pid).then(|| {
                if !matches!(operation, Operation::LateEffect | Operation::Answer) {
                    state.see(&self.world, Event::Asked { pid });
                }
                state.register(pid, operation, ids, about)
            })
        };
        let gone = std::future::pending();
        match answer {
            Some(answer) => match answer.await {
                Ok(go) => go,
                Err(_) => gone.await,
            },
            None => gone.await,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.lock().phase == Phase::Over
    }

    /// Whether a process still acts.
    pub(crate) fn lives(&self, pid: Pid) -> bool {
        self.lock().facts.lives(pid)
    }

    /// Acts; called when every task is idle. If it wakes none, time passes.
    pub(crate) fn step(self: &Arc<Self>) {
        let mut state = self.lock();
        if state.phase == Phase::Over || state.violation.is_some() {
            state.phase = Phase::Over;
            self.nudged.notify_one();
            return;
        }
        state.pending.retain(|call| !call.reply.is_closed());
        state.steps += 1;
        state.facts.step += 1;
        state.see(&self.world, Event::Idle);
        if self.world.is_enumerated() {
            state.tidy(&self.world);
        }
        self.turn_phase(&mut state);
        let action = match state.phase {
            Phase::Chaos => {
                let (actions, weights) = options(&self.world, &state, &self.broker);
                let mut choices = std::mem::replace(&mut state.choices, Choices::list(Vec::new()));
                let here = || digest(&self.world, &state, self.broker.counts());
                let plain = actions
                    .iter()
                    .take_while(|action| !action.is_fault())
                    .count();
                let chosen = choices.pick_action(&weights, plain, here);
                state.choices = choices;
                match chosen {
                    Some(chosen) => actions[chosen],
                    None => return self.cut_off(&mut state),
                }
            }
            Phase::Calm { .. } | Phase::Ending => self.plainest(&state),
            Phase::Over => return,
        };
        self.act(&mut state, action);
        state.last = Some(action);
        if action != Action::Time {
            self.nudged.notify_one();
        }
    }

    /// Ends a run whose every continuation is known from another.
    fn cut_off(&self, state: &mut State) {
        state.is_cut_off = true;
        state.phase = Phase::Over;
        self.nudged.notify_one();
    }

    /// What is next when nothing goes wrong: the oldest call, or else the next moment.
    fn plainest(&self, state: &State) -> Action {
        if state.published < self.world.publications.len() {
            Action::Publish
        } else if state.pending.is_empty() {
            Action::Time
        } else {
            Action::Go(0, Go::On)
        }
    }

    fn turn_phase(self: &Arc<Self>, state: &mut State) {
        match state.phase {
            Phase::Chaos if self.chaos_ends(state) => self.calm_down(state),
            Phase::Calm { since } => {
                self.respawn(state);
                let left = state.published < self.world.publications.len();
                if !left && state.pending.is_empty() && self.broker.counts().is_drained() {
                    state.note(|| "-- drained: everything shuts down".to_owned());
                    state.phase = Phase::Ending;
                    for slot in 0..state.slots.len() {
                        self.shut_down(state, slot);
                    }
                } else if Instant::now() > since + DRAIN_LIMIT || state.steps > STEP_LIMIT {
                    self.finish(state, false);
                }
            }
            Phase::Ending => {
                if state.slots.iter().all(|slot| slot.life == SlotLife::Gone) {
                    let drained = self.broker.counts().is_drained();
                    self.finish(state, drained);
                } else if state.steps > STEP_LIMIT {
                    self.finish(state, false);
                }
            }
            Phase::Chaos | Phase::Over => {}
        }
    }

    fn chaos_ends(&self, state: &State) -> bool {
        match self.world.chaos {
            Chaos::Steps(steps) => state.steps >= steps,
            Chaos::UntilDrained => {
                let all_published = state.published == self.world.publications.len();
                let idle = all_published && state.pending.is_empty();
                idle && self.broker.counts().is_drained() || state.steps > STEP_LIMIT
            }
        }
    }

    fn calm_down(self: &Arc<Self>, state: &mut State) {
        state.note(|| "-- no more faults".to_owned());
        state.phase = Phase::Calm {
            since: Instant::now(),
        };
        state.store_away = None;
        state.broker_away = None;
        for slot in 0..state.slots.len() {
            state.slots[slot].store_away = None;
        }
        self.respawn(state);
    }

    /// Starts a process wherever one is gone.
    fn respawn(self: &Arc<Self>, state: &mut State) {
        for slot in 0..state.slots.len() {
            if state.slots[slot].life == SlotLife::Gone {
                self.spawn(state, slot);
            }
        }
    }

    fn finish(&self, state: &mut State, drained: bool) {
        let counts = self.broker.counts();
        let there = counts.ready + counts.delayed + counts.in_flight + counts.dead;
        let there = i64::try_from(there).unwrap_or(i64::MAX);
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let missing = signed(counts.published) - signed(counts.completed) - there;
        state.see(
            &self.world,
            Event::Finished {
                drained,
                dead: counts.dead,
                missing,
            },
        );
        state.phase = Phase::Over;
        self.nudged.notify_one();
    }

    /// Why a call cannot reach its server now, if it cannot.
    pub(crate) fn is_away(&self, pid: Pid, operation: Operation) -> bool {
        let state = self.lock();
        let now = Instant::now();
        let slot = &state.slots[state.slot_of[pid]];
        let until = if operation.is_of_store() {
            state.store_away.max(slot.store_away)
        } else {
            state.broker_away
        };
        until.is_some_and(|until| now < until)
    }

    pub(crate) fn dedupes(&self) -> bool {
        self.world.dedupe == Dedupe::Store
    }
}
