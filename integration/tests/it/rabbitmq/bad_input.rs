//! What is wrong is said, with what to do about it; what is odd goes through unharmed.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use backstop_core::{
    Backoff, Broker as _, BrokerErrorKind, DeadLetterReason, Finding, HandlerError, Jitter,
    Message, Publisher, RunErrorKind, Severity, Shutdown, SubscribeOptions, SubscriptionOrder,
};
use backstop_rabbitmq::RabbitMq;
use bytes::Bytes;
use integration::{Plugins, rabbitmq, start_rabbitmq};
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, ByteArray, DecimalValue, FieldArray, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use parking_lot::Mutex;

use super::world::{Ledger, Running, World, builder, until};

fn options(order: SubscriptionOrder) -> SubscribeOptions {
    SubscribeOptions {
        consumer: "test".into(),
        order,
        max_buffered: NonZeroUsize::MIN,
        max_attempts: NonZeroU32::new(5).unwrap(),
        handler_timeout: Duration::from_mins(1),
        longest_wait: Duration::from_mins(1),
    }
}

async fn channel(url: &str) -> Result<Channel> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    Ok(connection.create_channel().await?)
}

fn unique(what: &str) -> String {
    format!("{what}-{:016x}", rand::random::<u64>())
}

async fn declare(queue: &str, arguments: &[(&str, AMQPValue)]) -> Result<()> {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert((*name).into(), value.clone());
    }
    let channel = channel(rabbitmq().await).await?;
    channel
        .queue_declare(queue.into(), QueueDeclareOptions::durable(), table)
        .await?;
    Ok(())
}

async fn findings(queue: &str) -> Result<Vec<Finding>> {
    let broker = RabbitMq::open(&format!("{}/?queue={queue}", rabbitmq().await))?;
    Ok(broker
        .inspect(&options(SubscriptionOrder::Unordered))
        .await?)
}

fn find<'a>(findings: &'a [Finding], setting: &str) -> Result<&'a Finding> {
    let found = findings.iter().find(|finding| finding.setting == setting);
    found.with_context(|| format!("nothing is said of {setting}: {findings:?}"))
}

#[tokio::test]
async fn an_unsafe_queue_is_refused_with_the_setting_and_the_fix() -> Result<()> {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let quorum = ("x-queue-type", text("quorum"));

    let classic = unique("classic");
    declare(&classic, &[]).await?;
    let found = findings(&classic).await?;
    let finding = find(&found, "x-queue-type")?;
    ensure!(
        finding.severity == Severity::Refusal && finding.fix.contains("x-queue-type=quorum"),
        "{finding:?}"
    );
    let finding = find(&found, "dead_letter_queue")?;
    ensure!(
        finding.severity == Severity::Refusal && finding.fix.contains("declare=true"),
        "{finding:?}"
    );

    let hasty = unique("hasty");
    declare(
        &hasty,
        &[quorum.clone(), ("x-delivery-limit", AMQPValue::LongInt(4))],
    )
    .await?;
    let found = findings(&hasty).await?;
    let finding = find(&found, "x-delivery-limit")?;
    ensure!(
        finding.severity == Severity::Refusal && finding.problem.contains("after 4 failed"),
        "{finding:?}"
    );
    ensure!(
        find(&found, "x-dead-letter-exchange")?.severity == Severity::Warning,
        "{found:?}"
    );

    let lossy = unique("lossy");
    let dead = [
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text("x")),
    ];
    let limit = ("x-delivery-limit", AMQPValue::LongInt(50));
    declare(&lossy, &[[quorum, limit].as_slice(), &dead].concat()).await?;
    let found = findings(&lossy).await?;
    ensure!(
        find(&found, "x-dead-letter-strategy")?.severity == Severity::Warning,
        "{found:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_queue_that_was_declared_here_has_nothing_wrong_with_it() -> Result<()> {
    for partitions in ["", "&partitions=2"] {
        let queue = unique("declared");
        let url = format!(
            "{}/?queue={queue}&declare=true{partitions}",
            rabbitmq().await
        );
        let order = match partitions {
            "" => SubscriptionOrder::Unordered,
            _ => SubscriptionOrder::ByPartitionKey,
        };
        let found = RabbitMq::open(&url)?.inspect(&options(order)).await?;
        ensure!(found.is_empty(), "{found:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_consumer_of_an_unsafe_queue_does_not_start() -> Result<()> {
    let classic = unique("classic");
    declare(&classic, &[]).await?;
    let broker = RabbitMq::open(&format!("{}/?queue={classic}", rabbitmq().await))?;
    let consumer = backstop_core::Consumer::builder(broker)
        .idempotent_by_nature()
        .raw(async |_: Bytes, _| Ok::<_, HandlerError>(()))?;
    let error = consumer
        .run(&Shutdown::new())
        .await
        .err()
        .context("it ran")?;
    ensure!(
        error.kind() == RunErrorKind::Refused,
        "{:?}: {error}",
        error.kind()
    );
    Ok(())
}

#[tokio::test]
async fn who_may_not_enter_is_told_what_to_check() -> Result<()> {
    let server = rabbitmq().await;
    let stranger = server.replace("guest:guest", "stranger:hunter2");
    for (url, told) in [
        (
            format!("{stranger}/?queue=q"),
            "check user, password and virtual host",
        ),
        (
            format!("{server}/nowhere?queue=q"),
            "virtual host \"nowhere\"",
        ),
    ] {
        let error = RabbitMq::connect(&url)
            .await
            .err()
            .context("it connected")?;
        ensure!(
            error.kind() == BrokerErrorKind::AccessDenied,
            "{url}: {:?} {error}",
            error.kind()
        );
        let shown = format!("{error} {error:?}");
        ensure!(
            shown.contains(told) && !shown.contains("hunter2"),
            "{shown}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_missing_queue_is_named() -> Result<()> {
    let queue = unique("nowhere");
    let broker = RabbitMq::open(&format!("{}/?queue={queue}", rabbitmq().await))?;
    let error = broker
        .inspect(&options(SubscriptionOrder::Unordered))
        .await
        .err()
        .context("it is there")?;
    ensure!(
        error.kind() == BrokerErrorKind::NotFound && error.to_string().contains(&queue),
        "{error}"
    );
    let error = Publisher::new(broker)
        .publish(Message::new("x"))
        .await
        .err()
        .context("it arrived")?;
    ensure!(
        error.kind() == BrokerErrorKind::Unroutable && error.to_string().contains(&queue),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn order_is_kept_without_the_plugin_and_the_lack_is_told() -> Result<()> {
    let server = start_rabbitmq(Plugins::None).await?;
    let url = format!("{}/?queue=keyed&declare=true&partitions=3", server.url());
    let broker = RabbitMq::open(&url)?;
    let found = broker
        .inspect(&options(SubscriptionOrder::ByPartitionKey))
        .await?;
    let finding = find(&found, "keyed.by-key")?;
    ensure!(finding.severity == Severity::Warning, "{finding:?}");
    ensure!(
        finding.problem.contains("rabbitmq-plugins enable"),
        "{finding:?}"
    );

    let publisher = Publisher::new(broker.clone());
    for number in 0..30 {
        let message = Message::new("x")
            .with_id(format!("{number}"))
            .with_partition_key(format!("k{}", number % 5));
        publisher.publish(message).await?;
    }
    let seen = Arc::new(Mutex::new(Vec::new()));
    let seeing = Arc::clone(&seen);
    let consumer = backstop_core::Consumer::builder(broker)
        .idempotent_by_nature()
        .ordered();
    let consumer = consumer.raw(move |_: Bytes, context: backstop_core::Context| {
        let number: usize = context
            .id()
            .and_then(|id| id.as_str().parse().ok())
            .unwrap_or(usize::MAX);
        seeing.lock().push(number);
        async { Ok::<_, HandlerError>(()) }
    })?;
    let shutdown = Shutdown::new();
    let told = shutdown.clone();
    let run = tokio::spawn(async move { consumer.run(&told).await });
    until("all are handled", || async { Ok(seen.lock().len() >= 30) }).await?;
    shutdown.begin();
    run.await??;
    for key in 0..5 {
        let of_key: Vec<_> = seen
            .lock()
            .iter()
            .copied()
            .filter(|number| number % 5 == key)
            .collect();
        ensure!(of_key.is_sorted() && of_key.len() == 6, "{of_key:?}");
    }
    Ok(())
}

#[tokio::test]
async fn order_is_refused_where_it_cannot_be_kept() -> Result<()> {
    let queue = unique("plain");
    let broker = RabbitMq::open(&format!("{}/?queue={queue}&declare=true", rabbitmq().await))?;
    let subscribed = broker
        .subscribe(&options(SubscriptionOrder::ByPartitionKey))
        .await;
    let error = subscribed.err().context("it subscribed")?;
    ensure!(error.to_string().contains("partitions=N"), "{error}");
    let consumer = backstop_core::Consumer::builder(broker)
        .idempotent_by_nature()
        .ordered();
    let error = consumer
        .raw(async |_: Bytes, _| Ok::<_, HandlerError>(()))
        .err()
        .context("built")?;
    ensure!(error.setting() == "ordered", "{error}");
    Ok(())
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused_with_its_size() -> Result<()> {
    let queue = unique("small");
    let url = format!(
        "{}/?queue={queue}&declare=true&max_body=10",
        rabbitmq().await
    );
    let publisher = Publisher::new(RabbitMq::open(&url)?);
    let error = publisher
        .publish(Message::new("12345678901"))
        .await
        .err()
        .context("it went")?;
    ensure!(
        error.kind() == BrokerErrorKind::TooLarge && error.to_string().contains("11 bytes"),
        "{error}"
    );
    publisher.publish(Message::new("1234567890")).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_of_ten_kilobytes_is_an_id() -> Result<()> {
    let (world, ledger) = (World::new().await?, Ledger::default());
    let id = "i".repeat(10_000);
    let publisher = Publisher::new(world.broker()?);
    for _ in 0..2 {
        publisher
            .publish(Message::new("x").with_id(id.as_str()))
            .await?;
    }
    let builder = builder(world.broker()?, world.store().await?);
    let consumer = Running::start(builder, &ledger, Duration::ZERO)?;
    let both = |consumer: &Running| {
        consumer.monitor.stats().completed + consumer.monitor.stats().repeats == 2
    };
    consumer.until("both are settled", both).await?;
    consumer.drain().await?;
    ledger.must_have_once(&[id])
}

/// Every type of AMQP's headers, but for those that RabbitMQ itself cannot represent.
fn every_type() -> FieldTable {
    let mut inner = FieldTable::default();
    inner.insert("deep".into(), AMQPValue::LongLongInt(1));
    let array: FieldArray = vec![AMQPValue::Boolean(false), AMQPValue::LongInt(2)].into();
    let mut table = FieldTable::default();
    for (name, value) in [
        ("boolean", AMQPValue::Boolean(true)),
        ("i8", AMQPValue::ShortShortInt(-8)),
        ("u8", AMQPValue::ShortShortUInt(8)),
        ("i16", AMQPValue::ShortInt(-16)),
        ("u16", AMQPValue::ShortUInt(16)),
        ("i32", AMQPValue::LongInt(-32)),
        ("u32", AMQPValue::LongUInt(32)),
        ("i64", AMQPValue::LongLongInt(-64)),
        ("f32", AMQPValue::Float(1.5)),
        ("f64", AMQPValue::Double(2.5)),
        (
            "decimal",
            AMQPValue::DecimalValue(DecimalValue {
                scale: 2,
                value: 105,
            }),
        ),
        ("text", AMQPValue::LongString("é".into())),
        (
            "bytes",
            AMQPValue::ByteArray(ByteArray::from(vec![0xff, 0])),
        ),
        ("time", AMQPValue::Timestamp(7)),
        ("void", AMQPValue::Void),
        ("array", AMQPValue::FieldArray(array)),
        ("table", AMQPValue::FieldTable(inner)),
    ] {
        table.insert(name.into(), value);
    }
    table
}

/// A consumer that fails each message twice: its second attempt is that of a copy.
async fn fail_twice(broker: &RabbitMq) -> Result<backstop_core::Headers> {
    let seen = Arc::new(Mutex::new(None));
    let seeing = Arc::clone(&seen);
    // Longer than a delivery is held.
    let wait = Duration::from_millis(2500);
    let consumer = backstop_core::Consumer::builder(broker.clone())
        .idempotent_by_nature()
        .max_attempts(2)
        .backoff(Backoff::new(wait, wait, Jitter::None)?)
        .raw(move |_: Bytes, context: backstop_core::Context| {
            *seeing.lock() = Some(context.headers().clone());
            async { Err::<(), _>(HandlerError::transient("no")) }
        })?;
    let shutdown = Shutdown::new();
    let told = shutdown.clone();
    let run = tokio::spawn(async move { consumer.run(&told).await });
    let dead = broker.dead_letters().await?;
    until("it is dead-lettered", || async {
        Ok(dead.depth().await? == 1)
    })
    .await?;
    shutdown.begin();
    run.await??;
    let headers = seen.lock().take();
    headers.context("no handler ran")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_of_every_type_come_to_the_dead_letter_queue_unchanged() -> Result<()> {
    let queue = unique("foreign");
    let url = format!("{}/?queue={queue}&declare=true", rabbitmq().await);
    let broker = RabbitMq::connect(&url).await?;
    let foreign = channel(rabbitmq().await).await?;
    foreign
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    let properties = BasicProperties::default()
        .with_headers(every_type())
        .with_delivery_mode(2);
    let (to, options) = (queue.as_str().into(), BasicPublishOptions::default());
    foreign
        .basic_publish("".into(), to, options, b"\xff\x00", properties)
        .await?
        .await?;

    let headers = fail_twice(&broker).await?;
    for (name, text) in [
        ("i8", "-8"),
        ("decimal", "1.05"),
        ("bytes", "ff00"),
        ("table", r#"{"deep":1}"#),
    ] {
        ensure!(
            headers.get(name) == Some(text),
            "{name} is {:?}",
            headers.get(name)
        );
    }
    let records = broker
        .dead_letters()
        .await?
        .browse(NonZeroUsize::MIN)
        .await?;
    let record = records.first().context("no dead letter")?;
    ensure!(
        record.message.id.is_none() && record.message.body.as_ref() == b"\xff\x00",
        "{record:?}"
    );
    ensure!(
        record.dead_letter.reason == DeadLetterReason::AttemptsExhausted,
        "{record:?}"
    );
    ensure!(record.dead_letter.attempts == 2, "{record:?}");

    let name = format!("{queue}.dead-letters");
    let got = Mutex::new(None);
    // What was looked at comes back when RabbitMQ has seen to it.
    until("it can be read again", || async {
        let options = BasicGetOptions::default();
        let found = foreign.basic_get(name.as_str().into(), options).await?;
        let is_there = found.is_some();
        *got.lock() = found;
        Ok(is_there)
    })
    .await?;
    let got = got.into_inner().context("it is gone")?;
    let native = got
        .delivery
        .properties
        .headers()
        .clone()
        .context("no headers")?;
    for (name, value) in every_type().inner() {
        ensure!(
            native.inner().get(name) == Some(value),
            "{name} is {:?}",
            native.inner().get(name)
        );
    }
    Ok(())
}
