//! The emulator of SQS is there, and does what the tests build on.

use anyhow::{Context as _, Result, ensure};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::Message;
use integration::{Proxy, SqsKind, SqsQueue, SqsQueueSpec, Throttle, sqs, sqs_client, start_sqs};

const STANDARD: SqsQueueSpec = SqsQueueSpec {
    kind: SqsKind::Standard,
    lease_seconds: 30,
    max_receive_count: 3,
};

const FIFO: SqsQueueSpec = SqsQueueSpec {
    kind: SqsKind::Fifo,
    ..STANDARD
};

async fn send(client: &Client, queue: &SqsQueue, kind: SqsKind, body: &str) -> Result<()> {
    let mut request = client.send_message().queue_url(&queue.url);
    if kind == SqsKind::Fifo {
        request = request
            .message_group_id("group")
            .message_deduplication_id(body);
    }
    request.message_body(body).send().await?;
    Ok(())
}

/// Receives one message by a long poll.
async fn receive(client: &Client, url: &str, lease_seconds: i32) -> Result<Message> {
    let request = client.receive_message().queue_url(url);
    let received = request
        .wait_time_seconds(20)
        .visibility_timeout(lease_seconds)
        .send()
        .await?;
    let message = received.messages.unwrap_or_default().pop();
    message.context("no message")
}

#[tokio::test]
async fn the_shared_sqs_keeps_a_message_until_it_is_deleted() -> Result<()> {
    let client = sqs_client(sqs().await);
    for spec in [STANDARD, FIFO] {
        let queue = SqsQueue::create(&client, spec).await?;
        send(&client, &queue, spec.kind, "hello").await?;
        let first = receive(&client, &queue.url, 1).await?;
        let again = receive(&client, &queue.url, 30).await?;
        ensure!(first.body() == Some("hello") && again.message_id == first.message_id);
        client
            .delete_message()
            .queue_url(&queue.url)
            .receipt_handle(again.receipt_handle().unwrap_or_default())
            .send()
            .await?;
        let left = client
            .receive_message()
            .queue_url(&queue.url)
            .send()
            .await?;
        ensure!(left.messages.is_none(), "it is still there: {left:?}");
        queue.delete(&client).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_message_that_is_received_too_often_is_in_the_dead_letter_queue() -> Result<()> {
    let client = sqs_client(sqs().await);
    for spec in [STANDARD, FIFO] {
        let queue = SqsQueue::create(&client, spec).await?;
        send(&client, &queue, spec.kind, "poison").await?;
        for _ in 0..spec.max_receive_count {
            receive(&client, &queue.url, 0).await?;
        }
        // SQS moves it when it is asked for once more.
        let request = client.receive_message().queue_url(&queue.url);
        let received = request.wait_time_seconds(1).send().await?;
        ensure!(received.messages.is_none(), "delivered once more");
        let dead = receive(&client, &queue.dead_letters_url, 30).await?;
        ensure!(dead.body() == Some("poison"), "{dead:?}");
        queue.delete(&client).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_queue_is_used_through_a_proxy() -> Result<()> {
    let proxy = Proxy::start(sqs().await).await?;
    let client = sqs_client(proxy.url());
    let queue = SqsQueue::create(&client, STANDARD).await?;
    let through = proxy.address().to_string();
    ensure!(queue.url.contains(&through), "{} is elsewhere", queue.url);
    send(&client, &queue, STANDARD.kind, "hello").await?;
    ensure!(receive(&client, &queue.url, 30).await?.body() == Some("hello"));
    queue.delete(&sqs_client(sqs().await)).await
}

#[tokio::test]
async fn a_throttled_request_fails_as_on_aws() -> Result<()> {
    let throttle = Throttle::start(sqs().await).await?;
    let client = sqs_client(throttle.url());
    let queue = SqsQueue::create(&client, STANDARD).await?;
    let (refused, forwarded) = (throttle.refused(), throttle.forwarded());
    ensure!(refused == 0 && forwarded > 0, "{refused} were refused");
    // Of three tries the SDK's second and third are made by itself.
    throttle.refuse(1000);
    let asked = client.receive_message().queue_url(&queue.url).send().await;
    let error = asked.err().context("a throttled request succeeded")?;
    let error = error.into_service_error();
    ensure!(error.is_request_throttled(), "{error:?}");
    ensure!(throttle.refused() == 3, "{} tries", throttle.refused());
    throttle.refuse(0);
    queue.delete(&client).await
}

/// The emulators keep everything in memory, unlike SQS. Should that change, the suite's restart of the
/// broker can be a real one: see `Queue::restart_broker` in the harness.
#[tokio::test]
async fn an_sqs_keeps_its_url_over_a_restart_and_forgets_its_queues() -> Result<()> {
    let server = start_sqs().await?;
    let client = sqs_client(server.url());
    let queue = SqsQueue::create(&client, STANDARD).await?;
    server.restart().await?;
    let asked = client.get_queue_url().queue_name(&queue.name).send().await;
    let Err(error) = asked else {
        anyhow::bail!("the emulator has become durable: restart it in the harness");
    };
    let error = error.into_service_error();
    ensure!(error.is_queue_does_not_exist(), "{error:?}");
    SqsQueue::create(&client, STANDARD).await?;
    Ok(())
}
