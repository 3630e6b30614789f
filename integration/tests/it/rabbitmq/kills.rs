//! kill -9 of consumer processes at random moments (CONFORMANCE, X8).

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use backstop_core::{ConsumerBuilder, Context, HandlerError, Shutdown, StoreHandle};
use backstop_rabbitmq::RabbitMq;
use backstop_redis_dedupe::RedisStore;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::sleep;

use super::world::{Ledger, World, builder, until};

/// The environment of a victim.
pub(crate) const BROKER: &str = "BACKSTOP_TEST_VICTIM_BROKER";
pub(crate) const STORE: &str = "BACKSTOP_TEST_VICTIM_STORE";

const KILLS: usize = 100;

/// Each message takes effect under a fence at most once, whoever dies when.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x8_a_hundred_kills_lose_nothing_and_repeat_nothing_under_one_fence() -> Result<()> {
    let world = World::new().await?;
    // As long as they are killed, however long this machine takes for a hundred processes.
    let publishing = world.publish_until_told(Duration::from_millis(5))?;
    let (name, url) = ("rabbitmq::kills::a_victim_consumes", world.queue.url());
    let victims = Victims::start(name, &url, world.harness.store_url())?;
    let victims = victims.kill_at_random_moments().await?;
    let ids = publishing.stop().await?;
    let ledger = victims.ledger.clone();
    until("all are handled", || async {
        Ok(ledger.len() >= ids.len())
    })
    .await?;
    world.must_be_empty().await?;
    drop(victims);
    ledger.must_have(&ids)
}

/// Two consumer processes, each replaced by another when it is killed.
pub(crate) struct Victims {
    /// The test that consumes, in a process of its own.
    test: &'static str,
    broker: String,
    store: String,
    pub(crate) ledger: Ledger,
    starts: Arc<AtomicUsize>,
    running: Vec<Victim>,
}

impl Victims {
    pub(crate) fn start(test: &'static str, broker: &str, store: &str) -> Result<Self> {
        let mut victims = Self {
            test,
            broker: broker.to_owned(),
            store: store.to_owned(),
            ledger: Ledger::default(),
            starts: Arc::default(),
            running: Vec::new(),
        };
        for _ in 0..2 {
            let victim = victims.another()?;
            victims.running.push(victim);
        }
        Ok(victims)
    }

    fn another(&self) -> Result<Victim> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--exact", self.test, "--nocapture"]);
        command.env(BROKER, &self.broker).env(STORE, &self.store);
        Victim::start(command, &self.ledger, &self.starts)
    }

    pub(crate) async fn kill_at_random_moments(mut self) -> Result<Self> {
        let seed = match std::env::var("BACKSTOP_TEST_SEED") {
            Ok(seed) => seed.parse().context("BACKSTOP_TEST_SEED")?,
            Err(_) => rand::random::<u64>(),
        };
        println!("BACKSTOP_TEST_SEED={seed}");
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..KILLS {
            // A moment by chance, but not before one of them has begun something.
            let before = self.starts.load(Ordering::Relaxed);
            until("a handler starts", || async {
                Ok(self.starts.load(Ordering::Relaxed) > before)
            })
            .await?;
            sleep(Duration::from_millis(random.random_range(0..150))).await;
            let victim = random.random_range(0..self.running.len());
            self.running[victim] = self.another()?;
        }
        Ok(self)
    }
}

/// A consumer process; dropping it kills it.
struct Victim {
    process: Child,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Victim {
    fn start(mut command: Command, ledger: &Ledger, starts: &Arc<AtomicUsize>) -> Result<Self> {
        let mut process = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let output = process.stdout.take().context("a victim without output")?;
        let (ledger, starts) = (ledger.clone(), Arc::clone(starts));
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let mut words = line.split(' ');
                match (words.next(), words.next(), words.next().map(str::parse)) {
                    (Some("start"), Some(_), _) => drop(starts.fetch_add(1, Ordering::Relaxed)),
                    (Some("effect"), Some(id), Some(Ok(fence))) => ledger.write(id, fence),
                    _ => {}
                }
            }
        });
        Ok(Self {
            process,
            reader: Some(reader),
        })
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // On Unix this is SIGKILL.
        let _ = self.process.kill();
        let _ = self.process.wait();
        // What it had written is still in the pipe.
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// The test above starts this one in processes of its own. By itself it has nothing to consume, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_victim_consumes() -> Result<()> {
    if std::env::var(BROKER).is_err() {
        let error = duty().unwrap_err();
        assert!(error.to_string().contains(BROKER), "{error}");
        return Ok(());
    }
    let (broker, store) = duty()?;
    let store: StoreHandle = RedisStore::connect(&store).await?.into();
    consume(builder(RabbitMq::open(&broker)?, store)).await
}

/// What a victim consumes from, and its store.
pub(crate) fn duty() -> Result<(String, String)> {
    let of = |name| {
        let value = std::env::var(name);
        value.with_context(|| format!("{name} is not set: no test has started this process"))
    };
    Ok((of(BROKER)?, of(STORE)?))
}

/// Consumes until it is killed, and says what it does.
pub(crate) async fn consume(builder: ConsumerBuilder) -> Result<()> {
    let consumer = builder
        .max_in_flight(8)
        .raw(async |_: Bytes, context: Context| {
            let id = context.id().map(ToString::to_string).unwrap_or_default();
            say(&format!("start {id}"));
            sleep(Duration::from_millis(20)).await;
            say(&format!(
                "effect {id} {}",
                context.fence().map_or(0, |fence| fence.0)
            ));
            Ok::<_, HandlerError>(())
        })?;
    consumer.run(&Shutdown::new()).await?;
    Ok(())
}

/// One write a line: what is in the pipe when the process is killed is whole.
fn say(line: &str) {
    let _ = std::io::stdout()
        .lock()
        .write_all(format!("{line}\n").as_bytes());
}
