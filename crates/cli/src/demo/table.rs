//! The table at the end.

use std::fmt::Write as _;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement, Table};

use super::checks::Outcome;
use crate::output::{brief, counted, thousands};

/// All that became of the story, for a person.
pub(super) fn render(outcome: &Outcome) -> String {
    let mut text = format!("\n{}\n\n", counts(outcome));
    let dead = outcome.told.dead_letters.len() as u64;
    let (dead, letters) = (counted(dead, "message"), dead_letters(outcome));
    let _ = write!(text, "{dead} to look at when you are awake:\n{letters}\n\n");
    for promise in &outcome.promises {
        let mark = if promise.kept { "kept  " } else { "BROKEN" };
        let _ = writeln!(text, "  {mark}  {}", promise.text);
    }
    let _ = write!(text, "\n{} in all", brief(outcome.took));
    text
}

fn table() -> Table {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Disabled);
    table
}

fn counts(outcome: &Outcome) -> Table {
    let ledger = &outcome.ledger;
    let mut table = table();
    let mut row = |what: &str, count: u64, remark: String| {
        table.add_row([what.to_owned(), thousands(count), remark]);
    };
    row(
        "published",
        ledger.published,
        format!(
            "{}, {} sent twice",
            counted(outcome.orders, "order"),
            thousands(outcome.repeats_sent)
        ),
    );
    let delivered = outcome.count(|stats| stats.received);
    row("delivered", delivered, String::new());
    let charged = ledger.charged.len() as u64;
    let good = thousands(outcome.good);
    row(
        "handled once",
        charged,
        format!("of {good} that can be handled"),
    );
    let absorbed = outcome.count(|stats| stats.repeats);
    row(
        "repeats absorbed",
        absorbed,
        refused_after_crash(ledger.refused),
    );
    row(
        "retries",
        outcome.retries(),
        "after these waits, the breaker's pauses included".to_owned(),
    );
    for (attempt, waits) in &ledger.waits {
        let (shortest, longest) = (brief(waits.shortest), brief(waits.longest));
        let what = format!("  before attempt {attempt}");
        row(&what, waits.count, format!("{shortest} to {longest}"));
    }
    let opened = outcome.count(|stats| stats.breaker_opened);
    let failures = counted(ledger.bank_failures, "failed charge");
    row(
        "breaker opened",
        opened,
        format!("{failures} while the bank was out"),
    );
    let takeover = brief(outcome.told.takeover);
    row(
        "in hand at the crash",
        ledger.in_hand_at_crash,
        format!("the next charge came {takeover} later"),
    );
    row("order violations", ledger.violations, String::new());
    row("lost", outcome.lost, String::new());
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn refused_after_crash(refused: u64) -> String {
    match refused {
        0 => String::new(),
        1 => "and 1 after the crash, refused by the database".to_owned(),
        n => format!("and {n} after the crash, refused by the database"),
    }
}

fn dead_letters(outcome: &Outcome) -> Table {
    let mut table = table();
    table.set_header(["message", "reason", "attempts", "error"]);
    for record in &outcome.told.dead_letters {
        let letter = &record.dead_letter;
        let id = record.message.id.as_ref();
        table.add_row([
            id.map(ToString::to_string).unwrap_or_default(),
            letter.reason.to_string(),
            letter.attempts.to_string(),
            letter.error.clone(),
        ]);
    }
    table
}
