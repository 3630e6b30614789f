//! Runs the simulator: seeds, every schedule of the small worlds, or one run again.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use backstop_sim::{
    Count, Merging, Outcome, Setting, Small, Tracing, by_list, by_seed, decode, encode, exhaust,
    shrink, small_worlds,
};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

/// How many schedules of a small world are run by chance, to see that none was missed.
const STROLLS: u64 = 20_000;

/// Runs the core through schedules and faults.
#[derive(Parser)]
#[command(name = "cargo xtask sim")]
struct Arguments {
    /// How many seeds to run
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many threads; default: one for each processor
    #[arg(long)]
    jobs: Option<usize>,
    /// Run this list of decisions again, in words
    #[arg(long, value_name = "LIST")]
    replay: Option<String>,
    /// Run this seed again, in words
    #[arg(long, conflicts_with = "replay")]
    seed: Option<u64>,
    /// The small world that a list is of, instead of one that the list chooses
    #[arg(long, value_name = "NAME")]
    world: Option<String>,
    /// Run every schedule of the small worlds, or of the one that --world names
    #[arg(long)]
    exhaustive: bool,
    /// Run every schedule to its end, without merging what leads to the same state: to see whether the
    /// numbers of schedules are equal, where they are small
    #[arg(long, requires = "exhaustive")]
    unmerged: bool,
    /// How many steps a second way to a state goes on, to see that it leads where the first one does
    #[arg(long, default_value_t = 1, value_name = "STEPS")]
    further: u32,
    /// Count what fails instead of stopping at the first
    #[arg(long)]
    keep_going: bool,
    /// How many faults a small world may see
    #[arg(long, default_value_t = 2)]
    faults: u32,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let is_fine = if let Some(list) = &arguments.replay {
        let list = decode(list).context("the list is not one that the simulator has printed")?;
        show(&by_list(&arguments.setting()?, &list, Tracing::On))
    } else if let Some(seed) = arguments.seed {
        show(&by_seed(&arguments.setting()?, seed, Tracing::On))
    } else if arguments.exhaustive {
        arguments.run_small_worlds()?
    } else {
        arguments.run_seeds()?
    };
    Ok(if is_fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Arguments {
    fn setting(&self) -> Result<Setting> {
        let Some(name) = &self.world else {
            return Ok(Setting::Random);
        };
        let mut worlds = small_worlds(self.faults).into_iter();
        match worlds.find(|small| small.name == name) {
            Some(small) => Ok(Setting::Fixed(Box::new(small.world))),
            None => bail!("there is no small world {name:?}"),
        }
    }

    fn jobs(&self) -> Result<usize> {
        let all = usize::from(std::thread::available_parallelism()?);
        Ok(self.jobs.unwrap_or(all).max(1))
    }

    fn run_seeds(&self) -> Result<bool> {
        let setting = self.setting()?;
        let jobs = self.jobs()?;
        let progress = progress(self.seeds, "seeds");
        let (next, steps) = (AtomicU64::new(0), AtomicU64::new(0));
        let begun = Instant::now();
        let work = || -> Option<(u64, Outcome)> {
            loop {
                let nth = next.fetch_add(1, Ordering::Relaxed);
                if nth >= self.seeds {
                    return None;
                }
                let outcome = by_seed(&setting, self.from + nth, Tracing::Off);
                steps.fetch_add(outcome.steps, Ordering::Relaxed);
                progress.inc(1);
                if let Some(broken) = &outcome.violation {
                    if self.keep_going {
                        progress.suspend(|| {
                            let (seed, name, steps) =
                                (self.from + nth, broken.invariant, outcome.steps);
                            println!("{name}: seed {seed}, {steps} steps");
                        });
                        continue;
                    }
                    // The others may finish what they have begun.
                    next.store(self.seeds, Ordering::Relaxed);
                    return Some((self.from + nth, outcome));
                }
            }
        };
        let failed = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
            let ends = workers.into_iter().filter_map(|worker| worker.join().ok());
            ends.flatten().min_by_key(|(_, outcome)| outcome.steps)
        });
        progress.finish_and_clear();
        println!(
            "{} steps of {} seeds from {} in {:.1?}",
            steps.load(Ordering::Relaxed),
            progress.position(),
            self.from,
            begun.elapsed()
        );
        Ok(failed.is_none_or(|(seed, failed)| {
            println!("seed {seed} fails");
            self.show_shrunk(&setting, self.world.as_deref(), failed)
        }))
    }

    fn run_small_worlds(&self) -> Result<bool> {
        // A world that does not exist is an error, not a success without schedules.
        self.setting()?;
        let wanted = |small: &Small| self.world.as_deref().is_none_or(|name| name == small.name);
        for small in small_worlds(self.faults).into_iter().filter(wanted) {
            if !self.run_small_world(small)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn run_small_world(&self, Small { name, world }: Small) -> Result<bool> {
        let begun = Instant::now();
        let merging = if self.unmerged {
            Merging::Off
        } else {
            Merging::On
        };
        let bar = progress(0, name);
        let exhausted = exhaust(&world, self.jobs()?, merging, |n| bar.set_position(n));
        bar.finish_and_clear();
        let setting = Setting::Fixed(Box::new(world));
        let exhausted = match exhausted {
            Ok(exhausted) => exhausted,
            Err(failed) => {
                println!("{name} fails");
                return Ok(self.show_shrunk(&setting, Some(name), *failed));
            }
        };
        let Count {
            states,
            transitions,
            schedules,
            runs,
            steps,
        } = exhausted.count;
        let Some(schedules) = schedules else {
            println!("{name}: a schedule goes round in a circle, and never ends");
            return Ok(false);
        };
        println!(
            "{name}, up to {} faults: {schedules} schedules, through {states} states by {transitions} \
             transitions; {runs} runs, {steps} steps, in {:.1?}",
            self.faults,
            begun.elapsed()
        );
        // What was not merged has no states to come back to.
        if self.unmerged {
            return Ok(true);
        }
        let bar = progress(0, "second ways to a state");
        let checked = exhausted.check(self.jobs()?, self.further, |n| bar.set_position(n));
        bar.finish_and_clear();
        let astray = match checked.and_then(|ways| exhausted.stroll(STROLLS).map(|()| ways)) {
            Ok(ways) => {
                println!(
                    "  {ways} second ways to a state lead on as the first, for {} steps; {STROLLS} whole \
                     schedules by chance lead nowhere else; in {:.1?}",
                    self.further,
                    begun.elapsed()
                );
                return Ok(true);
            }
            Err(astray) => astray,
        };
        let step = astray.steps;
        println!("{name}: a schedule leads where none was found to lead, with step {step}");
        show(&by_list(&setting, &astray.choices, Tracing::On));
        println!("{}", self.again(Some(name), &astray.choices));
        Ok(false)
    }

    /// Shows the shortest run that fails so, and how to run it again.
    fn show_shrunk(&self, setting: &Setting, world: Option<&str>, failed: Outcome) -> bool {
        let before = failed.steps;
        let least = shrink(setting, failed);
        println!("shrunk from {before} steps to {}:", least.steps);
        show(&by_list(setting, &least.choices, Tracing::On));
        println!("{}", self.again(world, &least.choices));
        false
    }

    /// How a list of decisions is run again, in one of the small worlds or in one that it chooses.
    fn again(&self, world: Option<&str>, list: &[u32]) -> String {
        let world = match world {
            Some(name) => format!(" --world {name} --faults {}", self.faults),
            None => String::new(),
        };
        let list = encode(list);
        format!("run it again: cargo xtask sim{world} --replay {list}")
    }
}

/// Shows a run in words; says whether every invariant held.
fn show(outcome: &Outcome) -> bool {
    println!("{:#?}", outcome.world);
    for line in &outcome.trace {
        println!("{line}");
    }
    match &outcome.violation {
        Some(broken) => println!("broken: {}: {}", broken.invariant, broken.what),
        None => println!("every invariant held, in {} steps", outcome.steps),
    }
    outcome.violation.is_none()
}

fn progress(length: u64, what: &str) -> ProgressBar {
    let bar = match length {
        0 => ProgressBar::new_spinner(),
        _ => ProgressBar::new(length),
    };
    let template = if length == 0 {
        "{spinner} {msg}: {human_pos} runs, {elapsed}"
    } else {
        "{bar:30} {human_pos}/{human_len} {msg}, {per_sec}, {eta} left"
    };
    let style = ProgressStyle::with_template(template);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_message(what.to_owned())
}
