//! Which delivery tags are settled, and what one acknowledgement can cover.

use std::collections::VecDeque;

/// The deliveries of one channel, by tag: they are numbered from 1 without gaps.
#[derive(Debug)]
pub(crate) struct Window {
    /// The lowest tag that is not settled.
    low: u64,
    /// Whether `low`, `low + 1`, … are settled.
    settled: VecDeque<bool>,
}

/// An acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) tag: u64,
    /// Whether it covers every lower tag too.
    pub(crate) multiple: bool,
}

impl Window {
    pub(crate) const fn new() -> Self {
        Self {
            low: 1,
            settled: VecDeque::new(),
        }
    }

    /// Notes that the frame that settles a tag is in line.
    pub(crate) fn settle(&mut self, tag: u64) {
        let Some(at) = tag
            .checked_sub(self.low)
            .and_then(|at| usize::try_from(at).ok())
        else {
            return;
        };
        if self.settled.len() <= at {
            self.settled.resize(at + 1, false);
        }
        self.settled[at] = true;
        while self.settled.front() == Some(&true) {
            self.settled.pop_front();
            self.low += 1;
        }
    }

    /// The acknowledgements for these tags, and notes them as settled: one for all that leave no gap
    /// behind them, and one each for the rest.
    pub(crate) fn acknowledge(&mut self, tags: &mut Vec<u64>) -> Vec<Ack> {
        tags.sort_unstable();
        for tag in &*tags {
            self.settle(*tag);
        }
        let covered = tags.partition_point(|tag| *tag < self.low);
        let (below, above) = tags.split_at(covered);
        let below = below.last().map(|tag| Ack {
            tag: *tag,
            multiple: below.len() > 1,
        });
        let above = above.iter().map(|tag| Ack {
            tag: *tag,
            multiple: false,
        });
        below.into_iter().chain(above).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const fn one(tag: u64) -> Ack {
        Ack {
            tag,
            multiple: false,
        }
    }

    #[test]
    fn what_leaves_no_gap_is_acknowledged_at_once() {
        let mut window = Window::new();
        assert_eq!(
            window.acknowledge(&mut vec![3, 1, 2]),
            [Ack {
                tag: 3,
                multiple: true
            }]
        );
        assert_eq!(window.acknowledge(&mut vec![4]), [one(4)]);
        assert_eq!(window.acknowledge(&mut vec![7, 6]), [one(6), one(7)]);
        window.settle(5);
        assert_eq!(
            window.acknowledge(&mut vec![9, 8]),
            [Ack {
                tag: 9,
                multiple: true
            }]
        );
    }

    proptest! {
        /// The broker's view: an acknowledgement never covers what was not handed in, and all that
        /// was handed in is covered exactly once.
        #[test]
        fn nothing_else_is_covered(order in Just((1_u64..60).collect::<Vec<_>>()).prop_shuffle(),
                                   cuts in prop::collection::vec(1_usize..12, 1..30),
                                   rejected in prop::collection::btree_set(1_u64..60, 0..15)) {
            let mut window = Window::new();
            let mut open: BTreeSet<u64> = (1..60).collect();
            let mut rest = &order[..];
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                rest = later;
                let (reject, mut ack): (Vec<_>, Vec<_>) =
                    now.iter().copied().partition(|tag| rejected.contains(tag));
                for tag in reject {
                    prop_assert!(open.remove(&tag));
                    window.settle(tag);
                }
                let mut expected: BTreeSet<_> = ack.iter().copied().collect();
                for Ack { tag, multiple } in window.acknowledge(&mut ack) {
                    let covered: Vec<_> = if multiple {
                        open.range(..=tag).copied().collect()
                    } else {
                        open.get(&tag).copied().into_iter().collect()
                    };
                    prop_assert!(!covered.is_empty(), "an unknown tag closes the channel");
                    for tag in covered {
                        prop_assert!(expected.remove(&tag) && open.remove(&tag));
                    }
                }
                prop_assert!(expected.is_empty());
            }
        }
    }
}
