//! Brokers and stores that are broken on purpose: each makes the cases fail that are about it.

mod brokers;
mod stores;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backstop_conformance::broker::{
    BrokerHarness, Interruptions, QueueSpec, Reach, TestQueue, WorkerStore, run,
};
use backstop_core::{BrokerHandle, InProcessBroker, StoreHandle};
use tokio::process::Command;
use tokio::sync::OnceCell;

use self::brokers::{Broken, Flaw};
use self::stores::{BrokenStore, StoreFlaw};
use crate::in_process::{Dress, InProcess, Time};

/// What is broken, in which dress the rest comes, and the cases that must notice.
const BROKERS: &[(Flaw, Dress, &str)] = &[
    (Flaw::DropsAcks, Dress::Own, "D1,D4,F4,I8"),
    (Flaw::NeverAnswersCompletions, Dress::Own, "D1,R3"),
    (Flaw::LosesLastAcks, Dress::Own, "F4"),
    (Flaw::AcksOnReceipt, Dress::Own, "D5,D9,L2"),
    (Flaw::AltersBodies, Dress::Own, "D1,R13,L1"),
    (Flaw::ConfirmsWithoutPublishing, Dress::Own, "D1,D2,D10"),
    (Flaw::PublishesTwice, Dress::Own, "D2"),
    (Flaw::MixesQueues, Dress::Own, "D3"),
    (Flaw::TakesStaleSettlements, Dress::Own, "D6"),
    (Flaw::LosesWhatIsCancelled, Dress::Own, "D8"),
    (Flaw::GivesMoreThanAsked, Dress::Own, "D9,F1"),
    (Flaw::RetriesEarly, Dress::Own, "R1,R2"),
    (Flaw::RetriesLate, Dress::Own, "R1,R2,R11"),
    (Flaw::LosesRetries, Dress::Own, "R1,R3,R8,R9,R13"),
    (Flaw::DeadLettersRetries, Dress::Own, "R1,R3,R8,R9,F6"),
    (Flaw::CutsLongDelays, Dress::Hosted, "R12"),
    (Flaw::ForgetsAttempts, Dress::Own, "R1,R3,R4,R5"),
    (Flaw::CountsRetriesTwice, Dress::Own, "R1,R3,R4"),
    (Flaw::HoldsSlotsWhileBackingOff, Dress::Own, "R10"),
    (Flaw::QueuesDelaysBehindEachOther, Dress::Own, "R11"),
    (Flaw::DropsHeadersOnRetry, Dress::Own, "R13"),
    (Flaw::LosesDeadLetters, Dress::Own, "R3,R6,R7,L1,L3"),
    (Flaw::RepeatsDeadLetters, Dress::Own, "R3,R6"),
    (Flaw::DropsAnnotations, Dress::Own, "R6,L1"),
    (Flaw::DropsWhatCannotBeDeadLettered, Dress::Own, "L3"),
    (Flaw::CutsErrorsSilently, Dress::Own, "L4"),
    (Flaw::MisreadsItsOwnDeadLetters, Dress::Own, "L10"),
    (Flaw::NeverExtends, Dress::Own, "E1,E2,E5"),
    (Flaw::KeepsLossesToItself, Dress::Own, "E3,E4"),
    (Flaw::CountsReleases, Dress::Own, "F3,O4"),
    (Flaw::ReversesBatches, Dress::Own, "O1,O3,O5"),
    (Flaw::KeepsNoOrder, Dress::Own, "O6,O7"),
    (Flaw::KeepsNoOrder, Dress::Hosted, "O1,O3,O6,O7"),
    (Flaw::MixesKeys, Dress::Own, "D1,O2"),
    (Flaw::PollsOnAfterStop, Dress::Own, "F7"),
    (Flaw::StopsLate, Dress::Own, "F7"),
    (Flaw::ClosesOnStop, Dress::Own, "F2"),
    (Flaw::LosesWhatItFetchedAhead, Dress::Own, "D9,F2,F5"),
    (Flaw::MakesMissingQueues, Dress::Own, "D7,D10"),
];

const STORES: &[(StoreFlaw, &str)] = &[
    (StoreFlaw::ForgetsCompletions, "I1,I2"),
    (StoreFlaw::GrantsEveryClaim, "I2,I3,I7"),
    (StoreFlaw::NeverReleases, "I4"),
    (StoreFlaw::NeverExpires, "I5,I10"),
    (StoreFlaw::DoesNotFence, "I6"),
    (StoreFlaw::NeverRenews, "I7"),
    (StoreFlaw::SeesNoConflicts, "I9"),
    (StoreFlaw::RepeatsFences, "I4,I5,I10"),
    (StoreFlaw::SharesNamespaces, "I11"),
    (StoreFlaw::IgnoresRedrives, "I12"),
];

#[tokio::test(start_paused = true)]
async fn every_broken_broker_makes_its_cases_fail() {
    let mut unnoticed = Vec::new();
    for (flaw, dress, cases) in BROKERS {
        let harness = BrokenHarness {
            sound: InProcess::new(*dress, Time::Paused),
            flaw: Some(*flaw),
            store_flaw: None,
            only_queue: OnceCell::new(),
        };
        let passed = unfailed(harness, cases).await;
        unnoticed.extend(passed.map(|case| format!("{flaw:?} in dress {dress:?} passed {case}")));
    }
    assert!(unnoticed.is_empty(), "{unnoticed:#?}");
}

#[tokio::test(start_paused = true)]
async fn every_broken_store_makes_its_cases_fail() {
    let mut unnoticed = Vec::new();
    for (flaw, cases) in STORES {
        let harness = BrokenHarness {
            sound: InProcess::new(Dress::Own, Time::Paused),
            flaw: None,
            store_flaw: Some(*flaw),
            only_queue: OnceCell::new(),
        };
        let passed = unfailed(harness, cases).await;
        unnoticed.extend(passed.map(|case| format!("{flaw:?} passed {case}")));
    }
    assert!(unnoticed.is_empty(), "{unnoticed:#?}");
}

/// The cases that ought to have failed and have not.
async fn unfailed(harness: BrokenHarness, cases: &str) -> impl Iterator<Item = String> {
    let report = run(Arc::new(harness), cases).await;
    let cases: Vec<_> = cases.split(',').map(str::to_owned).collect();
    cases
        .into_iter()
        .filter(move |case| !report.has_failed(case))
}

/// The in-process broker and store, one of them broken.
struct BrokenHarness {
    sound: InProcess,
    flaw: Option<Flaw>,
    store_flaw: Option<StoreFlaw>,
    only_queue: OnceCell<Arc<dyn TestQueue>>,
}

#[async_trait]
impl BrokerHarness for BrokenHarness {
    fn name(&self) -> String {
        let (broker, store) = (self.flaw, self.store_flaw);
        format!("a broken broker, {broker:?}, or store, {store:?}")
    }

    fn tick(&self) -> Duration {
        self.sound.tick()
    }

    fn patience(&self) -> Duration {
        self.sound.patience()
    }

    fn tolerance(&self, wait: Duration) -> Duration {
        self.sound.tolerance(wait)
    }

    async fn queue(&self, spec: QueueSpec) -> anyhow::Result<Arc<dyn TestQueue>> {
        let queue = async || {
            let sound = self.sound.queue(spec).await?;
            let flaw = self.flaw;
            anyhow::Ok(Arc::new(BrokenQueue { sound, flaw }) as Arc<dyn TestQueue>)
        };
        match self.flaw {
            Some(Flaw::MixesQueues) => self.only_queue.get_or_try_init(queue).await.cloned(),
            _ => queue().await,
        }
    }

    async fn missing_queue(&self) -> anyhow::Result<BrokerHandle> {
        match self.flaw {
            Some(flaw @ Flaw::MakesMissingQueues) => {
                let made = InProcessBroker::new("nowhere");
                Ok(Broken::over(made.into(), flaw))
            }
            _ => self.sound.missing_queue().await,
        }
    }

    async fn store(&self) -> anyhow::Result<StoreHandle> {
        let sound = self.sound.store().await?;
        Ok(match self.store_flaw {
            Some(flaw) => Arc::new(BrokenStore { sound, flaw }),
            None => sound,
        })
    }
}

struct BrokenQueue {
    sound: Arc<dyn TestQueue>,
    flaw: Option<Flaw>,
}

#[async_trait]
impl TestQueue for BrokenQueue {
    async fn connect(&self) -> anyhow::Result<BrokerHandle> {
        let sound = self.sound.connect().await?;
        Ok(match self.flaw {
            Some(flaw) => Broken::over(sound, flaw),
            None => sound,
        })
    }

    async fn cut_connections(&self) -> anyhow::Result<()> {
        self.sound.cut_connections().await
    }

    async fn restart_broker(&self) -> anyhow::Result<()> {
        self.sound.restart_broker().await
    }

    async fn reach_dead_letters(&self, reach: Reach) -> anyhow::Result<()> {
        self.sound.reach_dead_letters(reach).await
    }

    async fn interrupt_dead_lettering(&self, count: u32) -> anyhow::Result<Interruptions> {
        self.sound.interrupt_dead_lettering(count).await
    }

    async fn exhaust_delivery_limit(&self) -> anyhow::Result<()> {
        self.sound.exhaust_delivery_limit().await
    }

    fn worker(&self, store: WorkerStore) -> Option<Command> {
        self.sound.worker(store)
    }
}
