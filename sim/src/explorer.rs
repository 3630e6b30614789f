//! Going the ways of a graph of states: each from its beginning, up to a state that is known.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::choices::Dice;
use crate::graph::{Arrival, END, Graph, Way};

/// Whether schedules that lead to the same state go on as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merging {
    /// They do.
    On,
    /// Every one of them is run to its end: to see that merging loses none, where they are few.
    Off,
}

/// Decides what happens in a run.
#[derive(Clone)]
pub(crate) struct Explorer {
    graph: Arc<Graph>,
    /// The state in which the last decision was made.
    last: Option<u64>,
    merging: Merging,
    manner: Manner,
}

#[derive(Clone)]
enum Manner {
    /// Goes a way that nobody has gone, and on to what is new.
    Explore { path: Vec<u32>, depth: usize },
    /// Goes a way, and on to the next state, whether that is known or not.
    Look {
        path: Vec<u32>,
        depth: usize,
        came_to: Option<Arrival>,
    },
    /// Goes anywhere in a graph that is complete, to see whether it is.
    Stroll {
        dice: Dice,
        /// One decision in so many may be a fault, so that faults come early in some and late in others.
        rarity: u64,
        is_astray: bool,
    },
}

impl Explorer {
    pub(crate) fn explore(graph: Arc<Graph>, way: Way, merging: Merging) -> Self {
        let manner = Manner::Explore {
            path: way.path,
            depth: 0,
        };
        Self {
            graph,
            last: way.from,
            merging,
            manner,
        }
    }

    pub(crate) fn look(graph: Arc<Graph>, path: Vec<u32>) -> Self {
        let manner = Manner::Look {
            path,
            depth: 0,
            came_to: None,
        };
        Self {
            graph,
            last: None,
            merging: Merging::On,
            manner,
        }
    }

    pub(crate) fn stroll(graph: Arc<Graph>, seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let rarity = 1 << dice.roll(6);
        let manner = Manner::Stroll {
            dice,
            rarity,
            is_astray: false,
        };
        Self {
            graph,
            last: None,
            merging: Merging::On,
            manner,
        }
    }

    /// Decides between so many options; none where all that follows is known. `here` is the digest of
    /// the state, `taken` what was decided before, and the first `plain` options are no faults.
    pub(crate) fn choose(
        &mut self,
        (options, plain): (usize, usize),
        here: impl FnOnce() -> u64,
        taken: &[u32],
    ) -> Option<usize> {
        if let Manner::Explore { path, depth } | Manner::Look { path, depth, .. } = &mut self.manner
            && let Some(chosen) = path.get(*depth)
        {
            *depth += 1;
            return Some(*chosen as usize);
        }
        if options == 1 {
            // Nothing to decide. Moments in which only time passes are not even the same in all runs.
            return Some(0);
        }
        let here = match self.merging {
            Merging::On => here(),
            Merging::Off => number(taken),
        };
        let from = self.last.replace(here);
        match &mut self.manner {
            Manner::Explore { .. } => {
                let is_new = self.graph.arrive(from, here, options, taken);
                is_new.then_some(0)
            }
            Manner::Look { came_to, .. } => {
                *came_to = Some(Arrival {
                    path: taken.to_vec(),
                    state: here,
                    options,
                });
                None
            }
            Manner::Stroll {
                dice,
                rarity,
                is_astray,
            } => {
                if !self.graph.leads(from, Some(here)) {
                    *is_astray = true;
                    return None;
                }
                let any = plain == 0 || dice.roll(*rarity) == 0;
                let sides = if any { options } else { plain };
                usize::try_from(dice.roll(sides as u64)).ok()
            }
        }
    }

    /// A run has come to its end.
    pub(crate) fn end(&mut self) {
        match &mut self.manner {
            Manner::Explore { .. } => self.graph.end(self.last),
            Manner::Look { came_to, .. } => {
                *came_to = Some(Arrival {
                    path: Vec::new(),
                    state: END,
                    options: 0,
                });
            }
            Manner::Stroll { is_astray, .. } => *is_astray |= !self.graph.leads(self.last, None),
        }
    }

    /// Where a look has led.
    pub(crate) fn came_to(self) -> Option<Arrival> {
        match self.manner {
            Manner::Look { came_to, .. } => came_to,
            Manner::Explore { .. } | Manner::Stroll { .. } => None,
        }
    }

    /// Whether it came to a state, or from one state to another, that the graph does not have.
    pub(crate) const fn is_astray(&self) -> bool {
        matches!(
            self.manner,
            Manner::Stroll {
                is_astray: true,
                ..
            }
        )
    }
}

/// A number for a list of decisions, unlike that of any other.
fn number(taken: &[u32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    taken.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two independent counters, of which either may go on, up to two: a lattice.
    fn go(explorer: &mut Explorer) -> bool {
        let (mut place, mut taken) = ((0_u64, 0_u64), Vec::new());
        while place != (2, 2) {
            let mut options = Vec::new();
            if place.0 < 2 {
                options.push((place.0 + 1, place.1));
            }
            if place.1 < 2 {
                options.push((place.0, place.1 + 1));
            }
            let here = || 1 + place.0 * 3 + place.1;
            let Some(chosen) = explorer.choose((options.len(), options.len()), here, &taken) else {
                return explorer.is_astray();
            };
            taken.push(u32::try_from(chosen).unwrap());
            place = options[chosen];
        }
        explorer.end();
        explorer.is_astray()
    }

    fn explore_all(merging: Merging) -> (Arc<Graph>, u32) {
        let graph = Arc::new(Graph::new());
        let mut runs = 0;
        while let Some((way, _under_way)) = graph.next() {
            go(&mut Explorer::explore(Arc::clone(&graph), way, merging));
            runs += 1;
        }
        (graph, runs)
    }

    #[test]
    fn every_state_is_seen_once_and_every_way_counted() {
        let (graph, runs) = explore_all(Merging::On);
        let sum = graph.sum();
        assert_eq!((sum.states, sum.transitions), (4, 8));
        assert_eq!(sum.schedules, Some(6), "four choose two");
        assert_eq!(runs, 5, "one for each state with a choice, and the first");
        for seed in 0..20 {
            assert!(!go(&mut Explorer::stroll(Arc::clone(&graph), seed)));
        }
    }

    #[test]
    fn without_merging_every_way_is_gone() {
        let (graph, runs) = explore_all(Merging::Off);
        assert_eq!((graph.sum().schedules, runs), (Some(6), 6));
    }

    #[test]
    fn a_second_way_to_a_state_leads_on_as_the_first() {
        let (graph, _) = explore_all(Merging::On);
        let repeat = graph.repeat(0).unwrap();
        let to = (0..2).map(|option| {
            let path = repeat.path.iter().copied().chain([option]).collect();
            let mut explorer = Explorer::look(Arc::clone(&graph), path);
            go(&mut explorer);
            explorer.came_to().unwrap().state
        });
        let to: Vec<_> = to.collect();
        assert!(!graph.leads_exactly(repeat.state, vec![to[0]]));
        assert!(!graph.leads_exactly(repeat.state, vec![to[0], repeat.state]));
        assert!(graph.leads_exactly(repeat.state, to));
    }

    #[test]
    fn a_stroll_notices_what_is_missing() {
        let graph = Arc::new(Graph::new());
        let (first, _under_way) = graph.next().unwrap();
        go(&mut Explorer::explore(
            Arc::clone(&graph),
            first,
            Merging::On,
        ));
        let strays = (0..20).filter(|seed| go(&mut Explorer::stroll(Arc::clone(&graph), *seed)));
        assert!(strays.count() > 0, "most ways were never gone");
    }
}
