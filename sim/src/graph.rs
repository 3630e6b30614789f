//! The states of a world, and what leads from one to the other.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use parking_lot::{Condvar, Mutex};

/// The state in which everything is over.
pub(crate) const END: u64 = 0;

/// A way that nobody has gone yet: decisions, the last of them made in a known state.
pub(crate) struct Way {
    pub(crate) path: Vec<u32>,
    pub(crate) from: Option<u64>,
}

/// A way that ended in a state, where there are so many options.
#[derive(Clone)]
pub(crate) struct Arrival {
    pub(crate) path: Vec<u32>,
    pub(crate) state: u64,
    pub(crate) options: usize,
}

/// Every state that was seen, filled by several threads.
pub(crate) struct Graph {
    inner: Mutex<Inner>,
    changed: Condvar,
}

struct Inner {
    next: HashMap<u64, Vec<u64>>,
    root: Option<u64>,
    todo: Vec<Way>,
    /// Ways that ended in known states, because others have led there before.
    repeats: Vec<Arrival>,
    /// How many ways are being gone.
    under_way: usize,
    is_given_up: bool,
}

/// One way that is being gone.
pub(crate) struct UnderWay<'a>(&'a Graph);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.inner.lock();
        inner.under_way -= 1;
        // What panics is not gone to its end: the others need not go on.
        inner.is_given_up |= std::thread::panicking();
        drop(inner);
        self.0.changed.notify_all();
    }
}

/// What a whole graph amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) states: u64,
    pub(crate) transitions: u64,
    /// How many ways there are from the root to the end; none if one of them goes round in a circle.
    pub(crate) schedules: Option<u128>,
}

impl Graph {
    /// A graph with everything still to be seen.
    pub(crate) fn new() -> Self {
        let start = Way {
            path: Vec::new(),
            from: None,
        };
        Self {
            inner: Mutex::new(Inner {
                next: HashMap::new(),
                root: None,
                todo: vec![start],
                repeats: Vec::new(),
                under_way: 0,
                is_given_up: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// The next way to go; none when all have been gone. It is under way until its guard is dropped.
    pub(crate) fn next(&self) -> Option<(Way, UnderWay<'_>)> {
        let mut inner = self.inner.lock();
        loop {
            if inner.is_given_up {
                return None;
            }
            if let Some(way) = inner.todo.pop() {
                inner.under_way += 1;
                return Some((way, UnderWay(self)));
            }
            if inner.under_way == 0 {
                return None;
            }
            self.changed.wait(&mut inner);
        }
    }

    /// Goes no further way.
    pub(crate) fn give_up(&self) {
        self.inner.lock().is_given_up = true;
        self.changed.notify_all();
    }

    /// Comes to a state with so many options, by `path`; says whether it is new. The first option of
    /// a new one is the caller's, the others are left for later.
    pub(crate) fn arrive(
        &self,
        from: Option<u64>,
        here: u64,
        options: usize,
        path: &[u32],
    ) -> bool {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        match from {
            Some(from) => inner.next.entry(from).or_default().push(here),
            None => inner.root = Some(here),
        }
        let Entry::Vacant(entry) = inner.next.entry(here) else {
            inner.repeats.push(Arrival {
                path: path.to_vec(),
                state: here,
                options,
            });
            return false;
        };
        entry.insert(Vec::with_capacity(options));
        let others = (1..options)
            .rev()
            .filter_map(|option| u32::try_from(option).ok());
        inner.todo.extend(others.map(|option| Way {
            path: path.iter().copied().chain([option]).collect(),
            from: Some(here),
        }));
        self.changed.notify_all();
        true
    }

    /// Comes to the end.
    pub(crate) fn end(&self, from: Option<u64>) {
        if let Some(from) = from {
            self.inner.lock().next.entry(from).or_default().push(END);
        }
    }

    /// Whether a state follows another, or is the first; the end, if there is none.
    pub(crate) fn leads(&self, from: Option<u64>, to: Option<u64>) -> bool {
        let inner = self.inner.lock();
        match from {
            Some(from) => {
                let next = inner.next.get(&from);
                next.is_some_and(|next| next.contains(&to.unwrap_or(END)))
            }
            None => inner.root == to,
        }
    }

    /// One of the ways that ended in known states.
    pub(crate) fn repeat(&self, nth: usize) -> Option<Arrival> {
        self.inner.lock().repeats.get(nth).cloned()
    }

    /// How many ways ended in known states.
    pub(crate) fn repeats(&self) -> usize {
        self.inner.lock().repeats.len()
    }

    /// Whether a state leads to exactly these, as often as they are named.
    pub(crate) fn leads_exactly(&self, from: u64, mut to: Vec<u64>) -> bool {
        let known = self.inner.lock().next.get(&from).cloned();
        let mut known = known.unwrap_or_default();
        known.sort_unstable();
        to.sort_unstable();
        known == to
    }

    pub(crate) fn sum(&self) -> Sum {
        let inner = self.inner.lock();
        let transitions: usize = inner.next.values().map(Vec::len).sum();
        Sum {
            states: inner.next.len() as u64,
            transitions: transitions as u64,
            schedules: inner.root.map_or(Some(0), |root| ways(&inner.next, root)),
        }
    }
}

/// How many ways lead from a state to the end; none if there is a circle.
fn ways(next: &HashMap<u64, Vec<u64>>, root: u64) -> Option<u128> {
    /// What is known of a state: it is on the way to the current one, or counted.
    enum Known {
        OnTheWay,
        Counted(u128),
    }
    let mut known = HashMap::from([(END, Known::Counted(1))]);
    // States on the way, and which of their successors is next.
    let mut way = vec![(root, 0)];
    known.insert(root, Known::OnTheWay);
    while let Some((state, place)) = way.last_mut() {
        let successors = &next[state];
        if let Some(successor) = successors.get(*place) {
            *place += 1;
            match known.get(successor) {
                Some(Known::OnTheWay) => return None,
                Some(Known::Counted(_)) => {}
                None => {
                    known.insert(*successor, Known::OnTheWay);
                    way.push((*successor, 0));
                }
            }
            continue;
        }
        let count = |successor| match known.get(successor) {
            Some(Known::Counted(ways)) => *ways,
            Some(Known::OnTheWay) | None => 0,
        };
        let all = successors.iter().map(count).fold(0, u128::saturating_add);
        known.insert(*state, Known::Counted(all));
        way.pop();
    }
    match known.get(&root) {
        Some(Known::Counted(all)) => Some(*all),
        Some(Known::OnTheWay) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ways_of(edges: &[(u64, &[u64])]) -> Option<u128> {
        let next = edges.iter().map(|(from, to)| (*from, to.to_vec()));
        ways(&next.collect(), edges[0].0)
    }

    #[test]
    fn every_way_to_the_end_is_counted() {
        assert_eq!(ways_of(&[(1, &[END])]), Some(1));
        let diamond: &[(u64, &[u64])] =
            &[(1, &[2, 3]), (2, &[4, END]), (3, &[4]), (4, &[END, END])];
        assert_eq!(ways_of(diamond), Some(5));
    }

    #[test]
    fn a_circle_has_no_count() {
        assert_eq!(ways_of(&[(1, &[2, END]), (2, &[3]), (3, &[2])]), None);
    }
}
