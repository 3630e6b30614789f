use std::io::{BufReader, Write as _};
use std::sync::Arc;

use backstop::{BrokerFault, BrokerOperation, InProcessBroker, Publisher};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::*;
use crate::publish::Defaults;

const THREE: &str = "{\"body\":1}\n\n{\"body\":2}\n{\"body\":3}\n";
/// More than a batch.
const MANY: u64 = 503;

fn sender(broker: &InProcessBroker) -> Sender {
    Sender::new(Publisher::new(broker.clone()), true)
}

fn lines<R: BufRead>(reader: R) -> Lines<R> {
    Lines::new(reader, "stdin".to_owned(), Defaults::for_feed(64))
}

async fn send(text: &'static str, sender: &mut Sender, shutdown: &Shutdown) -> Ended {
    let sending = send_lines(lines(text.as_bytes()), sender, shutdown);
    let ended = until_interrupted(sending, shutdown).await;
    ended.unwrap_or_else(|error| panic!("{error}"))
}

/// A broker that takes this long to confirm, and tells when it was asked first.
fn slow(delay: Duration) -> (InProcessBroker, Arc<Notify>) {
    let broker = InProcessBroker::new("slow");
    let asked = Arc::new(Notify::new());
    let tell = Arc::clone(&asked);
    broker.faults().on_call(move |call| {
        let is_publish = call.operation == BrokerOperation::Publish;
        is_publish.then(|| {
            tell.notify_one();
            BrokerFault::Delay(delay)
        })
    });
    (broker, asked)
}

#[tokio::test]
async fn input_that_ends_is_sent_whole() {
    let broker = InProcessBroker::new("whole");
    let mut sender = sender(&broker);
    let ended = send(THREE, &mut sender, &Shutdown::new()).await;
    assert_eq!((ended, sender.published()), (Ended::Complete, 3));
    assert_eq!(broker.counts().ready, 3);
}

#[tokio::test]
async fn a_signal_ends_a_read_and_what_was_taken_is_confirmed() {
    let broker = InProcessBroker::new("endless");
    let (reader, mut writer) = std::io::pipe().unwrap();
    for n in 0..MANY {
        writeln!(writer, "{{\"body\":{n}}}").unwrap();
    }
    let (mut sender, shutdown) = (sender(&broker), Shutdown::new());
    let signal = async {
        broker.wait_for(|counts| counts.ready >= 500).await;
        shutdown.begin();
    };
    let sending = send_lines(lines(BufReader::new(reader)), &mut sender, &shutdown);
    let (ended, ()) = tokio::join!(sending, signal);
    // The writer is still open: nothing but the signal has ended it.
    drop(writer);
    assert_eq!(
        ended.unwrap_or_else(|error| panic!("{error}")),
        Ended::Interrupted
    );
    let published = sender.published();
    assert!((500..=MANY).contains(&published), "{published}");
    assert_eq!(broker.counts().ready as u64, published);
    assert_eq!(sender.next_line() as u64, published + 1);
}

#[tokio::test(start_paused = true)]
async fn a_first_signal_waits_for_what_is_unconfirmed() {
    let (broker, asked) = slow(GRACE / 2);
    let (mut sender, shutdown) = (sender(&broker), Shutdown::new());
    let signal = async {
        asked.notified().await;
        shutdown.begin();
    };
    let (ended, ()) = tokio::join!(send(THREE, &mut sender, &shutdown), signal);
    // The signal came when nothing was left to read.
    assert_eq!((ended, sender.published()), (Ended::Complete, 3));
    assert_eq!(sender.next_line(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_first_signal_does_not_wait_for_ever() {
    let (broker, asked) = slow(GRACE * 2);
    let (mut sender, shutdown) = (sender(&broker), Shutdown::new());
    let signal = async {
        asked.notified().await;
        shutdown.begin();
    };
    let begun = Instant::now();
    let (ended, ()) = tokio::join!(send(THREE, &mut sender, &shutdown), signal);
    assert_eq!((ended, sender.published()), (Ended::Interrupted, 0));
    assert_eq!(begun.elapsed(), GRACE, "by the clock of this test");
    assert_eq!((sender.pending(), sender.next_line()), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_second_signal_ends_it_at_once() {
    let (broker, asked) = slow(GRACE * 2);
    let (mut sender, shutdown) = (sender(&broker), Shutdown::new());
    let signals = async {
        asked.notified().await;
        shutdown.begin();
        shutdown.now();
    };
    let begun = Instant::now();
    let (ended, ()) = tokio::join!(send(THREE, &mut sender, &shutdown), signals);
    assert_eq!((ended, sender.published()), (Ended::Interrupted, 0));
    assert_eq!(begun.elapsed(), Duration::ZERO, "by the clock of this test");
    assert_eq!((sender.pending(), sender.next_line()), (3, 1));
}

#[tokio::test]
async fn a_signal_ends_the_check_of_a_file() {
    let (reader, writer) = std::io::pipe().unwrap();
    let shutdown = Shutdown::new();
    shutdown.begin();
    let measured = measure(lines(BufReader::new(reader)), &shutdown).await;
    drop(writer);
    assert_eq!(measured.unwrap_or_else(|error| panic!("{error}")), None);
}
