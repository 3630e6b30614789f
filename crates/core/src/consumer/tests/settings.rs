//! Every setting that is out of its range is refused with its name, its value and the range.

use super::*;
use crate::consumer::{BreakerSettings, KeySource};
use crate::error::ConfigError;
use crate::ports::SubscriptionOrder;

const DAY: Duration = Duration::from_hours(24);
const EVER: Duration = Duration::MAX;

async fn nothing(_: Bytes, _: Context) -> Result<(), HandlerError> {
    Ok(())
}

fn refusal(broker: &InProcessBroker, set: fn(ConsumerBuilder) -> ConsumerBuilder) -> ConfigError {
    let builder = Consumer::builder(broker.clone()).store(InProcessStore::new());
    set(builder).raw(nothing).unwrap_err()
}

fn breaker(change: fn(&mut BreakerSettings)) -> BreakerSettings {
    let mut settings = BreakerSettings::default();
    change(&mut settings);
    settings
}

type Case = (fn(ConsumerBuilder) -> ConsumerBuilder, &'static str);

const CASES: &[Case] = &[
    (|b| b.name(""), r#"name cannot be "": 1 to 128 bytes"#),
    (|b| b.max_attempts(0), "max_attempts cannot be 0: 1 to 1000"),
    (
        |b| b.max_attempts(1001),
        "max_attempts cannot be 1001: 1 to 1000",
    ),
    (
        |b| b.max_in_flight(0),
        "max_in_flight cannot be 0: 1 to 10000",
    ),
    (
        |b| b.max_in_flight(10_001),
        "max_in_flight cannot be 10001: 1 to 10000",
    ),
    (
        |b| b.ordered().max_buffered(0),
        "max_buffered cannot be 0: 1 to 100000",
    ),
    (
        |b| b.ordered().max_buffered(100_001),
        "max_buffered cannot be 100001: 1 to 100000",
    ),
    (
        |b| b.max_body(0),
        "max_body cannot be 0: 1 to 16777216, the broker's own limit, in bytes",
    ),
    (
        |b| b.max_body((16 << 20) + 1),
        "max_body cannot be 16777217: 1 to 16777216, the broker's own limit, in bytes",
    ),
    (
        |b| b.handler_timeout(Duration::ZERO),
        "handler_timeout cannot be 0ns: 1ms to 86400s",
    ),
    (
        |b| b.handler_timeout(2 * DAY),
        "handler_timeout cannot be 172800s: 1ms to 86400s",
    ),
    (
        |b| b.claim_lease(Duration::from_millis(99)),
        "claim_lease cannot be 99ms: 100ms to 86400s",
    ),
    (
        |b| b.claim_lease(2 * DAY),
        "claim_lease cannot be 172800s: 100ms to 86400s",
    ),
    (
        |b| b.shutdown_grace(2 * DAY),
        "shutdown_grace cannot be 172800s: 0ns to 86400s",
    ),
    (
        |b| b.retention(Duration::from_mins(5)),
        "retention cannot be 300s: longer than 322.5s, the longest that max_attempts, \
             handler_timeout and the backoff can keep a message under way, and longer than \
             claim_lease; and at most 31622400s",
    ),
    (
        |b| b.retention(EVER),
        "retention cannot be 18446744073709551615.999999999s: longer than 322.5s, the longest \
             that max_attempts, handler_timeout and the backoff can keep a message under way, and \
             longer than claim_lease; and at most 31622400s",
    ),
    (
        |b| b.breaker(breaker(|s| s.window = 0)),
        "breaker.window cannot be 0: 1 to 64",
    ),
    (
        |b| b.breaker(breaker(|s| s.window = 65)),
        "breaker.window cannot be 65: 1 to 64",
    ),
    (
        |b| b.breaker(breaker(|s| s.failure_ratio = 0.0)),
        "breaker.failure_ratio cannot be 0: above 0 and up to 1",
    ),
    (
        |b| b.breaker(breaker(|s| s.failure_ratio = f64::NAN)),
        "breaker.failure_ratio cannot be NaN: above 0 and up to 1",
    ),
    (
        |b| b.breaker(breaker(|s| s.first_pause = Duration::ZERO)),
        "breaker.first_pause cannot be 0ns: 1ms to the longest_pause of 60s",
    ),
    (
        |b| b.breaker(breaker(|s| s.first_pause = 61 * SECOND)),
        "breaker.first_pause cannot be 61s: 1ms to the longest_pause of 60s",
    ),
    (
        |b| b.breaker(breaker(|s| s.longest_pause = EVER)),
        "breaker.longest_pause cannot be 18446744073709551615.999999999s: at most 86400s",
    ),
    (
        |b| b.key(KeySource::Header(String::new())),
        "key cannot be Header(\"\"): a header's name",
    ),
    (
        |b| b.key(KeySource::JsonPointer("order/id".to_owned())),
        "key cannot be JsonPointer(\"order/id\"): a JSON pointer, which begins with a slash",
    ),
];

#[tokio::test(start_paused = true)]
async fn each_value_out_of_range_is_refused_by_name_value_and_range() {
    let broker = InProcessBroker::new("orders");
    for (set, text) in CASES {
        assert_eq!(refusal(&broker, *set).to_string(), *text);
    }
    let long = refusal(&broker, |b| b.name("n".repeat(129)));
    assert_eq!(long.setting(), "name");
}

/// What the builder's documentation and the README say.
#[tokio::test(start_paused = true)]
async fn the_defaults_are_those_that_are_documented() {
    let builder = Consumer::builder(InProcessBroker::new("orders")).store(InProcessStore::new());
    let settings = builder.raw(nothing).unwrap().settings;
    let backoff = Backoff::new(SECOND, Duration::from_mins(5), Jitter::Additive).unwrap();
    assert_eq!(settings.policy.backoff, backoff);
    assert_eq!(settings.policy.max_attempts.get(), 5);
    assert_eq!(settings.max_in_flight.get(), 64);
    assert_eq!(settings.handler_timeout, Duration::from_mins(1));
    assert_eq!(settings.claim_lease, 30 * SECOND);
    assert_eq!(settings.retention, DAY);
    assert_eq!(settings.shutdown_grace, 30 * SECOND);
    assert_eq!(settings.order, SubscriptionOrder::Unordered);
    assert_eq!(&*settings.name, "orders");

    let ordered = Consumer::builder(InProcessBroker::new("orders")).idempotent_by_nature();
    let ordered = ordered.ordered().raw(nothing).unwrap().settings;
    assert_eq!(ordered.max_buffered.get(), 4 * 64);
}

#[tokio::test(start_paused = true)]
async fn a_store_has_to_be_named_or_declined() {
    let refused = Consumer::builder(InProcessBroker::new("orders")).raw(nothing);
    let text = refused.err().unwrap().to_string();
    assert!(
        text.starts_with("store cannot be absent: name one"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_the_broker_cannot_do_is_refused() {
    let broker = InProcessBroker::builder("orders").max_delay(60 * SECOND);
    let text = refusal(&broker.build(), |b| b).to_string();
    assert_eq!(
        text,
        "backoff_cap cannot be 450s with jitter: with its jitter at most 60s, the broker's longest \
         delay"
    );
}

#[tokio::test(start_paused = true)]
async fn the_ends_of_every_range_are_accepted() {
    let sets: &[fn(ConsumerBuilder) -> ConsumerBuilder] = &[
        |b| b.max_attempts(1).max_in_flight(1).max_body(1),
        |b| b.max_attempts(1000).retention(366 * DAY),
        |b| b.ordered().max_in_flight(10_000).max_buffered(100_000),
        |b| b.handler_timeout(DAY).claim_lease(DAY).retention(6 * DAY),
        |b| {
            b.handler_timeout(Duration::from_millis(1))
                .shutdown_grace(Duration::ZERO)
        },
        |b| {
            b.key(KeySource::JsonPointer("/id".to_owned()))
                .shutdown_grace(DAY)
        },
        |b| b.idempotent_by_nature().retention(Duration::ZERO),
    ];
    for set in sets {
        let builder = Consumer::builder(InProcessBroker::new("orders"));
        let consumer = set(builder.store(InProcessStore::new())).raw(nothing);
        assert!(consumer.is_ok(), "{:?}", consumer.err());
    }
}
