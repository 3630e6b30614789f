use backstop_core::{Consumer, Context, HandlerError, Shutdown};
use serde_json::Value;

use super::*;
use crate::broker::Sqs;
use crate::scripted::{Answer, Asked, Script, answer, described, messages};

const SECOND: Duration = Duration::from_secs(1);

/// Receives from a queue whose answers are written down, for a consumer that holds at most `buffered`.
fn polls(script: &Script, kind: QueueKind, buffered: usize) -> Arc<Polls> {
    let desk = Desk::scripted(Sqs::open("sqs:///q").unwrap().shared(), script);
    let pace = Pace::new(16, buffered);
    let (clients, url) = (script.clients(), "https://q".into());
    Arc::new(Polls::new(clients, url, (kind, 20), pace, Arc::new(desk)))
}

fn wanted(asked: &Value) -> u64 {
    asked["MaxNumberOfMessages"].as_u64().unwrap()
}

/// The handles that were given back.
fn given_back(script: &Script) -> usize {
    let asked = script.asked("ChangeMessageVisibilityBatch");
    let entries = asked.iter().filter_map(|asked| asked["Entries"].as_array());
    let entries: Vec<_> = entries.flatten().collect();
    assert!(entries.iter().all(|entry| entry["VisibilityTimeout"] == 0));
    entries.len()
}

/// Two messages after a second, then nothing.
fn two() -> Script {
    let late = Answer::from(messages(0..2)).late(SECOND);
    Script::new([late, answer(&[0, 1], &[]).into(), Answer::never()])
}

#[tokio::test(start_paused = true)]
async fn no_more_is_asked_for_than_there_are_free_slots_however_long_answers_take() {
    const SLOTS: u64 = 37;
    let mut number: u64 = 0;
    let script = Script::by(move |asked: &Asked| {
        number += 1;
        // Some are slow, and some bring less than they were asked for.
        let count = wanted(&asked.body).saturating_sub(u64::from(number.is_multiple_of(5)));
        Answer::from(messages(0..count)).late(Duration::from_millis(number * 37 % 400))
    });
    let polls = polls(&script, QueueKind::Standard, 37);
    let (mut held, mut most) = (0, 0);
    for round in 0..400_u64 {
        let free = usize::try_from(SLOTS - held).unwrap();
        let receiving = polls.receive(free);
        if let Ok(received) = tokio::time::timeout(SECOND, receiving).await {
            held += u64::try_from(received.unwrap().len()).unwrap();
        }
        let (under_way, ready) = {
            let state = polls.state.lock();
            (state.asked as u64, state.ready.len() as u64)
        };
        most = most.max(held + under_way + ready);
        assert!(held + under_way + ready <= SLOTS, "round {round}");
        held -= held.min(round % 11);
        tokio::time::sleep(Duration::from_millis(round * 13 % 50)).await;
    }
    assert_eq!(most, SLOTS, "all slots were used");
    let asked = script.asked("ReceiveMessage");
    assert!(asked.iter().all(|asked| (1..=10).contains(&wanted(asked))));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_asks_for_in_time_is_given_back() {
    let script = two();
    let polls = polls(&script, QueueKind::Standard, 10);
    assert!(
        tokio::time::timeout(SECOND / 2, polls.receive(10))
            .await
            .is_err()
    );
    tokio::time::sleep(SECOND + UNATTENDED).await;
    assert_eq!(given_back(&script), 2);
    assert!(polls.state.lock().ready.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_came_while_nobody_asked_is_handed_to_who_asks_soon() {
    let script = two();
    let polls = polls(&script, QueueKind::Standard, 10);
    assert!(
        tokio::time::timeout(SECOND / 2, polls.receive(10))
            .await
            .is_err()
    );
    tokio::time::sleep(SECOND / 2 + UNATTENDED / 2).await;
    assert_eq!(polls.receive(10).await.unwrap().len(), 2);
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(given_back(&script), 0);
}

#[tokio::test(start_paused = true)]
async fn what_comes_after_the_stop_is_given_back() {
    let script = two();
    let polls = polls(&script, QueueKind::Standard, 10);
    let begun = Instant::now();
    let stopping = async {
        tokio::time::sleep(SECOND / 2).await;
        polls.stop();
    };
    let (received, ()) = tokio::join!(polls.receive(10), stopping);
    assert_eq!(received.unwrap_err().kind(), BrokerErrorKind::Closed);
    assert_eq!(begun.elapsed(), SECOND / 2);
    tokio::time::sleep(SECOND).await;
    assert_eq!(given_back(&script), 2);
}

#[tokio::test(start_paused = true)]
async fn a_receive_without_an_answer_is_asked_for_again_by_its_name_on_a_fifo_queue() {
    for (kind, same) in [(QueueKind::Fifo, true), (QueueKind::Standard, false)] {
        let script = Script::new([Answer::refused("InternalFailure"), messages(0..1).into()]);
        let polls = polls(&script, kind, 10);
        assert!(polls.receive(10).await.is_err());
        assert_eq!(polls.receive(10).await.unwrap().len(), 1);
        let asked = script.asked("ReceiveMessage");
        let attempt = |at: usize| asked[at]["ReceiveRequestAttemptId"].as_str();
        assert_eq!(attempt(0).is_some(), same);
        assert_eq!(attempt(0), attempt(1));
    }
}

/// A queue that is empty, and whose long polls never end.
fn silent() -> Script {
    Script::by(|asked| match asked.action.as_str() {
        "ReceiveMessage" => Answer::never(),
        _ => described(asked),
    })
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_wait_for_a_long_poll() {
    let broker = Sqs::open("sqs:///q?wait=20&timeout=300").unwrap();
    broker.ask(&silent());
    let consumer = Consumer::builder(broker)
        .idempotent_by_nature()
        .raw(async |_: bytes::Bytes, _: Context| Ok::<_, HandlerError>(()))
        .unwrap();
    let (monitor, shutdown) = (consumer.monitor(), Shutdown::new());
    let told = shutdown.clone();
    let run = tokio::spawn(async move { consumer.run(&told).await });
    tokio::time::sleep(5 * SECOND).await;
    assert!(!run.is_finished() && monitor.stats().received == 0);
    let begun = Instant::now();
    shutdown.begin();
    run.await.unwrap().unwrap();
    let took = begun.elapsed();
    assert!(took < SECOND, "{took:?}");
}
