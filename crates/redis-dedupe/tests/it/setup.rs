//! What the tests ask of a store.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use backstop_core::{
    Claim, ClaimRequest, Fence, IdempotencyKey, IdempotencyStore as _, OwnerId, Ownership,
    StoreError, Ticket,
};
use backstop_redis_dedupe::{RedisStore, RedisStoreConfig};
use integration::{Cluster, Sentinels};
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep};

/// Longer than any test.
pub(crate) const LONG: Duration = Duration::from_mins(10);

/// A key that no other test has, in this run or another on the same server.
pub(crate) fn fresh_key() -> IdempotencyKey {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    IdempotencyKey::new(run(), format!("key-{number}"))
}

/// What names this run.
pub(crate) fn run() -> String {
    static RUN: LazyLock<String> = LazyLock::new(|| {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        format!("run-{}-{}", std::process::id(), now.as_nanos())
    });
    RUN.clone()
}

pub(crate) fn request(key: &IdempotencyKey, owner: &str, nonce: u64) -> ClaimRequest {
    ClaimRequest {
        key: key.clone(),
        owner: OwnerId::new(owner),
        nonce,
        fingerprint: None,
        redrives: 0,
        attempts_used: 0,
        lease: LONG,
        retention: LONG,
    }
}

pub(crate) fn ticket(key: &IdempotencyKey, owner: &str, fence: u64) -> Ticket {
    Ticket {
        key: key.clone(),
        owner: OwnerId::new(owner),
        fence: Fence(fence),
    }
}

/// One request's answer.
pub(crate) trait One {
    async fn claim_one(&self, request: ClaimRequest) -> Result<Claim, StoreError>;
    async fn complete_one(&self, ticket: &Ticket) -> Result<Ownership, StoreError>;
}

impl One for RedisStore {
    async fn claim_one(&self, request: ClaimRequest) -> Result<Claim, StoreError> {
        self.claim(&[request]).await.pop().unwrap()
    }

    async fn complete_one(&self, ticket: &Ticket) -> Result<Ownership, StoreError> {
        let tickets = std::slice::from_ref(ticket);
        self.complete(tickets, LONG).await.pop().unwrap()
    }
}

/// A store on the server that the binary shares.
pub(crate) async fn shared_store() -> RedisStore {
    let url = integration::redis().await;
    config(url).connect().await.unwrap()
}

/// A Cluster that the binary shares: whoever stops a node starts one of its own.
pub(crate) async fn shared_cluster() -> &'static Cluster {
    static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
    let start = async || integration::start_cluster().await.unwrap();
    CLUSTER.get_or_init(start).await
}

/// A master under Sentinel that the binary shares: whoever changes it starts one of its own.
pub(crate) async fn shared_sentinels() -> &'static Sentinels {
    static SENTINELS: OnceCell<Sentinels> = OnceCell::const_new();
    let start = async || integration::start_sentinels().await.unwrap();
    SENTINELS.get_or_init(start).await
}

/// Settings for a URL. What has to be answered may be answered late: this machine may be busy.
pub(crate) fn config(url: &str) -> RedisStoreConfig {
    let patient = Duration::from_secs(30);
    let config = RedisStoreConfig::from_url(url).unwrap();
    config.response_timeout(patient).connect_timeout(patient)
}

/// How long a server may take to come back.
pub(crate) const PATIENCE: Duration = Duration::from_mins(3);

/// Asks until there is an answer; only what may pass is borne.
pub(crate) async fn insist<T>(ask: impl AsyncFn() -> Result<T, StoreError>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => {
                assert!(error.is_transient(), "{}", chain(&error));
                assert!(Instant::now() < end, "for too long: {}", chain(&error));
                sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Sends a command behind the store's back.
pub(crate) async fn command(url: &str, words: &[&[u8]]) -> redis::Value {
    let client = redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut command = redis::Cmd::new();
    for word in words {
        command.arg(*word);
    }
    command.query_async(&mut connection).await.unwrap()
}

/// The same in one line of words.
pub(crate) async fn say(url: &str, line: &str) -> redis::Value {
    let words: Vec<_> = line.split(' ').map(str::as_bytes).collect();
    command(url, &words).await
}

/// The name of a key's record.
pub(crate) fn record(key: &IdempotencyKey) -> String {
    format!("backstop:{}:{}", key.namespace(), key.key())
}

/// The number that a command answers.
pub(crate) async fn number(url: &str, words: &[&str]) -> i64 {
    let words: Vec<_> = words.iter().map(|word| word.as_bytes()).collect();
    match command(url, &words).await {
        redis::Value::Int(number) => number,
        answer => panic!("{words:?} gives {answer:?}"),
    }
}
