//! The store: requests into commands, answers into claims.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backstop_core::{
    Claim, ClaimRequest, ConfigError, Finding, IdempotencyKey, IdempotencyStore, Ownership,
    ReleaseKind, StoreError, StoreHandle, Survival, Ticket,
};
use redis::{Cmd, Value};
use tokio::time::Instant;

use crate::batch::Call;
use crate::config::RedisStoreConfig;
use crate::connection::Dialer;
use crate::error::Fault;
use crate::inspect;
use crate::record;
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

    /// Looks at the servers' set-up for what endangers the records: a version that is too old, keys
    /// that may be evicted, too few replicas.
    ///
    /// # Errors
    ///
    /// When a server cannot be asked.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: it changes nothing.
    pub async fn inspect(&self) -> Result<Vec<Finding>, StoreError> {
        Ok(inspect::inspect(&self.servers).await?)
    }

    /// Asks for one answer to each request.
    async fn run<Q: Sync, A>(
        &self,
        requests: &[Q],
        key: impl Fn(&Q) -> &IdempotencyKey,
        command: impl Fn(&Q, &[u8]) -> Cmd,
        read: impl Fn(&Q, &Value) -> Option<A>,
    ) -> Vec<Result<A, StoreError>> {
        let prefix = &self.servers.dialer.config.prefix;
        let calls = requests.iter().map(|request| {
            let key = record::name(prefix, key(request));
            Call {
                slot: self.servers.slot(&key),
                command: command(request, &key),
            }
        });
        let answers = self.servers.ask(calls.collect()).await;
        let read = |(answer, request): (Result<Value, Fault>, &Q)| {
            answer
                .and_then(|value| read(request, &value).ok_or_else(Fault::senseless))
                .map_err(StoreError::from)
        };
        answers.into_iter().zip(requests).map(read).collect()
    }

    fn end(&self, ticket: &Ticket, key: &[u8], state: &str, retention: Duration) -> Cmd {
        let mut command = self.servers.dialer.scripts.end.on(key);
        command
            .arg(record::holder(ticket))
            .arg(state)
            .arg(record::millis(retention));
        command
    }
}

#[async_trait]
impl IdempotencyStore for RedisStore {
    fn survival(&self) -> Survival {
        Survival::Durable
    }

    async fn claim(&self, requests: &[ClaimRequest]) -> Vec<Result<Claim, StoreError>> {
        let script = &self.servers.dialer.scripts.claim;
        let command = |request: &ClaimRequest, key: &[u8]| {
            let mut command = script.on(key);
            command
                .arg(record::claimed(request))
                .arg(record::millis(request.lease))
                .arg(record::millis(request.retention.max(request.lease)));
            command
        };
        self.run(
            requests,
            |request| &request.key,
            command,
            record::read_claim,
        )
        .await
    }

    async fn renew(
        &self,
        tickets: &[Ticket],
        lease: Duration,
    ) -> Vec<Result<Ownership, StoreError>> {
        let script = &self.servers.dialer.scripts.renew;
        let command = |ticket: &Ticket, key: &[u8]| {
            let mut command = script.on(key);
            command
                .arg(record::holder(ticket))
                .arg(record::millis(lease));
            command
        };
        self.run(
            tickets,
            |ticket| &ticket.key,
            command,
            |_, answer| record::read_ownership(answer),
        )
        .await
    }

    async fn complete(
        &self,
        tickets: &[Ticket],
        retention: Duration,
    ) -> Vec<Result<Ownership, StoreError>> {
        let command = |ticket: &Ticket, key: &[u8]| self.end(ticket, key, "C", retention);
        self.run(
            tickets,
            |ticket| &ticket.key,
            command,
            |_, answer| record::read_ownership(answer),
        )
        .await
    }

    async fn release(
        &self,
        tickets: &[(Ticket, ReleaseKind)],
        retention: Duration,
    ) -> Vec<Result<Ownership, StoreError>> {
        let command = |(ticket, kind): &(Ticket, ReleaseKind), key: &[u8]| {
            let state = match kind {
                ReleaseKind::Failed => "F",
                ReleaseKind::Unused => "U",
                ReleaseKind::DeadLettered => "D",
            };
            self.end(ticket, key, state, retention)
        };
        self.run(
            tickets,
            |(ticket, _)| &ticket.key,
            command,
            |_, answer| record::read_ownership(answer),
        )
        .await
    }

    async fn forget(&self, keys: &[IdempotencyKey]) -> Vec<Result<(), StoreError>> {
        let command = |_: &IdempotencyKey, key: &[u8]| {
            let mut command = redis::cmd("DEL");
            command.arg(key);
            command
        };
        let read = |_: &IdempotencyKey, value: &Value| matches!(value, Value::Int(_)).then_some(());
        self.run(keys, |key| key, command, read).await
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
