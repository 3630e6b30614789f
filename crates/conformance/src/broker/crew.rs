//! Several consumers of one queue: processes where the broker can be reached from them, else tasks.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use backstop_core::{Message, Shutdown, Stats, SubscriptionOrder};
use parking_lot::Mutex;
use tempfile::NamedTempFile;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::failing_store::{FailingStore, Health};
use super::harness::WorkerStore;
use super::journal::{Entry, What};
use super::stage::{Scene, id_of, unique};
use super::watched::Watch;
use super::worker::{Act, DUTY, Duty, Task};

/// Consumers of a scene's queue, and what their handlers did.
pub(super) struct Crew<'a> {
    scene: &'a Scene,
    store: WorkerStore,
    members: BTreeMap<u32, Member>,
    hired: u32,
    log: Log,
}

enum Member {
    Process(Child),
    Task(Imitation),
}

/// A consumer in this process that can be killed: from then on nothing that it does reaches the
/// broker or the store.
struct Imitation {
    run: JoinHandle<Result<Stats>>,
    shutdown: Shutdown,
    watch: Watch,
    store: Option<FailingStore>,
}

/// What handlers did, in one order.
enum Log {
    /// Every process appends to this file.
    File(NamedTempFile, Mutex<Reading>),
    Memory(Arc<Mutex<Vec<Entry>>>),
}

struct Reading {
    file: File,
    begun: String,
    entries: Vec<Entry>,
}

impl Scene {
    /// What a worker does unless a case wants otherwise.
    pub(super) fn duty(&self) -> Duty {
        Duty {
            number: 0,
            ordered: self.spec.order == SubscriptionOrder::ByPartitionKey,
            max_attempts: 5,
            max_in_flight: 4,
            wait: self.ticks(1),
            claim_lease: self.stage.short_lease(),
            act: None,
        }
    }
}

/// A message whose handler does this.
pub(super) fn task(work: Duration, acts: Vec<Act>) -> Result<Message> {
    Ok(Message::json(&Task { work, acts })?.with_id(unique("t")))
}

impl<'a> Crew<'a> {
    pub(super) fn new(scene: &'a Scene, store: WorkerStore) -> Result<Self> {
        let log = if scene.queue.worker(store).is_some() {
            let file = NamedTempFile::new().context("making a file for the workers' reports")?;
            let reading = Reading {
                file: file.reopen()?,
                begun: String::new(),
                entries: Vec::new(),
            };
            Log::File(file, Mutex::new(reading))
        } else {
            Log::Memory(Arc::default())
        };
        Ok(Self {
            scene,
            store,
            members: BTreeMap::new(),
            hired: 0,
            log,
        })
    }

    /// Starts one more, and waits until it receives.
    pub(super) async fn hire(&mut self, duty: Duty) -> Result<u32> {
        self.hired += 1;
        let number = self.hired;
        let duty = Duty { number, ..duty };
        let member = match self.scene.queue.worker(self.store) {
            Some(command) => self.start_process(command, &duty)?,
            None => self.start_task(duty).await?,
        };
        self.members.insert(number, member);
        let ready = |e: &Entry| e.worker == number && e.what == What::Ready;
        self.until("a worker is ready", |entries| entries.iter().any(ready))
            .await?;
        Ok(number)
    }

    fn start_process(&self, mut command: Command, duty: &Duty) -> Result<Member> {
        let Log::File(file, _) = &self.log else {
            bail!("the harness gave a worker after it had none");
        };
        let append = OpenOptions::new().append(true).open(file.path())?;
        command
            .env(DUTY, serde_json::to_string(duty)?)
            .stdin(Stdio::piped())
            .stdout(append)
            .kill_on_drop(true);
        let child = command.spawn().context("starting a worker")?;
        Ok(Member::Process(child))
    }

    async fn start_task(&self, duty: Duty) -> Result<Member> {
        let Log::Memory(entries) = &self.log else {
            bail!("the harness gave no worker after it had one");
        };
        let entries = Arc::clone(entries);
        let report = Arc::new(move |entry: &Entry| entries.lock().push(entry.clone()));
        let watch = Watch::default();
        let broker = watch.over(self.scene.queue.connect().await?);
        let store = match self.store {
            WorkerStore::Shared => {
                let store = self.scene.stage.store().await?;
                Some(FailingStore::new(store, Health::Well))
            }
            WorkerStore::None => None,
        };
        let (shutdown, handle) = (Shutdown::new(), store.as_ref().map(FailingStore::handle));
        let told = shutdown.clone();
        let run = tokio::spawn(async move { duty.run(broker, handle, &told, report).await });
        Ok(Member::Task(Imitation {
            run,
            shutdown,
            watch,
            store,
        }))
    }

    /// What handlers did, in order.
    pub(super) fn entries(&self) -> Result<Vec<Entry>> {
        match &self.log {
            Log::Memory(entries) => Ok(entries.lock().clone()),
            Log::File(_, reading) => {
                let mut reading = reading.lock();
                reading.go_on()?;
                Ok(reading.entries.clone())
            }
        }
    }

    /// Waits until they say so; nobody may end by itself meanwhile.
    pub(super) async fn until(
        &mut self,
        what: &str,
        mut is_so: impl FnMut(&[Entry]) -> bool,
    ) -> Result<()> {
        let stage = &self.scene.stage;
        let end = Instant::now() + stage.harness.patience();
        loop {
            let entries = self.entries()?;
            if is_so(&entries) {
                return Ok(());
            }
            let last = entries.last();
            ensure!(
                Instant::now() < end,
                "it did not come to this: {what}; the last of {} entries is {last:?}",
                entries.len()
            );
            for (number, member) in &mut self.members {
                let ended = match member {
                    Member::Process(child) => child.try_wait()?.is_some(),
                    Member::Task(task) => task.run.is_finished(),
                };
                ensure!(!ended, "worker {number} ended by itself");
            }
            tokio::time::sleep(stage.ticks(1)).await;
        }
    }

    /// Ends one as a crash does; a process by SIGKILL.
    pub(super) async fn kill(&mut self, number: u32) -> Result<()> {
        match self.members.remove(&number).context("no such worker")? {
            Member::Process(mut child) => child.kill().await.context("killing a worker"),
            Member::Task(task) => {
                task.watch.sever();
                if let Some(store) = &task.store {
                    store.turn(Health::Down);
                }
                task.run.abort();
                let _ = task.run.await;
                Ok(())
            }
        }
    }

    /// Lets one finish what it has begun.
    pub(super) async fn drain(&mut self, number: u32) -> Result<()> {
        let stage = &self.scene.stage;
        match self.members.remove(&number).context("no such worker")? {
            Member::Process(mut child) => {
                drop(child.stdin.take());
                let ended = stage.must("the end of a worker", child.wait()).await??;
                ensure!(ended.success(), "worker {number} ended with {ended}");
            }
            Member::Task(task) => {
                task.shutdown.begin();
                stage.must("the end of a worker", task.run).await???;
            }
        }
        Ok(())
    }

    /// Lets all finish what they have begun.
    pub(super) async fn drain_all(&mut self) -> Result<()> {
        let numbers: Vec<_> = self.members.keys().copied().collect();
        for number in numbers {
            self.drain(number).await?;
        }
        Ok(())
    }
}

impl Drop for Crew<'_> {
    fn drop(&mut self) {
        for member in self.members.values() {
            if let Member::Task(task) = member {
                task.run.abort();
            }
        }
    }
}

impl Reading {
    /// Reads what was appended since; a line without an end is read when it has one.
    fn go_on(&mut self) -> Result<()> {
        self.file.read_to_string(&mut self.begun)?;
        let whole = self.begun.rfind('\n').map_or(0, |end| end + 1);
        let begun = self.begun.split_off(whole);
        let lines = std::mem::replace(&mut self.begun, begun);
        // A test runner may write lines of its own.
        let ours = lines.lines().filter(|line| line.starts_with('{'));
        for line in ours {
            let entry = serde_json::from_str(line);
            let entry = entry.with_context(|| format!("a worker reported {line:?}"))?;
            self.entries.push(entry);
        }
        Ok(())
    }
}

/// The attempts that were started for a message, in order.
pub(super) fn attempts_of(entries: &[Entry], message: &Message) -> Vec<u32> {
    let id = id_of(message);
    entries
        .iter()
        .filter(|entry| entry.what == What::Started && entry.id == id)
        .map(|entry| entry.attempt)
        .collect()
}

/// How many entries say this.
pub(super) fn count(entries: &[Entry], what: What) -> usize {
    entries.iter().filter(|entry| entry.what == what).count()
}
