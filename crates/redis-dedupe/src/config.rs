//! How the store reaches its Redis.

use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use backstop_core::{ConfigError, StoreError, StoreErrorKind};

use crate::address::Address;
use crate::store::RedisStore;

/// How the servers stand to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Deployment {
    /// One server.
    Single,
    /// A Redis Cluster; the addresses are some of its nodes.
    Cluster,
    /// The master that the sentinels at the addresses name.
    Sentinel { service: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Tls,
}

/// Who logs in.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) username: Option<String>,
    pub(crate) password: String,
}

/// Without the password.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Whose certificates are trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Authorities {
    /// Those that the machine trusts.
    Machine,
    /// Those in a file of PEM, read at the start.
    File(PathBuf),
}

/// How many replicas have to have a write before it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplicaWait {
    pub(crate) replicas: NonZeroU32,
    pub(crate) timeout: Duration,
}

/// The settings of a [`RedisStore`].
///
/// A URL says where the servers are:
///
/// - `redis://[[user]:password@]host[:port][/database]`: one server
/// - `redis+cluster://…@host[:port],host[:port],…`: a Cluster, by some of its nodes
/// - `redis+sentinel://…@host[:port],host[:port],…/service[/database]`: the master that sentinels
///   name; their port is 26379 by default. The login is the master's;
///   [`sentinel_login`](Self::sentinel_login) gives the sentinels'.
///
/// `rediss://`, `rediss+cluster://` and `rediss+sentinel://` speak TLS to all of them, and
/// `?ca_file=path` names a file of authorities (PEM) to trust instead of the machine's. Special
/// characters in user, password, service and path are percent-encoded.
///
/// ```
/// use std::time::Duration;
/// use backstop_redis_dedupe::RedisStoreConfig;
///
/// let config = RedisStoreConfig::from_url("redis+sentinel://s1,s2,s3/orders/0")?
///     .prefix("shop")
///     .response_timeout(Duration::from_secs(1));
/// # Ok::<(), backstop_core::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct RedisStoreConfig {
    pub(crate) deployment: Deployment,
    pub(crate) transport: Transport,
    pub(crate) addresses: Vec<Address>,
    pub(crate) login: Option<Login>,
    pub(crate) sentinel_login: Option<Login>,
    pub(crate) database: u32,
    pub(crate) authorities: Authorities,
    pub(crate) prefix: String,
    pub(crate) response_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) replica_wait: Option<ReplicaWait>,
}

impl RedisStoreConfig {
    /// Reads a URL.
    ///
    /// # Errors
    ///
    /// Refuses a URL of another form; the error shows no password.
    pub fn from_url(url: &str) -> Result<Self, ConfigError> {
        crate::url::parse(url)
    }

    pub(crate) fn new(deployment: Deployment, addresses: Vec<Address>) -> Self {
        Self {
            deployment,
            transport: Transport::Tcp,
            addresses,
            login: None,
            sentinel_login: None,
            database: 0,
            authorities: Authorities::Machine,
            prefix: "backstop".to_owned(),
            response_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(2),
            replica_wait: None,
        }
    }

    /// Begins every key with this text and a colon; default `backstop`. Stores that share a Redis
    /// and are not to share records have different ones.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Waits this long for an answer, reconnects included, before a call is an error; default 2 s,
    /// from 10 ms to 60 s.
    ///
    /// A call that timed out has to be asked again, and costs the connection, for nothing else tells
    /// a server that is gone from one that is late. The 500 ms that clients of Redis take for granted
    /// are soon over while a server forks to save, or a replica takes over. The longest sensible
    /// value is a third of the claim's lease: a renewal must have time for a second try.
    pub const fn response_timeout(mut self, timeout: Duration) -> Self {
        self.response_timeout = timeout;
        self
    }

    /// Gives up an attempt to connect, greeting included, after this long, and tries again later;
    /// default 2 s, from 10 ms to 60 s.
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Logs in with this name and password, in place of the URL's. Without a name it is the user
    /// `default`.
    pub fn login(mut self, username: Option<&str>, password: impl Into<String>) -> Self {
        let username = username.map(str::to_owned);
        let password = password.into();
        self.login = Some(Login { username, password });
        self
    }

    /// Logs in to the sentinels with this name and password; by default there is no login there.
    pub fn sentinel_login(mut self, username: Option<&str>, password: impl Into<String>) -> Self {
        let username = username.map(str::to_owned);
        let password = password.into();
        self.sentinel_login = Some(Login { username, password });
        self
    }

    /// Trusts the authorities in this file (PEM) instead of the machine's. It is read once, when the
    /// store is made.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.authorities = Authorities::File(path.into());
        self
    }

    /// Counts a claim, renewal, completion or release only when this many replicas have it too, and
    /// otherwise answers a transient error after `timeout`, which has to be shorter than the response
    /// timeout.
    ///
    /// It closes most of the window in which a failover loses what a master alone had acknowledged: a
    /// promoted replica has what was counted, if it is one of those that answered. It is not
    /// consensus: nothing makes Sentinel or Cluster promote one of those, and an error does not undo
    /// the write. Have at least as many replicas as `replicas`, and name all of them where each may be
    /// promoted. It costs one `WAIT` a batch, on connections of its own.
    pub const fn wait_for_replicas(mut self, replicas: NonZeroU32, timeout: Duration) -> Self {
        self.replica_wait = Some(ReplicaWait { replicas, timeout });
        self
    }

    /// Makes the store and waits until it has reached Redis.
    ///
    /// # Errors
    ///
    /// A setting out of range; a server that cannot be reached, that refuses the login, or that is
    /// not what the URL says.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: a dropped call leaves nothing behind.
    pub async fn connect(self) -> Result<RedisStore, StoreError> {
        let store = self.open().map_err(|error| {
            StoreError::new(
                StoreErrorKind::Configuration,
                "the store's settings are refused",
            )
            .with_source(error)
        })?;
        store.ready().await?;
        Ok(store)
    }

    /// Makes the store, which connects at its first call, and again whenever it has to: a consumer
    /// can start before its Redis does.
    ///
    /// # Errors
    ///
    /// A setting out of range, or a file of authorities that cannot be read.
    pub fn open(self) -> Result<RedisStore, ConfigError> {
        let range = Duration::from_millis(10)..=Duration::from_mins(1);
        for (setting, value) in [
            ("response_timeout", self.response_timeout),
            ("connect_timeout", self.connect_timeout),
        ] {
            if !range.contains(&value) {
                return Err(ConfigError::new(
                    setting,
                    format!("{value:?}"),
                    "10 ms to 60 s",
                ));
            }
        }
        if let Some(ReplicaWait { timeout, .. }) = self.replica_wait
            && !(Duration::from_millis(1)..self.response_timeout).contains(&timeout)
        {
            let allowed = format!(
                "at least 1 ms, and shorter than response_timeout, {:?}",
                self.response_timeout
            );
            let value = format!("{timeout:?}");
            return Err(ConfigError::new("wait_for_replicas", value, allowed));
        }
        RedisStore::new(self)
    }
}

impl FromStr for RedisStoreConfig {
    type Err = ConfigError;

    fn from_str(url: &str) -> Result<Self, ConfigError> {
        Self::from_url(url)
    }
}
