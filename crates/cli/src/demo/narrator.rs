//! Tells the story while it happens: lines for everybody, a moving bar for a person at a terminal.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::shop::Shop;
use crate::output;

/// Tells what happens.
pub(super) struct Narrator {
    begun: Instant,
    bar: ProgressBar,
    quiet: bool,
}

impl Narrator {
    /// With `quiet`, says nothing.
    pub(super) fn new(shop: &Arc<Shop>, quiet: bool) -> Self {
        let bar = if quiet || !output::is_watched() {
            ProgressBar::hidden()
        } else {
            ProgressBar::new(shop.plan.good())
        };
        let template = "          {bar:30.cyan/dim} {pos:>5} of {len} charged  {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self {
            begun: Instant::now(),
            bar,
            quiet,
        }
    }

    /// Says one line of the story.
    pub(super) fn say(&self, text: &str) {
        if self.quiet {
            return;
        }
        let seconds = self.begun.elapsed().as_secs_f64();
        self.bar
            .suspend(|| output::note(&format!("{seconds:>6.1} s  {text}")));
    }

    /// Moves the bar until it is dropped.
    pub(super) async fn follow(&self, shop: &Shop) -> Infallible {
        loop {
            self.bar.set_position(shop.ledger.charged());
            self.bar.set_message(if shop.bank.is_out() {
                "(the bank is out of service)"
            } else {
                ""
            });
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}
