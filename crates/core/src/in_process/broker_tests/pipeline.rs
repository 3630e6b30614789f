//! Consumers on the in-process broker: order holds through failures, wherever a retry waits.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::consumer::{Consumer, Shutdown};
use crate::in_process::InProcessStore;
use crate::policy::{Backoff, Jitter};
use crate::ports::OrderedRetry;
use crate::{Context, HandlerError};

const KEYS: usize = 7;
const PER_KEY: usize = 20;

/// What handlers have done: the numbers that succeeded, by key, and the starts of each message.
#[derive(Default)]
struct Seen {
    succeeded: HashMap<String, Vec<usize>>,
    starts: HashMap<String, u32>,
}

async fn handle(seen: Arc<Mutex<Seen>>, body: bytes::Bytes) -> Result<(), HandlerError> {
    let name = String::from_utf8(body.to_vec())?;
    let (key, number) = name.split_once('-').ok_or("a name without a key")?;
    let number: usize = number.parse()?;
    let starts = {
        let mut seen = seen.lock();
        let starts = seen.starts.entry(name.clone()).or_default();
        *starts += 1;
        *starts
    };
    tokio::time::sleep(Duration::from_millis(10)).await;
    if number.is_multiple_of(3) && starts < 3 {
        return Err("not yet".into());
    }
    seen.lock()
        .succeeded
        .entry(key.to_owned())
        .or_default()
        .push(number);
    Ok(())
}

async fn run(broker: &InProcessBroker, store: InProcessStore, seen: &Arc<Mutex<Seen>>) {
    let shutdown = Shutdown::new();
    let consumers = (0..3).map(|_| {
        let seen = Arc::clone(seen);
        let backoff = Backoff::new(SECOND, 10 * SECOND, Jitter::Additive).unwrap();
        let consumer = Consumer::builder(broker.clone())
            .store(store.clone())
            .ordered()
            .backoff(backoff)
            .max_attempts(10)
            .raw(move |body, _: Context| handle(Arc::clone(&seen), body))
            .unwrap();
        let shutdown = shutdown.clone();
        tokio::spawn(async move { consumer.run(&shutdown).await.unwrap() })
    });
    let consumers: Vec<_> = consumers.collect();
    let drained = broker.wait_for(crate::QueueCounts::is_drained);
    tokio::time::timeout(Duration::from_hours(1), drained)
        .await
        .unwrap();
    shutdown.begin();
    for consumer in consumers {
        consumer.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn order_holds_through_failures() {
    for retry in [OrderedRetry::HeldInLane, OrderedRetry::Native] {
        let broker = InProcessBroker::builder("orders")
            .ordered_retry(retry)
            .build();
        let names: Vec<_> = (0..PER_KEY)
            .flat_map(|number| (0..KEYS).map(move |key| format!("{key}-{number}")))
            .collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        publish(&broker, &names).await;
        let seen = Arc::default();
        run(&broker, InProcessStore::default(), &seen).await;
        let counts = broker.counts();
        assert_eq!(
            (counts.completed, counts.dead),
            ((KEYS * PER_KEY) as u64, 0)
        );
        let seen = seen.lock();
        assert_eq!(seen.succeeded.len(), KEYS);
        for (key, numbers) in &seen.succeeded {
            let mut once = numbers.clone();
            once.dedup();
            assert!(
                once.is_sorted() && once.len() == PER_KEY,
                "{retry:?}, {key}: {numbers:?}"
            );
        }
    }
}
