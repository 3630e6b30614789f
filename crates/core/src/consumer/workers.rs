//! Workers: tasks that process deliveries, each of them one after the other.
//!
//! A worker outlives the delivery that it was started for: to start a task costs more than everything
//! else that happens to a message whose handler is quick.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio_util::task::TaskTracker;

use super::engine::{Engine, Held};
use crate::codec::Codec;
use crate::handler::Handler;

/// The workers of one consumer. When it is dropped, those that are idle end.
pub(crate) struct Workers<C, H> {
    engine: Arc<Engine<C, H>>,
    tasks: TaskTracker,
    idle: Arc<Mutex<Idle>>,
}

/// Workers without a delivery. Every one of them waits at its desk.
#[derive(Default)]
struct Idle {
    desks: Vec<Arc<Desk>>,
    closed: bool,
}

/// Where one worker gets its next delivery.
#[derive(Default)]
struct Desk {
    inbox: Mutex<Inbox>,
}

#[derive(Default)]
struct Inbox {
    next: Option<Held>,
    closed: bool,
    waker: Option<Waker>,
}

/// The most workers that are kept idle: what a burst took beyond them is given back.
const MAX_IDLE: usize = 256;

impl<C: Codec, H: Handler<C::Payload>> Workers<C, H> {
    /// Workers that are among `tasks`.
    pub(crate) fn new(engine: Arc<Engine<C, H>>, tasks: TaskTracker) -> Self {
        Self {
            engine,
            tasks,
            idle: Arc::default(),
        }
    }

    /// Has a delivery processed, at once: by an idle worker, or by a new one.
    pub(crate) fn process(&self, held: Held) {
        let desk = self.idle.lock().desks.pop();
        if let Some(desk) = desk {
            desk.hand_over(held);
            return;
        }
        let (engine, idle) = (Arc::clone(&self.engine), Arc::clone(&self.idle));
        self.tasks.spawn(async move {
            let desk = Arc::default();
            let mut next = Some(held);
            while let Some(mut held) = next {
                engine.process(&mut held).await;
                // Its place is free before another delivery is waited for.
                drop(held);
                next = Idle::next(&idle, &desk).await;
            }
        });
    }
}

impl<C, H> Workers<C, H> {
    /// Lets workers end when they are idle.
    pub(crate) fn close(&self) {
        let desks = {
            let mut idle = self.idle.lock();
            idle.closed = true;
            std::mem::take(&mut idle.desks)
        };
        for desk in desks {
            desk.close();
        }
    }
}

impl<C, H> Drop for Workers<C, H> {
    fn drop(&mut self) {
        self.close();
    }
}

impl Idle {
    /// The worker's next delivery; none if it is to end.
    async fn next(idle: &Mutex<Self>, desk: &Arc<Desk>) -> Option<Held> {
        {
            let mut idle = idle.lock();
            if idle.closed || idle.desks.len() >= MAX_IDLE {
                return None;
            }
            idle.desks.push(Arc::clone(desk));
        }
        poll_fn(|context| desk.poll_next(context)).await
    }
}

impl Desk {
    fn hand_over(&self, held: Held) {
        let mut inbox = self.inbox.lock();
        inbox.next = Some(held);
        Self::wake(inbox.waker.take(), inbox);
    }

    fn close(&self) {
        let mut inbox = self.inbox.lock();
        inbox.closed = true;
        Self::wake(inbox.waker.take(), inbox);
    }

    /// Wakes the worker when it can look.
    fn wake<T>(waker: Option<Waker>, lock: T) {
        drop(lock);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn poll_next(&self, context: &Context<'_>) -> Poll<Option<Held>> {
        let mut inbox = self.inbox.lock();
        if let Some(held) = inbox.next.take() {
            return Poll::Ready(Some(held));
        }
        if inbox.closed {
            return Poll::Ready(None);
        }
        inbox.waker = Some(context.waker().clone());
        Poll::Pending
    }
}
