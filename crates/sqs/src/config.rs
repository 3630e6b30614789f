//! Which queue, in which account and region, and how to reach it.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use aws_config::SdkConfig;
use backstop_core::ConfigError;
use url::Url;

use crate::host;

/// Who sees to it that the queue and its dead-letter queue exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SqsTopology {
    /// Somebody else: it is looked at, and what is unsafe is reported.
    Checked,
    /// This program creates the queue and its dead-letter queue where they are missing. What exists
    /// with other attributes is never changed.
    Declared,
}

/// The two kinds of queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueKind {
    Standard,
    Fifo,
}

impl QueueKind {
    /// SQS tells a FIFO queue by its name's ending.
    pub(crate) fn of(queue: &str) -> Self {
        if queue.ends_with(FIFO) {
            Self::Fifo
        } else {
            Self::Standard
        }
    }
}

/// Credentials that are handed in instead of looked for.
#[derive(Clone)]
pub(crate) struct StaticCredentials {
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: String,
}

/// A queue on Amazon SQS.
///
/// Read from a URL; the setters change the rest.
///
/// | URL | names |
/// |---|---|
/// | `sqs://sqs.eu-central-1.amazonaws.com/123456789012/orders` | a queue by its own URL, `sqs` for `https` |
/// | `sqs:///orders?region=eu-central-1` | a queue of the credentials' own account |
/// | `sqs:///123456789012/orders` | another account's, in the region of the AWS configuration |
/// | `sqs://localhost:4566/000000000000/orders` | a queue of an emulator: plain HTTP on a loopback host, or with `tls=false` |
///
/// The region to sign for is the parameter `region`, else that of a host of AWS, else that of the AWS
/// configuration (`AWS_REGION`, the profile, and on AWS the instance), also for a host of one's own; where
/// that has none either, a host of one's own is signed for as `us-east-1`, which emulators take.
///
/// Credentials come from the AWS chain (environment, profile, web identity, container, instance), never
/// from the URL. Parameters: `region`, `profile`, `tls`, `declare`, `dead_letter_queue` and
/// `max_receive_count` (what is declared), `lease` (seconds; else the queue's `VisibilityTimeout`),
/// `wait` (seconds of a long poll), `receives` (the most at once), `connect_timeout` and `timeout`
/// (seconds).
#[derive(Clone)]
pub struct SqsConfig {
    pub(crate) endpoint: Option<String>,
    pub(crate) region: Option<String>,
    pub(crate) profile: Option<String>,
    pub(crate) credentials: Option<StaticCredentials>,
    pub(crate) sdk: Option<SdkConfig>,
    pub(crate) account: Option<String>,
    pub(crate) queue: Arc<str>,
    pub(crate) dead_letter_queue: String,
    pub(crate) topology: SqsTopology,
    pub(crate) max_receive_count: u32,
    pub(crate) lease: Option<u32>,
    pub(crate) wait: u32,
    pub(crate) receives: NonZeroUsize,
    pub(crate) connect_timeout: Duration,
    pub(crate) timeout: Duration,
}

const FIFO: &str = ".fifo";
const FORM: &str = "sqs://<host>/<account>/<queue>, the queue's own URL with sqs for https, or \
     sqs:///<queue>?region=<region>";
const PARAMETERS: &str = "one of region, profile, tls, declare, dead_letter_queue, max_receive_count, \
     lease, wait, receives, connect_timeout, timeout";
const MAX_NAME: usize = 80;

impl SqsConfig {
    /// `maxReceiveCount` of a queue that is declared here. It has to stay above every consumer's
    /// `max_attempts`; SQS also counts what is given back, which is why it is generous.
    pub const DEFAULT_MAX_RECEIVE_COUNT: u32 = 200;

    /// The longest that SQS leases a message in all, from its receipt: 12 hours.
    pub const MAX_LEASE: Duration = Duration::from_hours(12);

    /// Reads a URL.
    ///
    /// # Errors
    ///
    /// Names the part of the URL that makes no sense, and what is allowed; never a secret.
    pub fn from_url(text: &str) -> Result<Self, ConfigError> {
        let url = Url::parse(text)
            .map_err(|error| ConfigError::new("url", format!("what was given ({error})"), FORM))?;
        if url.scheme() != "sqs" {
            let given = format!("{}://…", url.scheme());
            return Err(ConfigError::new("url", given, FORM));
        }
        if !url.username().is_empty() || url.password().is_some() {
            let allowed = "left out: they come from the AWS chain (environment, profile, role)";
            return Err(ConfigError::new("credentials", "part of the URL", allowed));
        }
        let mut config = Self::new(&url)?;
        for (name, value) in url.query_pairs() {
            config = config.with_parameter(&name, &value)?;
        }
        if config.dead_letter_queue.is_empty() {
            config.dead_letter_queue = default_dead_letter_queue(&config.queue)?;
        }
        if QueueKind::of(&config.dead_letter_queue) != config.kind() {
            let allowed = "of the queue's own kind: a FIFO queue's name ends with .fifo, and so does \
                           its dead-letter queue's";
            let value = config.dead_letter_queue;
            return Err(ConfigError::new("dead_letter_queue", value, allowed));
        }
        Ok(config)
    }

    fn new(url: &Url) -> Result<Self, ConfigError> {
        let host = url.host_str().unwrap_or_default();
        let decoded = percent_encoding::percent_decode_str(url.path()).decode_utf8();
        let path = decoded.map_err(|_| ConfigError::new("url", "what was given", FORM))?;
        let mut parts = path.split('/').filter(|part| !part.is_empty());
        let (account, queue) = match (parts.next(), parts.next(), parts.next()) {
            (Some(queue), None, None) => (None, queue),
            (Some(account), Some(queue), None) => (Some(account_id(account)?), queue),
            _ => return Err(ConfigError::new("url", "without a queue", FORM)),
        };
        let endpoint = (!host.is_empty()).then(|| {
            let scheme = if host::is_loopback(host) {
                "http"
            } else {
                "https"
            };
            let port = url.port().map(|port| format!(":{port}"));
            format!("{scheme}://{host}{}", port.unwrap_or_default())
        });
        Ok(Self {
            region: host::region(host),
            endpoint,
            profile: None,
            credentials: None,
            sdk: None,
            account,
            queue: queue_name("queue", queue)?.into(),
            dead_letter_queue: String::new(),
            topology: SqsTopology::Checked,
            max_receive_count: Self::DEFAULT_MAX_RECEIVE_COUNT,
            lease: None,
            wait: 20,
            receives: NonZeroUsize::new(16).unwrap_or(NonZeroUsize::MIN),
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(10),
        })
    }

    fn with_parameter(mut self, name: &str, value: &str) -> Result<Self, ConfigError> {
        match name {
            "region" => self.region = Some(region_name(value)?),
            "profile" => self.profile = Some(value.to_owned()),
            "tls" => self.set_tls(boolean("tls", value)?)?,
            "declare" => {
                self.topology = if boolean("declare", value)? {
                    SqsTopology::Declared
                } else {
                    SqsTopology::Checked
                };
            }
            "dead_letter_queue" => self.dead_letter_queue = queue_name("dead_letter_queue", value)?,
            "max_receive_count" => {
                self.max_receive_count = number("max_receive_count", value, 1, 1000)?;
            }
            "lease" => self.lease = Some(number("lease", value, 1, 43_200)?),
            "wait" => self.wait = number("wait", value, 1, 20)?,
            "receives" => {
                let most = number("receives", value, 1, 256)?;
                self.receives = NonZeroUsize::new(most as usize).unwrap_or(NonZeroUsize::MIN);
            }
            "connect_timeout" => self.connect_timeout = seconds("connect_timeout", value)?,
            "timeout" => self.timeout = seconds("timeout", value)?,
            other => {
                let given = format!("with the parameter {other:?}");
                return Err(ConfigError::new("url", given, PARAMETERS));
            }
        }
        Ok(self)
    }

    fn set_tls(&mut self, tls: bool) -> Result<(), ConfigError> {
        let Some(endpoint) = &self.endpoint else {
            let allowed = "left out where the URL names no host: AWS is reached by TLS";
            return Err(ConfigError::new("tls", tls, allowed));
        };
        let authority = endpoint.split_once("://").map_or("", |(_, rest)| rest);
        let scheme = if tls { "https" } else { "http" };
        self.endpoint = Some(format!("{scheme}://{authority}"));
        Ok(())
    }

    /// Creates the queues where they are missing, or leaves that to somebody else. Default: checked.
    #[must_use]
    pub const fn topology(mut self, topology: SqsTopology) -> Self {
        self.topology = topology;
        self
    }

    /// Signs with these credentials instead of those of the AWS chain; for emulators and tests.
    #[must_use]
    pub fn credentials(mut self, access_key_id: &str, secret_access_key: &str) -> Self {
        self.credentials = Some(StaticCredentials {
            access_key_id: access_key_id.to_owned(),
            secret_access_key: secret_access_key.to_owned(),
        });
        self
    }

    /// Takes credentials, region, HTTP client and whatever else the SDK is to be given from here, and asks
    /// the AWS chain for nothing: for IAM Identity Center, an assumed role, or a proxy.
    ///
    /// What the URL or [`Self::credentials`] say comes first, but for `profile`, which is of the chain.
    /// Timeouts and retries stay those of this configuration.
    ///
    /// ```no_run
    /// use backstop_sqs::{Sqs, SqsConfig};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let own = aws_config::load_defaults(aws_config::BehaviorVersion::latest()).await;
    /// let url = "sqs://sqs.eu-central-1.amazonaws.com/123456789012/orders";
    /// let broker = Sqs::new(SqsConfig::from_url(url)?.sdk_config(own));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn sdk_config(mut self, sdk: SdkConfig) -> Self {
        self.sdk = Some(sdk);
        self
    }

    /// The queue's name.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// The name of the dead-letter queue that is declared, where one is; what is used is what the
    /// queue's `RedrivePolicy` says.
    pub fn dead_letter_queue(&self) -> &str {
        &self.dead_letter_queue
    }

    pub(crate) fn kind(&self) -> QueueKind {
        QueueKind::of(&self.queue)
    }

    /// Whether its endpoint is reached without TLS: an emulator's.
    pub(crate) fn is_plain(&self) -> bool {
        let endpoint = self.endpoint.as_ref();
        endpoint.is_some_and(|endpoint| endpoint.starts_with("http:"))
    }
}

/// Shows where it connects, never a credential.
impl fmt::Debug for SqsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqsConfig")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("account", &self.account)
            .field("queue", &self.queue)
            .field("topology", &self.topology)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}

fn default_dead_letter_queue(queue: &str) -> Result<String, ConfigError> {
    let name = match queue.strip_suffix(FIFO) {
        Some(stem) => format!("{stem}-dead-letters{FIFO}"),
        None => format!("{queue}-dead-letters"),
    };
    if name.len() > MAX_NAME {
        // Only a declaration needs a name of ours.
        let cut = queue.strip_suffix(FIFO).unwrap_or(queue);
        let cut = &cut[..cut.len().min(MAX_NAME - "-dlq.fifo".len())];
        let ending = if queue.ends_with(FIFO) { FIFO } else { "" };
        return queue_name("dead_letter_queue", &format!("{cut}-dlq{ending}"));
    }
    Ok(name)
}

/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-queues.html>
fn queue_name(setting: &'static str, name: &str) -> Result<String, ConfigError> {
    let stem = name.strip_suffix(FIFO).unwrap_or(name);
    let is_legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if stem.is_empty() || name.len() > MAX_NAME || !stem.chars().all(is_legal) {
        let allowed =
            "1 to 80 letters, digits, hyphens and underscores; a FIFO queue's ends with .fifo";
        return Err(ConfigError::new(setting, format!("{name:?}"), allowed));
    }
    Ok(name.to_owned())
}

fn account_id(text: &str) -> Result<String, ConfigError> {
    if text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(text.to_owned());
    }
    let allowed = format!("the 12 digits of an AWS account, as in {FORM}");
    Err(ConfigError::new("account", format!("{text:?}"), allowed))
}

fn region_name(text: &str) -> Result<String, ConfigError> {
    let is_legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.is_empty() || !text.chars().all(is_legal) {
        let allowed = "the name of a region, as in eu-central-1";
        return Err(ConfigError::new("region", format!("{text:?}"), allowed));
    }
    Ok(text.to_owned())
}

fn boolean(setting: &'static str, text: &str) -> Result<bool, ConfigError> {
    text.parse()
        .map_err(|_| ConfigError::new(setting, text, "true or false"))
}

fn number(setting: &'static str, text: &str, least: u32, most: u32) -> Result<u32, ConfigError> {
    let number = text.parse::<u32>().ok();
    number
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| ConfigError::new(setting, text, format!("{least} to {most}")))
}

fn seconds(setting: &'static str, text: &str) -> Result<Duration, ConfigError> {
    number(setting, text, 1, 300).map(|seconds| Duration::from_secs(seconds.into()))
}

#[cfg(test)]
mod tests;
