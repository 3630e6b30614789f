//! Lease: a handler runs while its delivery and its claim are its own, and no longer.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use backstop_core::{ConsumerBuilder, DeliveryLease, OrderScope, Stats, Survival};

use super::failing_store::{FailingStore, Health};
use super::harness::QueueSpec;
use super::journal::{Ending, Journal, Running, Start};
use super::stage::{Door, Scene, Stage, id_of, messages};
use super::watched::{Limits, Watch};
use crate::runner::{Case, case};

pub(super) fn cases() -> Vec<Case<Stage>> {
    vec![
        case!("E1", a_handler_that_takes_three_leases_runs_once),
        case!(
            "E2",
            what_waits_in_the_buffer_keeps_its_lease_or_is_never_started_late
        ),
        case!(
            "E3",
            a_lost_lease_cancels_the_handler_and_nothing_is_settled
        ),
        case!("E4", renewal_stops_at_its_limit),
        case!("E5", a_failed_renewal_shows),
    ]
}

impl Scene {
    fn leases_are_timed(&self) -> bool {
        matches!(
            self.broker.capabilities().lease,
            DeliveryLease::Timed { .. }
        )
    }

    /// Whether a cut connection takes its deliveries along; that of a broker in this process does.
    fn deliveries_end_with_their_connection(&self) -> bool {
        let capabilities = self.broker.capabilities();
        capabilities.lease == DeliveryLease::Connection
            || capabilities.survival == Survival::Process
    }

    /// A storeless consumer on a watched connection.
    async fn watched_consumer(&self, watch: &Watch) -> Result<ConsumerBuilder> {
        let broker = watch.over(self.queue.connect().await?);
        Ok(self.consumer_on(broker).idempotent_by_nature())
    }
}

async fn short_leased(stage: &Stage) -> Result<Scene> {
    let spec = QueueSpec::default().lease(stage.short_lease());
    stage.scene_with(spec).await
}

/// Hangs on the first start, and succeeds on later ones.
async fn hang_once(start: Start) -> Result<(), backstop_core::HandlerError> {
    if start.number == 0 {
        std::future::pending::<()>().await;
    }
    Ok(())
}

async fn a_handler_that_takes_three_leases_runs_once(stage: Stage) -> Result<()> {
    let scene = short_leased(&stage).await?;
    let lease = stage.short_lease();
    let journal = Journal::default();
    let start = async || {
        let builder = scene.consumer().await?.claim_lease(lease);
        Running::start(&stage, builder, &journal, move |_| async move {
            tokio::time::sleep(lease * 3).await;
            Ok(())
        })
    };
    // Somebody else would take what is not kept.
    let crew = [start().await?, start().await?];
    scene.publish(messages(6)).await?;
    let completed = || async {
        let completed = crew.iter().map(|one| one.stats().completed);
        Ok(completed.sum::<u64>() == 6)
    };
    stage.until("six completions", completed).await?;
    for running in crew {
        let stats = running.drain().await?;
        let lost = stats.lost_leases + stats.abandoned + stats.fenced;
        ensure!(lost == 0, "counted {stats:?}");
    }
    let starts = journal.starts().len();
    ensure!(starts == 6, "{starts} starts instead of 6");
    scene.must_be_empty().await
}

async fn what_waits_in_the_buffer_keeps_its_lease_or_is_never_started_late(
    stage: Stage,
) -> Result<()> {
    buffered_keep_their_leases(&stage).await?;
    let scene = short_leased(&stage).await?;
    if scene.leases_are_timed() && can_order(&scene) {
        buffered_too_long_is_not_started(&stage).await?;
    }
    Ok(())
}

fn can_order(scene: &Scene) -> bool {
    scene.broker.capabilities().order == OrderScope::AcrossProcesses
}

async fn ordered_short_leased(stage: &Stage) -> Result<Scene> {
    let spec = QueueSpec::default().ordered().lease(stage.short_lease());
    stage.scene_with(spec).await
}

async fn buffered_keep_their_leases(stage: &Stage) -> Result<()> {
    let mut scene = ordered_short_leased(stage).await?;
    if !can_order(&scene) {
        scene = short_leased(stage).await?;
    }
    let journal = Journal::default();
    let work = stage.short_lease().mul_f64(0.7);
    let builder = scene.storeless_consumer().await?.max_in_flight(1);
    let builder = builder.max_buffered(10);
    let running = Running::start(stage, builder, &journal, move |_| async move {
        tokio::time::sleep(work).await;
        Ok(())
    })?;
    let sent = messages(5).into_iter();
    let sent: Vec<_> = sent.map(|m| m.with_partition_key("customer-7")).collect();
    scene.publish(sent.clone()).await?;
    running
        .until("five completions", |stats| stats.completed == 5)
        .await?;
    let stats = running.drain().await?;
    ensure!(
        stats.started == 5 && stats.lost_leases == 0,
        "counted {stats:?}"
    );
    for message in sent {
        let attempts = journal.attempts_of(&id_of(&message));
        ensure!(attempts == [1], "the attempts were {attempts:?}");
    }
    scene.must_be_empty().await
}

/// The only slot is taken for two leases and a half; the lease of what waits for it is not extended.
async fn buffered_too_long_is_not_started(stage: &Stage) -> Result<()> {
    let scene = ordered_short_leased(stage).await?;
    let (journal, watch) = (Journal::default(), Watch::default());
    let builder = scene.watched_consumer(&watch).await?;
    let builder = builder.max_in_flight(1).max_buffered(10);
    let mut sent = messages(2).into_iter().zip(["one", "other"]);
    let mut next = || sent.next().map(|(m, key)| m.with_partition_key(key));
    let (long, waiting) = next().zip(next()).context("two messages")?;
    let (long_id, work) = (id_of(&long), stage.short_lease().mul_f64(2.5));
    watch.fail_extensions_of(&id_of(&waiting));
    let running = Running::start(stage, builder, &journal, move |start: Start| {
        let work = if start.id == long_id {
            work
        } else {
            Duration::ZERO
        };
        async move {
            tokio::time::sleep(work).await;
            Ok(())
        }
    })?;
    scene.publish([long]).await?;
    journal.until_started(stage, 1).await?;
    scene.publish([waiting.clone()]).await?;
    running
        .until("a lease is lost in the buffer", |stats| {
            stats.lost_leases > 0
        })
        .await?;
    running
        .until("both are completed", |stats| stats.completed == 2)
        .await?;
    running.drain().await?;
    let starts = journal.attempts_of(&id_of(&waiting)).len();
    ensure!(
        starts == 1,
        "a message that lost leases while it waited was started {starts} times"
    );
    scene.must_be_empty().await
}

async fn a_lost_lease_cancels_the_handler_and_nothing_is_settled(stage: Stage) -> Result<()> {
    let scene = short_leased(&stage).await?;
    if scene.deliveries_end_with_their_connection() {
        let done = lost_with_its_connection(&stage).await;
        done.context("a delivery that was lost with its connection")?;
    }
    if scene.leases_are_timed() {
        let done = lost_for_want_of_extension(&scene).await;
        done.context("a lease that could not be extended")?;
    }
    let done = lost_claim(&stage).await;
    done.context("a claim that could not be renewed")
}

async fn lost_with_its_connection(stage: &Stage) -> Result<()> {
    let scene = short_leased(stage).await?;
    let (journal, watch) = (Journal::default(), Watch::default());
    let builder = scene.watched_consumer(&watch).await?;
    let running = Running::start(stage, builder, &journal, hang_once)?;
    scene.publish(messages(1)).await?;
    journal.until_started(stage, 1).await?;
    scene.queue.cut_connections().await?;
    must_be_dropped_and_repeated(&journal, &watch, running).await?;
    scene.must_be_empty().await
}

async fn lost_for_want_of_extension(scene: &Scene) -> Result<()> {
    let stage = &scene.stage;
    let (journal, watch) = (Journal::default(), Watch::default());
    let sent = messages(1);
    watch.fail_extensions_of(&id_of(&sent[0]));
    let builder = scene.watched_consumer(&watch).await?;
    let running = Running::start(stage, builder, &journal, hang_once)?;
    scene.publish(sent).await?;
    must_be_dropped_and_repeated(&journal, &watch, running).await?;
    scene.must_be_empty().await
}

/// The first attempt is cancelled and its delivery never settled; a later delivery is completed.
async fn must_be_dropped_and_repeated(
    journal: &Journal,
    watch: &Watch,
    running: Running,
) -> Result<()> {
    running
        .until("the loss shows, and the message is completed", |stats| {
            stats.completed == 1 && stats.lost_leases == 1
        })
        .await?;
    let stats = running.drain().await?;
    let starts = journal.starts();
    let first = starts.first().context("no start")?;
    ensure!(
        first.ended(Ending::Dropped),
        "the handler of the lost delivery ended as {:?}",
        first.end
    );
    ensure!(starts.len() == 2, "{} starts instead of 2", starts.len());
    ensure!(
        stats.lost_leases == 1 && stats.abandoned == 1,
        "counted {stats:?}"
    );
    let unsettled = watch.unsettled();
    ensure!(
        unsettled == 1,
        "{unsettled} deliveries were not settled instead of the lost one"
    );
    Ok(())
}

async fn lost_claim(stage: &Stage) -> Result<()> {
    let scene = stage.scene().await?;
    let journal = Journal::default();
    let store = FailingStore::new(stage.store().await?, Health::NoRenewals);
    let builder = scene
        .consumer_on(scene.queue.connect().await?)
        .store(store.handle())
        .claim_lease(stage.short_lease());
    let running = Running::start(stage, builder, &journal, hang_once)?;
    scene.publish(messages(1)).await?;
    running
        .until("the message is completed after all", |stats| {
            stats.completed == 1
        })
        .await?;
    running.drain().await?;
    let starts = journal.starts();
    ensure!(starts.len() == 2, "{} starts instead of 2", starts.len());
    ensure!(
        starts[0].ended(Ending::Dropped),
        "the handler of the lost claim ended as {:?}",
        starts[0].end
    );
    ensure!(
        starts[0].fence < starts[1].fence,
        "the fences were {:?} and {:?}",
        starts[0].fence,
        starts[1].fence
    );
    scene.must_be_empty().await
}

async fn renewal_stops_at_its_limit(stage: Stage) -> Result<()> {
    let lease = stage.short_lease();
    let limit = lease * 3;
    let scene = short_leased(&stage).await?;
    let (journal, watch) = (Journal::default(), Watch::default());
    let limits = Limits {
        max_total: Some(limit),
        ..Limits::default()
    };
    let broker = watch.limited(scene.queue.connect().await?, limits);
    let builder = scene.consumer_on(broker).idempotent_by_nature();
    let running = Running::start(&stage, builder, &journal, hang_once)?;
    scene.publish(messages(1)).await?;
    running
        .until("the loss shows, and the message is completed", |stats| {
            stats.completed == 1 && stats.lost_leases == 1
        })
        .await?;
    let stats = running.drain().await?;
    ensure!(stats.lost_leases == 1, "counted {stats:?}");
    let extended = watch.extended_for().context("no lease was extended")?;
    ensure!(
        extended <= limit,
        "a lease with a limit of {limit:?} was still extended after {extended:?}"
    );
    let starts = journal.starts();
    ensure!(
        starts.len() == 2 && starts[0].ended(Ending::Dropped),
        "the attempts were {starts:?}"
    );
    scene.must_be_empty().await
}

async fn a_failed_renewal_shows(stage: Stage) -> Result<()> {
    // Long enough for the next renewal to come in time, once the failure of one has shown.
    let lease = stage.short_lease() * 5;
    let scene = stage.scene_with(QueueSpec::default().lease(lease)).await?;
    if scene.leases_are_timed() {
        let watch = Watch::default();
        let builder = scene.watched_consumer(&watch).await?;
        let id = |id: &str| watch.fail_extensions_of(id);
        let done = renewal_fails(&scene, builder, id, || watch.allow_extensions()).await;
        done.context("renewing a lease")?;
    }
    let scene = stage.scene().await?;
    let store = FailingStore::new(stage.store().await?, Health::NoRenewals);
    let builder = scene
        .consumer_on(scene.queue.connect().await?)
        .store(store.handle())
        .claim_lease(lease);
    let done = renewal_fails(&scene, builder, |_| (), || store.turn(Health::Well)).await;
    done.context("renewing a claim")
}

/// Renewals fail until that shows, and then succeed again in time.
async fn renewal_fails(
    scene: &Scene,
    builder: ConsumerBuilder,
    break_for: impl Fn(&str),
    heal: impl Fn(),
) -> Result<()> {
    let stage = &scene.stage;
    let (journal, door) = (Journal::default(), Door::default());
    let waiting = door.clone();
    let sent = messages(1);
    break_for(&id_of(&sent[0]));
    let running = Running::start(stage, builder, &journal, move |_| {
        let door = waiting.clone();
        async move {
            door.pass().await;
            Ok(())
        }
    })?;
    scene.publish(sent).await?;
    let shows = |stats: &Stats| stats.renewal_errors > 0;
    running.until("a failed renewal shows", shows).await?;
    heal();
    tokio::time::sleep(stage.short_lease() * 5).await;
    door.open();
    running
        .until("one completion", |stats| stats.completed == 1)
        .await?;
    let stats = running.drain().await?;
    ensure!(
        stats.started == 1 && stats.lost_leases == 0,
        "counted {stats:?}"
    );
    scene.must_be_empty().await
}
