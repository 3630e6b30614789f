//! The records of the in-process store; synchronous, with time handed in.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::mem::size_of;

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};
use slab::Slab;
use tokio::time::Instant;

use crate::delivery::Attempt;
use crate::error::{StoreError, StoreErrorKind};
use crate::ports::{
    Claim, ClaimRequest, Fence, Fingerprint, IdempotencyKey, OwnerId, Ownership, ReleaseKind,
    Ticket,
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Completed,
    Released(ReleaseKind),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    InProgress { until: Instant },
    Ended(End),
}

#[derive(Clone)]
struct Record {
    key: IdempotencyKey,
    state: State,
    owner: OwnerId,
    nonce: u64,
    fence: u64,
    attempts: u32,
    redrives: u32,
    fingerprint: Option<Halves>,
    expires: Instant,
}

/// A fingerprint that fits a record without gaps.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Halves(u64, u64);

impl Halves {
    const fn of(Fingerprint(whole): Fingerprint) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "each half is kept")]
        Self((whole >> 64) as u64, whole as u64)
    }
}

/// What a record takes beside its key's text, in bytes: itself, where it stands in the table (with the
/// byte that the table keeps of every place) and in the order of expiry, and the counts beside the text.
/// What grows by doubling is on average three quarters full, the table seven tenths.
pub(super) const RECORD_BYTES: usize =
    (size_of::<Record>() + size_of::<Place>()) * 4 / 3 + (size_of::<Place>() + 1) * 10 / 7 + 16;

/// Where a record stands, and its key's hash.
///
/// Small, so that the table of all places stays in the processor's caches; and with the hash, so that
/// the table grows without a look at any key. Among many records that is most of what a claim costs.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    hash: u32,
    index: u32,
}

impl Place {
    /// The hash as the table wants it: the lowest bits say where to look, and the highest what for.
    fn spread(hash: u32) -> u64 {
        (u64::from(hash) << 32) | u64::from(hash)
    }

    const fn of(self) -> usize {
        self.index as usize
    }
}

#[derive(Clone)]
pub(super) struct Records {
    by_key: HashTable<Place>,
    slab: Slab<Record>,
    hasher: DefaultHashBuilder,
    // Places by the second in which they are to be looked at again; every record stands in it.
    expiries: BTreeMap<u64, Vec<Place>>,
    origin: Instant,
    bytes: usize,
    max_bytes: usize,
}

impl Records {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            by_key: HashTable::new(),
            slab: Slab::new(),
            hasher: DefaultHashBuilder::default(),
            expiries: BTreeMap::new(),
            origin: Instant::now(),
            bytes: 0,
            max_bytes,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(super) fn claim(
        &mut self,
        request: &ClaimRequest,
        now: Instant,
    ) -> Result<Claim, StoreError> {
        let hash = self.hash(&request.key);
        let records = &mut self.slab;
        let is_it = |place: &Place| place.hash == hash && records[place.of()].key == request.key;
        let spread = |place: &Place| Place::spread(place.hash);
        // One look into the table, whatever is found.
        match self.by_key.entry(Place::spread(hash), is_it, spread) {
            Entry::Occupied(entry) => {
                let record = &mut records[entry.get().of()];
                if record.expires > now {
                    return Ok(record.claim(request, now));
                }
                *record = Record::new(request, now);
                Ok(record.acquired())
            }
            Entry::Vacant(entry) => {
                let bytes = self.bytes + record_bytes(&request.key);
                let index = u32::try_from(records.vacant_key()).ok();
                let Some(index) = index.filter(|_| bytes <= self.max_bytes) else {
                    return Err(full(records.len(), self.max_bytes));
                };
                let record = Record::new(request, now);
                let (acquired, expires) = (record.acquired(), record.expires);
                records.insert(record);
                let place = Place { hash, index };
                entry.insert(place);
                self.bytes = bytes;
                self.look_again(place, expires);
                Ok(acquired)
            }
        }
    }

    pub(super) fn renew(&mut self, ticket: &Ticket, until: Instant, now: Instant) -> Ownership {
        match self.live(&ticket.key, now) {
            Some(record)
                if record.belongs_to(ticket)
                    && matches!(record.state, State::InProgress { .. }) =>
            {
                record.state = State::InProgress { until };
                record.expires = record.expires.max(until);
                Ownership::Held
            }
            _ => Ownership::Fenced,
        }
    }

    pub(super) fn end(
        &mut self,
        ticket: &Ticket,
        end: End,
        expires: Instant,
        now: Instant,
    ) -> Ownership {
        let Some(record) = self.live(&ticket.key, now) else {
            return Ownership::Fenced;
        };
        match record.state {
            State::InProgress { .. } if planted!(StaleClaimCompletes) && end == End::Completed => {
                record.state = State::Ended(end);
                Ownership::Held
            }
            _ if !record.belongs_to(ticket) => Ownership::Fenced,
            // The answer was lost, and is given again.
            State::Ended(before) if before == end => Ownership::Held,
            State::Ended(_) => Ownership::Fenced,
            State::InProgress { .. } => {
                record.state = State::Ended(end);
                let is_forgotten =
                    planted!(ReleaseForgetsCount) && end == End::Released(ReleaseKind::Failed);
                if end == End::Released(ReleaseKind::Unused) || is_forgotten {
                    record.attempts -= 1;
                }
                record.expires = expires;
                Ownership::Held
            }
        }
    }

    /// The record of a key, unless its time is over.
    fn live(&mut self, key: &IdempotencyKey, now: Instant) -> Option<&mut Record> {
        let hash = self.hash(key);
        let records = &self.slab;
        let is_it = |place: &Place| place.hash == hash && records[place.of()].key == *key;
        let place = self.by_key.find(Place::spread(hash), is_it)?.of();
        self.slab
            .get_mut(place)
            .filter(|record| record.expires > now)
    }

    pub(super) fn forget(&mut self, key: &IdempotencyKey) {
        let hash = self.hash(key);
        let records = &self.slab;
        let is_it = |place: &Place| place.hash == hash && records[place.of()].key == *key;
        if let Some(place) = self.by_key.find(Place::spread(hash), is_it) {
            self.remove(*place);
        }
    }

    fn remove(&mut self, place: Place) {
        let hash = Place::spread(place.hash);
        if let Ok(entry) = self.by_key.find_entry(hash, |other| *other == place) {
            entry.remove();
            let record = self.slab.remove(place.of());
            self.bytes -= record_bytes(&record.key);
        }
    }

    fn hash(&self, key: &IdempotencyKey) -> u32 {
        let hash = self.hasher.hash_one(key);
        #[expect(clippy::cast_possible_truncation, reason = "both halves are in it")]
        let folded = (hash ^ (hash >> 32)) as u32;
        folded
    }

    fn look_again(&mut self, place: Place, at: Instant) {
        let second = at.saturating_duration_since(self.origin).as_secs() + 1;
        self.expiries.entry(second).or_default().push(place);
    }

    /// Removes expired records, looking at no more than `most`.
    pub(super) fn sweep(&mut self, now: Instant, most: usize) {
        let passed = now.saturating_duration_since(self.origin).as_secs();
        for _ in 0..most {
            let Some(mut first) = self.expiries.first_entry().filter(|e| *e.key() <= passed) else {
                return;
            };
            let Some(place) = first.get_mut().pop() else {
                first.remove();
                continue;
            };
            // A record that was forgotten may have left its place to another one, which is looked at
            // once more than it has to be, if it has the same hash.
            let hash = Place::spread(place.hash);
            if self.by_key.find(hash, |other| *other == place).is_none() {
                continue;
            }
            match self.slab.get(place.of()).map(|record| record.expires) {
                Some(expires) if expires > now => self.look_again(place, expires),
                _ => self.remove(place),
            }
        }
    }
}

impl Record {
    fn new(request: &ClaimRequest, now: Instant) -> Self {
        Self {
            key: request.key.clone(),
            state: State::InProgress {
                until: now + request.lease,
            },
            owner: request.owner.clone(),
            nonce: request.nonce,
            fence: 1,
            attempts: request.attempts_used.saturating_add(1),
            redrives: request.redrives,
            fingerprint: request.fingerprint.map(Halves::of),
            expires: now + request.retention.max(request.lease),
        }
    }

    fn claim(&mut self, request: &ClaimRequest, now: Instant) -> Claim {
        let fingerprint = request.fingerprint.map(Halves::of);
        let same_body = match (self.fingerprint, fingerprint) {
            (Some(known), Some(seen)) => known == seen,
            _ => true,
        };
        let redriven = request.redrives > self.redrives;
        match self.state {
            State::InProgress { .. }
                if self.owner == request.owner && self.nonce == request.nonce =>
            {
                return self.acquired();
            }
            State::Ended(End::Released(ReleaseKind::DeadLettered)) => {
                if !redriven && same_body {
                    return Claim::DeadLettered;
                }
                self.attempts = request.attempts_used;
            }
            _ if !same_body => return Claim::Conflict,
            State::Ended(End::Completed) if !planted!(CompletedIsClaimed) => {
                return Claim::Completed;
            }
            State::InProgress { until } if now < until && !planted!(ClaimTakenEarly) => {
                let remaining = until.duration_since(now);
                return Claim::InProgress { remaining };
            }
            State::InProgress { .. } | State::Ended(_) => {
                if redriven {
                    self.attempts = request.attempts_used;
                }
            }
        }
        let fresh = Self::new(request, now);
        *self = Self {
            fence: self.fence + 1,
            attempts: self.attempts.saturating_add(1),
            redrives: self.redrives.max(request.redrives),
            ..fresh
        };
        self.acquired()
    }

    fn acquired(&self) -> Claim {
        Claim::Acquired {
            fence: Fence(self.fence),
            attempt: Attempt::after(self.attempts.saturating_sub(1)),
        }
    }

    fn belongs_to(&self, ticket: &Ticket) -> bool {
        self.fence == ticket.fence.0 && self.owner == ticket.owner
    }
}

fn record_bytes(key: &IdempotencyKey) -> usize {
    RECORD_BYTES + key.key().len()
}

fn full(records: usize, limit: usize) -> StoreError {
    let text = format!(
        "the in-process store is full: {records} records fill its limit of {limit} bytes; shorten \
         the retention or raise max_bytes"
    );
    StoreError::new(StoreErrorKind::Full, text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn claim(records: &mut Records, key: &str, retention: Duration, now: Instant) -> Claim {
        let request = ClaimRequest {
            key: IdempotencyKey::new("orders", key),
            owner: OwnerId::new("me"),
            nonce: 1,
            fingerprint: None,
            redrives: 0,
            attempts_used: 0,
            lease: Duration::from_secs(30),
            retention,
        };
        records.claim(&request, now).unwrap()
    }

    #[test]
    fn a_record_in_the_place_of_a_forgotten_one_lasts_its_own_time() {
        let start = Instant::now();
        let mut records = Records::new(usize::MAX);
        // A short-lived one is forgotten; its place goes to another one, or to the same key again.
        for key in ["b", "a"] {
            claim(&mut records, "a", HOUR, start);
            records.forget(&IdempotencyKey::new("orders", "a"));
            assert_eq!((records.len(), records.bytes), (0, 0));
            claim(&mut records, key, 3 * HOUR, start);
            assert_eq!(records.slab.capacity(), 4, "the place was taken again");
            records.sweep(start + 2 * HOUR, 100);
            assert_eq!((records.len(), records.by_key.len()), (1, 1));
            records.sweep(start + 4 * HOUR, 100);
            assert_eq!((records.len(), records.by_key.len()), (0, 0));
            assert_eq!((records.bytes, records.expiries.len()), (0, 0));
        }
    }

    #[test]
    fn every_key_of_many_is_found_again_while_it_lives() {
        let start = Instant::now();
        let mut records = Records::new(usize::MAX);
        for n in 0..5_000_u64 {
            let retention = HOUR + Duration::from_secs(n % 7 * 3600);
            let claimed = claim(&mut records, &n.to_string(), retention, start);
            assert!(matches!(claimed, Claim::Acquired { .. }));
        }
        for hours in 1..=8 {
            let now = start + hours * HOUR + HOUR / 2;
            records.sweep(now, 20_000);
            for n in 0..5_000_u64 {
                let key = IdempotencyKey::new("orders", n.to_string());
                let lives = n % 7 + 1 > u64::from(hours);
                assert_eq!(
                    records.live(&key, now).is_some(),
                    lives,
                    "{n} after {hours}"
                );
            }
        }
        assert_eq!((records.len(), records.bytes), (0, 0));
    }
}
