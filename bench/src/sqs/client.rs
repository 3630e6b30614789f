//! SQS by the SDK, without backstop.

use anyhow::{Context as _, Result, ensure};
use aws_sdk_sqs::config::{
    BehaviorVersion, Credentials, Region, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_sdk_sqs::types::SendMessageBatchRequestEntry;
use aws_sdk_sqs::{Client, Config};
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::stub::{BATCH, QUEUE};

/// The size of a message's body, in bytes.
pub(crate) const BODY: usize = 256;

/// What requests are signed with.
pub(crate) const CREDENTIALS: (&str, &str) = ("bench", "bench");

/// How many batches are sent at once.
const SENDS: usize = 8;

/// A client as backstop makes its own.
pub(crate) fn client(endpoint: &str) -> Client {
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .build_https();
    client_by(endpoint, http)
}

pub(crate) fn client_by(endpoint: &str, http: SharedHttpClient) -> Client {
    let (id, secret) = CREDENTIALS;
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .credentials_provider(Credentials::new(id, secret, None, None, "bench"))
        .region(Region::from_static("us-east-1"))
        .endpoint_url(endpoint)
        .http_client(http)
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    Client::from_conf(config.build())
}

/// The queue's URL.
pub(crate) async fn queue_url(client: &Client) -> Result<String> {
    let found = client.get_queue_url().queue_name(QUEUE).send().await?;
    found.queue_url.context("a queue without a URL")
}

/// Puts messages into the queue.
pub(crate) async fn fill(client: &Client, messages: u32) -> Result<()> {
    let url = queue_url(client).await?;
    let body = "7".repeat(BODY);
    let ids: Vec<u32> = (0..messages).collect();
    let sending = ids
        .chunks(BATCH)
        .map(|batch| send(client, &url, &body, batch));
    stream::iter(sending)
        .buffer_unordered(SENDS)
        .try_collect::<()>()
        .await
}

async fn send(client: &Client, url: &str, body: &str, batch: &[u32]) -> Result<()> {
    let entry = |id: &u32| {
        SendMessageBatchRequestEntry::builder()
            .id(id.to_string())
            .message_body(body)
            .build()
    };
    let entries = batch.iter().map(entry).collect::<Result<_, _>>()?;
    let sent = client
        .send_message_batch()
        .queue_url(url)
        .set_entries(Some(entries))
        .send()
        .await?;
    ensure!(sent.failed.is_empty(), "not sent: {:?}", sent.failed);
    Ok(())
}
