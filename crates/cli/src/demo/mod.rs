//! `backstop demo`

mod checks;
mod ledger;
mod narrator;
mod place;
mod plan;
mod shop;
mod story;
mod table;
mod worker;

use std::sync::Arc;
use std::time::Instant;

use backstop::Shutdown;
use clap::Args;

use self::checks::Outcome;
use self::narrator::Narrator;
use self::place::Place;
use self::plan::Plan;
use self::shop::Shop;
use crate::exit::{Code, CommandError};
use crate::{logs, output};

/// Watch every promise being kept, in about 15 seconds and without a server
///
/// A shop publishes orders, some of them twice and three that nobody can handle. A worker crashes with
/// orders in hand, and the bank is out of service for a while. At the end stands a table of what
/// became of all of it, counted by the shop's own ledger. The exit code is 65 if a promise was broken.
#[derive(Args)]
pub(crate) struct Demo {
    /// How many orders there are
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    messages: u32,
    /// Chooses amounts, repeats and jitter; the same seed makes the same plan
    #[arg(long)]
    seed: Option<u64>,
    /// Play it on this broker instead: a queue of its own, whose name begins with `backstop-demo`
    #[arg(long, env = "BACKSTOP_DEMO_URL", hide_env_values = true)]
    url: Option<String>,
    /// Remember repeats in this store instead of in this process
    #[arg(long, env = "BACKSTOP_DEMO_STORE", hide_env_values = true)]
    store: Option<String>,
    /// Print the table as JSON
    #[arg(long)]
    json: bool,
}

impl Demo {
    pub(crate) async fn execute(self) -> Result<(), CommandError> {
        // What fails here fails on purpose: `RUST_LOG=warn` shows it.
        logs::start("off", logs::Look::of_json_flag(self.json));
        let place = Arc::new(Place::find(self.url.as_deref(), self.store.as_deref()).await?);
        let seed = self
            .seed
            .unwrap_or_else(|| u64::from(rand::random::<u32>()));
        let plan = Plan::new(self.messages, seed, &place.run);
        let shop = Arc::new(Shop::new(plan));
        let narrator = Narrator::new(&shop, self.json);
        let shutdown = Shutdown::on_signals().map_err(|error| {
            CommandError::new(Code::Software, format!("cannot listen to signals: {error}"))
        })?;
        let begun = Instant::now();
        let told = tokio::select! {
            told = story::tell(&shop, &place, &narrator) => told,
            () = shutdown.begun() => {
                narrator.end();
                let text = "interrupted: the story has no end, and nothing was checked";
                return Err(CommandError::new(Code::TempFail, text));
            }
        };
        narrator.end();
        let outcome = Outcome::find(&shop.plan, shop.ledger.read(), told?, begun.elapsed());
        let told = if self.json {
            output::print_json(&outcome.json())
        } else {
            output::print(&table::render(&outcome))
        };
        // A broken promise matters more than whether somebody reads about it.
        outcome.verdict()?;
        Ok(told?)
    }
}
