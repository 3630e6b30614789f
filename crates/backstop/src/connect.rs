//! From a URL to a broker or a store.

use backstop_core::{
    BrokerError, BrokerErrorKind, BrokerHandle, StoreError, StoreErrorKind, StoreHandle,
};

use crate::memory::{in_process_queue, in_process_store};

/// What `connect` takes, for error messages.
const BROKERS: &str = "memory://<queue>, amqp://<host>?queue=<queue>, amqps://<host>?queue=<queue> or \
     sqs://<host>/<account>/<queue>";
/// What `connect_store` takes, for error messages.
const STORES: &str = "memory://<name>, redis://<host>, redis+cluster://<host>,<host>,… or \
                      redis+sentinel://<host>,<host>,…/<service>, and rediss for TLS";

/// Connects to the queue that a URL names.
///
/// `memory://<queue>` is a queue inside this process, the same one for all who name it.
/// `amqp://user:password@host/vhost?queue=<queue>` and `amqps://` are RabbitMQ, with the feature
/// `rabbitmq`. `sqs://<host>/<account>/<queue>`, or `sqs:///<queue>?region=<region>`, is Amazon SQS, with
/// the feature `sqs`; credentials come from the AWS chain. `declare=true` among the parameters makes the
/// queue and what belongs to it.
///
/// # Errors
///
/// [`BrokerErrorKind::Configuration`] for a URL that makes no sense, or whose feature is off; no
/// error shows a password. Otherwise what the adapter says.
///
/// # Cancel safety
///
/// Cancel-safe: what was begun of a connection is closed.
pub async fn connect(url: &str) -> Result<BrokerHandle, BrokerError> {
    let refuse = |text| BrokerError::new(BrokerErrorKind::Configuration, text);
    match scheme_of(url).map_err(|problem| refuse(format!("{problem}: give {BROKERS}")))? {
        "memory" => {
            let name = memory_name(url).map_err(refuse)?;
            if name.is_empty() {
                let text = "the URL names no queue: give memory://<queue>";
                return Err(refuse(text.to_owned()));
            }
            Ok(in_process_queue(name).into())
        }
        scheme @ ("amqp" | "amqps") => rabbitmq(scheme, url).await,
        scheme @ "sqs" => sqs(scheme, url).await,
        scheme if is_redis(scheme) => {
            let text = format!(
                "{scheme}:// names an idempotency store, and this has to be a broker: give {BROKERS}"
            );
            Err(refuse(text))
        }
        scheme => Err(refuse(format!(
            "no broker is known by the URL scheme {scheme}://: give {BROKERS}"
        ))),
    }
}

/// Connects to the idempotency store that a URL names.
///
/// `memory://<name>` is a store inside this process, the same one for all who name it; other
/// processes and restarts know nothing of it. `redis://`, `redis+cluster://` and `redis+sentinel://`
/// are Redis, with the feature `redis`; `rediss` instead of `redis` is TLS.
///
/// # Errors
///
/// [`StoreErrorKind::Configuration`] for a URL that makes no sense, or whose feature is off; no
/// error shows a password. Otherwise what the store's crate says.
///
/// # Cancel safety
///
/// Cancel-safe: what was begun of a connection is closed.
pub async fn connect_store(url: &str) -> Result<StoreHandle, StoreError> {
    let refuse = |text| StoreError::new(StoreErrorKind::Configuration, text);
    match scheme_of(url).map_err(|problem| refuse(format!("{problem}: give {STORES}")))? {
        "memory" => {
            let name = memory_name(url).map_err(refuse)?;
            Ok(in_process_store(name).into())
        }
        scheme if is_redis(scheme) => redis(scheme, url).await,
        scheme @ ("amqp" | "amqps" | "sqs") => {
            let text = format!(
                "{scheme}:// names a broker, and this has to be an idempotency store: give {STORES}"
            );
            Err(refuse(text))
        }
        scheme => Err(refuse(format!(
            "no idempotency store is known by the URL scheme {scheme}://: give {STORES}"
        ))),
    }
}

#[cfg(feature = "rabbitmq")]
async fn rabbitmq(_scheme: &str, url: &str) -> Result<BrokerHandle, BrokerError> {
    Ok(backstop_rabbitmq::RabbitMq::connect(url).await?.into())
}

#[cfg(not(feature = "rabbitmq"))]
#[expect(
    clippy::unused_async,
    reason = "with the feature on, a connection is awaited"
)]
async fn rabbitmq(scheme: &str, _url: &str) -> Result<BrokerHandle, BrokerError> {
    let text = feature_is_off(scheme, "rabbitmq");
    Err(BrokerError::new(BrokerErrorKind::Configuration, text))
}

#[cfg(feature = "sqs")]
async fn sqs(_scheme: &str, url: &str) -> Result<BrokerHandle, BrokerError> {
    Ok(backstop_sqs::Sqs::connect(url).await?.into())
}

#[cfg(not(feature = "sqs"))]
#[expect(
    clippy::unused_async,
    reason = "with the feature on, a connection is awaited"
)]
async fn sqs(scheme: &str, _url: &str) -> Result<BrokerHandle, BrokerError> {
    let text = feature_is_off(scheme, "sqs");
    Err(BrokerError::new(BrokerErrorKind::Configuration, text))
}

#[cfg(feature = "redis")]
async fn redis(_scheme: &str, url: &str) -> Result<StoreHandle, StoreError> {
    Ok(backstop_redis_dedupe::RedisStore::connect(url)
        .await?
        .into())
}

#[cfg(not(feature = "redis"))]
#[expect(
    clippy::unused_async,
    reason = "with the feature on, a connection is awaited"
)]
async fn redis(scheme: &str, _url: &str) -> Result<StoreHandle, StoreError> {
    let text = feature_is_off(scheme, "redis");
    Err(StoreError::new(StoreErrorKind::Configuration, text))
}

/// With TLS or without: one server, a Cluster, or a master under Sentinel.
fn is_redis(scheme: &str) -> bool {
    let kind = scheme.strip_prefix("redis");
    let kind = kind.map(|kind| kind.strip_prefix('s').unwrap_or(kind));
    matches!(kind, Some("" | "+cluster" | "+sentinel"))
}

#[cfg(not(all(feature = "rabbitmq", feature = "redis", feature = "sqs")))]
fn feature_is_off(scheme: &str, feature: &str) -> String {
    format!(
        "{scheme}:// needs the feature `{feature}` of the crate `backstop`, which is off in this \
         build: add features = [\"{feature}\"] to the dependency"
    )
}

/// The scheme, without anything that may hold a password.
fn scheme_of(url: &str) -> Result<&str, &'static str> {
    match url.split_once("://") {
        Some((scheme, _)) if is_scheme(scheme) => Ok(scheme),
        _ => Err("the URL has no scheme"),
    }
}

/// RFC 3986, section 3.1; what looks otherwise may be a password with `://` behind it.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

/// The name behind `memory://`. `declare=` is taken and means nothing: such a queue is made by being
/// named.
fn memory_name(url: &str) -> Result<&str, String> {
    let rest = url.strip_prefix("memory://").unwrap_or_default();
    let (name, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    for parameter in parameters.split('&').filter(|text| !text.is_empty()) {
        if !matches!(parameter, "declare=true" | "declare=false") {
            let parameter = parameter.split('=').next().unwrap_or_default();
            return Err(format!(
                "memory:// has no parameter {parameter:?}: leave it out"
            ));
        }
    }
    if name.contains(['/', '@', '#']) {
        return Err("a name behind memory:// cannot hold '/', '@' or '#'".to_owned());
    }
    Ok(name)
}

#[cfg(test)]
mod tests;
