//! The state of an in-process queue; synchronous, with time handed in.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use slab::Slab;
use tokio::time::Instant;

use super::counts::{QueueCounts, Totals};
use super::deadlines::Deadlines;
use super::ready::{Line, Owner, Position, Ready};
use crate::delivery::{Delivery, LeaseId, Receipt};
use crate::message::{Message, PartitionKey};
use crate::ports::DeadLetterRecord;
use crate::verdict::{DeadLetter, DeadLetterReason};

/// Where a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Ready,
    /// Published for later: it joins the queue when its time comes.
    Scheduled,
    /// Given back for later: it keeps its position.
    Waiting,
    InFlight {
        owner: Owner,
        lease: LeaseId,
        deadline: Instant,
    },
}

struct Entry {
    message: Arc<Message>,
    sequence: u64,
    attempts_used: u32,
    redrives: u32,
    place: Place,
}

impl Entry {
    fn key(&self) -> Option<&PartitionKey> {
        self.message.partition_key.as_ref()
    }

    /// The end of the lease, if it is this one.
    fn deadline_of(&self, lease: LeaseId) -> Option<Instant> {
        match self.place {
            Place::InFlight {
                lease: current,
                deadline,
                ..
            } if current == lease => Some(deadline),
            _ => None,
        }
    }
}

/// What a queue is made with.
#[derive(Clone, Debug)]
pub(super) struct QueueSettings {
    pub(super) name: Arc<str>,
    pub(super) lease: Duration,
    pub(super) delivery_limit: u32,
    pub(super) dead_lettering: DeadLettering,
}

/// Whether there is a dead-letter queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeadLettering {
    Present,
    Absent,
}

pub(super) struct Queue {
    settings: QueueSettings,
    entries: Slab<Entry>,
    ready: Ready,
    delayed: BinaryHeap<Reverse<(Instant, Position)>>,
    deadlines: Deadlines,
    dead: Vec<DeadLetterRecord>,
    sequence: u64,
    generation: u32,
    in_flight: usize,
    news: bool,
    totals: Totals,
    cuts: u64,
}

impl Queue {
    pub(super) fn new(settings: QueueSettings) -> Self {
        Self {
            settings,
            entries: Slab::new(),
            ready: Ready::Unordered(Line::default()),
            delayed: BinaryHeap::new(),
            deadlines: Deadlines::default(),
            dead: Vec::new(),
            sequence: 0,
            generation: 0,
            in_flight: 0,
            news: false,
            totals: Totals::default(),
            cuts: 0,
        }
    }

    pub(super) fn counts(&mut self, now: Instant) -> QueueCounts {
        self.advance(now);
        QueueCounts {
            ready: self.ready.len(),
            delayed: self.delayed.len(),
            in_flight: self.in_flight,
            dead: self.dead.len(),
            published: self.totals.published,
            repeated: self.totals.repeated,
            delivered: self.totals.delivered,
            completed: self.totals.completed,
            retried: self.totals.retried,
            released: self.totals.released,
            dead_lettered: self.totals.dead_lettered,
            lost_leases: self.totals.lost_leases,
        }
    }

    /// What is in the dead-letter queue, oldest first.
    pub(super) fn dead(&mut self, now: Instant) -> &[DeadLetterRecord] {
        self.advance(now);
        &self.dead
    }

    /// Whether a receive that waits may find more than before, or has an earlier time to wait for,
    /// since this was last asked.
    pub(super) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// Wakes every receive that waits.
    pub(super) const fn wake(&mut self) {
        self.news = true;
    }

    /// Counts a cut of every connection.
    pub(super) const fn cut(&mut self) {
        self.cuts += 1;
        self.wake();
    }

    /// How often every connection was cut.
    pub(super) const fn cuts(&self) -> u64 {
        self.cuts
    }

    /// Keeps partition keys in order from now on.
    pub(super) fn keep_order(&mut self) {
        let entries = &self.entries;
        self.ready.keep_order(|(_, index)| entries[index].key());
    }

    pub(super) fn publish(&mut self, message: Arc<Message>, delay: Duration, now: Instant) {
        self.totals.published += 1;
        let redrives = message
            .headers
            .get(Message::REDRIVES_HEADER)
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        let index = self.entries.insert(Entry {
            message,
            sequence: 0,
            attempts_used: 0,
            redrives,
            place: Place::Scheduled,
        });
        if delay.is_zero() {
            self.join(index);
        } else {
            self.delay((0, index), later(now, delay));
        }
    }

    /// Puts a message at the end of the queue.
    fn join(&mut self, index: usize) {
        self.sequence += 1;
        self.entries[index].sequence = self.sequence;
        self.make_ready(index);
    }

    /// Hands out up to `max` messages.
    pub(super) fn take(&mut self, owner: Owner, max: usize, now: Instant) -> Vec<Delivery> {
        self.advance(now);
        let mut taken = Vec::with_capacity(max.min(self.ready.len()));
        while taken.len() < max
            && let Some((_, index)) = self.ready.take(owner)
        {
            taken.push(self.hand_out(index, owner, now));
        }
        taken
    }

    fn hand_out(&mut self, index: usize, owner: Owner, now: Instant) -> Delivery {
        self.generation = self.generation.wrapping_add(1);
        let lease = LeaseId((u64::from(self.generation) << 32) | index as u64);
        let deadline = later(now, self.settings.lease);
        let entry = &mut self.entries[index];
        entry.place = Place::InFlight {
            owner,
            lease,
            deadline,
        };
        self.totals.delivered += 1;
        self.in_flight += 1;
        self.deadlines.push(deadline, lease);
        Delivery {
            message: Arc::clone(&entry.message),
            attempts_used: entry.attempts_used,
            redrives: entry.redrives,
            lease: Some(self.settings.lease),
            receipt: Receipt::new(lease),
        }
    }

    /// Finds what a lease is for, if it still stands.
    fn find(&self, lease: LeaseId, now: Instant) -> Option<usize> {
        let index = index_of(lease);
        let deadline = self.entries.get(index)?.deadline_of(lease)?;
        (now < deadline).then_some(index)
    }

    pub(super) fn holds(&self, lease: LeaseId, now: Instant) -> bool {
        self.find(lease, now).is_some()
    }

    /// Extends a lease; `None` if it was lost.
    pub(super) fn extend(&mut self, lease: LeaseId, now: Instant) -> Option<Duration> {
        let index = self.find(lease, now)?;
        if let Place::InFlight { deadline, .. } = &mut self.entries[index].place {
            *deadline = later(now, self.settings.lease);
        }
        Some(self.settings.lease)
    }

    /// Removes what is done; `None` if the lease was lost, as with every settlement.
    pub(super) fn complete(&mut self, lease: LeaseId, now: Instant) -> Option<()> {
        let index = self.find(lease, now)?;
        self.end_flight(index);
        self.entries.remove(index);
        self.totals.completed += 1;
        Some(())
    }

    pub(super) fn dead_letter(
        &mut self,
        lease: LeaseId,
        dead_letter: DeadLetter,
        now: Instant,
    ) -> Option<()> {
        let index = self.find(lease, now)?;
        self.end_flight(index);
        self.bury(index, dead_letter);
        Some(())
    }

    /// Puts a message back that is to be delivered again with this number of attempts.
    pub(super) fn retry(
        &mut self,
        lease: LeaseId,
        after: Duration,
        attempts_used: u32,
        now: Instant,
    ) -> Option<()> {
        let index = self.find(lease, now)?;
        self.totals.retried += 1;
        if !planted!(RetryForgetsAttempts) {
            self.entries[index].attempts_used = attempts_used;
        }
        self.put_back(index, after, now);
        Some(())
    }

    /// Puts a message back that was not started; `cost` is what that adds to its attempts.
    pub(super) fn release(
        &mut self,
        lease: LeaseId,
        after: Duration,
        cost: u32,
        now: Instant,
    ) -> Option<()> {
        let index = self.find(lease, now)?;
        self.totals.released += 1;
        let entry = &mut self.entries[index];
        entry.attempts_used = entry.attempts_used.saturating_add(cost);
        self.put_back(index, after, now);
        Some(())
    }

    /// Adds a copy of a message, behind it.
    pub(super) fn repeat(&mut self, lease: LeaseId, now: Instant) {
        if let Some(index) = self.find(lease, now) {
            self.totals.repeated += 1;
            let entry = &self.entries[index];
            let copy = Entry {
                message: Arc::clone(&entry.message),
                place: Place::Ready,
                ..*entry
            };
            let index = self.entries.insert(copy);
            self.make_ready(index);
        }
    }

    /// Ends the delivery of a lease without a verdict.
    pub(super) fn lose(&mut self, lease: LeaseId, now: Instant) {
        if let Some(index) = self.find(lease, now) {
            self.end_without_verdict(index);
        }
    }

    /// Ends every delivery of a subscription, which takes no more.
    pub(super) fn end_subscription(&mut self, owner: Owner) {
        self.end_deliveries(|other| other == owner);
        self.ready.forget(owner);
    }

    /// Ends deliveries without a verdict, by their owner.
    pub(super) fn end_deliveries(&mut self, whose: impl Fn(Owner) -> bool) {
        if self.in_flight == 0 {
            return;
        }
        let is_theirs = |entry: &Entry| match entry.place {
            Place::InFlight { owner, .. } => whose(owner),
            _ => false,
        };
        let ended: Vec<_> = self
            .entries
            .iter()
            .filter_map(|(index, entry)| is_theirs(entry).then_some(index))
            .collect();
        for index in ended {
            self.end_without_verdict(index);
        }
    }

    /// Puts a message back whose delivery came to no verdict. That uses an attempt: the handler may
    /// have been started.
    fn end_without_verdict(&mut self, index: usize) {
        self.totals.lost_leases += 1;
        self.end_flight(index);
        let entry = &mut self.entries[index];
        entry.attempts_used = entry.attempts_used.saturating_add(1);
        self.make_ready(index);
    }

    fn end_flight(&mut self, index: usize) {
        self.in_flight -= 1;
        let entry = &self.entries[index];
        self.news |= self.ready.end_flight((entry.sequence, index), entry.key());
    }

    fn put_back(&mut self, index: usize, after: Duration, now: Instant) {
        if after.is_zero() {
            self.end_flight(index);
            self.make_ready(index);
            return;
        }
        let entry = &mut self.entries[index];
        entry.place = Place::Waiting;
        let at = (entry.sequence, index);
        // The wait begins before the flight ends, so that no follower looks free in between.
        self.ready
            .begin_wait(at, entry.message.partition_key.as_ref());
        self.end_flight(index);
        self.delay(at, later(now, after));
    }

    fn delay(&mut self, at: Position, until: Instant) {
        let first = self.delayed.peek();
        self.news |= first.is_none_or(|Reverse((first, _))| until < *first);
        self.delayed.push(Reverse((until, at)));
    }

    fn make_ready(&mut self, index: usize) {
        let entry = &mut self.entries[index];
        let limit = self.settings.delivery_limit;
        if entry.attempts_used > limit && self.settings.dead_lettering == DeadLettering::Present {
            let attempts = entry.attempts_used;
            self.bury_natively(index, attempts);
            return;
        }
        entry.place = Place::Ready;
        let at = (entry.sequence, index);
        self.news |= self.ready.insert(at, entry.message.partition_key.as_ref());
    }

    fn bury_natively(&mut self, index: usize, attempts: u32) {
        let limit = self.settings.delivery_limit;
        let dead_letter = DeadLetter {
            reason: DeadLetterReason::BrokerLimit,
            error: format!("more than {limit} attempts were used without an end"),
            attempts,
            origin: self.settings.name.to_string(),
            consumer: String::new(),
            at: SystemTime::now(),
        };
        self.bury(index, dead_letter);
    }

    fn bury(&mut self, index: usize, dead_letter: DeadLetter) {
        self.totals.dead_lettered += 1;
        let message = self.entries.remove(index).message;
        self.dead.push(DeadLetterRecord {
            message,
            dead_letter,
        });
    }

    /// Does what time brings: delays end, leases run out.
    fn advance(&mut self, now: Instant) {
        while let Some(Reverse((until, (_, index)))) = self.delayed.peek().copied()
            && until <= now
        {
            self.delayed.pop();
            self.end_delay(index);
        }
        loop {
            let entries = &self.entries;
            let deadline = |lease| entries.get(index_of(lease))?.deadline_of(lease);
            let Some(lease) = self.deadlines.pop(now, self.in_flight, deadline) else {
                return;
            };
            self.end_without_verdict(index_of(lease));
        }
    }

    fn end_delay(&mut self, index: usize) {
        let entry = &self.entries[index];
        if entry.place == Place::Scheduled {
            self.join(index);
        } else {
            self.news |= self.ready.end_wait((entry.sequence, index), entry.key());
            self.make_ready(index);
        }
    }

    /// When time brings the next change.
    pub(super) fn next_change(&self) -> Option<Instant> {
        let delay = self.delayed.peek().map(|Reverse((until, _))| *until);
        delay.into_iter().chain(self.deadlines.next()).min()
    }
}

fn index_of(lease: LeaseId) -> usize {
    usize::try_from(lease.0 & u64::from(u32::MAX)).unwrap_or(usize::MAX)
}

/// A time from now on; one that no clock shows is as good as never.
fn later(now: Instant, after: Duration) -> Instant {
    const NEVER: Duration = Duration::from_hours(100 * 365 * 24);
    now + after.min(NEVER)
}
