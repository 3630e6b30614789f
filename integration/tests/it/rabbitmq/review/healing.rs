//! A subscription goes on, whatever ended its channel or its connection, and with what it finds then.

use std::sync::atomic::AtomicBool;

use backstop_core::Outgoing;
use integration::Proxy;
use lapin::options::ExchangeDeleteOptions;

use super::meddler::{Meddler, To};
use super::*;

#[tokio::test]
async fn a_delivery_that_is_not_settled_in_time_does_not_end_the_consumer() {
    let server = start_rabbitmq(Plugins::None).await.unwrap();
    for setting in ["consumer_timeout, 1000", "channel_tick_interval, 500"] {
        let command = format!("application:set_env(rabbit, {setting}).");
        server
            .exec(&["rabbitmqctl", "eval", &command])
            .await
            .unwrap();
    }
    let broker = open(server.url(), &format!("queue={}", unique("late"))).await;
    publish_numbers(&broker, 1, 1).await;
    let subscription = broker
        .subscribe(&options(SubscriptionOrder::Unordered))
        .await
        .unwrap();
    let held = receive(&*subscription).await;
    let lease = held[0].receipt.lease();
    // RabbitMQ takes the delivery back, and ends its channel.
    let mut again = Vec::new();
    while again.is_empty() {
        again = receive(&*subscription).await;
    }
    assert_eq!(body(&again[0]), "0");
    assert_ne!(again[0].receipt.lease(), lease);
    complete(&*subscription, again).await;
    let stale = held.into_iter().map(|delivery| Settlement {
        delivery,
        verdict: Verdict::Complete,
    });
    for answer in subscription.settle(stale.collect()).await {
        let cause = answer.unwrap_err().cause;
        assert_eq!(cause.kind(), BrokerErrorKind::LeaseLost);
    }
    publish_numbers(&broker, 2, 1).await;
    assert_eq!(drain(&*subscription, 2).await, ["0", "1"]);
}

const ALLOW: &[&str] = &["rabbitmqctl", "set_permissions", "guard", ".*", ".*", ".*"];

#[tokio::test]
async fn a_user_who_is_let_in_again_consumes_again() {
    let server = start_rabbitmq(Plugins::None).await.unwrap();
    let queue = unique("locked");
    let publisher = open(server.url(), &format!("queue={queue}")).await;
    let user = |command: &'static [&'static str]| {
        let server = &server;
        async move { server.exec(command).await.unwrap() }
    };
    user(&["rabbitmqctl", "add_user", "guard", "guard"]).await;
    user(ALLOW).await;
    let proxy = Proxy::start(&server.url().replace("guest:guest", "guard:guard"))
        .await
        .unwrap();
    let broker = RabbitMq::connect(&format!("{}/?queue={queue}", proxy.url()))
        .await
        .unwrap();
    let subscription = broker
        .subscribe(&options(SubscriptionOrder::Unordered))
        .await
        .unwrap();
    user(&["rabbitmqctl", "clear_permissions", "guard"]).await;
    proxy.cut();
    for _ in 0..3 {
        let received = subscription.receive(NonZeroUsize::MIN).await;
        let error = received.unwrap_err();
        assert!(error.is_transient(), "{:?}: {error}", error.kind());
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    user(ALLOW).await;
    publish_numbers(&publisher, 1, 1).await;
    assert_eq!(drain(&*subscription, 1).await, ["0"]);
}

/// Makes another version of what a server says of itself, `9.9.9` of `4.3.6`.
fn pretend(mut frame: Vec<u8>) -> Vec<u8> {
    const NAME: &[u8] = b"\x07versionS";
    let at = frame.windows(NAME.len()).position(|bytes| bytes == NAME);
    if let Some(at) = at {
        let text = at + NAME.len() + 4;
        let length = usize::from(frame[text - 1]);
        for byte in &mut frame[text..text + length] {
            if byte.is_ascii_digit() {
                *byte = b'9';
            }
        }
    }
    frame
}

#[tokio::test]
async fn an_upgraded_server_is_taken_for_what_it_is_after_a_reconnect() {
    let upgraded = Arc::new(AtomicBool::new(false));
    let is_upgraded = Arc::clone(&upgraded);
    let meddler = Meddler::start(rabbitmq().await, move |to, frame| {
        let is_upgraded = is_upgraded.load(Ordering::Relaxed);
        async move {
            match to {
                To::Client if !is_upgraded => pretend(frame),
                _ => frame,
            }
        }
    })
    .await
    .unwrap();
    let broker = open(meddler.url(), &format!("queue={}", unique("upgrade"))).await;
    let subscription = broker
        .subscribe(&options(SubscriptionOrder::Unordered))
        .await
        .unwrap();
    let seen = format!("{broker:?}");
    assert!(seen.contains("major: 9"), "{seen}");
    upgraded.store(true, Ordering::Relaxed);
    meddler.cut();
    publish_numbers(&broker, 1, 1).await;
    assert_eq!(drain(&*subscription, 1).await, ["0"]);
    let seen = format!("{broker:?}");
    assert!(!seen.contains("major: 9"), "{seen}");
}

#[tokio::test]
async fn an_exchange_that_was_declared_meanwhile_is_used_after_a_reconnect() {
    let queue = unique("plugin");
    let parameters = format!("queue={queue}&partitions=2");
    let declared = open(rabbitmq().await, &parameters).await;
    let connection = native(rabbitmq().await).await;
    let channel = connection.create_channel().await.unwrap();
    let exchange = format!("{queue}.by-key");
    let without =
        channel.exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default());
    without.await.unwrap();
    declared.close().await;

    let proxy = Proxy::start(rabbitmq().await).await.unwrap();
    let broker = RabbitMq::connect(&format!("{}/?{parameters}", proxy.url()))
        .await
        .unwrap();
    let subscription = broker
        .subscribe(&options(SubscriptionOrder::ByPartitionKey))
        .await
        .unwrap();
    publish_numbers(&broker, 4, 4).await;
    drain(&*subscription, 4).await;
    open(rabbitmq().await, &parameters).await;
    proxy.cut();
    // The first answer after the cut is an error; then it consumes on a new connection.
    assert!(subscription.receive(NonZeroUsize::MIN).await.is_err());
    let resumed = subscription.receive(NonZeroUsize::MIN).await;
    assert!(resumed.unwrap().is_empty());
    let publish = channel.basic_publish(
        exchange.as_str().into(),
        "from-outside".into(),
        BasicPublishOptions::default(),
        b"x",
        BasicProperties::default(),
    );
    publish.await.unwrap().await.unwrap();
    let delivery = receive(&*subscription).await.remove(0);
    let key = delivery.message.partition_key.as_ref();
    assert_eq!(
        key.map(backstop_core::PartitionKey::as_str),
        Some("from-outside")
    );
    let outgoing = Outgoing {
        message: Arc::new(Message::new("y").with_partition_key("k".repeat(256))),
        delay: Duration::ZERO,
    };
    // A routing key is at most 255 bytes: so it is the exchange that it goes to.
    let refused = broker.publish(&[outgoing]).await.remove(0).unwrap_err();
    assert_eq!(refused.kind(), BrokerErrorKind::TooLarge);
}

#[tokio::test]
async fn what_is_subscribed_to_while_nobody_waits_any_more_takes_no_messages() {
    let queue = unique("ghost");
    let other = open(rabbitmq().await, &format!("queue={queue}")).await;
    let (asked, mut was_asked) = tokio::sync::mpsc::unbounded_channel();
    let held = Arc::new(tokio::sync::Semaphore::new(0));
    let gate = Arc::clone(&held);
    let meddler = Meddler::start(rabbitmq().await, move |to, frame| {
        let (asked, gate) = (asked.clone(), Arc::clone(&gate));
        async move {
            // basic.consume-ok (AMQP 0-9-1, 1.8.3.4)
            if to == To::Client && frame.starts_with(&[0, 60, 0, 21]) {
                asked.send(()).unwrap();
                let _ = gate.acquire().await.unwrap();
            }
            frame
        }
    })
    .await
    .unwrap();
    let broker = RabbitMq::connect(&format!("{}/?queue={queue}", meddler.url()))
        .await
        .unwrap();
    let unordered = options(SubscriptionOrder::Unordered);
    tokio::select! {
        subscribed = broker.subscribe(&unordered) => {
            panic!("it was answered: {:?}", subscribed.map(drop));
        }
        () = async { was_asked.recv().await.unwrap() } => {}
    }
    held.add_permits(1);
    // It is connected still, and has no use for messages.
    publish_numbers(&other, 8, 1).await;
    let subscription = other
        .subscribe(&options(SubscriptionOrder::Unordered))
        .await
        .unwrap();
    assert_eq!(drain(&*subscription, 8).await.len(), 8);
    publish_numbers(&broker, 1, 1).await;
    assert_eq!(drain(&*subscription, 1).await.len(), 1);
}
