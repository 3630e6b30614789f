//! What was decided comes about, or comes back with its attempts.

use backstop_core::{BrokerError, DeadLetter, DeadLetterReason, Outgoing};
use integration::Server;
use tokio::task::JoinHandle;

use super::*;

fn settlements(
    deliveries: Vec<Delivery>,
    verdict: impl Fn(&Delivery) -> Verdict,
) -> Vec<Settlement> {
    let settlement = |delivery| Settlement {
        verdict: verdict(&delivery),
        delivery,
    };
    deliveries.into_iter().map(settlement).collect()
}

/// Receives this many, and settles none.
async fn take(subscription: &dyn Subscription, count: usize) -> Vec<Delivery> {
    let mut taken = Vec::new();
    while taken.len() < count {
        taken.extend(receive(subscription).await);
    }
    taken
}

#[tokio::test]
async fn retries_without_a_delay_queue_keep_their_attempts_and_their_waits() {
    let server = start_rabbitmq(Plugins::None).await.unwrap();
    let queue = unique("refused");
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
    publish_numbers(&broker, 6, 1).await;
    let subscription = broker
        .subscribe(&options(SubscriptionOrder::Unordered))
        .await
        .unwrap();
    let taken = take(&*subscription, 6).await;
    let wait = Duration::from_secs(3);
    let begun = tokio::time::Instant::now();
    let retries = settlements(taken, |delivery| Verdict::Retry {
        after: wait,
        attempts_used: delivery.attempts_used + 1,
    });
    for answer in subscription.settle(retries).await {
        answer.map_err(|error| error.cause).unwrap();
    }
    let again = take(&*subscription, 6).await;
    assert!(begun.elapsed() >= wait, "{:?}", begun.elapsed());
    let attempts: Vec<_> = again
        .iter()
        .map(|delivery| delivery.attempts_used)
        .collect();
    assert_eq!(attempts, [1; 6]);
    complete(&*subscription, again).await;
}

#[tokio::test]
async fn a_header_that_a_publisher_wrote_is_no_count_of_attempts() {
    let queue = unique("count");
    let broker = open(rabbitmq().await, &format!("queue={queue}")).await;
    let connection = native(rabbitmq().await).await;
    let channel = connection.create_channel().await.unwrap();
    let mut table = FieldTable::default();
    table.insert("x-delivery-count".into(), AMQPValue::LongLongInt(99));
    let properties = BasicProperties::default().with_headers(table);
    let publishing = BasicPublishOptions::default();
    let publish = channel.basic_publish(
        "".into(),
        queue.as_str().into(),
        publishing,
        b"x",
        properties,
    );
    publish.await.unwrap().await.unwrap();
    let subscription = broker
        .subscribe(&options(SubscriptionOrder::Unordered))
        .await
        .unwrap();
    for used in 0..3 {
        let taken = take(&*subscription, 1).await;
        assert_eq!(taken[0].attempts_used, used);
        let retry = settlements(taken, |_| Verdict::Retry {
            after: Duration::ZERO,
            attempts_used: used + 1,
        });
        for answer in subscription.settle(retry).await {
            answer.map_err(|error| error.cause).unwrap();
        }
    }
}

async fn watermark(server: &Server, level: &str) {
    let command = ["rabbitmqctl", "set_vm_memory_high_watermark", level];
    server.exec(&command).await.unwrap();
}

/// Publishes, and says when the broker has stopped taking it.
async fn publish_into_an_alarm(
    server: &Server,
    broker: &RabbitMq,
) -> JoinHandle<Result<(), BrokerError>> {
    watermark(server, "0").await;
    let blocked = spawn_publish(broker, "blocked");
    let command = ["rabbitmqctl", "-q", "list_connections", "state"];
    let is_blocked = async {
        while !server.exec(&command).await.unwrap().contains("blocked") {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, is_blocked).await.unwrap();
    blocked
}

async fn publish(broker: &RabbitMq, body: &'static str) -> Result<(), BrokerError> {
    let outgoing = Outgoing {
        message: Arc::new(Message::new(body)),
        delay: Duration::ZERO,
    };
    broker.publish(&[outgoing]).await.remove(0)
}

fn spawn_publish(broker: &RabbitMq, body: &'static str) -> JoinHandle<Result<(), BrokerError>> {
    let broker = broker.clone();
    tokio::spawn(async move { publish(&broker, body).await })
}

#[tokio::test]
async fn a_dead_letter_that_arrived_is_told_though_the_channel_broke_behind_it() {
    let server = start_rabbitmq(Plugins::None).await.unwrap();
    let queue = unique("twice");
    let parameters = format!("queue={queue}&connection_name=review");
    let broker = open(server.url(), &parameters).await;
    // One by each channel that publishes: a blocked broker opens no other.
    publish_numbers(&broker, 4, 1).await;
    let subscription = broker
        .subscribe(&options(SubscriptionOrder::Unordered))
        .await
        .unwrap();
    let mut taken = take(&*subscription, 4).await;
    taken.truncate(1);
    let blocked = publish_into_an_alarm(&server, &broker).await;
    let letter = DeadLetter {
        reason: DeadLetterReason::PermanentError,
        error: "no".to_owned(),
        attempts: 1,
        origin: queue.clone(),
        consumer: "review".to_owned(),
        at: std::time::SystemTime::now(),
    };
    let dead = settlements(taken, |_| Verdict::DeadLetter(Box::new(letter.clone())));
    let settling = subscription.settle(dead);
    let breaking = async {
        // The copy waits for the broker, and the channel of the original goes.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let command = [
            "rabbitmqctl",
            "-q",
            "list_connections",
            "pid",
            "client_properties",
        ];
        let connections = server.exec(&command).await.unwrap();
        let of_consumer = connections
            .lines()
            .filter(|line| line.contains("\"review\""))
            .find_map(|line| line.split('\t').next());
        let pid = of_consumer.unwrap_or_else(|| panic!("no consumer: {connections}"));
        let close = ["rabbitmqctl", "close_connection", pid, "test"];
        server.exec(&close).await.unwrap();
        watermark(&server, "0.6").await;
    };
    let (answers, ()) = tokio::join!(settling, breaking);
    for answer in answers {
        answer.map_err(|error| error.cause).unwrap();
    }
    blocked.await.unwrap().unwrap();
    let dead = broker.dead_letters().await.unwrap();
    assert_eq!(dead.depth().await.unwrap(), 1);
}

#[tokio::test]
async fn a_publication_that_was_given_up_before_its_turn_is_never_made() {
    let server = start_rabbitmq(Plugins::None).await.unwrap();
    let queue = unique("given-up");
    let broker = open(server.url(), &format!("queue={queue}")).await;
    // One for each channel that publishes.
    for _ in 0..4 {
        publish_numbers(&broker, 1, 1).await;
    }
    let mut under_way = vec![publish_into_an_alarm(&server, &broker).await];
    for _ in 0..3 {
        under_way.push(spawn_publish(&broker, "blocked"));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..8 {
        let given_up = publish(&broker, "given up");
        let given_up = tokio::time::timeout(Duration::from_millis(50), given_up);
        assert!(given_up.await.is_err());
    }
    watermark(&server, "0.6").await;
    for publishing in under_way {
        publishing.await.unwrap().unwrap();
    }
    for _ in 0..4 {
        publish(&broker, "last").await.unwrap();
    }
    let subscription = broker
        .subscribe(&options(SubscriptionOrder::Unordered))
        .await
        .unwrap();
    let bodies = drain(&*subscription, 12).await;
    assert!(!bodies.contains(&"given up".to_owned()), "{bodies:?}");
}

#[tokio::test]
async fn a_blocked_broker_is_told_within_the_time_that_was_set() {
    let server = start_rabbitmq(Plugins::None).await.unwrap();
    let parameters = format!("queue={}&confirm_timeout=1", unique("blocked"));
    let broker = open(server.url(), &parameters).await;
    publish_numbers(&broker, 1, 1).await;
    let blocked = publish_into_an_alarm(&server, &broker).await;
    let first = blocked.await.unwrap().unwrap_err();
    assert_eq!(first.kind(), BrokerErrorKind::Throttled);
    // Each takes another channel, which the broker does not open now.
    for _ in 0..8 {
        let answer = tokio::time::timeout(PATIENCE, publish(&broker, "more")).await;
        let error = answer.expect("it hangs").unwrap_err();
        assert_eq!(error.kind(), BrokerErrorKind::Throttled, "{error}");
    }
    watermark(&server, "0.6").await;
    let relieved = async {
        while publish(&broker, "late").await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, relieved).await.unwrap();
}
