//! What went wrong once, or nearly did.

use std::collections::BTreeSet;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backstop_core::{
    Backoff, Broker as _, BrokerErrorKind, Consumer, Context, Delivery, HandlerError,
    InProcessStore, Jitter, Message, Publisher, Settlement, Shutdown, SubscribeOptions,
    Subscription, SubscriptionOrder, Verdict,
};
use backstop_rabbitmq::RabbitMq;
use integration::{Plugins, rabbitmq, start_rabbitmq};
use lapin::options::{BasicPublishOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties};

mod healing;
mod looks;
mod meddler;
mod settling;

const PATIENCE: Duration = Duration::from_mins(3);

fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("review-{name}-{}-{number}", std::process::id())
}

async fn open(server: &str, parameters: &str) -> RabbitMq {
    let url = format!("{server}/?declare=true&{parameters}");
    RabbitMq::connect(&url).await.unwrap()
}

async fn native(url: &str) -> Connection {
    Connection::connect(url, ConnectionProperties::default())
        .await
        .unwrap()
}

fn options(order: SubscriptionOrder) -> SubscribeOptions {
    SubscribeOptions {
        consumer: Arc::from("review"),
        order,
        max_buffered: NonZeroUsize::new(8).unwrap(),
        max_attempts: NonZeroU32::new(5).unwrap(),
        handler_timeout: Duration::from_mins(1),
        longest_wait: Duration::from_mins(5),
    }
}

async fn receive(subscription: &dyn Subscription) -> Vec<Delivery> {
    let all = NonZeroUsize::new(64).unwrap();
    loop {
        match tokio::time::timeout(PATIENCE, subscription.receive(all)).await {
            Ok(Ok(deliveries)) => return deliveries,
            Ok(Err(error)) if error.is_transient() => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            other => panic!("nothing was received: {other:?}"),
        }
    }
}

fn body(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.message.body).into_owned()
}

async fn complete(subscription: &dyn Subscription, deliveries: Vec<Delivery>) {
    let done = deliveries.into_iter().map(|delivery| Settlement {
        delivery,
        verdict: Verdict::Complete,
    });
    for answer in subscription.settle(done.collect()).await {
        answer.map_err(|error| error.cause).unwrap();
    }
}

/// Receives and completes until this many have come; their bodies.
async fn drain(subscription: &dyn Subscription, count: usize) -> Vec<String> {
    let mut bodies = Vec::new();
    while bodies.len() < count {
        let deliveries = receive(subscription).await;
        bodies.extend(deliveries.iter().map(body));
        complete(subscription, deliveries).await;
    }
    bodies
}

async fn publish_numbers(broker: &RabbitMq, count: usize, keys: usize) -> Vec<String> {
    let publisher = Publisher::new(broker.clone());
    let mut bodies = Vec::new();
    for number in 0..count {
        let message = Message::new(number.to_string());
        let message = message.with_partition_key(format!("key-{}", number % keys));
        publisher.publish(message).await.unwrap();
        bodies.push(number.to_string());
    }
    bodies
}

#[tokio::test]
async fn a_partition_that_was_declared_anew_is_consumed_again() {
    let queue = unique("partition");
    let parameters = format!("queue={queue}&partitions=2");
    let broker = open(rabbitmq().await, &parameters).await;
    let options = options(SubscriptionOrder::ByPartitionKey);
    let subscription = broker.subscribe(&options).await.unwrap();
    let sent = publish_numbers(&broker, 8, 8).await;
    assert_eq!(drain(&*subscription, 8).await.len(), sent.len());

    let connection = native(rabbitmq().await).await;
    let channel = connection.create_channel().await.unwrap();
    let partition = format!("{queue}.partition-1");
    let gone = channel.queue_delete(partition.as_str().into(), QueueDeleteOptions::default());
    gone.await.unwrap();
    let other = open(rabbitmq().await, &parameters).await;
    let sent: BTreeSet<_> = publish_numbers(&other, 32, 32).await.into_iter().collect();
    let mut seen = BTreeSet::new();
    while seen != sent {
        seen.extend(drain(&*subscription, 1).await);
    }
    subscription.close().await;
}

/// One consumer holds some of a partition's messages, ends in a way, and another one goes on.
async fn order_after(end: impl AsyncFnOnce(RabbitMq, Box<dyn Subscription>)) {
    let parameters = format!("queue={}&partitions=1", unique("order"));
    let (first, second) = (
        open(rabbitmq().await, &parameters).await,
        open(rabbitmq().await, &parameters).await,
    );
    let options = options(SubscriptionOrder::ByPartitionKey);
    let sent = publish_numbers(&second, 60, 1).await;
    let holding = first.subscribe(&options).await.unwrap();
    let held = receive(&*holding).await;
    assert_eq!(body(&held[0]), "0");
    let waiting = second.subscribe(&options).await.unwrap();
    end(first, holding).await;
    assert_eq!(drain(&*waiting, 60).await, sent);
    waiting.close().await;
}

#[tokio::test]
async fn a_subscription_that_is_closed_hands_its_keys_over_in_order() {
    order_after(async |_broker, subscription| subscription.close().await).await;
}

#[tokio::test]
async fn a_subscription_that_is_dropped_hands_its_keys_over_in_order() {
    order_after(async |_broker, subscription| drop(subscription)).await;
}

#[tokio::test]
async fn a_broker_that_is_closed_hands_its_keys_over_in_order() {
    order_after(async |broker, _subscription| broker.close().await).await;
}

#[tokio::test]
async fn the_largest_headers_do_not_keep_a_message_from_being_dead_lettered() {
    let queue = unique("headers");
    let broker = open(rabbitmq().await, &format!("queue={queue}")).await;
    let connection = native(rabbitmq().await).await;
    let channel = connection.create_channel().await.unwrap();
    let mut table = FieldTable::default();
    // As much as a frame takes.
    let large = "h".repeat(130_900);
    table.insert("large".into(), AMQPValue::LongString(large.into()));
    table.insert("small".into(), AMQPValue::LongString("kept".into()));
    let properties = BasicProperties::default().with_headers(table);
    let options = BasicPublishOptions::default();
    let publish =
        channel.basic_publish("".into(), queue.as_str().into(), options, b"x", properties);
    publish.await.unwrap().await.unwrap();

    let shutdown = Shutdown::new();
    let consumer = Consumer::builder(broker.clone())
        .idempotent_by_nature()
        .raw(async |_: bytes::Bytes, _: Context| Err::<(), _>(HandlerError::permanent("no")))
        .unwrap();
    let monitor = consumer.monitor();
    let (stop, dead) = (shutdown.clone(), broker.dead_letters().await.unwrap());
    let running = tokio::spawn(async move { consumer.run(&stop).await });
    let arrives = async {
        while dead.depth().await.unwrap() == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, arrives)
        .await
        .unwrap_or_else(|_| panic!("not dead-lettered: {:?}", monitor.stats()));
    shutdown.begin();
    assert_eq!(running.await.unwrap().unwrap().dead_lettered, 1);
    let letters = dead.browse(NonZeroUsize::MIN).await.unwrap();
    let headers = &letters[0].message.headers;
    assert_eq!(headers.get("small"), Some("kept"));
    assert_eq!(headers.get("backstop-dropped-headers"), Some("large"));
}

#[tokio::test]
async fn looking_at_dead_letters_leaves_them_there() {
    let queue = unique("browse");
    let broker = open(rabbitmq().await, &format!("queue={queue}")).await;
    let letters = format!("queue={queue}.dead-letters&dead_letter_queue={queue}.others");
    let letters = open(rabbitmq().await, &letters).await;
    publish_numbers(&letters, 3, 1).await;
    let dead = broker.dead_letters().await.unwrap();
    // What was given back is there again a moment later.
    let all = NonZeroUsize::new(9).unwrap();
    for _ in 0..30 {
        let three_are_seen = async { while dead.browse(all).await.unwrap().len() < 3 {} };
        tokio::time::timeout(PATIENCE, three_are_seen)
            .await
            .unwrap();
    }
    let is_whole = async {
        while dead.depth().await.unwrap() != 3 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, is_whole).await.unwrap();
}

#[tokio::test]
async fn a_user_who_may_not_declare_delay_queues_retries_all_the_same() {
    let server = start_rabbitmq(Plugins::None).await.unwrap();
    let queue = unique("permission");
    open(server.url(), &format!("queue={queue}")).await;
    for command in [
        &["rabbitmqctl", "add_user", "narrow", "narrow"][..],
        &["rabbitmqctl", "set_permissions", "narrow", "^$", ".*", ".*"],
    ] {
        server.exec(command).await.unwrap();
    }
    let url = server.url().replace("guest:guest", "narrow:narrow");
    let broker = RabbitMq::connect(&format!("{url}/?queue={queue}"))
        .await
        .unwrap();
    let publisher = Publisher::new(broker.clone());
    publisher.publish(Message::new("x")).await.unwrap();

    let (shutdown, attempts) = (Shutdown::new(), Arc::new(AtomicU32::new(0)));
    let (done, seen) = (shutdown.clone(), Arc::clone(&attempts));
    let wait = Duration::from_secs(3);
    let consumer = Consumer::builder(broker)
        .store(InProcessStore::new())
        .backoff(Backoff::new(wait, wait, Jitter::Additive).unwrap())
        .raw(move |_: bytes::Bytes, context: Context| {
            let (done, seen) = (done.clone(), Arc::clone(&seen));
            async move {
                seen.store(context.attempt().get(), Ordering::Relaxed);
                if context.attempt().get() < 2 {
                    return Err(HandlerError::from(std::io::Error::other("not yet")));
                }
                done.begin();
                Ok(())
            }
        })
        .unwrap();
    let stats = tokio::time::timeout(PATIENCE, consumer.run(&shutdown)).await;
    assert_eq!(stats.unwrap().unwrap().completed, 1);
    assert_eq!(attempts.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn what_is_done_is_acknowledged_while_the_broker_blocks_publishers() {
    let server = start_rabbitmq(Plugins::None).await.unwrap();
    let queue = unique("alarm");
    let broker = open(server.url(), &format!("queue={queue}")).await;
    publish_numbers(&broker, 6, 1).await;
    let subscription = broker
        .subscribe(&options(SubscriptionOrder::Unordered))
        .await
        .unwrap();
    let mut held = receive(&*subscription).await;
    while held.len() < 6 {
        held.extend(receive(&*subscription).await);
    }
    let watermark = |level: &'static str| {
        let server = &server;
        async move {
            let command = ["rabbitmqctl", "set_vm_memory_high_watermark", level];
            server.exec(&command).await.unwrap();
        }
    };
    watermark("0").await;
    let publisher = Publisher::new(broker.clone());
    let blocked = tokio::spawn(async move { publisher.publish(Message::new("late")).await });
    // The server notices a publication, and stops reading from its connection.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!blocked.is_finished());
    complete(&*subscription, held).await;
    let unacknowledged = ["rabbitmqctl", "-q", "list_queues", "name", "messages"];
    let acknowledged = async {
        let line = format!("{queue}\t0");
        while !server.exec(&unacknowledged).await.unwrap().contains(&line) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let acknowledged = tokio::time::timeout(PATIENCE, acknowledged).await;
    assert!(
        acknowledged.is_ok(),
        "the acknowledgements do not get through"
    );
    watermark("0.6").await;
    tokio::time::timeout(PATIENCE, blocked)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(drain(&*subscription, 1).await, ["late"]);
}
