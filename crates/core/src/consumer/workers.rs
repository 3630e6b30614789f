//! Workers: tasks that process deliveries, each of them one after the other.
//!
//! A worker outlives the delivery that it was started for: to start a task costs more than everything
//! else that happens to a message whose handler is quick.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio_util::task::TaskTracker;

use super::engine::{Engine, Held};
use crate::codec::Codec;
use crate::handler::Handler;
use crate::sync::Mutex;

/// The workers of one consumer. When it is dropped, those that are idle end.
pub(crate) struct Workers<C, H> {
    engine: Arc<Engine<C, H>>,
    tasks: TaskTracker,
    idle: Arc<Mutex<Idle<Held>>>,
}

/// Workers without a delivery. Every one of them waits at its desk.
pub(super) struct Idle<T> {
    desks: Vec<Arc<Desk<T>>>,
    closed: bool,
}

impl<T> Default for Idle<T> {
    fn default() -> Self {
        Self {
            desks: Vec::new(),
            closed: false,
        }
    }
}

/// Where one worker gets its next delivery.
pub(super) struct Desk<T> {
    inbox: Mutex<Inbox<T>>,
}

impl<T> Default for Desk<T> {
    fn default() -> Self {
        let inbox = Inbox {
            next: None,
            closed: false,
            waker: None,
        };
        Self {
            inbox: Mutex::new(inbox),
        }
    }
}

struct Inbox<T> {
    next: Option<T>,
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
        let Some(held) = Idle::hand_over(&self.idle, held) else {
            return;
        };
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
        Idle::close(&self.idle);
    }
}

impl<C, H> Drop for Workers<C, H> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<T> Idle<T> {
    /// Has an idle worker take a delivery; gives it back if there is none.
    pub(super) fn hand_over(idle: &Mutex<Self>, held: T) -> Option<T> {
        let desk = idle.lock().desks.pop();
        let Some(desk) = desk else { return Some(held) };
        desk.hand_over(held);
        None
    }

    /// Lets the workers end, once they have nothing to do.
    pub(super) fn close(idle: &Mutex<Self>) {
        let desks = {
            let mut idle = idle.lock();
            idle.closed = true;
            std::mem::take(&mut idle.desks)
        };
        for desk in desks {
            desk.close();
        }
    }

    /// The worker's next delivery; none if it is to end.
    pub(super) async fn next(idle: &Mutex<Self>, desk: &Arc<Desk<T>>) -> Option<T> {
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

impl<T> Desk<T> {
    fn hand_over(&self, held: T) {
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
    fn wake<L>(waker: Option<Waker>, lock: L) {
        drop(lock);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn poll_next(&self, context: &Context<'_>) -> Poll<Option<T>> {
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
