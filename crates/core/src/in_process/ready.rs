//! The order in which messages of an in-process queue are handed out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use crate::message::PartitionKey;

/// A message's place in its queue: its sequence number, and its index among the entries. A repeat
/// has its original's sequence number.
pub(super) type Position = (u64, usize);

/// A subscription of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Owner {
    pub(super) connection: u32,
    pub(super) subscription: u32,
}

/// What is ready, and what keeps some of it from being handed out.
pub(super) enum Ready {
    /// Nobody has asked for order: nothing is paid for it.
    Unordered(Line),
    /// Somebody has: partition keys are kept apart.
    ByPartitionKey(Lanes),
}

/// Messages in the order of their positions.
///
/// What is new joins at the end; what comes back to an old position is kept beside it.
#[derive(Default)]
pub(super) struct Line {
    new: VecDeque<Position>,
    back: BinaryHeap<Reverse<Position>>,
}

impl Line {
    fn insert(&mut self, at: Position) {
        if self.new.back().is_none_or(|last| *last < at) {
            self.new.push_back(at);
        } else {
            self.back.push(Reverse(at));
        }
    }

    fn pop(&mut self) -> Option<Position> {
        match (self.new.front(), self.back.peek()) {
            (Some(new), Some(Reverse(back))) if back < new => self.back.pop().map(|back| back.0),
            (None, Some(_)) => self.back.pop().map(|back| back.0),
            (Some(_), _) => self.new.pop_front(),
            (None, None) => None,
        }
    }

    fn len(&self) -> usize {
        self.new.len() + self.back.len()
    }
}

impl Ready {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Unordered(line) => line.len(),
            Self::ByPartitionKey(lanes) => lanes.ready,
        }
    }

    /// Keeps order from now on; `key` finds the partition key of a position.
    pub(super) fn keep_order<'a>(&mut self, key: impl Fn(Position) -> Option<&'a PartitionKey>) {
        if let Self::Unordered(line) = self {
            let mut lanes = Lanes::default();
            while let Some(at) = line.pop() {
                lanes.insert(at, key(at));
            }
            *self = Self::ByPartitionKey(lanes);
        }
    }

    /// Adds what may be handed out. Says, as the others do, whether a receive may find more now.
    pub(super) fn insert(&mut self, at: Position, key: Option<&PartitionKey>) -> bool {
        match self {
            Self::Unordered(line) => {
                line.insert(at);
                true
            }
            Self::ByPartitionKey(lanes) => lanes.insert(at, key),
        }
    }

    /// Takes the first that may be handed out to `owner`; it is in flight then.
    pub(super) fn take(&mut self, owner: Owner) -> Option<Position> {
        match self {
            Self::Unordered(line) => line.pop(),
            Self::ByPartitionKey(lanes) => lanes.take(owner),
        }
    }

    /// Says that something is no longer in flight.
    pub(super) fn end_flight(&mut self, at: Position, key: Option<&PartitionKey>) -> bool {
        self.change(key, |lane| {
            if let Ok(index) = lane.in_flight.binary_search(&at) {
                lane.in_flight.remove(index);
            }
        })
    }

    /// Says that something waits, and its followers with it.
    pub(super) fn begin_wait(&mut self, at: Position, key: Option<&PartitionKey>) {
        self.change(key, |lane| {
            lane.waiting.insert(at);
        });
    }

    /// Keeps no list any more for a subscription that has ended.
    pub(super) fn forget(&mut self, owner: Owner) {
        if let Self::ByPartitionKey(lanes) = self {
            lanes.forget(owner);
        }
    }

    /// Says that a wait is over.
    pub(super) fn end_wait(&mut self, at: Position, key: Option<&PartitionKey>) -> bool {
        self.change(key, |lane| {
            lane.waiting.remove(&at);
        })
    }

    fn change(&mut self, key: Option<&PartitionKey>, change: impl FnOnce(&mut Lane)) -> bool {
        match (self, key) {
            (Self::ByPartitionKey(lanes), Some(key)) => lanes.change(key, change),
            _ => false,
        }
    }
}

/// The messages of one partition key.
#[derive(Default)]
struct Lane {
    ready: VecDeque<Position>,
    // Ascending, for a message is handed out only behind what is in flight.
    in_flight: VecDeque<Position>,
    waiting: BTreeSet<Position>,
    owner: Option<Owner>,
    // Where the lane's head stands in the lists of heads.
    listed: Option<(Option<Owner>, Position)>,
}

impl Lane {
    /// The first ready message, if nothing that is out or waits stands in its way.
    fn head(&self) -> Option<Position> {
        let head = *self.ready.front()?;
        let follows = self.in_flight.back().is_none_or(|last| *last < head);
        let waits = self.waiting.first().is_some_and(|first| *first < head);
        (follows && !waits).then_some(head)
    }

    fn is_unused(&self) -> bool {
        self.ready.is_empty() && self.in_flight.is_empty() && self.waiting.is_empty()
    }
}

type Heads = BTreeMap<Position, Option<PartitionKey>>;

/// Messages by partition key.
///
/// The heads of lanes are listed where their next owner looks for them, so that what is blocked
/// costs nothing, however much it is.
#[derive(Default)]
pub(super) struct Lanes {
    by_key: HashMap<PartitionKey, Lane>,
    // Heads that anyone may take, and messages without a key.
    free: Heads,
    // Heads that only the owner of what is in flight before them may take.
    owned: HashMap<Owner, Heads>,
    // Emptied lanes keep their memory for the next key.
    spare: Vec<Lane>,
    ready: usize,
}

impl Lanes {
    const MAX_SPARE: usize = 1024;

    fn insert(&mut self, at: Position, key: Option<&PartitionKey>) -> bool {
        self.ready += 1;
        let Some(key) = key else {
            self.free.insert(at, None);
            return true;
        };
        self.change(key, |lane| {
            let index = lane.ready.partition_point(|other| *other < at);
            lane.ready.insert(index, at);
        })
    }

    fn take(&mut self, owner: Owner) -> Option<Position> {
        let free = self.free.first_entry();
        let owned = self.owned.get_mut(&owner);
        let (at, key) = match (free, owned.and_then(BTreeMap::first_entry)) {
            (Some(free), Some(owned)) if owned.key() < free.key() => owned.remove_entry(),
            (Some(free), _) => free.remove_entry(),
            (None, owned) => owned?.remove_entry(),
        };
        self.ready -= 1;
        if let Some(key) = key {
            self.change(&key, |lane| {
                lane.listed = None;
                lane.ready.pop_front();
                lane.in_flight.push_back(at);
                lane.owner = Some(owner);
            });
        }
        Some(at)
    }

    /// Changes a lane, and lists its head where it belongs now; says whether that is a new place.
    fn change(&mut self, key: &PartitionKey, change: impl FnOnce(&mut Lane)) -> bool {
        let mut entry = match self.by_key.entry(key.clone()) {
            Entry::Occupied(entry) => entry,
            Entry::Vacant(entry) => entry.insert_entry(self.spare.pop().unwrap_or_default()),
        };
        let lane = entry.get_mut();
        change(lane);
        if lane.in_flight.is_empty() {
            lane.owner = None;
        }
        let listed = lane.head().map(|head| (lane.owner, head));
        let unlisted = std::mem::replace(&mut lane.listed, listed);
        let unused = lane.is_unused();
        if listed != unlisted {
            if let Some((owner, head)) = unlisted {
                heads(&mut self.free, &mut self.owned, owner).remove(&head);
            }
            if let Some((owner, head)) = listed {
                heads(&mut self.free, &mut self.owned, owner).insert(head, Some(key.clone()));
            }
        }
        if unused {
            let lane = entry.remove();
            if self.spare.len() < Self::MAX_SPARE {
                self.spare.push(lane);
            }
        }
        listed.is_some() && listed != unlisted
    }

    fn forget(&mut self, owner: Owner) {
        if self.owned.get(&owner).is_some_and(BTreeMap::is_empty) {
            self.owned.remove(&owner);
        }
    }
}

/// The list in which the heads of lanes with this owner stand.
fn heads<'a>(
    free: &'a mut Heads,
    owned: &'a mut HashMap<Owner, Heads>,
    owner: Option<Owner>,
) -> &'a mut Heads {
    match owner {
        None => free,
        Some(owner) => owned.entry(owner).or_default(),
    }
}
