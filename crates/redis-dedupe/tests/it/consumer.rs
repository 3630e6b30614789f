//! A consumer whose store fails under it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use backstop_core::{
    Backoff, Consumer, Context, HandlerError, InProcessBroker, Jitter, Message, Publisher, Shutdown,
};
use integration::{Mode, Proxy};
use parking_lot::Mutex;

use crate::setup::{PATIENCE, config, run};

const MESSAGES: u64 = 400;

/// How often each message was handled.
type Handled = Arc<Mutex<HashMap<String, u32>>>;

async fn handle(handled: Handled, body: impl AsRef<[u8]> + Send) -> Result<(), HandlerError> {
    let name = String::from_utf8(body.as_ref().to_vec())?;
    tokio::time::sleep(Duration::from_millis(5)).await;
    *handled.lock().entry(name).or_default() += 1;
    Ok(())
}

/// Publishes every message twice and consumes them while `fails` goes on.
async fn each_is_handled_once_while(url: &str, name: &str, fails: impl Future<Output = ()>) {
    let broker = InProcessBroker::new(name);
    let publisher = Publisher::new(broker.clone());
    for number in (0..MESSAGES).chain(0..MESSAGES) {
        let id = format!("{name}-{number}");
        let message = Message::new(id.clone()).with_id(id);
        publisher.publish(message).await.unwrap();
    }
    let quick = Duration::from_millis(300);
    let store = config(url)
        .response_timeout(quick)
        .connect_timeout(quick)
        .open()
        .unwrap();
    let handled = Handled::default();
    let seen = Arc::clone(&handled);
    let backoff = Backoff::new(
        Duration::from_millis(50),
        Duration::from_secs(1),
        Jitter::Equal,
    );
    let consumer = Consumer::builder(broker.clone())
        .name(format!("{name}-{}", run()))
        .store(store)
        .backoff(backoff.unwrap())
        .max_in_flight(8)
        .raw(move |body, _: Context| handle(Arc::clone(&seen), body))
        .unwrap();
    let shutdown = Shutdown::new();
    let watched = async {
        fails.await;
        let all = broker.wait_for(|counts| counts.completed == 2 * MESSAGES);
        let all = tokio::time::timeout(PATIENCE, all).await;
        assert!(all.is_ok(), "{:?}", broker.counts());
        shutdown.begin();
    };
    let (ran, ()) = tokio::join!(consumer.run(&shutdown), watched);
    let stats = ran.unwrap();
    assert_eq!(broker.counts().dead, 0, "{stats:?}");
    let handled = handled.lock();
    assert_eq!(handled.len() as u64, MESSAGES, "{stats:?}");
    let again: Vec<_> = handled.iter().filter(|(_, times)| **times != 1).collect();
    assert!(again.is_empty(), "{again:?}, {stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_redis_makes_no_message_handled_twice() {
    let server = integration::start_redis(&[]).await.unwrap();
    let fails = async {
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            server.restart().await.unwrap();
        }
    };
    each_is_handled_once_while(server.url(), "restart", fails).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_fail_make_no_message_handled_twice() {
    let proxy = Proxy::start(integration::redis().await).await.unwrap();
    let fails = async {
        let modes = [
            Mode::BlackHole,
            Mode::DropToClient,
            Mode::Refuse,
            Mode::DropToServer,
        ];
        for mode in modes {
            tokio::time::sleep(Duration::from_millis(30)).await;
            proxy.set_mode(mode);
            proxy.cut();
            tokio::time::sleep(Duration::from_millis(400)).await;
            proxy.set_mode(Mode::Forward);
        }
    };
    each_is_handled_once_while(proxy.url(), "cut", fails).await;
}
