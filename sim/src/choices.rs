//! Where every decision of a run comes from.

use std::fmt::Write as _;

use crate::explorer::Explorer;

/// Numbers that look random and repeat with their seed (`SplitMix64`).
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut n = self.0;
        n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        n ^ (n >> 31)
    }

    /// Uniform below `sides`, near enough for small numbers.
    pub(crate) const fn roll(&mut self, sides: u64) -> u64 {
        self.next() % sides
    }
}

/// A decision source, and what was decided.
///
/// The first option is always the plainest one, so that a list of decisions is made simpler by
/// lowering its numbers and by cutting its end: what is missing is zero.
#[derive(Clone)]
pub(crate) struct Choices {
    source: Source,
    taken: Vec<u32>,
}

#[derive(Clone)]
enum Source {
    Random(Dice),
    List(Vec<u32>),
    All(Explorer),
}

impl Choices {
    pub(crate) const fn random(seed: u64) -> Self {
        Self {
            source: Source::Random(Dice::new(seed)),
            taken: Vec::new(),
        }
    }

    pub(crate) const fn list(list: Vec<u32>) -> Self {
        Self {
            source: Source::List(list),
            taken: Vec::new(),
        }
    }

    pub(crate) const fn all(explorer: Explorer) -> Self {
        Self {
            source: Source::All(explorer),
            taken: Vec::new(),
        }
    }

    /// The explorer, if it decided.
    pub(crate) fn into_explorer(self) -> Option<Explorer> {
        match self.source {
            Source::All(explorer) => Some(explorer),
            Source::Random(_) | Source::List(_) => None,
        }
    }

    /// A run has come to its end.
    pub(crate) fn end(&mut self) {
        if let Source::All(explorer) = &mut self.source {
            explorer.end();
        }
    }

    /// Decides between actions, of which the first `plain` are no faults; `here` is the digest of the
    /// state. None if all that can follow is known from another schedule.
    pub(crate) fn pick_action(
        &mut self,
        weights: &[u32],
        plain: usize,
        here: impl FnOnce() -> u64,
    ) -> Option<usize> {
        let Source::All(explorer) = &mut self.source else {
            return Some(self.pick(weights));
        };
        let chosen = explorer.choose((weights.len(), plain), here, &self.taken)?;
        self.taken.push(u32::try_from(chosen).unwrap_or(0));
        Some(chosen)
    }

    /// Decides between as many options as there are weights.
    pub(crate) fn pick(&mut self, weights: &[u32]) -> usize {
        let chosen = match &mut self.source {
            Source::Random(dice) => weighted(dice, weights),
            Source::List(list) => {
                let wanted = list.get(self.taken.len()).copied().unwrap_or(0) as usize;
                if wanted < weights.len() { wanted } else { 0 }
            }
            Source::All(_) => 0,
        };
        self.taken.push(u32::try_from(chosen).unwrap_or(0));
        chosen
    }

    /// Decides between `n` options that are equally likely.
    pub(crate) fn uniform(&mut self, n: usize) -> usize {
        self.pick(&vec![1; n])
    }

    pub(crate) fn taken(&self) -> &[u32] {
        &self.taken
    }
}

fn weighted(dice: &mut Dice, weights: &[u32]) -> usize {
    let all: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    let mut rolled = dice.roll(all.max(1));
    for (index, weight) in weights.iter().enumerate() {
        let weight = u64::from(*weight);
        if rolled < weight {
            return index;
        }
        rolled -= weight;
    }
    0
}

/// Writes a list of decisions as a user hands it back: zeros in a row are counted.
pub fn encode(list: &[u32]) -> String {
    let end = list
        .iter()
        .rposition(|n| *n != 0)
        .map_or(0, |last| last + 1);
    let mut text = String::new();
    let mut zeros = 0;
    for n in &list[..end] {
        if *n == 0 {
            zeros += 1;
            continue;
        }
        if zeros > 0 {
            let _ = write!(text, "z{zeros}.");
            zeros = 0;
        }
        let _ = write!(text, "{n}.");
    }
    text.pop();
    text
}

/// Reads what [`encode`] has written; none if it is something else.
pub fn decode(text: &str) -> Option<Vec<u32>> {
    let mut list = Vec::new();
    for part in text.split('.').filter(|part| !part.is_empty()) {
        match part.strip_prefix('z') {
            Some(zeros) => list.resize(list.len() + zeros.parse::<u16>().ok()? as usize, 0),
            None => list.push(part.parse().ok()?),
        }
    }
    Some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_survives_being_written() {
        for list in [vec![], vec![3], vec![0, 0, 5, 0, 1, 17], vec![1, 0, 2]] {
            assert_eq!(decode(&encode(&list)), Some(list));
        }
        assert_eq!(decode(&encode(&[4, 0, 0])), Some(vec![4]));
        assert_eq!(decode("zap"), None);
    }

    #[test]
    fn what_was_taken_can_be_taken_again() {
        let weights = [5, 1, 1, 0, 9];
        let mut random = Choices::random(7);
        let seen: Vec<_> = (0..50).map(|_| random.pick(&weights)).collect();
        let mut again = Choices::list(random.taken().to_vec());
        let replayed: Vec<_> = (0..50).map(|_| again.pick(&weights)).collect();
        assert_eq!(seen, replayed);
        assert!(!seen.contains(&3), "an option without weight is not taken");
        assert_eq!(again.pick(&weights), 0, "what is missing is zero");
    }
}
