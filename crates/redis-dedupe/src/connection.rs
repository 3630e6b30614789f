//! One connection: dialled, greeted, and closed when nobody holds it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstop_core::{ConfigError, StoreErrorKind};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Pipeline, RedisConnectionInfo, Value};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::address::Address;
use crate::config::{Authorities, Deployment, Login, RedisStoreConfig, Transport};
use crate::error::{Fault, Remedy};
use crate::scripts::Scripts;
use crate::sentinel;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection that many calls share.
pub(crate) struct Connection {
    pub(crate) address: Address,
    shared: MultiplexedConnection,
    driver: AbortHandle,
    lacks_scripts: AtomicBool,
}

/// A half-open connection would wait for its answers for ever.
impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// Sends commands in one piece, and gives an answer to each; an answer may be a server's error.
    pub(crate) async fn ask(&self, commands: &Pipeline) -> Result<Vec<Value>, Fault> {
        let count = commands.len();
        let mut shared = self.shared.clone();
        let answers = shared
            .send_packed_commands(commands, 0, count)
            .await
            .map_err(|error| Fault::broken(&self.address, error))?;
        if answers.len() == count {
            Ok(answers)
        } else {
            Err(Fault::senseless())
        }
    }

    /// Notes that the server does not know the scripts any more.
    pub(crate) fn miss_scripts(&self) {
        self.lacks_scripts.store(true, Ordering::Relaxed);
    }

    /// Whether the next commands have to bring the scripts with them.
    pub(crate) fn takes_scripts(&self) -> bool {
        self.lacks_scripts.load(Ordering::Relaxed)
            && self.lacks_scripts.swap(false, Ordering::Relaxed)
    }
}

/// What an answer has to be that is no server's error.
pub(crate) fn no_error(address: &Address, answer: Value) -> Result<Value, Fault> {
    match answer {
        Value::ServerError(error) => Err(Fault::refused(address, &error)),
        answer => Ok(answer),
    }
}

/// Makes connections.
pub(crate) struct Dialer {
    pub(crate) config: RedisStoreConfig,
    pub(crate) scripts: Scripts,
    tls: Option<TlsConnector>,
}

impl Dialer {
    pub(crate) fn new(config: RedisStoreConfig) -> Result<Self, ConfigError> {
        let tls = match config.transport {
            Transport::Tcp => None,
            Transport::Tls => Some(tls_connector(&config.authorities)?),
        };
        Ok(Self {
            config,
            scripts: Scripts::new(),
            tls,
        })
    }

    /// Connects to a node, or to the master that the sentinels name if no node is given, and makes it
    /// ready for the store's calls.
    pub(crate) async fn dial(&self, node: Option<&Address>) -> Result<Connection, Fault> {
        let dialling = async {
            let connection = self.reach(node).await?;
            self.prepare(connection).await
        };
        let limit = self.config.connect_timeout;
        timeout(limit, dialling)
            .await
            .unwrap_or_else(|_| Err(self.unreachable(node, limit)))
    }

    /// Connects to a node, or to the master that the sentinels name.
    pub(crate) async fn reach(&self, node: Option<&Address>) -> Result<Connection, Fault> {
        let login = self.config.login.as_ref();
        if let (None, Deployment::Sentinel { service }) = (node, &self.config.deployment) {
            let master = sentinel::master(self, service).await?;
            let connection = self.open(&master, login).await?;
            sentinel::must_be_master(&connection).await?;
            return Ok(connection);
        }
        let address = node.or(self.config.addresses.first());
        self.open(address.ok_or_else(Fault::senseless)?, login)
            .await
    }

    /// Connects and logs in.
    pub(crate) async fn open(
        &self,
        address: &Address,
        login: Option<&Login>,
    ) -> Result<Connection, Fault> {
        let stream = self
            .connect(address)
            .await
            .map_err(|error| cannot_connect(address, error))?;
        let nothing_to_say = RedisConnectionInfo::default().set_skip_set_lib_name();
        // Time is kept where a call is made: this crate's limit covers reconnecting too.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let (shared, driver) =
            MultiplexedConnection::new_with_config(&nothing_to_say, stream, config)
                .await
                .map_err(|error| Fault::broken(address, error))?;
        let connection = Connection {
            address: address.clone(),
            shared,
            driver: tokio::spawn(driver).abort_handle(),
            lacks_scripts: AtomicBool::new(false),
        };
        if let Some(Login { username, password }) = login {
            let mut greeting = Pipeline::new();
            greeting.cmd("AUTH");
            if let Some(username) = username {
                greeting.arg(username);
            }
            greeting.arg(password);
            must(&connection, &greeting).await?;
        }
        Ok(connection)
    }

    /// Chooses the database and brings the scripts, which also shows early whether the login is
    /// enough and the server ready.
    async fn prepare(&self, connection: Connection) -> Result<Connection, Fault> {
        let mut greeting = Pipeline::new();
        if self.config.database != 0 {
            greeting.cmd("SELECT").arg(self.config.database);
        }
        self.scripts.load(&mut greeting);
        must(&connection, &greeting).await?;
        Ok(connection)
    }

    async fn connect(&self, address: &Address) -> io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else {
            return Ok(Box::new(stream));
        };
        let name = ServerName::try_from(address.host.clone())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(Box::new(tls.connect(name, stream).await?))
    }

    /// What stands at the other end, for a message.
    pub(crate) fn target(&self, node: Option<&Address>) -> String {
        match (node, &self.config.deployment) {
            (Some(node), _) => format!("redis at {node}"),
            (None, Deployment::Single) => format!("redis at {}", self.addresses()),
            (None, Deployment::Cluster) => format!("the Redis Cluster of {}", self.addresses()),
            (None, Deployment::Sentinel { service }) => {
                let sentinels = self.addresses();
                format!("the Redis master `{service}` of the sentinels at {sentinels}")
            }
        }
    }

    fn addresses(&self) -> String {
        let addresses = self.config.addresses.iter().map(ToString::to_string);
        addresses.collect::<Vec<_>>().join(", ")
    }

    fn unreachable(&self, node: Option<&Address>, limit: Duration) -> Fault {
        let text = format!("{} cannot be reached within {limit:?}", self.target(node));
        Fault::new(StoreErrorKind::Unreachable, Remedy::AskAgain, text)
    }
}

/// Sends commands none of which may fail.
async fn must(connection: &Connection, commands: &Pipeline) -> Result<(), Fault> {
    for answer in connection.ask(commands).await? {
        no_error(&connection.address, answer)?;
    }
    Ok(())
}

fn cannot_connect(address: &Address, error: io::Error) -> Fault {
    let certificate = error
        .get_ref()
        .and_then(|source| source.downcast_ref::<rustls::Error>())
        .filter(|error| matches!(error, rustls::Error::InvalidCertificate(_)));
    let (kind, text) = if certificate.is_some() {
        let text = format!(
            "the certificate of redis at {address} is not trusted: name the file of its authority \
             by ca_file, and a host that the certificate is for"
        );
        (StoreErrorKind::Configuration, text)
    } else {
        let text = format!("redis at {address} cannot be reached");
        (StoreErrorKind::Unreachable, text)
    };
    Fault::new(kind, Remedy::AskAgain, text).because(error)
}

fn tls_connector(authorities: &Authorities) -> Result<TlsConnector, ConfigError> {
    let mut roots = RootCertStore::empty();
    match authorities {
        Authorities::Machine => {
            // One that cannot be read may be one that is not needed.
            let _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                let allowed = "a file of authorities, for this machine has none that can be read";
                return Err(ConfigError::new("ca_file", "absent", allowed));
            }
        }
        Authorities::File(path) => {
            let refuse = |reason: String| {
                let allowed = format!("a file of certificates in PEM ({reason})");
                ConfigError::new("ca_file", format!("`{}`", path.display()), allowed)
            };
            let pem = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|error| refuse(error.to_string()))?;
                roots
                    .add(certificate)
                    .map_err(|error| refuse(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(refuse("there is none in it".to_owned()));
            }
        }
    }
    // Named, because a process may hold two providers, and then rustls has no default.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ConfigError::new("TLS", error, "a version that this build speaks"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
