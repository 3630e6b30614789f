//! Going the ways of a graph of states: each from its beginning, up to a state that is known.

use std::sync::Arc;

use crate::choices::Dice;
use crate::graph::{Graph, Way};

/// Decides what happens in a run.
#[derive(Clone)]
pub(crate) struct Explorer {
    graph: Arc<Graph>,
    /// The state in which the last decision was made.
    last: Option<u64>,
    manner: Manner,
}

#[derive(Clone)]
enum Manner {
    /// Goes a way that nobody has gone, and on to what is new.
    Explore { path: Vec<u32>, depth: usize },
    /// Goes anywhere in a graph that is complete, to see whether it is.
    Stroll { dice: Dice, is_astray: bool },
}

impl Explorer {
    pub(crate) fn explore(graph: Arc<Graph>, way: Way) -> Self {
        let manner = Manner::Explore {
            path: way.path,
            depth: 0,
        };
        Self {
            graph,
            last: way.from,
            manner,
        }
    }

    pub(crate) fn stroll(graph: Arc<Graph>, seed: u64) -> Self {
        let manner = Manner::Stroll {
            dice: Dice::new(seed),
            is_astray: false,
        };
        Self {
            graph,
            last: None,
            manner,
        }
    }

    /// Decides between so many options; none where all that follows is known. `here` is the digest of
    /// the state, `taken` what was decided before.
    pub(crate) fn choose(
        &mut self,
        options: usize,
        here: impl FnOnce() -> u64,
        taken: &[u32],
    ) -> Option<usize> {
        if let Manner::Explore { path, depth } = &mut self.manner
            && let Some(chosen) = path.get(*depth)
        {
            *depth += 1;
            return Some(*chosen as usize);
        }
        if options == 1 {
            // Nothing to decide. Moments in which only time passes are not even the same in all runs.
            return Some(0);
        }
        let here = here();
        let from = self.last.replace(here);
        match &mut self.manner {
            Manner::Explore { .. } => {
                let is_new = self.graph.arrive(from, here, options, taken);
                is_new.then_some(0)
            }
            Manner::Stroll { dice, is_astray } => {
                if !self.graph.leads(from, Some(here)) {
                    *is_astray = true;
                    return None;
                }
                usize::try_from(dice.roll(options as u64)).ok()
            }
        }
    }

    /// A run has come to its end.
    pub(crate) fn end(&mut self) {
        match &mut self.manner {
            Manner::Explore { .. } => self.graph.end(self.last),
            Manner::Stroll { is_astray, .. } => *is_astray |= !self.graph.leads(self.last, None),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Two independent counters, of which either may go on, up to two: a lattice.
    fn go(mut explorer: Explorer) -> bool {
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
            let Some(chosen) = explorer.choose(options.len(), here, &taken) else {
                return explorer.is_astray();
            };
            taken.push(u32::try_from(chosen).unwrap());
            place = options[chosen];
        }
        explorer.end();
        explorer.is_astray()
    }

    #[test]
    fn every_state_is_seen_once_and_every_way_counted() {
        let graph = Arc::new(Graph::new());
        let mut runs = 0;
        while let Some((way, _under_way)) = graph.next() {
            go(Explorer::explore(Arc::clone(&graph), way));
            runs += 1;
        }
        let sum = graph.sum();
        assert_eq!((sum.states, sum.transitions), (4, 8));
        assert_eq!(sum.schedules, Some(6), "four choose two");
        assert_eq!(runs, 5, "one for each state with a choice, and the first");
        for seed in 0..20 {
            assert!(!go(Explorer::stroll(Arc::clone(&graph), seed)));
        }
    }

    #[test]
    fn a_stroll_notices_what_is_missing() {
        let graph = Arc::new(Graph::new());
        let (first, _under_way) = graph.next().unwrap();
        go(Explorer::explore(Arc::clone(&graph), first));
        let strays = (0..20).filter(|seed| go(Explorer::stroll(Arc::clone(&graph), *seed)));
        assert!(strays.count() > 0, "most ways were never gone");
    }
}
