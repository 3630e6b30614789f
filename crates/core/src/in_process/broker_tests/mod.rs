//! Tests of the in-process broker, under paused time.

mod delivery;
mod faults;
mod model;
mod order;
mod pipeline;
mod setup;
mod time;

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::{Duration, SystemTime};

use super::InProcessBroker;
use crate::delivery::Delivery;
use crate::error::{BrokerError, BrokerErrorKind};
use crate::message::Message;
use crate::ports::SubscriptionOrder::{self, ByPartitionKey, Unordered};
use crate::ports::{Broker, Outgoing, SettleError, SubscribeOptions, Subscription};
use crate::verdict::{DeadLetter, DeadLetterReason, Settlement, Verdict};

const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(30);

type Inbox = Box<dyn Subscription>;

fn options(order: SubscriptionOrder) -> SubscribeOptions {
    SubscribeOptions {
        consumer: "tests".into(),
        order,
        max_buffered: NonZeroUsize::new(64).unwrap(),
        max_attempts: NonZeroU32::new(5).unwrap(),
        handler_timeout: Duration::from_mins(1),
        longest_wait: Duration::from_mins(5),
    }
}

async fn subscribe(broker: &InProcessBroker, order: SubscriptionOrder) -> Inbox {
    broker.subscribe(&options(order)).await.unwrap()
}

/// Publishes messages whose body is their name; the part before a `-` is the partition key.
async fn publish(broker: &InProcessBroker, names: &[&str]) {
    publish_after(broker, names, Duration::ZERO).await;
}

async fn publish_after(broker: &InProcessBroker, names: &[&str], delay: Duration) {
    let outgoing: Vec<_> = names
        .iter()
        .map(|name| {
            let mut message = Message::new((*name).to_owned());
            if let Some((key, _)) = name.split_once('-') {
                message = message.with_partition_key(key);
            }
            Outgoing {
                message: message.into(),
                delay,
            }
        })
        .collect();
    for answer in broker.publish(&outgoing).await {
        answer.unwrap();
    }
}

fn name(delivery: &Delivery) -> String {
    String::from_utf8(delivery.message.body.to_vec()).unwrap()
}

fn names(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(name).collect()
}

/// Receives up to `max`, and waits for as long as it takes.
async fn receive(inbox: &Inbox, max: usize) -> Vec<Delivery> {
    inbox
        .receive(NonZeroUsize::new(max).unwrap())
        .await
        .unwrap()
}

async fn receive_one(inbox: &Inbox) -> Delivery {
    receive(inbox, 1).await.pop().unwrap()
}

/// Receives what is there now.
async fn receive_now(inbox: &Inbox) -> Vec<Delivery> {
    let max = NonZeroUsize::new(1000).unwrap();
    tokio::select! {
        biased;
        received = inbox.receive(max) => received.unwrap(),
        () = tokio::task::yield_now() => Vec::new(),
    }
}

async fn receive_error(inbox: &Inbox) -> BrokerErrorKind {
    let max = NonZeroUsize::new(1000).unwrap();
    inbox.receive(max).await.unwrap_err().kind()
}

async fn settle(inbox: &Inbox, delivery: Delivery, verdict: Verdict) -> Result<(), SettleError> {
    let batch = vec![Settlement { delivery, verdict }];
    inbox.settle(batch).await.pop().unwrap()
}

async fn complete(inbox: &Inbox, delivery: Delivery) {
    settle(inbox, delivery, Verdict::Complete).await.unwrap();
}

async fn complete_all(inbox: &Inbox, deliveries: Vec<Delivery>) {
    for delivery in deliveries {
        complete(inbox, delivery).await;
    }
}

const fn retry(after: Duration, attempts_used: u32) -> Verdict {
    Verdict::Retry {
        after,
        attempts_used,
    }
}

const fn release(after: Duration) -> Verdict {
    Verdict::Release { after }
}

fn dead_letter() -> Verdict {
    Verdict::DeadLetter(Box::new(DeadLetter {
        reason: DeadLetterReason::PermanentError,
        error: "no such order".to_owned(),
        attempts: 1,
        origin: "orders".to_owned(),
        consumer: "tests".to_owned(),
        at: SystemTime::now(),
    }))
}

fn kind(answer: Result<(), SettleError>) -> BrokerErrorKind {
    answer.unwrap_err().cause.kind()
}

async fn publish_one(broker: &InProcessBroker, body: &str) -> Result<(), BrokerError> {
    let outgoing = Outgoing {
        message: Message::new(body.to_owned()).into(),
        delay: Duration::ZERO,
    };
    broker.publish(&[outgoing]).await.pop().unwrap()
}
