//! The connection: made when it is needed, made anew when it was lost, never hammered.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::{Attempt, Backoff, BrokerError, BrokerErrorKind, Jitter};
use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, Connection, ConnectionProperties};
use tokio::sync::{Mutex, OnceCell};
use tokio::time::Instant;

use crate::config::RabbitMqConfig;
use crate::error::{again, closed, failed, misconfigured};
use crate::topology::{self, Hashing};
use crate::version::{self, ServerVersion};

/// A connection that heals when it is asked for.
pub(crate) struct Link {
    pub(crate) config: RabbitMqConfig,
    purpose: Purpose,
    state: Mutex<State>,
    /// What the server last said.
    version: parking_lot::Mutex<Option<ServerVersion>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Consuming,
    /// Nothing that is done here differs by the server's version, so it is not asked.
    Publishing,
}

enum State {
    /// Not connected, after so many failures; the next try is due at `not_before`.
    Down {
        failures: u32,
        rest: Option<(Instant, BrokerError)>,
    },
    Up(Arc<Live>),
    Closed,
}

/// A connection while it lasts.
pub(crate) struct Live {
    pub(crate) version: ServerVersion,
    /// Who finds a key's partition, once it was looked at.
    hashing: OnceCell<Hashing>,
    connection: Connection,
}

impl Link {
    pub(crate) fn new(config: RabbitMqConfig) -> Self {
        Self {
            config,
            purpose: Purpose::Consuming,
            state: Mutex::new(State::Down {
                failures: 0,
                rest: None,
            }),
            version: parking_lot::Mutex::default(),
        }
    }

    /// A connection to the same server for publishing.
    ///
    /// A server that is short of memory or disk stops reading from connections that publish
    /// (<https://www.rabbitmq.com/docs/connections#flow-control>): acknowledgements must not wait there
    /// too, or nothing would ever relieve it.
    pub(crate) fn for_publishing(&self) -> Self {
        let mut config = self.config.clone();
        config.connection_name.push_str(" (publishing)");
        Self {
            purpose: Purpose::Publishing,
            ..Self::new(config)
        }
    }

    /// The server's version when it was last connected to.
    pub(crate) fn version(&self) -> Option<ServerVersion> {
        *self.version.lock()
    }

    /// Asks with every connection: the server may have been upgraded since the last. One that does
    /// not tell is what it was, or else the oldest.
    async fn ask_version(&self) -> ServerVersion {
        let known = self.version();
        if self.purpose == Purpose::Publishing {
            return known.unwrap_or(ServerVersion::OLDEST);
        }
        let version = version::ask(&self.config).await.or(known);
        let version = version.unwrap_or_else(|| {
            let version = ServerVersion::OLDEST;
            tracing::warn!("RabbitMQ did not tell its version; it is treated as {version}");
            version
        });
        *self.version.lock() = Some(version);
        version
    }

    /// The connection; a new one if there is none.
    ///
    /// After a failure the next try waits for a pause that grows, with jitter, up to 10 s; whoever
    /// asks meanwhile gets the last error at once.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: a dropped call leaves no half-made connection behind.
    pub(crate) async fn live(&self) -> Result<Arc<Live>, BrokerError> {
        // Held while connecting: whoever else asks waits for the same connection.
        let mut state = self.state.lock().await;
        let failures = match &*state {
            State::Up(live) if live.connection.status().connected() => return Ok(Arc::clone(live)),
            State::Up(_) => 0,
            State::Closed => return Err(closed()),
            State::Down {
                rest: Some((not_before, error)),
                ..
            } if Instant::now() < *not_before => {
                return Err(again(error));
            }
            State::Down { failures, .. } => *failures,
        };
        match self.connect().await {
            Ok(live) => {
                let live = Arc::new(live);
                *state = State::Up(Arc::clone(&live));
                Ok(live)
            }
            Err(error) => {
                let until = Instant::now() + pause(failures);
                let rest = Some((until, again(&error)));
                *state = State::Down {
                    failures: failures.saturating_add(1),
                    rest,
                };
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<Live, BrokerError> {
        let limit = self.config.connect_timeout;
        let connecting = async {
            let connection = self.open().await?;
            Ok((connection, self.ask_version().await))
        };
        let connected = tokio::time::timeout(limit, connecting).await;
        let (connection, version) = connected.unwrap_or_else(|_| {
            let text = format!("{} did not answer within {limit:?}", self.address());
            Err(BrokerError::new(BrokerErrorKind::Unreachable, text))
        })?;
        match self.purpose {
            Purpose::Consuming => {
                tracing::info!(address = self.address(), %version, "connected to RabbitMQ");
            }
            Purpose::Publishing => {
                tracing::info!(address = self.address(), "connected to RabbitMQ to publish");
            }
        }
        Ok(Live {
            version,
            hashing: OnceCell::new(),
            connection,
        })
    }

    /// A connection beside the shared one.
    pub(crate) async fn open(&self) -> Result<Connection, BrokerError> {
        let tls = self.config.tls().map_err(|error| misconfigured(&error))?;
        let name = self.config.connection_name.as_str();
        let properties = ConnectionProperties::default()
            .with_connection_name(name.into())
            .with_client_property("product".into(), "backstop".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
        let runtime =
            lapin::runtime::default_runtime().map_err(|error| failed("no runtime", error))?;
        let uri = self.config.uri.clone();
        Connection::connect_uri_with_config(uri, properties, tls, runtime)
            .await
            .map_err(|error| self.not_connected(error))
    }

    fn not_connected(&self, error: lapin::Error) -> BrokerError {
        let (user, vhost) = (
            &self.config.uri.authority.userinfo.username,
            &self.config.uri.vhost,
        );
        let error = failed("", error);
        let address = self.address();
        let told = match error.kind() {
            BrokerErrorKind::AccessDenied => format!(
                "{address} refuses user {user:?} or its access to virtual host {vhost:?}: check user, \
                 password and virtual host of the URL"
            ),
            BrokerErrorKind::Configuration => format!(
                "the TLS handshake with {address} failed: is its certificate signed by a known \
                 authority? ca_file names further ones"
            ),
            _ => format!("{address} cannot be reached"),
        };
        let kind = error.kind();
        let source = std::error::Error::source(&error)
            .map(ToString::to_string)
            .unwrap_or_default();
        BrokerError::new(kind, told).with_source(source)
    }

    fn address(&self) -> String {
        let authority = &self.config.uri.authority;
        format!("{}:{}", authority.host, authority.port)
    }

    /// Ends the connection for good.
    pub(crate) async fn close(&self) {
        let mut state = self.state.lock().await;
        if let State::Up(live) = std::mem::replace(&mut *state, State::Closed) {
            let closing = live.connection.close(200, "closed".into());
            // What the server does not answer in time ends with the process.
            let _ = tokio::time::timeout(Duration::from_secs(5), closing).await;
        }
    }
}

fn pause(failures: u32) -> Duration {
    let pauses = Backoff::new(
        Duration::from_millis(200),
        Duration::from_secs(10),
        Jitter::Equal,
    );
    pauses
        .unwrap_or_default()
        .delay_after(Attempt::after(failures), rand::random())
}

impl Live {
    pub(crate) fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }

    /// Who finds a key's partition: looked at once a connection, as long as which the server keeps its
    /// plugins.
    pub(crate) async fn hashing(&self, config: &RabbitMqConfig) -> Result<Hashing, BrokerError> {
        let look = || topology::hashing(config, self);
        self.hashing.get_or_try_init(look).await.copied()
    }

    /// Whether the server has stopped taking publications, for want of memory or disk.
    pub(crate) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    pub(crate) async fn channel(&self) -> Result<Channel, BrokerError> {
        let channel = self.connection.create_channel().await;
        channel.map_err(|error| failed("no channel can be opened", error))
    }

    pub(crate) async fn confirming_channel(&self) -> Result<Channel, BrokerError> {
        let channel = self.channel().await?;
        let selected = channel
            .confirm_select(ConfirmSelectOptions::default())
            .await;
        selected.map_err(|error| failed("no channel with confirms can be opened", error))?;
        Ok(channel)
    }
}
