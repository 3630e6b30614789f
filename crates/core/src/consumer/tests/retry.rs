//! P3 and P4: poison has an exit, and retries back off.

use super::*;
use crate::in_process::BrokerOperation;
use crate::{BrokerErrorKind, OrderedRetry};
use DeadLetterReason::{AttemptsExhausted, PermanentError, Undecodable};

#[tokio::test(start_paused = true)]
async fn waits_double_and_the_last_attempt_dead_letters() {
    for ordered in [false, true] {
        let scene = Scene::new();
        scene.publish(&["a-1"]).await;
        let builder = scene.builder_in(ordered).name("billing");
        let running = scene.start(builder, |_, _| fails());
        let stats = scene.finish(running).await;
        assert_eq!(scene.seen.seconds(), [0.0, 1.0, 3.0, 7.0, 15.0]);
        assert_eq!(scene.seen.attempts(), [1, 2, 3, 4, 5]);
        assert_eq!(scene.dead(), (AttemptsExhausted, 5, "no".to_owned()));
        let letter = scene.broker.dead_letter_records().remove(0).dead_letter;
        assert_eq!((&*letter.origin, &*letter.consumer), ("orders", "billing"));
        assert_eq!(
            (stats.started, stats.failed, stats.dead_lettered),
            (5, 5, 1)
        );
        assert_eq!((stats.retried, stats.completed, stats.released), (4, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn each_kind_of_failure_ends_as_it_should() {
    const TIMEOUT: Duration = Duration::from_secs(10);
    type Case = (&'static str, DeadLetterReason, u32, &'static str);
    let cases: [Case; 5] = [
        ("permanent", PermanentError, 1, "never"),
        ("transient", AttemptsExhausted, 3, "not now"),
        ("panic", AttemptsExhausted, 3, "the handler panicked: boom"),
        (
            "early panic",
            AttemptsExhausted,
            3,
            "the handler panicked: early",
        ),
        (
            "hang",
            AttemptsExhausted,
            3,
            "the handler timed out after 10s",
        ),
    ];
    for (how, reason, starts, error) in cases {
        let scene = Scene::new();
        scene.publish(&[how]).await;
        let builder = scene.builder().max_attempts(3).handler_timeout(TIMEOUT);
        let running = scene.start(builder, |how, _| {
            assert_ne!(how, "early panic", "early");
            async move {
                match &*how {
                    "permanent" => Err(HandlerError::permanent("never")),
                    "panic" => panic!("boom"),
                    "hang" => std::future::pending().await,
                    _ => Err("not now".into()),
                }
            }
        });
        let stats = scene.finish(running).await;
        let (seen_reason, attempts, seen_error) = scene.dead();
        assert_eq!((seen_reason, attempts), (reason, starts), "{how}");
        assert!(seen_error.contains(error.trim_start_matches("the handler panicked: ")));
        assert_eq!(
            (stats.started, stats.failed),
            (starts.into(), starts.into())
        );
        let expected = |kind: &str| if how.ends_with(kind) { 3 } else { 0 };
        assert_eq!(
            (stats.panicked, stats.timed_out),
            (expected("panic"), expected("hang"))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_decoded_is_dead_lettered_raw_and_the_consumer_lives() {
    struct Fragile;
    impl crate::Codec for Fragile {
        type Payload = ();
        fn decode(&self, message: &Message) -> Result<(), HandlerError> {
            match &*message.body {
                b"bad" => Err("not a body of ours".into()),
                b"worse" => panic!("cannot read"),
                _ => Ok(()),
            }
        }
    }
    let scene = Scene::new();
    scene.publish(&["bad", "worse", "good"]).await;
    let consumer = scene
        .builder()
        .codec(Fragile, |(), _: Context| async { Ok(()) });
    let running = scene.run(consumer.unwrap());
    let stats = scene.finish(running).await;
    assert_eq!(
        (stats.completed, stats.dead_lettered, stats.started),
        (1, 2, 1)
    );
    let dead = scene.broker.dead_letter_records();
    let errors = dead.iter().map(|record| &*record.dead_letter.error);
    assert_eq!(
        errors.collect::<Vec<_>>(),
        ["not a body of ours", "cannot read"]
    );
    assert!(
        dead.iter()
            .all(|record| record.dead_letter.reason == Undecodable)
    );
    assert_eq!(&*dead[0].message.body, b"bad");
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_the_handler_asks_for_is_kept() {
    for (asked, seconds) in [(30, 30.0), (0, 1.0)] {
        for ordered in [false, true] {
            let scene = Scene::new();
            scene.publish(&["a-1"]).await;
            let running = scene.start(scene.builder_in(ordered), move |_, context| async move {
                match context.attempt().get() {
                    1 => Err(HandlerError::retry_after("busy", asked * SECOND)),
                    _ => Ok(()),
                }
            });
            scene.finish(running).await;
            assert_eq!(scene.seen.seconds(), [0.0, seconds]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_without_end_does_not_lose_the_lane() {
    let scene = Scene::new();
    scene.publish(&["a-1", "a-2"]).await;
    let running = scene.start(scene.builder().ordered(), |_, _| async {
        Err(HandlerError::retry_after("busy", Duration::MAX))
    });
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert_eq!(scene.broker.counts().in_flight, 2);
    let stats = scene.end(running).await;
    assert_eq!((stats.retried, stats.released), (1, 2));
    let counts = scene.broker.counts();
    assert_eq!(
        (counts.ready, counts.delayed, counts.lost_leases),
        (1, 1, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_the_handler_asks_for_keeps_to_the_brokers_limit() {
    let minute = 60 * SECOND;
    let scene = Scene::on(InProcessBroker::builder("orders").max_delay(minute).build());
    scene.publish(&["1"]).await;
    let running = scene.start(scene.builder(), |_, context| async move {
        match context.attempt().get() {
            1 => Err(HandlerError::retry_after("busy", Duration::from_hours(1))),
            _ => Ok(()),
        }
    });
    scene.finish(running).await;
    assert_eq!(scene.seen.seconds(), [0.0, 60.0]);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_the_handler_asks_for_does_not_outlive_the_record() {
    for ordered in [false, true] {
        let scene = Scene::new();
        scene.publish(&["a-1"]).await;
        let (fences, seen) = tokio::sync::mpsc::unbounded_channel();
        let builder = scene.builder_in(ordered).retention(Duration::from_hours(1));
        let running = scene.start(builder, move |_, context| {
            fences.send(context.fence()).unwrap();
            async move {
                match context.attempt().get() {
                    1 => Err(HandlerError::retry_after("busy", Duration::from_hours(24))),
                    _ => Ok(()),
                }
            }
        });
        scene.finish(running).await;
        assert_eq!(scene.seen.seconds(), [0.0, 1_800.0]);
        let fences: Vec<_> = std::iter::from_fn({
            let mut seen = seen;
            move || seen.try_recv().ok()
        })
        .collect();
        assert!(fences[0] < fences[1], "{fences:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_is_not_forgotten_when_its_wait_in_the_lane_ends_early() {
    let mut scene = Scene::new();
    scene.publish(&["a-1"]).await;
    let builder = |scene: &Scene| {
        let builder = scene.builder().ordered().idempotent_by_nature();
        builder.max_attempts(3)
    };
    for run in [SECOND / 2, 3 * SECOND / 2] {
        let running = scene.start(builder(&scene), |_, _| fails());
        tokio::time::sleep(run).await;
        let stats = scene.restart(running).await;
        assert_eq!((stats.released, stats.abandoned), (1, 0));
    }
    let running = scene.start(builder(&scene), |_, _| fails());
    scene.finish(running).await;
    assert_eq!(scene.seen.attempts(), [1, 2, 3]);
    assert_eq!(scene.seen.seconds(), [0.0, 1.0, 3.0]);
    assert_eq!(scene.dead(), (AttemptsExhausted, 3, "no".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_ends_every_lease_is_stopped_by_the_cap() {
    for by_nature in [false, true] {
        let scene = Scene::new();
        scene.publish(&["1"]).await;
        let mut builder = scene.builder().max_attempts(3);
        if by_nature {
            builder = builder.idempotent_by_nature();
        }
        let broker = scene.broker.clone();
        let running = scene.start(builder, move |_, _| {
            broker.expire_leases();
            std::future::pending()
        });
        scene.finish(running).await;
        assert_eq!(scene.seen.attempts(), [1, 2, 3]);
        let (reason, attempts, _) = scene.dead();
        assert_eq!((reason, attempts), (AttemptsExhausted, 3));
    }
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_dead_letter_queue_keeps_the_message_and_uses_no_attempt() {
    for kind in [BrokerErrorKind::Unreachable, BrokerErrorKind::NotFound] {
        let scene = Scene::new();
        scene.publish(&["1"]).await;
        let faults = scene.broker.faults();
        faults.fail(BrokerOperation::DeadLetter, kind, u32::MAX);
        let running = scene.start(scene.builder().max_attempts(2), |_, _| fails());
        tokio::time::sleep(Duration::from_mins(10)).await;
        let counts = scene.broker.counts();
        assert_eq!((counts.dead, counts.completed), (0, 0));
        faults.clear();
        let stats = scene.finish(running).await;
        let (reason, attempts, _) = scene.dead();
        assert_eq!((reason, attempts), (AttemptsExhausted, 2));
        assert_eq!(scene.seen.attempts(), [1, 2]);
        assert!(stats.settle_errors > 10, "{stats:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn slots_stay_free_while_a_thousand_messages_back_off() {
    let scene = Scene::new();
    let names: Vec<_> = (0..2000).map(|n| format!("{n}")).collect();
    scene
        .publish(&names.iter().map(String::as_str).collect::<Vec<_>>())
        .await;
    let builder = scene.builder().max_in_flight(2);
    let running = scene.start(builder, |name, context| async move {
        match (&*name, context.attempt().get()) {
            ("short", 1) => Err(HandlerError::retry_after("busy", 2 * SECOND)),
            // Every other one fails.
            (name, 1) if name.ends_with(['1', '3', '5', '7', '9']) => {
                Err(HandlerError::retry_after("busy", Duration::from_hours(1)))
            }
            _ => Ok(()),
        }
    });
    scene.broker.wait_for(|counts| counts.delayed == 1000).await;
    let begun = Instant::now();
    scene.publish(&["short"]).await;
    scene
        .broker
        .wait_for(|counts| counts.completed == 1001)
        .await;
    assert_eq!(begun.elapsed().as_secs(), 2);
    assert_eq!(scene.finish(running).await.completed, 2001);
}

#[tokio::test(start_paused = true)]
async fn an_ordered_retry_holds_back_its_key_and_no_other() {
    for retry in [OrderedRetry::HeldInLane, OrderedRetry::Native] {
        let scene = Scene::on(
            InProcessBroker::builder("orders")
                .ordered_retry(retry)
                .build(),
        );
        scene.publish(&["a-1", "a-2", "b-1"]).await;
        let running = scene.start(scene.builder().ordered(), |name, context| async move {
            match (&*name, context.attempt().get()) {
                ("a-1", 1..=3) => Err("not yet".into()),
                _ => Ok(()),
            }
        });
        scene.finish(running).await;
        let names = scene.seen.names();
        assert_eq!(
            names,
            ["a-1", "b-1", "a-1", "a-1", "a-1", "a-2"],
            "{retry:?}"
        );
        assert_eq!(
            scene.seen.attempts()[5],
            1,
            "a follower's attempts are not used up"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_is_not_forgotten_when_the_broker_refuses_its_verdict() {
    for (operation, kind) in [
        (BrokerOperation::Settle, BrokerErrorKind::AccessDenied),
        (BrokerOperation::Settle, BrokerErrorKind::Unreachable),
        (BrokerOperation::DeadLetter, BrokerErrorKind::Unroutable),
        (BrokerOperation::DeadLetter, BrokerErrorKind::Unreachable),
    ] {
        let scene = Scene::new();
        // As often as a settlement is tried, before the message is given back.
        let refusals = if kind == BrokerErrorKind::Unreachable {
            5
        } else {
            1
        };
        scene.broker.faults().fail(operation, kind, refusals);
        scene.publish(&["m"]).await;
        let builder = Consumer::builder(scene.broker.clone())
            .idempotent_by_nature()
            .max_attempts(3);
        let running = scene.start(builder, |_, _| fails());
        let stats = scene.finish(running).await;
        assert_eq!(scene.seen.attempts(), [1, 2, 3], "{operation:?}, {kind:?}");
        let (reason, attempts, _) = scene.dead();
        assert_eq!((reason, attempts), (AttemptsExhausted, 3));
        assert_eq!((stats.abandoned, stats.dead_lettered), (1, 1));
    }
}

/// An error that cannot be told.
#[derive(Debug)]
struct Unspeakable;

impl std::fmt::Display for Unspeakable {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("words fail me")
    }
}

impl std::error::Error for Unspeakable {}

#[tokio::test(start_paused = true)]
async fn an_error_that_panics_when_it_is_told_is_a_failure_like_any_other() {
    for ordered in [false, true] {
        let scene = Scene::new();
        scene.publish(&["a-1", "a-2"]).await;
        let running = scene.start(scene.builder_in(ordered), |name, _| async move {
            match &*name {
                "a-1" => Err(HandlerError::permanent(Unspeakable)),
                _ => Ok(()),
            }
        });
        let stats = scene.finish(running).await;
        assert_eq!(stats.panicked, 5);
        assert_eq!((stats.completed, stats.dead_lettered), (1, 1));
        let (reason, attempts, error) = scene.dead();
        assert_eq!((reason, attempts), (DeadLetterReason::AttemptsExhausted, 5));
        assert!(error.contains("words fail me"), "{error}");
    }
}

/// A codec whose error cannot be told.
struct Tongueless;

impl Codec for Tongueless {
    type Payload = ();

    fn decode(&self, _: &Message) -> Result<(), HandlerError> {
        Err(HandlerError::permanent(Unspeakable))
    }
}

#[tokio::test(start_paused = true)]
async fn a_decoding_error_that_panics_when_it_is_told_dead_letters_all_the_same() {
    let scene = Scene::new();
    scene.publish(&["a-1"]).await;
    let builder = scene.builder();
    let consumer = builder
        .codec(Tongueless, |(), _: Context| succeeds())
        .unwrap();
    let running = scene.run(consumer);
    let stats = scene.finish(running).await;
    assert_eq!(stats.dead_lettered, 1);
    assert_eq!(scene.dead().0, DeadLetterReason::Undecodable);
}
