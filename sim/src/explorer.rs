//! Enumerating schedules: depth first, running each from its beginning.
//!
//! Two actions of different processes that touch nothing in common may be swapped without a difference;
//! of all orders that differ in such swaps only, one is run to its end (sleep sets: Godefroid,
//! "Partial-Order Methods for the Verification of Concurrent Systems", 1996).

/// Who acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Actor {
    Process(usize),
    /// Time, the broker, the store, the way there.
    World,
}

/// An action, as far as other schedules are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    /// The same in every schedule.
    pub(crate) name: u64,
    pub(crate) actor: Actor,
    /// What it touches, as bits.
    pub(crate) touches: u64,
    /// Faults share what is left of how many there may be.
    pub(crate) is_fault: bool,
}

impl Label {
    /// Whether it makes no difference which of the two comes first.
    fn commutes_with(&self, other: &Self) -> bool {
        match (self.actor, other.actor) {
            (Actor::Process(one), Actor::Process(two)) => {
                one != two
                    && self.touches & other.touches == 0
                    && !(self.is_fault && other.is_fault)
            }
            _ => false,
        }
    }
}

/// A decision on the way to the current schedule.
#[derive(Clone, Debug)]
struct Fork {
    labels: Vec<Label>,
    chosen: usize,
    /// What needs no trying here: another schedule has it first.
    asleep: Vec<Label>,
}

impl Fork {
    fn is_asleep(&self, place: usize) -> bool {
        self.asleep
            .iter()
            .any(|label| label.name == self.labels[place].name)
    }

    /// The first option from a place on that is worth trying.
    fn awake_from(&self, from: usize) -> Option<usize> {
        (from..self.labels.len()).find(|place| !self.is_asleep(*place))
    }
}

/// The way to the current schedule, and what is left to try beside it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Explorer {
    forks: Vec<Fork>,
    depth: usize,
}

impl Explorer {
    /// Decides; none where every option is known from another schedule.
    pub(crate) fn choose(&mut self, labels: Vec<Label>) -> Option<usize> {
        if let Some(fork) = self.forks.get(self.depth) {
            self.depth += 1;
            return Some(fork.chosen);
        }
        let asleep = self.forks.last().map_or_else(Vec::new, |before| {
            let taken = &before.labels[before.chosen];
            let known = before.asleep.iter().chain(&before.labels[..before.chosen]);
            known
                .filter(|label| label.commutes_with(taken))
                .copied()
                .collect()
        });
        let mut fork = Fork {
            labels,
            chosen: 0,
            asleep,
        };
        fork.chosen = fork.awake_from(0)?;
        let chosen = fork.chosen;
        self.forks.push(fork);
        self.depth += 1;
        Some(chosen)
    }

    /// Goes on to the next schedule; says whether there is one.
    pub(crate) fn advance(&mut self) -> bool {
        self.depth = 0;
        while let Some(fork) = self.forks.last_mut() {
            if let Some(next) = fork.awake_from(fork.chosen + 1) {
                fork.chosen = next;
                return true;
            }
            self.forks.pop();
        }
        false
    }
}
