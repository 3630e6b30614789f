//! Redis, one node.

use anyhow::Result;
use tokio::sync::OnceCell;

use crate::container::{Plan, Server};
use crate::shared;

/// The URL of the Redis that the tests of this binary share, `redis://host:port`.
///
/// # Panics
///
/// When there is none and none can be started; the message says what to do.
///
/// # Cancel safety
///
/// Cancel-safe: the next caller starts it.
pub async fn redis() -> &'static str {
    static URL: OnceCell<Result<String, String>> = OnceCell::const_new();
    shared(&URL, "BACKSTOP_TEST_REDIS_URL", || start_redis(&[])).await
}

/// Starts a Redis of its own, with further arguments for the server, such as
/// `["--maxmemory", "4mb"]`. It keeps an append-only file, so that a restart loses nothing.
///
/// # Errors
///
/// When there is no image, or it does not come up.
///
/// # Cancel safety
///
/// Cancel-safe: what was started ends with this process at the latest.
pub async fn start_redis(arguments: &[&str]) -> Result<Server> {
    let (server, _) = Server::run(|[port]| Plan {
        ports: vec![(port, 6379)],
        url: format!("redis://127.0.0.1:{port}"),
        ..single(arguments)
    })
    .await?;
    Ok(server)
}

/// A plan for one node that lacks its ports and URL.
pub(crate) fn single(arguments: &[&str]) -> Plan {
    let reachable = ["redis-server", "--protected-mode", "no", "--dir", "/tmp"];
    let durable = ["--save", "", "--appendonly", "yes"];
    let command = reachable.iter().chain(&durable).chain(arguments);
    Plan {
        command: command.map(ToString::to_string).collect(),
        ..plan("Ready to accept connections")
    }
}

/// A plan that lacks its command, ports and URL.
pub(crate) fn plan(ready: &'static str) -> Plan {
    Plan {
        official: "redis:8".to_owned(),
        local: "backstop-test/redis:8".to_owned(),
        command: Vec::new(),
        ports: Vec::new(),
        ready,
        files: Vec::new(),
        url: String::new(),
    }
}
