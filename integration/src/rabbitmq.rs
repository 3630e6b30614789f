//! RabbitMQ.

use anyhow::Result;
use tokio::sync::OnceCell;

use crate::container::{Plan, Server};
use crate::shared;

/// Whether the consistent-hash exchange is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugins {
    /// `rabbitmq_consistent_hash_exchange` is enabled.
    ConsistentHash,
    /// No plugin is enabled.
    None,
}

/// The version of RabbitMQ under test: `BACKSTOP_TEST_RABBITMQ_VERSION`, or else the newest.
pub fn rabbitmq_version() -> String {
    std::env::var("BACKSTOP_TEST_RABBITMQ_VERSION").unwrap_or_else(|_| "4.3".to_owned())
}

/// The URL of the RabbitMQ that the tests of this binary share, `amqp://guest:guest@host:port`.
///
/// # Panics
///
/// When there is none and none can be started; the message says what to do.
///
/// # Cancel safety
///
/// Cancel-safe: the next caller starts it.
pub async fn rabbitmq() -> &'static str {
    static URL: OnceCell<Result<String, String>> = OnceCell::const_new();
    shared(&URL, "BACKSTOP_TEST_RABBITMQ_URL", || {
        start_rabbitmq(Plugins::ConsistentHash)
    })
    .await
}

/// Starts a RabbitMQ of its own.
///
/// # Errors
///
/// When there is no image, or it does not come up.
///
/// # Cancel safety
///
/// Cancel-safe: what was started ends with this process at the latest.
pub async fn start_rabbitmq(plugins: Plugins) -> Result<Server> {
    start_rabbitmq_with(plugins, "").await
}

/// Starts a RabbitMQ of its own with further lines of `rabbitmq.conf`, such as
/// `consumer_timeout = 10000`.
///
/// # Errors
///
/// When there is no image, or it does not come up.
///
/// # Cancel safety
///
/// Cancel-safe: what was started ends with this process at the latest.
pub async fn start_rabbitmq_with(plugins: Plugins, settings: &str) -> Result<Server> {
    let (server, _) = Server::run(|[port]| Plan {
        ports: vec![(port, 5672)],
        url: format!("amqp://guest:guest@127.0.0.1:{port}"),
        ..plan(plugins, settings)
    })
    .await?;
    Ok(server)
}

/// After a restart a quorum queue may dead-letter to a queue that is not up yet, and tries again after
/// this long: 3 minutes by default, which no test waits for.
const ADVANCED: &str = "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 5000}]}].\n";

/// A plan that lacks its ports and URL.
pub(crate) fn plan(plugins: Plugins, settings: &str) -> Plan {
    let version = rabbitmq_version();
    let list = match plugins {
        Plugins::ConsistentHash => "[rabbitmq_consistent_hash_exchange].\n",
        Plugins::None => "[].\n",
    };
    Plan {
        official: format!("rabbitmq:{version}"),
        local: format!("backstop-test/rabbitmq:{version}"),
        command: vec!["rabbitmq-server".to_owned()],
        ports: Vec::new(),
        ready: "completed with",
        files: vec![
            ("/etc/rabbitmq/enabled_plugins", list.to_owned()),
            ("/etc/rabbitmq/advanced.config", ADVANCED.to_owned()),
            (
                "/etc/rabbitmq/conf.d/90-test.conf",
                format!("loopback_users = none\n{settings}\n"),
            ),
        ],
        url: String::new(),
    }
}
