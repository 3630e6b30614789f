//! A consumer whose store fails under it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use backstop_core::{
    Backoff, Consumer, Context, HandlerError, InProcessBroker, Jitter, Message, Monitor, Publisher,
    Shutdown,
};
use integration::{Mode, Proxy};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::setup::{PATIENCE, config, run};

const MESSAGES: usize = 400;

/// How many handlers run at once.
const SLOTS: usize = 8;

/// What handlers did, and how many more may come to their end.
struct Work {
    allowed: Semaphore,
    /// How often each message was handled.
    handled: Mutex<HashMap<String, u32>>,
}

impl Work {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            allowed: Semaphore::new(0),
            handled: Mutex::default(),
        })
    }

    async fn handle(&self, body: impl AsRef<[u8]> + Send) -> Result<(), HandlerError> {
        let name = String::from_utf8(body.as_ref().to_vec())?;
        self.allowed.acquire().await?.forget();
        *self.handled.lock().entry(name).or_default() += 1;
        Ok(())
    }
}

/// A consumer at work.
struct Load {
    work: Arc<Work>,
    monitor: Monitor,
}

impl Load {
    /// Lets so many more be handled. What comes after them is claimed, and waits.
    async fn go_on(&self, count: usize) {
        let before = self.work.handled.lock().len();
        self.work.allowed.add_permits(count);
        self.until("more is handled", || {
            self.work.handled.lock().len() >= before + count
        })
        .await;
    }

    /// Lets handlers come to their end while the store is away, until that shows.
    async fn until_noticed(&self) {
        let before = self.monitor.stats().store_errors;
        self.work.allowed.add_permits(SLOTS);
        self.until("the store's failure shows", || {
            self.monitor.stats().store_errors > before
        })
        .await;
    }

    /// Waits until what was handled is settled: a copy that met it unsettled would wait for as long as its
    /// claim may last.
    async fn until_settled(&self) {
        self.until("what was handled is settled", || {
            self.monitor.stats().completed >= self.work.handled.lock().len() as u64
        })
        .await;
    }

    async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let comes = async {
            while !is_so() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let came = timeout(PATIENCE, comes).await;
        assert!(came.is_ok(), "not so: {what}; {:?}", self.monitor.stats());
    }
}

/// Publishes every message twice and consumes them while `fails` goes on.
async fn each_is_handled_once_while(url: &str, name: &str, fails: impl AsyncFnOnce(&Load)) {
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
    let work = Work::new();
    let working = Arc::clone(&work);
    let backoff = Backoff::new(
        Duration::from_millis(50),
        Duration::from_secs(1),
        Jitter::Equal,
    );
    let consumer = Consumer::builder(broker.clone())
        .name(format!("{name}-{}", run()))
        .store(store)
        .backoff(backoff.unwrap())
        // Longer than the store is away: what was handled is not handled again.
        .claim_lease(Duration::from_mins(1))
        .max_in_flight(SLOTS)
        .raw(move |body, _: Context| {
            let work = Arc::clone(&working);
            async move { work.handle(body).await }
        })
        .unwrap();
    let load = Load {
        work,
        monitor: consumer.monitor(),
    };
    let shutdown = Shutdown::new();
    let watched = async {
        fails(&load).await;
        load.work.allowed.add_permits(MESSAGES);
        let all = broker.wait_for(|counts| counts.completed == 2 * MESSAGES as u64);
        let all = timeout(PATIENCE, all).await;
        assert!(all.is_ok(), "{:?}", broker.counts());
        shutdown.begin();
    };
    let (ran, ()) = tokio::join!(consumer.run(&shutdown), watched);
    let stats = ran.unwrap();
    assert!(stats.store_errors > 0, "{stats:?}");
    assert_eq!(broker.counts().dead, 0, "{stats:?}");
    let handled = load.work.handled.lock();
    assert_eq!(handled.len(), MESSAGES, "{stats:?}");
    let again: Vec<_> = handled.iter().filter(|(_, times)| **times != 1).collect();
    assert!(again.is_empty(), "{again:?}, {stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_redis_makes_no_message_handled_twice() {
    let server = integration::start_redis(&[]).await.unwrap();
    let fails = async |load: &Load| {
        for _ in 0..2 {
            load.go_on(50).await;
            server.stop().await.unwrap();
            load.until_noticed().await;
            server.start().await.unwrap();
            load.until_settled().await;
        }
    };
    each_is_handled_once_while(server.url(), "restart", fails).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_fail_make_no_message_handled_twice() {
    let proxy = Proxy::start(integration::redis().await).await.unwrap();
    let fails = async |load: &Load| {
        let modes = [
            Mode::BlackHole,
            Mode::DropToClient,
            Mode::Refuse,
            Mode::DropToServer,
        ];
        for mode in modes {
            load.go_on(30).await;
            proxy.set_mode(mode);
            proxy.cut();
            load.until_noticed().await;
            proxy.set_mode(Mode::Forward);
            load.until_settled().await;
        }
    };
    each_is_handled_once_while(proxy.url(), "cut", fails).await;
}
