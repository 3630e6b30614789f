//! What was measured, beside what is wanted.

use std::fmt;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde::Serialize;

use crate::rounds::median;

/// All figures of a run.
#[derive(Default, Serialize)]
pub(crate) struct Report {
    figures: Vec<Figure>,
    targets: Vec<Target>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Figure {
    part: &'static str,
    what: String,
    unit: &'static str,
    median: f64,
    rounds: Vec<f64>,
}

#[derive(Serialize)]
struct Target {
    part: &'static str,
    what: &'static str,
    unit: &'static str,
    wanted: Wanted,
    seen: f64,
    short_by: Option<f64>,
}

/// Which side of a target is the good one.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Wanted {
    AtLeast(f64),
    AtMost(f64),
}

impl Wanted {
    fn short_by(self, seen: f64) -> Option<f64> {
        let short = match self {
            Self::AtLeast(least) => least - seen,
            Self::AtMost(most) => seen - most,
        };
        // A figure that is none reaches nothing.
        (short > 0.0 || short.is_nan()).then_some(short)
    }
}

impl Report {
    /// Notes what was seen in each round.
    pub(crate) fn figure(
        &mut self,
        part: &'static str,
        what: impl Into<String>,
        unit: &'static str,
        rounds: Vec<f64>,
    ) {
        self.figures.push(Figure {
            part,
            what: what.into(),
            unit,
            median: median(&rounds),
            rounds,
        });
    }

    /// Holds the median of the rounds against a target.
    pub(crate) fn target(
        &mut self,
        part: &'static str,
        what: &'static str,
        unit: &'static str,
        wanted: Wanted,
        rounds: &[f64],
    ) {
        let seen = median(rounds);
        self.targets.push(Target {
            part,
            what,
            unit,
            wanted,
            seen,
            short_by: wanted.short_by(seen),
        });
    }

    /// Notes what a reader has to know to take the figures for what they are.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut figures = table(&["", "measured", "median", "lowest", "highest", "unit"]);
        for figure in &self.figures {
            let least = figure.rounds.iter().copied().reduce(f64::min);
            let most = figure.rounds.iter().copied().reduce(f64::max);
            figures.add_row([
                figure.part.to_owned(),
                figure.what.clone(),
                number(figure.median),
                number(least.unwrap_or(f64::NAN)),
                number(most.unwrap_or(f64::NAN)),
                figure.unit.to_owned(),
            ]);
        }
        let mut targets = table(&["", "target", "wanted", "seen", "", "unit"]);
        for target in &self.targets {
            let wanted = match target.wanted {
                Wanted::AtLeast(least) => format!("≥ {}", number(least)),
                Wanted::AtMost(most) => format!("≤ {}", number(most)),
            };
            let verdict = match target.short_by {
                None => "reached".to_owned(),
                Some(short) => format!("short by {}", number(short)),
            };
            let (part, what) = (target.part.to_owned(), target.what.to_owned());
            let unit = target.unit.to_owned();
            targets.add_row([part, what, wanted, number(target.seen), verdict, unit]);
        }
        for table in [&mut figures, &mut targets] {
            for column in table.column_iter_mut().skip(2).take(3) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        writeln!(f, "{figures}\n{targets}")?;
        self.notes.iter().try_for_each(|note| writeln!(f, "{note}"))
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.iter().copied());
    table
}

/// Whole above a hundred, with its thousands apart; else three figures.
pub(crate) fn number(value: f64) -> String {
    if value.abs() < 100.0 {
        let decimals = if value.abs() < 10.0 { 2 } else { 1 };
        return format!("{value:.decimals$}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::from(if value < 0.0 { "-" } else { "" });
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let shown = [0.5, 12.34, 100.0, 28_900.4, 1_234_567.0, -4200.0].map(number);
        let expected = ["0.50", "12.3", "100", "28,900", "1,234,567", "-4,200"];
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_target_is_reached_from_its_good_side() {
        assert_eq!(Wanted::AtLeast(1.5).short_by(1.5), None);
        assert_eq!(Wanted::AtLeast(1.5).short_by(1.0), Some(0.5));
        assert_eq!(Wanted::AtMost(4.0).short_by(3.0), None);
        assert_eq!(Wanted::AtMost(4.0).short_by(4.5), Some(0.5));
        assert!(Wanted::AtMost(4.0).short_by(f64::NAN).is_some());
    }

    #[test]
    fn a_report_says_what_is_short() {
        let mut report = Report::default();
        report.figure("a", "in process", "messages/s", vec![3.0, 1.0, 2.0]);
        report.target("a", "in process", "×", Wanted::AtLeast(3.0), &[2.0]);
        report.note("on a train");
        let shown = report.to_string();
        for part in [
            "2.00",
            "1.00",
            "3.00",
            "≥ 3.00",
            "short by 1.00",
            "on a train",
        ] {
            assert!(shown.contains(part), "{part} in\n{shown}");
        }
    }
}
