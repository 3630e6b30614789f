//! Rounds in which contestants take turns.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};

/// Tells how far a part is: a bar on a terminal, else a line for each thing done, on stderr.
pub(crate) struct Progress {
    bar: ProgressBar,
    part: &'static str,
}

impl Progress {
    pub(crate) fn new(part: &'static str, steps: u64) -> Self {
        let bar = ProgressBar::new(steps);
        let template = "{prefix} {bar:30.cyan/dim} {pos:>3} of {len}  {elapsed}  {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(part);
        Self { bar, part }
    }

    /// Says what is being done.
    pub(crate) fn doing(&self, what: impl Into<String>) {
        self.bar.set_message(what.into());
        self.bar.tick();
    }

    /// Moves to this step.
    pub(crate) fn reached(&self, step: u64) {
        self.bar.set_position(step);
    }

    /// Says what has been seen.
    pub(crate) fn seen(&self, what: &str) {
        if std::io::stderr().is_terminal() {
            self.bar.println(what);
        } else {
            eprintln!("({}) {what}", self.part);
        }
        self.bar.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The contestants in the order of their turns: each round begins with another one.
pub(crate) fn turns<T: Copy>(contestants: &[T], rounds: u32) -> impl Iterator<Item = T> {
    (0..rounds as usize).flat_map(move |round| {
        let count = contestants.len();
        (0..count).map(move |turn| contestants[(round + turn) % count])
    })
}

/// The middle one; of an even number the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

/// The ratios of two contestants, round by round.
pub(crate) fn ratios(of: &[f64], to: &[f64]) -> Vec<f64> {
    of.iter().zip(to).map(|(of, to)| of / to).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_has_everybody_and_begins_with_another() {
        let turns: String = turns(&['a', 'b', 'c'], 4).collect();
        assert_eq!(turns, "abcbcacababc");
    }

    #[test]
    fn one_bad_round_does_not_move_the_median() {
        let is = |values: &[f64], expected: f64| (median(values) - expected).abs() < 1e-9;
        assert!(is(&[3.0, 1.0, 2000.0], 3.0));
        assert!(is(&[4.0, 1.0, 2.0, 2000.0], 3.0));
        assert!(median(&[]).is_nan());
    }
}
