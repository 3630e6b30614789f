//! Every schedule of a small world.

use crate::choices::Choices;
use crate::explorer::Explorer;
use crate::run::{Outcome, Setting, Tracing, run};
use crate::world::World;

/// What came of running every schedule.
#[derive(Clone, Debug, Default)]
pub struct Count {
    /// Schedules that were run to their end.
    pub schedules: u64,
    /// Schedules that were cut off: they differ from another one by a swap that makes no difference.
    pub cut_off: u64,
    /// Steps in all.
    pub steps: u64,
}

/// Runs every schedule of a world whose chaos lasts until it is drained; `seen` is told of the count
/// now and then.
///
/// # Errors
///
/// The first schedule that breaks an invariant.
pub fn exhaust(world: &World, mut seen: impl FnMut(&Count)) -> Result<Count, Box<Outcome>> {
    let setting = Setting::Fixed(Box::new(world.clone()));
    let mut explorer = Explorer::default();
    let mut count = Count::default();
    loop {
        let (outcome, choices) = run(&setting, Choices::all(explorer), Tracing::Off);
        count.steps += outcome.steps;
        if outcome.is_cut_off {
            count.cut_off += 1;
        } else {
            count.schedules += 1;
        }
        if outcome.violation.is_some() {
            return Err(Box::new(outcome));
        }
        if count.schedules.is_multiple_of(256) {
            seen(&count);
        }
        explorer = choices.into_explorer().unwrap_or_default();
        if !explorer.advance() {
            return Ok(count);
        }
    }
}
