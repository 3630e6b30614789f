//! P2: repeats are harmless; and P10 as far as the store is concerned.

use super::*;
use crate::consumer::{Fingerprints, KeySource, MissingKey};
use crate::ports::{IdempotencyKey, IdempotencyStore};
use DeadLetterReason::{BodyTooLarge, KeyConflict, KeyMissing};

fn message(id: &str, body: &str) -> Message {
    Message::new(body.to_owned()).with_id(id)
}

#[tokio::test(start_paused = true)]
async fn a_repeat_of_a_completed_message_is_absorbed() {
    for ordered in [false, true] {
        let mut scene = Scene::new();
        scene.publish(&["a-1", "a-1", "a-1"]).await;
        let builder = |scene: &Scene| scene.builder_in(ordered);
        let running = scene.start(builder(&scene), |_, _| succeeds());
        scene.drained().await;
        let stats = scene.restart(running).await;
        assert_eq!((stats.completed, stats.repeats, stats.started), (1, 2, 1));

        scene.publish(&["a-1"]).await;
        let running = scene.start(builder(&scene), |_, _| succeeds());
        let stats = scene.finish(running).await;
        assert_eq!(
            (stats.completed, stats.repeats),
            (0, 1),
            "also by another run"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_ack_leads_to_a_repeat_that_is_absorbed() {
    let scene = Scene::new();
    scene.broker.faults().lose_acks(1);
    scene.publish(&["1"]).await;
    let running = scene.start(scene.builder(), |_, _| succeeds());
    scene.broker.wait_for(|counts| counts.completed == 1).await;
    let stats = scene.end(running).await;
    assert_eq!((scene.seen.names().len(), stats.repeats), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn two_copies_at_once_run_one_handler_and_the_second_uses_no_attempt() {
    for ordered in [false, true] {
        let scene = Scene::new();
        scene.publish(&["1", "1"]).await;
        let slow = |_: String, _: Context| async {
            tokio::time::sleep(45 * SECOND).await;
            Ok(())
        };
        let builder = || scene.builder_in(ordered).max_in_flight(1);
        let runs = [scene.start(builder(), slow), scene.start(builder(), slow)];
        scene.drained().await;
        let mut repeats = 0;
        for running in runs {
            repeats += scene.end(running).await.repeats;
        }
        assert_eq!((scene.seen.attempts(), repeats), (vec![1], 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_is_not_handled_again_until_it_is_redriven() {
    let scene = Scene::new();
    let work = |_: String, context: Context| async move {
        match context.redrives() {
            0 => Err(HandlerError::permanent("no")),
            _ => Ok(()),
        }
    };
    scene.publish(&["1"]).await;
    let running = scene.start(scene.builder().max_attempts(1), work);
    scene.broker.wait_for(|counts| counts.dead == 1).await;
    scene.publish(&["1"]).await;
    scene.broker.wait_for(|counts| counts.completed == 1).await;
    let redriven = message("1", "1").with_header(Message::REDRIVES_HEADER, "1");
    scene.publish_message(redriven).await;
    let stats = scene.finish(running).await;
    assert_eq!(
        (stats.repeats, stats.completed, stats.dead_lettered),
        (1, 1, 1)
    );
    assert_eq!(scene.seen.attempts(), [1, 1], "a redrive resets the count");
    let fences: Vec<_> = scene.seen.all().iter().map(|s| s.fence).collect();
    assert_eq!(fences, [Some(1), Some(2)], "and not the fence");
}

#[tokio::test(start_paused = true)]
async fn one_key_with_two_bodies_is_a_conflict_unless_that_is_switched_off() {
    for (fingerprints, conflicts) in [(Fingerprints::Checked, 1), (Fingerprints::Disabled, 0)] {
        let scene = Scene::new();
        scene.publish_message(message("1", "one")).await;
        let builder = scene.builder().fingerprints(fingerprints);
        let running = scene.start(builder, |_, _| succeeds());
        scene.drained().await;
        scene.publish_message(message("1", "two")).await;
        let stats = scene.finish(running).await;
        assert_eq!((stats.conflicts, stats.repeats), (conflicts, 1 - conflicts));
        assert_eq!(scene.seen.names(), ["one"]);
        if conflicts == 1 {
            let (reason, attempts, error) = scene.dead();
            assert_eq!((reason, attempts), (KeyConflict, 0));
            assert_eq!(
                error,
                "a message with the same idempotency key has another body"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_key_source_recognises_its_repeats() {
    let pointer = KeySource::JsonPointer("/order/id".to_owned());
    let cases = [
        (KeySource::MessageId, message("1", "{}"), message("1", "{}")),
        (
            KeySource::Header("order".to_owned()),
            message("1", "{}").with_header("order", "7"),
            message("2", "{}").with_header("order", "7"),
        ),
        (
            pointer,
            message("1", r#"{"order": {"id": 7}}"#),
            message("2", r#"{"order": {"id": 7}}"#),
        ),
        (
            KeySource::BodyHash,
            message("1", "same"),
            message("2", "same"),
        ),
    ];
    for (source, first, second) in cases {
        let scene = Scene::new();
        scene.publish_message(first).await;
        scene.publish_message(second).await;
        let other = message("3", r#"{"order": {"id": "8"}}"#).with_header("order", "8");
        scene.publish_message(other).await;
        let running = scene.start(scene.builder().key(source.clone()), |_, _| succeeds());
        let stats = scene.finish(running).await;
        assert_eq!((stats.completed, stats.repeats), (2, 1), "{source:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_without_the_key_is_dead_lettered_or_handled_by_choice() {
    let header = KeySource::Header("order".to_owned());
    for missing in [MissingKey::DeadLetter, MissingKey::HandleWithoutKey] {
        let scene = Scene::new();
        scene.publish(&["1"]).await;
        let builder = scene.builder().key(header.clone()).missing_key(missing);
        let running = scene.start(builder, |_, context| match context.attempt().get() {
            1 => fails(),
            _ => succeeds(),
        });
        let stats = scene.finish(running).await;
        if missing == MissingKey::DeadLetter {
            let error = "the message has no header \"order\"".to_owned();
            assert_eq!(scene.dead(), (KeyMissing, 0, error));
            assert_eq!(stats.started, 0);
        } else {
            assert_eq!(scene.seen.attempts(), [1, 2], "by the broker's count");
            assert_eq!(scene.seen.all()[0].fence, None);
        }
        assert!(scene.store.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_above_the_limit_is_dead_lettered_unread() {
    let scene = Scene::new();
    scene.publish(&["12345", "123456"]).await;
    let running = scene.start(scene.builder().max_body(5), |_, _| succeeds());
    let stats = scene.finish(running).await;
    let error = "the body has 6 bytes, and this consumer takes 5".to_owned();
    assert_eq!(scene.dead(), (BodyTooLarge, 0, error));
    assert_eq!((stats.completed, stats.started), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn names_keep_consumers_apart() {
    let scene = Scene::new();
    let other = Scene {
        broker: InProcessBroker::new("orders"),
        ..scene.clone()
    };
    for (scene, name) in [(&scene, "billing"), (&other, "shipping")] {
        scene.publish(&["1"]).await;
        let running = scene.start(scene.builder().name(name), |_, _| succeeds());
        scene.drained().await;
        running.task.abort();
    }
    assert_eq!(scene.seen.attempts(), [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn lost_answers_of_the_store_change_nothing() {
    // The first three calls are claim, complete; claim, release or claim, renewal, release.
    for lost in 1..=4 {
        for ending in ["completes", "retries", "dies"] {
            let scene = Scene::new();
            scene.store.faults().lose_answers(lost);
            scene.publish(&[ending]).await;
            let running = scene.start(scene.builder(), |ending, context| {
                match (&*ending, context.attempt().get()) {
                    ("retries", 1) => fails(),
                    ("dies", _) => ready(Err(HandlerError::permanent("no"))),
                    _ => succeeds(),
                }
            });
            let stats = scene.finish(running).await;
            let starts = if ending == "retries" { 2 } else { 1 };
            assert_eq!(stats.started, starts, "{ending}, {lost} lost");
            assert_eq!(stats.completed + stats.dead_lettered, 1);
            assert_eq!((stats.store_errors, stats.released), (lost.into(), 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_its_store_nothing_is_handled_and_nothing_is_lost() {
    let scene = Scene::new();
    scene.store.faults().go_down();
    scene.publish(&["1", "2", "3"]).await;
    let running = scene.start(scene.builder(), |_, _| succeeds());
    let monitor = running.monitor.clone();
    tokio::time::sleep(Duration::from_mins(10)).await;
    assert_eq!(scene.seen.names(), [""; 0]);
    assert_eq!(scene.broker.counts().completed, 0);
    assert!(!monitor.is_ready());
    scene.store.faults().come_back();
    scene.drained().await;
    assert!(monitor.is_ready(), "intake resumes by itself");
    let stats = scene.end(running).await;
    assert_eq!(scene.seen.attempts(), [1, 1, 1], "no attempt was used");
    assert_eq!((stats.completed, stats.dead_lettered), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn a_completion_that_the_store_does_not_take_leaves_the_message_in_its_queue() {
    let scene = Scene::new();
    scene.publish(&["1"]).await;
    let store = scene.store.clone();
    let running = scene.start(scene.builder(), move |_, context| {
        if context.attempt().get() == 1 {
            store.faults().go_down();
        }
        succeeds()
    });
    tokio::time::sleep(Duration::from_mins(5)).await;
    assert_eq!(scene.broker.counts().completed, 0);
    scene.store.faults().come_back();
    let stats = scene.finish(running).await;
    let fences: Vec<_> = scene.seen.all().iter().map(|s| s.fence).collect();
    assert_eq!(
        fences,
        [Some(1), Some(2)],
        "it repeats, with a higher fence"
    );
    assert_eq!(stats.completed, 1);
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_was_overtaken_settles_nothing() {
    for fate in ["completes", "retries", "dies"] {
        let scene = Scene::new();
        scene.publish(&[fate]).await;
        let store = scene.store.clone();
        let running = scene.start(scene.builder(), move |fate, context| {
            let store = store.clone();
            async move {
                if context.fence().is_some_and(|fence| fence.0 > 1) || store.is_empty() {
                    return Ok(());
                }
                store.forget(&[IdempotencyKey::new("orders", &*fate)]).await;
                match &*fate {
                    "completes" => Ok(()),
                    "retries" => Err("no".into()),
                    _ => Err(HandlerError::permanent("no")),
                }
            }
        });
        scene.broker.wait_for(|counts| counts.released == 1).await;
        let counts = scene.broker.counts();
        assert_eq!(
            (counts.completed, counts.retried, counts.dead),
            (0, 0, 0),
            "{fate}"
        );
        running.task.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_store_stops_handling_until_records_expire() {
    let mut scene = Scene::new();
    let room = InProcessStore::RECORD_BYTES + 1;
    scene.store = InProcessStore::builder().max_bytes(2 * room).build();
    scene.publish(&["1", "2", "3"]).await;
    let builder = scene.builder().retention(Duration::from_mins(20));
    let running = scene.start(builder, |_, _| succeeds());
    tokio::time::sleep(Duration::from_mins(19)).await;
    assert_eq!(scene.seen.names(), ["1", "2"]);
    scene.finish(running).await;
    assert_eq!(scene.seen.names(), ["1", "2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn claims_that_are_made_but_never_answered_use_no_attempt() {
    for ordered in [false, true] {
        let scene = Scene::new();
        scene.store.faults().lose_answers(u32::MAX);
        scene.publish(&["a-1"]).await;
        let running = scene.start(scene.builder_in(ordered), |_, _| succeeds());
        // Far more than it takes to give up as many claims as there are attempts.
        tokio::time::sleep(Duration::from_mins(10)).await;
        assert_eq!(scene.seen.names(), [""; 0]);
        scene.store.faults().lose_answers(0);
        let stats = scene.finish(running).await;
        assert_eq!(scene.seen.attempts(), [1]);
        assert_eq!((stats.completed, stats.dead_lettered), (1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_answered_late_is_not_trusted() {
    let scene = Scene::new();
    scene.publish(&["1", "1"]).await;
    scene.store.faults().delay_answers(31 * SECOND);
    let one_by_one = || scene.builder().max_in_flight(1).name("late");
    let first = scene.start(one_by_one(), |_, _| succeeds());
    tokio::time::sleep(SECOND).await;
    scene.store.faults().delay_answers(Duration::ZERO);
    tokio::time::sleep(Duration::from_millis(29_500)).await;
    let second = scene.start(one_by_one(), |_, _| async {
        tokio::time::sleep(20 * SECOND).await;
        Ok(())
    });
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(scene.seen.names(), ["1"], "by the second consumer only");
    scene.finish(first).await;
    second.task.await.unwrap().unwrap();
    assert_eq!(scene.seen.names(), ["1"]);
}
