//! Making a failing list of decisions short and plain.

use crate::run::{Outcome, Setting, Tracing, by_list};

/// The most runs that are spent on it.
const RUNS: u32 = 4_000;

struct Shrinker<'a> {
    setting: &'a Setting,
    best: Outcome,
    runs: u32,
}

/// Finds a shorter run that breaks the same invariant; the given one if there is none.
pub fn shrink(setting: &Setting, failed: Outcome) -> Outcome {
    let mut shrinker = Shrinker {
        setting,
        best: failed,
        runs: 0,
    };
    loop {
        let before = shrinker.size();
        shrinker.cut_the_end();
        for length in [16, 8, 4, 2, 1] {
            shrinker.change_blocks(length, Vec::clear);
            shrinker.change_blocks(length, |block| block.fill(0));
        }
        shrinker.lower();
        if shrinker.size() == before || shrinker.runs >= RUNS {
            return shrinker.best;
        }
    }
}

/// Few steps first, then few and low numbers.
fn size(outcome: &Outcome) -> (u64, usize, u64) {
    let list = &outcome.choices;
    let used = list.iter().filter(|n| **n != 0).count();
    (
        outcome.steps,
        used,
        list.iter().map(|n| u64::from(*n)).sum(),
    )
}

impl Shrinker<'_> {
    fn size(&self) -> (u64, usize, u64) {
        size(&self.best)
    }

    /// Keeps a list if it fails in the same way and is smaller; says whether it did.
    fn try_list(&mut self, list: &[u32]) -> bool {
        if self.runs >= RUNS {
            return false;
        }
        self.runs += 1;
        let tried = by_list(self.setting, list, Tracing::Off);
        let name = |outcome: &Outcome| outcome.violation.as_ref().map(|broken| broken.invariant);
        let keep = name(&tried) == name(&self.best) && size(&tried) < self.size();
        if keep {
            self.best = tried;
        }
        keep
    }

    fn cut_the_end(&mut self) {
        let mut keep = self.best.choices.len() / 2;
        while keep < self.best.choices.len() {
            let list = self.best.choices[..keep].to_vec();
            if self.try_list(&list) {
                keep /= 2;
            } else {
                keep += (self.best.choices.len() - keep).div_ceil(2);
            }
        }
    }

    fn change_blocks(&mut self, length: usize, change: impl Fn(&mut Vec<u32>)) {
        let mut at = self.best.choices.len();
        while at > 0 {
            at = at.saturating_sub(length);
            let mut list = self.best.choices.clone();
            let end = (at + length).min(list.len());
            if at >= end {
                continue;
            }
            let mut block = list[at..end].to_vec();
            change(&mut block);
            list.splice(at..end, block);
            if list != self.best.choices {
                self.try_list(&list);
            }
        }
    }

    fn lower(&mut self) {
        let mut at = 0;
        while at < self.best.choices.len() {
            let now = self.best.choices[at];
            for lower in [now / 2, now.saturating_sub(1)] {
                let mut list = self.best.choices.clone();
                list[at] = lower;
                if lower < now && self.try_list(&list) {
                    break;
                }
            }
            at += 1;
        }
    }
}
