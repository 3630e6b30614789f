//! Amazon SQS, by an emulator.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_sqs::types::QueueAttributeName;
use aws_sdk_sqs::{Client, Config};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use tokio::sync::OnceCell;

use crate::container::{Plan, Server};
use crate::docker::choose_image;
use crate::shared;

const OFFICIAL: &str = "softwaremill/elasticmq-native:1.7.1";
const LOCAL: &str = "backstop-test/localstack:2026.3";

/// The region of the emulators' queues.
pub const SQS_REGION: &str = "us-east-1";

/// The endpoint of the SQS that the tests of this binary share, `http://host:port`.
///
/// # Panics
///
/// When there is none and none can be started; the message says what to do.
///
/// # Cancel safety
///
/// Cancel-safe: the next caller starts it.
pub async fn sqs() -> &'static str {
    static URL: OnceCell<Result<String, String>> = OnceCell::const_new();
    shared(&URL, "BACKSTOP_TEST_SQS_URL", start_sqs).await
}

/// Starts an SQS of its own: `ElasticMQ` if its image is here, else LocalStack. Both keep everything in
/// memory: after a restart no queue is left.
///
/// # Errors
///
/// When there is no image, or it does not come up.
///
/// # Cancel safety
///
/// Cancel-safe: what was started ends with this process at the latest.
pub async fn start_sqs() -> Result<Server> {
    let image = choose_image(OFFICIAL, LOCAL).await?;
    let (server, _) = Server::run(|[port]| {
        if image == OFFICIAL {
            elasticmq(port)
        } else {
            localstack(port)
        }
    })
    .await?;
    Ok(server)
}

fn localstack(port: u16) -> Plan {
    Plan {
        official: LOCAL.to_owned(),
        ports: vec![(port, 4566)],
        ready: "Ready.",
        ..plan(port)
    }
}

/// The host `*` is the one by which a queue was asked for, in the queue's URL: so it works through a
/// proxy. <https://github.com/softwaremill/elasticmq#custom-configuration-file>
const ELASTICMQ: &str = "include classpath(\"application.conf\")\n\
     node-address { protocol = http, host = \"*\", port = 9324, context-path = \"\" }\n\
     rest-sqs { enabled = true, bind-hostname = \"0.0.0.0\", bind-port = 9324, sqs-limits = strict }\n\
     aws { region = us-east-1, accountId = 000000000000 }\n";

fn elasticmq(port: u16) -> Plan {
    Plan {
        official: OFFICIAL.to_owned(),
        ports: vec![(port, 9324)],
        ready: "=== ElasticMQ server",
        files: vec![("/opt/elasticmq.conf", ELASTICMQ.to_owned())],
        ..plan(port)
    }
}

/// A plan that lacks its image, ports and sign of being up.
fn plan(port: u16) -> Plan {
    Plan {
        official: String::new(),
        local: LOCAL.to_owned(),
        command: Vec::new(),
        ports: Vec::new(),
        ready: "",
        files: Vec::new(),
        url: format!("http://127.0.0.1:{port}"),
    }
}

/// A client of an endpoint, beside the adapter. Where the endpoint is an emulator's (`http:`) any
/// credentials will do; on AWS they come from `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
/// `AWS_SESSION_TOKEN` and `AWS_REGION`.
pub fn sqs_client(endpoint: &str) -> Client {
    let variable = |name: &str, emulators: &str| {
        let set = std::env::var(name).ok();
        let is_emulator = endpoint.starts_with("http:");
        set.filter(|_| !is_emulator).unwrap_or(emulators.to_owned())
    };
    let credentials = Credentials::new(
        variable("AWS_ACCESS_KEY_ID", "test"),
        variable("AWS_SECRET_ACCESS_KEY", "test"),
        Some(variable("AWS_SESSION_TOKEN", "")).filter(|token| !token.is_empty()),
        None,
        "backstop-test",
    );
    let http = aws_smithy_http_client::Builder::new();
    let http = if endpoint.starts_with("http:") {
        http.build_http()
    } else {
        http.tls_provider(Provider::Rustls(CryptoMode::Ring))
            .build_https()
    };
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(endpoint)
        .region(Region::new(variable("AWS_REGION", SQS_REGION)))
        .credentials_provider(credentials)
        .http_client(http)
        .build();
    Client::from_conf(config)
}

/// The two kinds of queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SqsKind {
    /// In any order, at least once.
    Standard,
    /// In order within a message group.
    Fifo,
}

/// What a queue is to be.
#[derive(Clone, Copy, Debug)]
pub struct SqsQueueSpec {
    /// Its kind.
    pub kind: SqsKind,
    /// `VisibilityTimeout`, in seconds.
    pub lease_seconds: u32,
    /// `maxReceiveCount` of its redrive policy.
    pub max_receive_count: u32,
}

/// A queue with a dead-letter queue, both with names of their own.
#[derive(Clone, Debug)]
pub struct SqsQueue {
    /// Its name.
    pub name: String,
    /// Its URL, through the endpoint by which it was made.
    pub url: String,
    /// The name of its dead-letter queue: `<name>-dead-letters`, a FIFO one with its ending.
    pub dead_letters_name: String,
    /// The URL of its dead-letter queue.
    pub dead_letters_url: String,
}

impl SqsQueue {
    /// Creates a queue and its dead-letter queue, which keeps messages for the 14 days that SQS allows.
    ///
    /// # Errors
    ///
    /// When the server refuses.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may leave one of them behind.
    pub async fn create(client: &Client, spec: SqsQueueSpec) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let stem = format!(
            "backstop-test-{}-{}-{number}",
            since.unwrap_or_default().as_secs(),
            std::process::id()
        );
        let ending = match spec.kind {
            SqsKind::Standard => "",
            SqsKind::Fifo => ".fifo",
        };
        let mut queue = Self {
            name: format!("{stem}{ending}"),
            url: String::new(),
            dead_letters_name: format!("{stem}-dead-letters{ending}"),
            dead_letters_url: String::new(),
        };
        queue.dead_letters_url = queue.create_dead_letters(client, spec.kind).await?;
        let arn = arn(client, &queue.dead_letters_url).await?;
        let policy = format!(
            r#"{{"deadLetterTargetArn":"{arn}","maxReceiveCount":{}}}"#,
            spec.max_receive_count
        );
        let lease = spec.lease_seconds.to_string();
        let attributes = [
            (QueueAttributeName::RedrivePolicy, policy),
            (QueueAttributeName::VisibilityTimeout, lease),
        ];
        queue.url = create(client, &queue.name, spec.kind, &attributes).await?;
        Ok(queue)
    }

    /// Creates its dead-letter queue, again if it was deleted; gives its URL.
    ///
    /// # Errors
    ///
    /// When the server refuses.
    pub async fn create_dead_letters(&self, client: &Client, kind: SqsKind) -> Result<String> {
        let fortnight = (14 * 24 * 3600).to_string();
        let attributes = [(QueueAttributeName::MessageRetentionPeriod, fortnight)];
        create(client, &self.dead_letters_name, kind, &attributes).await
    }

    /// Deletes it and its dead-letter queue.
    ///
    /// # Errors
    ///
    /// When the server refuses.
    pub async fn delete(self, client: &Client) -> Result<()> {
        for url in [&self.url, &self.dead_letters_url] {
            client.delete_queue().queue_url(url).send().await?;
        }
        Ok(())
    }
}

async fn create(
    client: &Client,
    name: &str,
    kind: SqsKind,
    attributes: &[(QueueAttributeName, String)],
) -> Result<String> {
    let mut request = client.create_queue().queue_name(name);
    for (attribute, value) in attributes {
        request = request.attributes(attribute.clone(), value);
    }
    if kind == SqsKind::Fifo {
        request = request.attributes(QueueAttributeName::FifoQueue, "true");
    }
    let created = request.send().await;
    let created = created.with_context(|| format!("creating the queue {name}"))?;
    created.queue_url.context("a queue without a URL")
}

async fn arn(client: &Client, url: &str) -> Result<String> {
    let asked = client
        .get_queue_attributes()
        .queue_url(url)
        .attribute_names(QueueAttributeName::QueueArn)
        .send()
        .await?;
    let attributes = asked.attributes.unwrap_or_default();
    let arn = attributes.get(&QueueAttributeName::QueueArn);
    arn.cloned().context("a queue without an ARN")
}
