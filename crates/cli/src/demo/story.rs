//! The story: what happens, and when.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop::{BrokerHandle, DeadLetterRecord, Publisher, Stats};

use super::narrator::Narrator;
use super::place::Place;
use super::shop::Shop;
use super::worker::Worker;
use crate::exit::CommandError;
use crate::output::{brief, counted, thousands};

/// Publishing takes this long, however many messages there are.
const PUBLISHING: Duration = Duration::from_secs(8);
const TICK: Duration = Duration::from_millis(50);
/// How long the bank is out of service.
const OUTAGE: Duration = Duration::from_secs(4);
/// If nothing at all happens for this long, nothing more will. What a crash leaves behind on SQS comes back
/// after half a minute.
const STANDSTILL: Duration = Duration::from_secs(45);
/// A queue from which nothing came for this long is taken to be empty, where the broker does not say.
const SILENCE: Duration = Duration::from_secs(2);

/// What was seen beside the ledger.
pub(super) struct Told {
    /// The counts of both workers.
    pub(super) stats: Vec<Stats>,
    /// The dead letters of our orders.
    pub(super) dead_letters: Vec<DeadLetterRecord>,
    /// From the crash until the first order of the new worker was charged.
    pub(super) takeover: Duration,
    /// Where it was played.
    pub(super) place: String,
}

/// Plays it.
///
/// # Errors
///
/// When the broker or the store cannot be used; what breaks a promise is no error here, but shows in
/// the ledger.
pub(super) async fn tell(
    shop: &Arc<Shop>,
    place: &Arc<Place>,
    narrator: &Narrator,
) -> Result<Told, CommandError> {
    let broker = place.connect().await?;
    let told = tokio::select! {
        told = play(shop, place, narrator, &broker) => told,
        never = narrator.follow(shop) => match never {},
    };
    broker.close().await;
    told
}

async fn play(
    shop: &Arc<Shop>,
    place: &Arc<Place>,
    narrator: &Narrator,
    broker: &BrokerHandle,
) -> Result<Told, CommandError> {
    let plan = &shop.plan;
    narrator.say(&format!(
        "{} of {} customers are published {}: {} of them twice, and {} that cannot be handled",
        counted(plan.orders.len() as u64, "order"),
        plan.customers,
        place.in_words(),
        thousands(plan.repeats()),
        plan.poison(),
    ));
    let good = plan.good();
    let publishing = publish(shop, broker);
    let drama = async {
        let first = Worker::start(1, shop, place).await?;
        until(&first, shop, || shop.ledger.charged() >= good / 5).await;
        let (crashed, takeover, second) = crash(first, shop, place, narrator).await?;
        until(&second, shop, || shop.ledger.charged() >= good * 45 / 100).await;
        outage(&second, shop, narrator).await;
        Ok::<_, CommandError>((crashed, takeover, second))
    };
    let (published, played) = tokio::join!(publishing, drama);
    published?;
    let (crashed, takeover, second) = played?;
    let dead_letters = wait_for_the_end(&second, shop, place, broker).await?;
    let stats = vec![crashed, second.stop().await?];
    Ok(Told {
        stats,
        dead_letters,
        takeover,
        place: place.in_words(),
    })
}

/// Publishes all orders and repeats at an even pace.
async fn publish(shop: &Shop, broker: &BrokerHandle) -> Result<(), CommandError> {
    let publisher = Publisher::new(Arc::clone(broker));
    let ticks = usize::try_from(PUBLISHING.as_millis() / TICK.as_millis()).unwrap_or(1);
    let mut pace = tokio::time::interval(TICK);
    for orders in shop
        .plan
        .sequence
        .chunks(shop.plan.sequence.len().div_ceil(ticks))
    {
        pace.tick().await;
        let messages = orders.iter().map(|order| shop.plan.message(*order));
        let messages = messages.map(|message| (message, Duration::ZERO));
        for answer in publisher.publish_batch(messages).await {
            answer.map_err(|error| CommandError::broker("an order cannot be published", &error))?;
            shop.ledger.published(1);
        }
    }
    Ok(())
}

async fn crash(
    first: Worker,
    shop: &Arc<Shop>,
    place: &Arc<Place>,
    narrator: &Narrator,
) -> Result<(Stats, Duration, Worker), CommandError> {
    let crashed = first.crash().await;
    let at = Instant::now();
    let in_hand = shop.ledger.crashed();
    let charged = shop.ledger.charged();
    narrator.say(&format!(
        "the worker crashes with {} in hand",
        counted(in_hand, "order")
    ));
    let second = Worker::start(2, shop, place).await?;
    let has_taken_over = until(&second, shop, || shop.ledger.charged() > charged).await;
    let takeover = at.elapsed();
    let later = brief(takeover);
    narrator.say(&if has_taken_over {
        format!("another worker has taken over, {later} later")
    } else {
        format!("another worker was started, and has charged nothing {later} later")
    });
    Ok((crashed, takeover, second))
}

async fn outage(worker: &Worker, shop: &Shop, narrator: &Narrator) {
    let opened = worker.stats().breaker_opened;
    shop.bank.put_out(true);
    narrator.say("the bank is out of service: every charge fails");
    let begun = Instant::now();
    while begun.elapsed() < OUTAGE && worker.stats().breaker_opened == opened {
        tokio::time::sleep(TICK / 2).await;
    }
    if worker.stats().breaker_opened > opened {
        narrator.say("the breaker has opened: intake stops, and probes now and then");
    }
    tokio::time::sleep(OUTAGE.saturating_sub(begun.elapsed())).await;
    shop.bank.put_out(false);
    narrator.say("the bank is back");
    let charged = shop.ledger.charged();
    let is_back = until(worker, shop, || shop.ledger.charged() > charged).await;
    let has_opened = worker.stats().breaker_opened > opened;
    narrator.say(recovery(has_opened, is_back));
}

/// What is seen of the consumer after the outage.
const fn recovery(breaker_opened: bool, charges_again: bool) -> &'static str {
    match (breaker_opened, charges_again) {
        (true, true) => "a probe went well: intake is open again",
        (false, true) => "charges go through again; the breaker did not need to open",
        (_, false) => "nothing is charged, although the bank is back",
    }
}

/// Waits for something, but not for ever, and says whether it came: when nothing happens any more, the
/// ledger will say what is missing.
async fn until(worker: &Worker, shop: &Shop, wanted: impl Fn() -> bool) -> bool {
    let mut watch = Watch::new();
    loop {
        if wanted() {
            return true;
        }
        if worker.has_ended() || watch.still(shop, worker) >= STANDSTILL {
            return false;
        }
        tokio::time::sleep(TICK / 2).await;
    }
}

/// Waits until every order is charged or dead-lettered, and every repeat has been absorbed.
async fn wait_for_the_end(
    worker: &Worker,
    shop: &Shop,
    place: &Place,
    broker: &BrokerHandle,
) -> Result<Vec<DeadLetterRecord>, CommandError> {
    let plan = &shop.plan;
    let mut watch = Watch::new();
    loop {
        let still = watch.still(shop, worker);
        let is_drained = place.is_drained().unwrap_or(still > SILENCE);
        let all_charged = shop.ledger.charged() >= plan.good();
        let is_over = still > STANDSTILL || worker.has_ended();
        if (all_charged && is_drained) || is_over {
            let dead_letters = dead_letters(shop, broker).await?;
            if dead_letters.len() as u64 >= plan.poison() || is_over {
                return Ok(dead_letters);
            }
        }
        tokio::time::sleep(TICK).await;
    }
}

/// The dead letters of this run.
async fn dead_letters(
    shop: &Shop,
    broker: &BrokerHandle,
) -> Result<Vec<DeadLetterRecord>, CommandError> {
    const MOST: NonZeroUsize = NonZeroUsize::new(1_000).expect("it is not zero");
    let failed = |error| CommandError::broker("cannot look into the dead-letter queue", &error);
    let queue = broker.dead_letters().await.map_err(failed)?;
    let mut records = queue.browse(MOST).await.map_err(failed)?;
    records.retain(|record| {
        let id = record.message.id.as_ref();
        id.is_some_and(|id| shop.plan.find(id.as_str()).is_some())
    });
    Ok(records)
}

/// Notices when nothing happens.
struct Watch {
    seen: (u64, Stats),
    since: Instant,
}

impl Watch {
    fn new() -> Self {
        Self {
            seen: (0, Stats::default()),
            since: Instant::now(),
        }
    }

    /// For how long nothing has happened.
    fn still(&mut self, shop: &Shop, worker: &Worker) -> Duration {
        let seen = (shop.ledger.pulse(), worker.stats());
        if seen != self.seen {
            self.seen = seen;
            self.since = Instant::now();
        }
        self.since.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_is_told_only_of_what_was_seen() {
        assert!(recovery(true, true).contains("a probe went well"));
        for (opened, charges) in [(false, true), (true, false), (false, false)] {
            let told = recovery(opened, charges);
            assert!(!told.contains("probe"), "{told}");
            assert_eq!(told.contains("nothing is charged"), !charges, "{told}");
        }
    }
}
