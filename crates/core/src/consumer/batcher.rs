//! Gathers the calls of many tasks into batches for a port.
//!
//! Nothing waits for a batch to fill: a batch is what was asked while the tasks that were ready ran,
//! and while earlier batches were under way. A lone call leaves at once.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use slab::Slab;
use tokio::sync::Notify;

use crate::sync::Mutex;

/// Limits of a batcher.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The most requests in one batch.
    pub(crate) batch: usize,
    /// The most batches under way at once.
    pub(crate) flights: usize,
}

/// Gathers requests `Q` and hands out answers `A`.
pub(crate) struct Batcher<Q, A> {
    state: Mutex<State<Q, A>>,
    wake: Notify,
    refuse: fn(Q) -> A,
    forgotten: fn() -> A,
}

struct State<Q, A> {
    queued: Vec<(usize, Q)>,
    slots: Slab<Slot<A>>,
    closed: bool,
}

enum Slot<A> {
    Waiting(Option<Waker>),
    Answered(A),
    Abandoned,
}

impl<Q, A> Batcher<Q, A> {
    /// `refuse` answers a call after [`Batcher::close`]; `forgotten` stands in for an answer that
    /// the port owes.
    pub(crate) fn new(refuse: fn(Q) -> A, forgotten: fn() -> A) -> Self {
        let state = State {
            queued: Vec::new(),
            slots: Slab::new(),
            closed: false,
        };
        Self {
            state: Mutex::new(state),
            wake: Notify::new(),
            refuse,
            forgotten,
        }
    }

    /// Asks. The request is made even if the answer is not awaited.
    pub(crate) fn call(&self, request: Q) -> Call<'_, Q, A> {
        let mut state = self.state.lock();
        let slot = if state.closed {
            let answer = (self.refuse)(request);
            state.slots.insert(Slot::Answered(answer))
        } else {
            let slot = state.slots.insert(Slot::Waiting(None));
            state.queued.push((slot, request));
            if state.queued.len() == 1 {
                self.wake.notify_one();
            }
            slot
        };
        Call {
            batcher: self,
            slot: Some(slot),
        }
    }

    /// Refuses further calls; [`Batcher::drive`] ends when all earlier ones are answered.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_one();
    }

    /// Refuses further calls, drops what was not carried yet, and answers every call that waits in
    /// the port's place.
    pub(crate) fn abandon(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let requests = std::mem::take(&mut state.queued);
        let waiting = state.slots.iter().map(|(index, _)| index).collect();
        drop(state);
        drop(requests);
        self.answer(waiting, Vec::new());
        self.wake.notify_one();
    }

    /// Carries the requests to the port until closed.
    pub(crate) async fn drive<F, Fut>(&self, limits: Limits, port: F)
    where
        F: Fn(Vec<Q>) -> Fut,
        Fut: Future<Output = Vec<A>>,
    {
        let mut flights = FuturesUnordered::new();
        loop {
            while flights.len() < limits.flights
                && let Some((slots, requests)) = self.take(limits.batch)
            {
                // A panic is a bug in an adapter; it must not leave callers waiting for ever.
                let answers = AssertUnwindSafe(port(requests)).catch_unwind();
                flights.push(async move { (slots, answers.await.unwrap_or_default()) });
            }
            if flights.is_empty() && self.is_drained() {
                return;
            }
            let room = flights.len() < limits.flights;
            tokio::select! {
                biased;
                Some((slots, answers)) = flights.next(), if !flights.is_empty() => {
                    self.answer(slots, answers);
                }
                // Tasks that are ready now may ask too: let them join the batch.
                () = self.wake.notified(), if room => tokio::task::yield_now().await,
            }
        }
    }

    fn is_drained(&self) -> bool {
        let state = self.state.lock();
        state.closed && state.queued.is_empty()
    }

    fn take(&self, limit: usize) -> Option<(Vec<usize>, Vec<Q>)> {
        let mut state = self.state.lock();
        if state.queued.is_empty() {
            return None;
        }
        let count = state.queued.len().min(limit);
        Some(state.queued.drain(..count).unzip())
    }

    fn answer(&self, slots: Vec<usize>, answers: Vec<A>) {
        let mut answers = answers.into_iter();
        let mut wakers = Vec::with_capacity(slots.len());
        let mut state = self.state.lock();
        for slot in slots {
            let answer = answers.next().unwrap_or_else(self.forgotten);
            match state.slots.get_mut(slot) {
                Some(waiting @ Slot::Waiting(_)) => {
                    let waited = std::mem::replace(waiting, Slot::Answered(answer));
                    if let Slot::Waiting(Some(waker)) = waited {
                        wakers.push(waker);
                    }
                }
                Some(Slot::Abandoned) => drop(state.slots.remove(slot)),
                // The batcher was abandoned while the port worked.
                Some(Slot::Answered(_)) | None => {}
            }
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// The wait for one answer.
pub(crate) struct Call<'a, Q, A> {
    batcher: &'a Batcher<Q, A>,
    slot: Option<usize>,
}

impl<Q, A> Future for Call<'_, Q, A> {
    type Output = A;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<A> {
        let Some(slot) = self.slot else {
            return Poll::Pending;
        };
        let mut state = self.batcher.state.lock();
        if let Slot::Waiting(waker) = &mut state.slots[slot] {
            match waker {
                Some(waker) => waker.clone_from(context.waker()),
                None => *waker = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        let answer = state.slots.remove(slot);
        drop(state);
        self.slot = None;
        match answer {
            Slot::Answered(answer) => Poll::Ready(answer),
            Slot::Waiting(_) | Slot::Abandoned => Poll::Pending,
        }
    }
}

impl<Q, A> Drop for Call<'_, Q, A> {
    fn drop(&mut self) {
        let Some(slot) = self.slot else { return };
        let mut state = self.batcher.state.lock();
        if matches!(state.slots[slot], Slot::Answered(_)) {
            state.slots.remove(slot);
        } else {
            state.slots[slot] = Slot::Abandoned;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    const LIMITS: Limits = Limits {
        batch: 10,
        flights: 2,
    };

    fn doubler() -> Arc<Batcher<u32, u32>> {
        Arc::new(Batcher::new(|_| 1, || 3))
    }

    #[tokio::test(start_paused = true)]
    async fn calls_made_together_leave_together() {
        let batcher = doubler();
        let batches = Arc::new(AtomicUsize::new(0));
        let (driver, count) = (Arc::clone(&batcher), Arc::clone(&batches));
        tokio::spawn(async move {
            let port = |requests: Vec<u32>| {
                count.fetch_add(1, Ordering::Relaxed);
                async move { requests.iter().map(|n| n * 2).collect() }
            };
            driver.drive(LIMITS, port).await;
        });
        let calls = (0..30).map(|n| batcher.call(n));
        let answers = futures_util::future::join_all(calls).await;
        assert_eq!(answers, (0..30).map(|n| n * 2).collect::<Vec<_>>());
        assert_eq!(batches.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_call_is_still_made_and_its_slot_is_freed() {
        let batcher = doubler();
        drop(batcher.call(1));
        let answer = batcher.call(2);
        batcher.close();
        let seen = Mutex::new(Vec::<u32>::new());
        let port = |requests: Vec<u32>| {
            seen.lock().extend(&requests);
            async move { requests }
        };
        batcher.drive(LIMITS, port).await;
        assert_eq!(answer.await, 2);
        assert_eq!(*seen.lock(), [1, 2]);
        assert!(batcher.state.lock().slots.is_empty());
        assert_eq!(batcher.call(7).await, 1, "a call after the end is refused");
    }

    #[tokio::test(start_paused = true)]
    async fn an_abandoned_batcher_answers_everything_itself() {
        let batcher = doubler();
        let driver = Arc::clone(&batcher);
        let driver = tokio::spawn(async move {
            driver.drive(LIMITS, |_| std::future::pending()).await;
        });
        let calls = tokio::spawn({
            let batcher = Arc::clone(&batcher);
            async move {
                let calls = (0..30).map(|n| batcher.call(n));
                futures_util::future::join_all(calls).await
            }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!calls.is_finished());
        drop(batcher.call(4));
        batcher.abandon();
        assert_eq!(calls.await.unwrap(), vec![3; 30]);
        assert_eq!(batcher.call(7).await, 1);
        assert!(batcher.state.lock().slots.is_empty());
        driver.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_the_port_owes_is_stood_in_for() {
        let batcher = doubler();
        let calls = [batcher.call(5), batcher.call(6)];
        batcher.close();
        batcher.drive(LIMITS, |_| async { vec![50] }).await;
        let answers = futures_util::future::join_all(calls).await;
        assert_eq!(answers, [50, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn flights_keep_to_their_limit() {
        let batcher = doubler();
        let (under_way, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let calls: Vec<_> = (0..100).map(|n| batcher.call(n)).collect();
        batcher.close();
        let port = |requests: Vec<u32>| {
            let now = under_way.fetch_add(1, Ordering::Relaxed) + 1;
            most.fetch_max(now, Ordering::Relaxed);
            let under_way = &under_way;
            async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                under_way.fetch_sub(1, Ordering::Relaxed);
                requests
            }
        };
        batcher.drive(LIMITS, port).await;
        assert_eq!(most.load(Ordering::Relaxed), 2);
        assert_eq!(futures_util::future::join_all(calls).await.len(), 100);
    }
}
