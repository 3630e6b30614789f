//! Looking at a set-up changes nothing, and sees what a person has to know.

use backstop_core::{Finding, Severity};
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

async fn declare(queue: &str, arguments: &[(&str, AMQPValue)]) {
    let connection = native(rabbitmq().await).await;
    let channel = connection.create_channel().await.unwrap();
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert((*name).into(), value.clone());
    }
    let declare = channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), table);
    declare.await.unwrap();
}

async fn look(broker: &RabbitMq) -> Vec<Finding> {
    let inspected = broker.inspect(&options(SubscriptionOrder::Unordered)).await;
    inspected.unwrap()
}

fn quorum() -> (&'static str, AMQPValue) {
    ("x-queue-type", AMQPValue::LongString("quorum".into()))
}

const fn number(name: &str, value: i32) -> (&str, AMQPValue) {
    (name, AMQPValue::LongInt(value))
}

#[tokio::test]
async fn a_dead_letter_queue_that_forgets_is_refused_and_the_setting_told() {
    let unlimited = number("x-delivery-limit", i32::MAX);
    let forgets = |setting| vec![quorum(), unlimited.clone(), number(setting, 3_600_000)];
    for (arguments, setting, severity) in [
        (vec![], "x-queue-type", Severity::Warning),
        (
            vec![quorum(), number("x-delivery-limit", 20)],
            "x-delivery-limit",
            Severity::Warning,
        ),
        (forgets("x-message-ttl"), "x-message-ttl", Severity::Refusal),
        (forgets("x-expires"), "x-expires", Severity::Refusal),
        (forgets("x-max-length"), "x-max-length", Severity::Refusal),
    ] {
        let queue = unique("letters");
        declare(&format!("{queue}.dead-letters"), &arguments).await;
        let broker = open(rabbitmq().await, &format!("queue={queue}")).await;
        let findings = look(&broker).await;
        let found = findings.iter().any(|finding| {
            (finding.setting.as_str(), finding.severity) == (setting, severity)
                && finding.problem.contains("dead-letter queue")
        });
        assert!(found, "{setting}: {findings:?}");
    }
    let queue = unique("letters");
    declare(&format!("{queue}.dead-letters"), &[quorum(), unlimited]).await;
    let broker = open(rabbitmq().await, &format!("queue={queue}")).await;
    assert_eq!(look(&broker).await, []);
}

#[tokio::test]
async fn a_queue_that_forgets_is_told_and_one_that_vanishes_refused() {
    let text = |name, value: &str| (name, AMQPValue::LongString(value.into()));
    let ttl = number("x-message-ttl", 60_000);
    for (mut arguments, findings) in [
        (
            vec![ttl.clone()],
            vec![("x-message-ttl", Severity::Warning)],
        ),
        (
            vec![number("x-max-length", 10)],
            vec![("x-max-length", Severity::Warning)],
        ),
        (
            vec![
                number("x-max-length", 10),
                text("x-overflow", "reject-publish"),
            ],
            vec![],
        ),
        (
            vec![number("x-expires", 3_600_000)],
            vec![("x-expires", Severity::Refusal)],
        ),
    ] {
        let queue = unique("forgets");
        let letters = format!("{queue}.dead-letters");
        arguments.extend([
            quorum(),
            text("x-dead-letter-exchange", ""),
            text("x-dead-letter-routing-key", &letters),
            number("x-delivery-limit", 100),
        ]);
        declare(&queue, &arguments).await;
        // It forgets, too, but not sooner than its queue does.
        let mut kept = vec![quorum(), number("x-delivery-limit", i32::MAX)];
        kept.extend(arguments.contains(&ttl).then(|| ttl.clone()));
        declare(&letters, &kept).await;
        let url = format!("{}/?queue={queue}", rabbitmq().await);
        let seen = look(&RabbitMq::connect(&url).await.unwrap()).await;
        let seen: Vec<_> = seen
            .iter()
            .map(|finding| (finding.setting.as_str(), finding.severity))
            .filter(|(setting, _)| *setting != "x-dead-letter-strategy")
            .collect();
        assert_eq!(seen, findings);
    }
}
