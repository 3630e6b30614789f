//! Looking at a set-up changes nothing, and sees what a person has to know.

use backstop_core::Finding;
use lapin::options::QueueDeclareOptions;

use super::meddler::{Meddler, To};
use super::*;

/// The queue that a frame declares, if it is not only asked for (AMQP 0-9-1, 1.7.2.1).
fn declared(frame: &[u8]) -> Option<String> {
    let rest = frame.strip_prefix(&[0, 50, 0, 10, 0, 0])?;
    let (length, rest) = rest.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(*length))?;
    let is_passive = rest.first()? & 1 == 1;
    (!is_passive).then(|| String::from_utf8_lossy(name).into_owned())
}

async fn exists(connection: &Connection, queue: &str) -> bool {
    let channel = connection.create_channel().await.unwrap();
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::durable()
    };
    let looked = channel.queue_declare(queue.into(), options, FieldTable::default());
    looked.await.is_ok()
}

#[tokio::test]
async fn a_queue_that_vanishes_while_it_is_looked_at_stays_away() {
    let queue = unique("vanishes");
    open(rabbitmq().await, &format!("queue={queue}")).await;
    let connection = Arc::new(native(rabbitmq().await).await);
    let (of_meddler, name) = (Arc::clone(&connection), queue.clone());
    let meddler = Meddler::start(rabbitmq().await, move |to, frame| {
        let (connection, name) = (Arc::clone(&of_meddler), name.clone());
        async move {
            if to == To::Server && declared(&frame).is_some_and(|queue| queue == name) {
                let channel = connection.create_channel().await.unwrap();
                let gone = channel.queue_delete(name.into(), QueueDeleteOptions::default());
                gone.await.unwrap();
            }
            frame
        }
    })
    .await
    .unwrap();
    let broker = RabbitMq::connect(&format!("{}/?queue={queue}", meddler.url()))
        .await
        .unwrap();
    let inspected = broker.inspect(&options(SubscriptionOrder::Unordered)).await;
    let is_there = exists(&connection, &queue).await;
    assert!(!is_there, "it was declared by a look: {inspected:?}");
    let error = inspected.unwrap_err();
    assert_eq!(error.kind(), BrokerErrorKind::NotFound, "{error}");
}

async fn findings(arguments: &[(&str, AMQPValue)]) -> Vec<Finding> {
    let queue = unique("letters");
    let letters = format!("{queue}.dead-letters");
    let connection = native(rabbitmq().await).await;
    let channel = connection.create_channel().await.unwrap();
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert((*name).into(), value.clone());
    }
    let declare = channel.queue_declare(
        letters.as_str().into(),
        QueueDeclareOptions::durable(),
        table,
    );
    declare.await.unwrap();
    let broker = open(rabbitmq().await, &format!("queue={queue}")).await;
    let inspected = broker.inspect(&options(SubscriptionOrder::Unordered)).await;
    inspected.unwrap()
}

#[tokio::test]
async fn a_dead_letter_queue_that_forgets_is_told_with_the_setting() {
    let quorum = || ("x-queue-type", AMQPValue::LongString("quorum".into()));
    let limit = |limit| ("x-delivery-limit", AMQPValue::LongInt(limit));
    for (arguments, setting) in [
        (vec![], "x-queue-type"),
        (vec![quorum(), limit(20)], "x-delivery-limit"),
        (
            vec![
                quorum(),
                limit(i32::MAX),
                ("x-message-ttl", AMQPValue::LongInt(60_000)),
            ],
            "x-message-ttl",
        ),
        (
            vec![
                quorum(),
                limit(i32::MAX),
                ("x-expires", AMQPValue::LongInt(3_600_000)),
            ],
            "x-expires",
        ),
        (
            vec![
                quorum(),
                limit(i32::MAX),
                ("x-max-length", AMQPValue::LongInt(10)),
            ],
            "x-max-length",
        ),
    ] {
        let findings = findings(&arguments).await;
        let found = findings.iter().any(|finding| {
            finding.setting == setting && finding.problem.contains("dead-letter queue")
        });
        assert!(found, "{setting}: {findings:?}");
    }
    assert_eq!(findings(&[quorum(), limit(i32::MAX)]).await, []);
}
