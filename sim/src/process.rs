//! Processes: a consumer and its handler, started, and started again.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::{
    Backoff, BrokerHandle, Consumer, Context, HandlerError, Jitter, Randomness, Shutdown,
    StoreHandle,
};
use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::time::sleep;

use crate::broker::SimBroker;
use crate::call::{Go, HandlerEnd, Operation};
use crate::choices::Dice;
use crate::event::{End, Event, Pid, RunEnd, RunId};
use crate::keeping::KeeperTask;
use crate::memory::Memory;
use crate::publishing::COPY;
use crate::sim::Sim;
use crate::state::{Phase, Slot, SlotLife, State};
use crate::store::SimStore;
use crate::world::{Order, Plan};

/// A process's handler.
#[derive(Clone)]
struct Handling {
    sim: Arc<Sim>,
    pid: Pid,
}

/// How long a handler asks to wait that asks.
const ASKED_WAIT: Duration = Duration::from_secs(7);

impl Sim {
    /// Starts a process in a slot: the first one, or one that knows nothing of the last.
    pub(crate) fn spawn(self: &Arc<Self>, state: &mut State, place: usize) {
        let pid = state.slot_of.len();
        state.slot_of.push(place);
        state.note(|| format!("p{pid} starts in place {place}"));
        state.see(&self.world, Event::Spawned { pid });
        // A connection of its own: closing it is what the broker sees of a death.
        let broker = Arc::new(self.broker.clone());
        let shutdown = Shutdown::new();
        let slot = Slot {
            pid,
            life: SlotLife::Running,
            broker: Arc::clone(&broker),
            shutdown: shutdown.clone(),
            abort: None,
            store_away: None,
            memory: Memory::default(),
        };
        if place == state.slots.len() {
            state.slots.push(slot);
        } else {
            state.slots[place] = slot;
        }
        let keeper = KeeperTask::default();
        let port = SimBroker {
            sim: Arc::clone(self),
            pid,
            inner: broker,
            keeper: keeper.clone(),
        };
        let sim = Arc::clone(self);
        let run = tokio::spawn(async move {
            let end = sim.run(pid, Arc::new(port), keeper, &shutdown).await;
            let mut state = sim.lock();
            if state.facts.lives(pid) {
                state.note(|| format!("p{pid} has ended"));
                state.see(&sim.world, Event::RunEnded { pid, end });
                let slot = state.slot_of[pid];
                state.slots[slot].life = SlotLife::Gone;
            }
        });
        state.slots[place].abort = Some(run.abort_handle());
    }

    /// Kills a process: it never answers nor acts any more.
    pub(crate) fn kill(&self, state: &mut State, slot: usize, noticed: bool) {
        let pid = state.slots[slot].pid;
        state.see(&self.world, Event::Disturbed { pid: Some(pid) });
        state.see(&self.world, Event::Killed { pid, noticed });
        state.pending.retain(|call| call.pid != pid);
        let slot = &mut state.slots[slot];
        slot.life = SlotLife::Gone;
        if let Some(abort) = slot.abort.take() {
            abort.abort();
        }
        if noticed {
            let closed = backstop_core::Broker::close(&*slot.broker).now_or_never();
            debug_assert!(closed.is_some(), "closing waits for nothing");
        }
    }

    /// Kills the process that makes a call.
    pub(crate) fn kill_caller(&self, pid: Pid) {
        let mut state = self.lock();
        let slot = state.slot_of[pid];
        self.kill(&mut state, slot, true);
    }

    pub(crate) fn shut_down(&self, state: &mut State, slot: usize) {
        if state.slots[slot].life != SlotLife::Running {
            return;
        }
        let pid = state.slots[slot].pid;
        state.see(&self.world, Event::ShutdownBegun { pid });
        let slot = &mut state.slots[slot];
        slot.life = SlotLife::Draining;
        slot.shutdown.begin();
    }

    async fn run(
        self: &Arc<Self>,
        pid: Pid,
        broker: BrokerHandle,
        keeper: KeeperTask,
        shutdown: &Shutdown,
    ) -> RunEnd {
        let world = &self.world;
        let backoff = Backoff::new(world.backoff, world.backoff * 4, Jitter::Additive);
        let mut builder = Consumer::builder(broker)
            .name("sim")
            .max_attempts(world.max_attempts)
            .max_in_flight(world.max_in_flight)
            .handler_timeout(world.handler_timeout)
            .claim_lease(world.claim_lease)
            .shutdown_grace(world.grace)
            .backoff(backoff.expect("the cap is above the base"))
            .breaker(world.breaker)
            .randomness(randomness(world.jitter));
        if matches!(world.order, Order::ByKey(_)) {
            builder = builder.ordered();
        }
        builder = if self.dedupes() {
            let (sim, inner) = (Arc::clone(self), self.store.clone());
            let store: StoreHandle = Arc::new(SimStore {
                sim,
                pid,
                inner,
                keeper,
            });
            builder.store(store)
        } else {
            builder.idempotent_by_nature()
        };
        let handling = Handling {
            sim: Arc::clone(self),
            pid,
        };
        let handler = move |_: Bytes, context: Context| {
            let handling = handling.clone();
            async move { handling.handle(context).await }
        };
        let consumer = builder
            .raw(handler)
            .expect("the settings of a world are valid");
        match consumer.run(shutdown).await {
            Ok(_) => RunEnd::Ok,
            Err(_) => RunEnd::Failed,
        }
    }
}

/// Jitter that repeats with its seed.
fn randomness(seed: u64) -> Randomness {
    let dice = Mutex::new(Dice::new(seed));
    Arc::new(move || {
        let rolled = u32::try_from(dice.lock().roll(1000)).unwrap_or(0);
        if seed == 0 {
            0.0
        } else {
            f64::from(rolled) / 1000.0
        }
    })
}

/// Sees to it that the end of a handler's future is seen, however it ends.
struct Run {
    sim: Arc<Sim>,
    id: RunId,
    pid: Pid,
    end: End,
}

impl Drop for Run {
    fn drop(&mut self) {
        let (run, end) = (self.id, self.end);
        // What a dead process does no longer counts, also when its tasks are torn down.
        if self.sim.lives(self.pid) {
            self.sim.see(Event::Ended { run, end });
        }
    }
}

impl Handling {
    async fn handle(self, context: Context) -> Result<(), HandlerError> {
        let Self { sim, pid } = self;
        let copy: usize = context
            .headers()
            .get(COPY)
            .and_then(|text| text.parse().ok())
            .expect("every message of a simulation is numbered");
        let (run, id) = {
            let mut state = sim.lock();
            let run = state.facts.runs.len();
            let (attempt, fence) = (context.attempt().get(), context.fence());
            state.see(
                &sim.world,
                Event::Started {
                    run,
                    pid,
                    copy,
                    attempt,
                    fence,
                },
            );
            (run, state.facts.id_of(copy))
        };
        let mut guard = Run {
            sim: Arc::clone(&sim),
            id: run,
            pid,
            end: End::Dropped,
        };
        let about = || format!("message {copy}");
        let go = sim.call(pid, Operation::Handle, 1 << id, about).await;
        let end = match go {
            Go::Handler(end) => Some(end),
            Go::Wait(long) => {
                sleep(long).await;
                sim.planned(id)
            }
            _ => sim.planned(id),
        };
        if end == Some(HandlerEnd::HandOn) {
            tokio::spawn(late_effect(Arc::clone(&sim), pid, run, id));
        }
        if end.is_none() {
            sim.see(Event::Effect { run });
        }
        if go == Go::Die {
            sim.kill_caller(pid);
            return std::future::pending().await;
        }
        let (end, result) = match end {
            None => (End::Succeeded, Ok(())),
            Some(HandlerEnd::Fail) => (End::Failed, Err(HandlerError::transient("told to fail"))),
            Some(HandlerEnd::FailPermanently) => {
                (End::Permanent, Err(HandlerError::permanent("told to fail")))
            }
            Some(HandlerEnd::AskToWait) => {
                let error = HandlerError::retry_after("told to fail", ASKED_WAIT);
                (End::AskedToWait(ASKED_WAIT), Err(error))
            }
            Some(HandlerEnd::Panic) => {
                guard.end = End::Panicked;
                // Without the hook, which would print it.
                std::panic::resume_unwind(Box::new("told to panic"));
            }
            Some(HandlerEnd::Hang | HandlerEnd::HandOn) => return std::future::pending().await,
        };
        guard.end = end;
        drop(guard);
        result
    }
}

/// Work that goes on after its handler was cancelled: the world outside sees its fence.
async fn late_effect(sim: Arc<Sim>, pid: Pid, run: RunId, id: usize) {
    sim.call(pid, Operation::LateEffect, 1 << id, String::new)
        .await;
    if sim.lives(pid) {
        sim.see(Event::LateEffect { run });
    }
}

impl Sim {
    /// How a handler ends where no fault says otherwise.
    fn planned(&self, id: usize) -> Option<HandlerEnd> {
        let chaos = self.lock().phase == Phase::Chaos;
        let fails = match self.world.plan {
            Plan::Succeed => false,
            Plan::OneFails => id == 0,
            Plan::AllFailForAWhile => chaos,
        };
        fails.then_some(HandlerEnd::Fail)
    }
}
