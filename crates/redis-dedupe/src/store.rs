//! The store: operations into calls, answers into claims.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backstop_core::{
    Claim, ClaimRequest, ConfigError, Finding, IdempotencyKey, IdempotencyStore, Ownership,
    ReleaseKind, StoreError, StoreHandle, Survival, Ticket,
};
use redis::Value;
use tokio::time::Instant;

use crate::batch::{Answer, Answers, Call};
use crate::config::RedisStoreConfig;
use crate::connection::Dialer;
use crate::error::Fault;
use crate::inspect;
use crate::operation::{Cause, Ending, Operation, Renewal};
use crate::record;
use crate::scripts::Code;
use crate::servers::Servers;

/// An idempotency store on Redis, for all processes of a consumer.
///
/// Clones share connections. Every method may be called from many tasks: batches go out on one
/// connection without waiting for each other. The store connects again by itself, and belongs to the
/// tokio runtime of its first call. The crate's documentation says what it needs of Redis, and what
/// a failover can lose.
///
/// ```no_run
/// # async fn example() -> Result<(), backstop_core::StoreError> {
/// use backstop_redis_dedupe::RedisStore;
///
/// let store = RedisStore::connect("redis://localhost").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisStore {
    servers: Arc<Servers>,
}

impl RedisStore {
    /// Connects to the Redis of a URL, with the defaults of [`RedisStoreConfig`].
    ///
    /// # Errors
    ///
    /// When the URL makes no sense, or Redis cannot be reached or refuses.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: a dropped call leaves nothing behind.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        let config = RedisStoreConfig::from_url(url).map_err(|error| {
            let kind = backstop_core::StoreErrorKind::Configuration;
            StoreError::new(kind, "the store's URL is refused").with_source(error)
        })?;
        config.connect().await
    }

    pub(crate) fn new(config: RedisStoreConfig) -> Result<Self, ConfigError> {
        let servers = Arc::new(Servers::new(Dialer::new(config)?));
        Ok(Self { servers })
    }

    /// Waits until every master is connected.
    pub(crate) async fn ready(&self) -> Result<(), StoreError> {
        let config = &self.servers.dialer.config;
        let until = Instant::now() + config.connect_timeout.max(config.response_timeout);
        for route in self.servers.all(until).await? {
            route.lanes().next().connection(until).await?;
        }
        Ok(())
    }

    /// Carries out operations, many in a call; answers each at its position.
    async fn run<O: Operation>(
        &self,
        script: &Code,
        operations: &[O],
    ) -> Vec<Result<O::Answer, StoreError>> {
        let most = self.servers.keys_in_a_call();
        let alike = operations.chunk_by(O::joins);
        let groups: Vec<_> = alike.flat_map(|alike| alike.chunks(most)).collect();
        let calls = groups.iter().map(|group| {
            let keys: Vec<_> = group.iter().map(|one| self.name(one.key())).collect();
            Call {
                slot: keys.first().map_or(0, |key| self.servers.slot(key)),
                command: script.on(group, &keys),
            }
        });
        let answers = self.servers.ask(calls.collect()).await;
        let answered = groups.into_iter().zip(answers);
        answered
            .flat_map(|(group, answers)| read_all(group, answers, O::read))
            .collect()
    }

    fn name(&self, key: &IdempotencyKey) -> Vec<u8> {
        record::name(&self.servers.dialer.config.prefix, key)
    }
}

/// Reads the answers of one call: one for each of its operations.
fn read_all<O, A>(
    operations: &[O],
    answers: Answers,
    read: impl Fn(&O, &Value) -> Option<A>,
) -> Vec<Result<A, StoreError>> {
    let answers = answers.and_then(|answers| {
        let is_whole = answers.len() == operations.len();
        is_whole.then_some(answers).ok_or_else(Fault::senseless)
    });
    let answers = match answers {
        Ok(answers) => answers,
        Err(fault) => vec![Err(fault); operations.len()],
    };
    let pairs = operations.iter().zip(answers);
    let read = |(operation, answer): (&O, Answer)| {
        let answer = answer?;
        Ok(read(operation, &answer).ok_or_else(Fault::senseless)?)
    };
    pairs.map(read).collect()
}

#[async_trait]
impl IdempotencyStore for RedisStore {
    fn survival(&self) -> Survival {
        Survival::Durable
    }

    /// Looks at the servers' set-up: a version that is too old, keys that may be evicted, too few
    /// replicas.
    async fn inspect(&self) -> Result<Vec<Finding>, StoreError> {
        Ok(inspect::inspect(&self.servers).await?)
    }

    async fn claim(&self, requests: &[ClaimRequest]) -> Vec<Result<Claim, StoreError>> {
        self.run(&self.servers.dialer.scripts.claim, requests).await
    }

    async fn renew(
        &self,
        tickets: &[Ticket],
        lease: Duration,
    ) -> Vec<Result<Ownership, StoreError>> {
        let renewals = tickets.iter().map(|ticket| Renewal { ticket, lease });
        let renewals: Vec<_> = renewals.collect();
        self.run(&self.servers.dialer.scripts.renew, &renewals)
            .await
    }

    async fn complete(
        &self,
        tickets: &[Ticket],
        retention: Duration,
    ) -> Vec<Result<Ownership, StoreError>> {
        let endings = tickets.iter().map(|ticket| Ending {
            ticket,
            cause: Cause::Completed,
            retention,
        });
        let endings: Vec<_> = endings.collect();
        self.run(&self.servers.dialer.scripts.end, &endings).await
    }

    async fn release(
        &self,
        tickets: &[(Ticket, ReleaseKind)],
        retention: Duration,
    ) -> Vec<Result<Ownership, StoreError>> {
        let endings = tickets.iter().map(|(ticket, kind)| Ending {
            ticket,
            cause: Cause::Released(*kind),
            retention,
        });
        let endings: Vec<_> = endings.collect();
        self.run(&self.servers.dialer.scripts.end, &endings).await
    }

    async fn forget(&self, keys: &[IdempotencyKey]) -> Vec<Result<(), StoreError>> {
        let calls = keys.iter().map(|key| {
            let key = self.name(key);
            let mut command = redis::cmd("DEL");
            command.arg(&key);
            Call {
                slot: self.servers.slot(&key),
                command,
            }
        });
        let answers = self.servers.ask(calls.collect()).await;
        let is_number = |_: &_, answer: &Value| matches!(answer, Value::Int(_)).then_some(());
        let keys = keys.iter().map(std::slice::from_ref);
        keys.zip(answers)
            .flat_map(|(key, answers)| read_all(key, answers, is_number))
            .collect()
    }
}

impl From<RedisStore> for StoreHandle {
    fn from(store: RedisStore) -> Self {
        Arc::new(store)
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("config", &self.servers.dialer.config)
            .finish_non_exhaustive()
    }
}
