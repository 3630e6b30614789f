//! The suite for idempotency stores: every clause of the contract of
//! [`IdempotencyStore`](backstop_core::IdempotencyStore). A store declares nothing that it cannot do: no
//! case is ever left out.

mod batches;
mod claims;
mod harness;
mod scene;
mod settling;
mod time;

use std::sync::Arc;

pub use self::harness::StoreHarness;

use crate::report::Report;
use crate::runner::{self, Case, Selection};

type Subject = Arc<dyn StoreHarness>;

/// Runs every case on a store, or those that `BACKSTOP_CASE` names.
///
/// # Cancel safety
///
/// Not cancel-safe: cases that are under way when a call is dropped go on until the runtime ends, and what
/// they find is told to nobody.
pub async fn run_all(harness: Arc<dyn StoreHarness>) -> Report {
    run_selection(harness, &Selection::from_environment()).await
}

/// Runs named cases on a store: ids such as `S4`, separated by commas.
///
/// # Cancel safety
///
/// Not cancel-safe: cases that are under way when a call is dropped go on until the runtime ends, and what
/// they find is told to nobody.
pub async fn run(harness: Arc<dyn StoreHarness>, cases: &str) -> Report {
    run_selection(harness, &Selection::named(cases)).await
}

async fn run_selection(harness: Subject, selection: &Selection) -> Report {
    let name = format!("stores' suite on {}", harness.name());
    runner::run(name, harness, selection, cases(), |_| None).await
}

fn cases() -> Vec<Case<Subject>> {
    let groups = [
        claims::cases(),
        settling::cases(),
        time::cases(),
        batches::cases(),
    ];
    groups.into_iter().flatten().collect()
}
