//! Which queue, on which server, and how to reach it.

use std::fmt;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backstop_core::ConfigError;
use lapin::tcp::OwnedTLSConfig;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use url::Url;

/// Who sees to it that queues and exchanges exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// Somebody else: it is looked at, and what is unsafe is reported.
    Checked,
    /// This program declares the queue, its dead-letter queue and its partitions where they are
    /// missing. What exists with other arguments is never changed.
    Declared,
}

/// A queue on a RabbitMQ server.
///
/// Read from a URL, `amqp://user:password@host:5672/vhost?queue=orders`; the setters change the rest.
/// Parameters of the URL: `queue`, `declare`, `partitions`, `dead_letter_queue`, `delivery_limit`,
/// `heartbeat` (seconds), `connect_timeout` (seconds), `confirm_timeout` (seconds), `max_body`
/// (bytes), `connection_name`, `ca_file`.
#[derive(Clone)]
pub struct RabbitMqConfig {
    pub(crate) uri: AMQPUri,
    pub(crate) queue: Arc<str>,
    pub(crate) dead_letter_queue: Arc<str>,
    pub(crate) topology: Topology,
    pub(crate) partitions: Option<NonZeroU16>,
    pub(crate) delivery_limit: u32,
    pub(crate) connect_timeout: Duration,
    pub(crate) confirm_timeout: Duration,
    pub(crate) max_body: Option<usize>,
    pub(crate) connection_name: String,
    pub(crate) ca_file: Option<PathBuf>,
}

const SCHEMES: &str =
    "amqp:// or amqps://, as in amqp://user:password@host:5672/vhost?queue=orders";
const PARAMETERS: &str = "one of queue, declare, partitions, dead_letter_queue, delivery_limit, heartbeat, \
     connect_timeout, confirm_timeout, max_body, connection_name, ca_file";

impl RabbitMqConfig {
    /// The native cap on failed deliveries of a queue that is declared here.
    ///
    /// It has to stay above every consumer's `max_attempts`. RabbitMQ before 4.3 also counts what is
    /// given back, which is why it is generous.
    pub const DEFAULT_DELIVERY_LIMIT: u32 = 200;

    /// The most partitions of a queue: each is a quorum queue of its own.
    pub const MAX_PARTITIONS: u16 = 256;

    /// Reads a URL.
    ///
    /// The path names the virtual host; `/` and no path at all are the default one. Percent-encode
    /// what is special in user, password and virtual host (`%2F` is a slash).
    ///
    /// # Errors
    ///
    /// Names the part of the URL that makes no sense, and what is allowed; never the password.
    pub fn from_url(text: &str) -> Result<Self, ConfigError> {
        let url = Url::parse(text).map_err(|error| {
            ConfigError::new("url", format!("what was given ({error})"), SCHEMES)
        })?;
        let scheme = match url.scheme() {
            "amqp" => AMQPScheme::AMQP,
            "amqps" => AMQPScheme::AMQPS,
            other => return Err(ConfigError::new("url", format!("{other}://…"), SCHEMES)),
        };
        let mut config = Self::new(scheme, &url)?;
        for (name, value) in url.query_pairs() {
            config = config.with_parameter(&name, &value)?;
        }
        if config.queue.is_empty() {
            let allowed = "the name of a queue, as in …?queue=orders";
            return Err(ConfigError::new("queue", "absent", allowed));
        }
        if config.dead_letter_queue.is_empty() {
            config.dead_letter_queue = format!("{}.dead-letters", config.queue).into();
        }
        Ok(config)
    }

    fn new(scheme: AMQPScheme, url: &Url) -> Result<Self, ConfigError> {
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| ConfigError::new("url", "without a host", SCHEMES))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let user = match url.username() {
            "" => "guest".to_owned(),
            user => decode("user", user)?,
        };
        let password = url.password().unwrap_or("guest");
        let password = decode("password", password)?;
        let vhost = match url.path() {
            "" | "/" => "/".to_owned(),
            path => virtual_host(decode("virtual host", &path[1..])?)?,
        };
        let port = if scheme == AMQPScheme::AMQPS {
            5671
        } else {
            5672
        };
        Ok(Self {
            uri: AMQPUri {
                authority: AMQPAuthority {
                    userinfo: AMQPUserInfo {
                        username: user,
                        password,
                    },
                    host: host.to_owned(),
                    port: url.port().unwrap_or(port),
                },
                scheme,
                vhost,
                query: AMQPQueryString {
                    heartbeat: Some(15),
                    ..AMQPQueryString::default()
                },
            },
            queue: Arc::default(),
            dead_letter_queue: Arc::default(),
            topology: Topology::Checked,
            partitions: None,
            delivery_limit: Self::DEFAULT_DELIVERY_LIMIT,
            connect_timeout: Duration::from_secs(10),
            confirm_timeout: Duration::from_secs(30),
            max_body: None,
            connection_name: "backstop".to_owned(),
            ca_file: None,
        })
    }

    fn with_parameter(mut self, name: &str, value: &str) -> Result<Self, ConfigError> {
        match name {
            "queue" => self.queue = queue_name("queue", value)?,
            "dead_letter_queue" => self.dead_letter_queue = queue_name("dead_letter_queue", value)?,
            "declare" => {
                self.topology = match value {
                    "true" => Topology::Declared,
                    "false" => Topology::Checked,
                    _ => return Err(ConfigError::new("declare", value, "true or false")),
                }
            }
            "partitions" => {
                let count = number("partitions", value, 1, u64::from(Self::MAX_PARTITIONS))?;
                self.partitions = u16::try_from(count).ok().and_then(NonZeroU16::new);
            }
            "delivery_limit" => {
                let limit = number("delivery_limit", value, 1, 1_000_000)?;
                self.delivery_limit = u32::try_from(limit).unwrap_or(u32::MAX);
            }
            "heartbeat" => {
                let seconds = number("heartbeat", value, 1, 3600)?;
                self.uri.query.heartbeat = u16::try_from(seconds).ok();
            }
            "connect_timeout" => self.connect_timeout = seconds("connect_timeout", value)?,
            "confirm_timeout" => self.confirm_timeout = seconds("confirm_timeout", value)?,
            "max_body" => {
                let bytes = number("max_body", value, 1, 512 * 1024 * 1024)?;
                self.max_body = usize::try_from(bytes).ok();
            }
            "connection_name" => value.clone_into(&mut self.connection_name),
            "ca_file" => self.ca_file = Some(PathBuf::from(value)),
            other => {
                return Err(ConfigError::new(
                    "url",
                    format!("with the parameter {other:?}"),
                    PARAMETERS,
                ));
            }
        }
        Ok(self)
    }

    /// Declares the queues where they are missing, or leaves that to somebody else. Default: checked.
    #[must_use]
    pub const fn topology(mut self, topology: Topology) -> Self {
        self.topology = topology;
        self
    }

    /// Shows this name on the management pages. Default: `backstop`.
    #[must_use]
    pub fn connection_name(mut self, name: impl Into<String>) -> Self {
        self.connection_name = name.into();
        self
    }

    /// The queue's name.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// The dead-letter queue's name.
    pub fn dead_letter_queue(&self) -> &str {
        &self.dead_letter_queue
    }

    /// How many partitions the queue has, if it keeps order.
    pub const fn partitions(&self) -> Option<NonZeroU16> {
        self.partitions
    }

    /// The queues that messages wait in: one, or one a partition.
    pub(crate) fn source_queues(&self) -> Vec<String> {
        match self.partitions {
            None => vec![self.queue.to_string()],
            Some(count) => (0..count.get())
                .map(|number| self.partition_queue(number))
                .collect(),
        }
    }

    pub(crate) fn partition_queue(&self, number: u16) -> String {
        format!("{}.partition-{number}", self.queue)
    }

    /// The exchange that hands a message to the partition of its routing key.
    pub(crate) fn exchange(&self) -> String {
        format!("{}.by-key", self.queue)
    }

    pub(crate) fn tls(&self) -> Result<OwnedTLSConfig, ConfigError> {
        let Some(path) = &self.ca_file else {
            return Ok(OwnedTLSConfig::default());
        };
        let chain = std::fs::read_to_string(path).map_err(|error| {
            let value = format!("{} ({error})", path.display());
            ConfigError::new(
                "ca_file",
                value,
                "a readable file of certificates in PEM form",
            )
        })?;
        Ok(OwnedTLSConfig {
            identity: None,
            cert_chain: Some(chain),
        })
    }
}

/// Shows where it connects, never the password.
impl fmt::Debug for RabbitMqConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMqConfig")
            .field("host", &self.uri.authority.host)
            .field("port", &self.uri.authority.port)
            .field("vhost", &self.uri.vhost)
            .field("user", &self.uri.authority.userinfo.username)
            .field("queue", &self.queue)
            .field("dead_letter_queue", &self.dead_letter_queue)
            .field("topology", &self.topology)
            .field("partitions", &self.partitions)
            .finish_non_exhaustive()
    }
}

fn decode(part: &'static str, text: &str) -> Result<String, ConfigError> {
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    let decoded =
        decoded.map_err(|_| ConfigError::new(part, "what was given", "percent-encoded UTF-8"))?;
    Ok(decoded.into_owned())
}

fn virtual_host(name: String) -> Result<String, ConfigError> {
    const LONGEST: usize = 255;
    if name.len() > LONGEST {
        let value = format!("a name of {} bytes", name.len());
        let allowed = format!("at most {LONGEST} bytes");
        return Err(ConfigError::new("virtual host", value, allowed));
    }
    Ok(name)
}

/// AMQP's names are short strings; ours is the longest that leaves room for what is added to it.
fn queue_name(setting: &'static str, value: &str) -> Result<Arc<str>, ConfigError> {
    const LONGEST: usize = 200;
    if value.is_empty() || value.len() > LONGEST || value.starts_with("amq.") {
        let allowed = format!("1 to {LONGEST} bytes that do not begin with \"amq.\"");
        return Err(ConfigError::new(setting, format!("{value:?}"), allowed));
    }
    Ok(value.into())
}

fn number(setting: &'static str, value: &str, least: u64, most: u64) -> Result<u64, ConfigError> {
    let parsed = value
        .parse()
        .ok()
        .filter(|number| (least..=most).contains(number));
    parsed.ok_or_else(|| ConfigError::new(setting, value, format!("{least} to {most}")))
}

fn seconds(setting: &'static str, value: &str) -> Result<Duration, ConfigError> {
    number(setting, value, 1, 3600)
        .map(Duration::from_secs)
        .map_err(|_| ConfigError::new(setting, value, "1 to 3600 seconds"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_everything() {
        let url =
            "amqps://me:p%40ss@rabbit.example/prod%2Feu?queue=orders&partitions=8&declare=true";
        let config = RabbitMqConfig::from_url(url).unwrap();
        assert_eq!(config.uri.authority.port, 5671);
        assert_eq!(config.uri.authority.userinfo.password, "p@ss");
        assert_eq!(config.uri.vhost, "prod/eu");
        assert_eq!(config.queue(), "orders");
        assert_eq!(config.dead_letter_queue(), "orders.dead-letters");
        assert_eq!(config.source_queues()[7], "orders.partition-7");
        assert_eq!(config.topology, Topology::Declared);
        assert!(!format!("{config:?}").contains("p@ss"));
    }

    #[test]
    fn no_path_and_a_bare_slash_are_the_default_virtual_host() {
        for url in [
            "amqp://h?queue=q",
            "amqp://h/?queue=q",
            "amqp://[::1]:1/?queue=q",
        ] {
            assert_eq!(
                RabbitMqConfig::from_url(url).unwrap().uri.vhost,
                "/",
                "{url}"
            );
        }
    }

    #[test]
    fn nonsense_is_refused_with_its_name_and_what_is_allowed() {
        for (url, told) in [
            (
                "http://h?queue=q",
                "url cannot be http://…: amqp:// or amqps://",
            ),
            ("amqp://h", "queue cannot be absent: the name of a queue"),
            (
                "amqp://h?queue=q&partitions=0",
                "partitions cannot be 0: 1 to 256",
            ),
            (
                "amqp://h?queue=q&declare=yes",
                "declare cannot be yes: true or false",
            ),
            (
                "amqp://h?queue=q&prefetch=3",
                "with the parameter \"prefetch\": one of queue",
            ),
            ("amqp://h?queue=amq.q", "queue cannot be \"amq.q\""),
            (
                &format!("amqp://h/{}?queue=q", "v".repeat(256)),
                "virtual host cannot be a name of 256 bytes: at most 255 bytes",
            ),
            (
                "amqp://h?queue=q&heartbeat=0",
                "heartbeat cannot be 0: 1 to 3600",
            ),
            ("no url", "url cannot be what was given"),
        ] {
            let error = RabbitMqConfig::from_url(url).unwrap_err().to_string();
            assert!(error.contains(told), "{url}: {error}");
        }
    }

    #[test]
    fn an_error_never_shows_the_password() {
        let error = RabbitMqConfig::from_url("amqp://u:hunter2@h?queue=q&x=1").unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}
