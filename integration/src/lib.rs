//! Real servers for the tests of the workspace.
//!
//! A test asks for a server and gets its URL, from the first of these that works, printing which:
//! a URL in the environment (`BACKSTOP_TEST_RABBITMQ_URL`, `BACKSTOP_TEST_REDIS_URL`,
//! `BACKSTOP_TEST_SQS_URL`), a container of the official image if this machine has it, a container of
//! the image that `cargo xtask images` built, a container of the official image pulled now. If none
//! works the test fails and says what to do; it never skips.
//!
//! [`rabbitmq`], [`redis`] and [`sqs`] are shared by all tests of a binary: a test names its queues and keys so
//! that no other has them. Whoever stops, pauses or cuts a server starts one of its own, or puts a
//! [`Proxy`] before the shared one. What a binary started is removed when it ends, however it ends.

mod container;
mod direct;
mod docker;
mod ports;
mod proxy;
mod rabbitmq;
mod redis;
mod redis_cluster;
mod redis_nodes;
mod redis_sentinels;
mod sqs;
mod throttle;
mod tls;

use std::future::Future;

use anyhow::Result;
use tokio::sync::OnceCell;

pub use container::Server;
pub use direct::past_proxy;
pub use proxy::{Mode, Proxy};
pub use rabbitmq::{Plugins, rabbitmq, rabbitmq_version, start_rabbitmq, start_rabbitmq_with};
pub use redis::{redis, start_redis};
pub use redis_cluster::{Cluster, start_cluster};
pub use redis_nodes::Nodes;
pub use redis_sentinels::{Sentinels, start_sentinels};
pub use sqs::{SQS_REGION, SqsKind, SqsQueue, SqsQueueSpec, sqs, sqs_client, start_sqs};
pub use throttle::Throttle;
pub use tls::{TlsServer, start_rabbitmq_tls, start_redis_tls};

/// The URL of a server that a whole binary shares. A failure is kept as well: each further test would
/// wait as long for the same answer.
async fn shared<F: Future<Output = Result<Server>>>(
    url: &'static OnceCell<Result<String, String>>,
    variable: &str,
    start: impl FnOnce() -> F,
) -> &'static str {
    let result = url
        .get_or_init(|| async {
            if let Ok(url) = std::env::var(variable) {
                println!("{variable} names the server of this test");
                return Ok(url);
            }
            let server = start().await.map_err(|error| format!("{error:#}"))?;
            Ok(server.keep())
        })
        .await;
    match result {
        Ok(url) => url,
        Err(error) => panic!("{error}"),
    }
}
