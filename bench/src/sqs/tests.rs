//! The official SDK takes the stub's answers.

use std::sync::Arc;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::error::ProvideErrorMetadata as _;
use aws_sdk_sqs::types::{
    ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry, Message,
    MessageSystemAttributeName as System, QueueAttributeName, SendMessageBatchRequestEntry,
};
use tokio::time::{Duration, Instant};

use super::client::{client, fill, queue_url};
use super::in_process;
use super::server::Server;
use super::stub::Stub;

async fn receive(client: &Client, url: &str) -> Vec<Message> {
    let asked = client
        .receive_message()
        .queue_url(url)
        .max_number_of_messages(10)
        .message_system_attribute_names(System::All);
    let received = asked.send().await.unwrap();
    received.messages.unwrap_or_default()
}

/// Gives the entries that succeeded, and those that failed, with their codes.
async fn delete(client: &Client, url: &str, handles: &[&str]) -> (Vec<String>, Vec<String>) {
    let entries = handles.iter().enumerate().map(|(id, handle)| {
        let entry = DeleteMessageBatchRequestEntry::builder().id(id.to_string());
        entry.receipt_handle(*handle).build().unwrap()
    });
    let asked = client.delete_message_batch().queue_url(url);
    let answer = asked.set_entries(Some(entries.collect())).send().await;
    let answer = answer.unwrap();
    let failed = answer.failed.iter();
    (
        answer.successful.iter().map(|it| it.id.clone()).collect(),
        failed.map(|it| format!("{} {}", it.id, it.code)).collect(),
    )
}

#[tokio::test]
async fn what_was_sent_is_received_and_deleted() {
    let server = Server::start().await.unwrap();
    let client = client(server.stub.endpoint());
    let url = queue_url(&client).await.unwrap();
    let entry = SendMessageBatchRequestEntry::builder().id("x");
    let entry = entry
        .message_body("The quick brown \"fox\" 🦊")
        .build()
        .unwrap();
    let asked = client.send_message_batch().queue_url(&url).entries(entry);
    let sent = asked.send().await.unwrap();
    let sent = &sent.successful()[0];
    assert_eq!(
        sent.md5_of_message_body(),
        "c8ec31903f564b028b0e2c39baca90d2"
    );

    let received = receive(&client, &url).await;
    let message = &received[0];
    assert_eq!(message.body(), Some("The quick brown \"fox\" 🦊"));
    assert_eq!(message.message_id(), Some(sent.message_id()));
    assert_eq!(message.md5_of_body(), Some(sent.md5_of_message_body()));
    let attributes = message.attributes().unwrap();
    assert_eq!(attributes[&System::ApproximateReceiveCount], "1");
    assert!(attributes[&System::SentTimestamp].parse::<u64>().unwrap() > 0);
    assert!(receive(&client, &url).await.is_empty(), "it is in flight");

    let handle = message.receipt_handle().unwrap();
    let (done, failed) = delete(&client, &url, &[handle, handle, "unknown"]).await;
    assert_eq!(done, ["0"]);
    let code = "ReceiptHandleIsInvalid";
    assert_eq!(failed, [format!("1 {code}"), format!("2 {code}")]);
    assert_eq!(server.stub.queue.deleted(), 1);
    assert_eq!(server.stub.queue.depth(), (0, 0));
    for (operation, count) in [
        ("GetQueueUrl", 1),
        ("SendMessageBatch", 1),
        ("ReceiveMessage", 2),
        ("DeleteMessageBatch", 1),
        ("PurgeQueue", 0),
    ] {
        assert_eq!(server.stub.calls(operation), count, "{operation}");
    }
}

#[tokio::test]
async fn what_is_given_back_is_received_again() {
    let server = Server::start().await.unwrap();
    let client = client(server.stub.endpoint());
    let url = queue_url(&client).await.unwrap();
    fill(&client, 12).await.unwrap();
    let received = receive(&client, &url).await;
    assert_eq!(received.len(), 10);
    let entries = received.iter().enumerate().map(|(id, message)| {
        let entry = ChangeMessageVisibilityBatchRequestEntry::builder().id(id.to_string());
        let handle = message.receipt_handle().unwrap();
        entry
            .receipt_handle(handle)
            .visibility_timeout(0)
            .build()
            .unwrap()
    });
    let asked = client.change_message_visibility_batch().queue_url(&url);
    let answer = asked.set_entries(Some(entries.collect())).send().await;
    assert_eq!(answer.unwrap().successful().len(), 10);
    let mut counts = Vec::new();
    for message in [receive(&client, &url).await, receive(&client, &url).await].concat() {
        let attributes = message.attributes.unwrap();
        counts.push(attributes[&System::ApproximateReceiveCount].clone());
    }
    counts.sort();
    let expected = [["1"; 2].as_slice(), ["2"; 10].as_slice()].concat();
    assert_eq!(counts, expected);
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_waits_and_ends_without_messages() {
    let stub = Arc::new(Stub::new("http://127.0.0.1:1"));
    let client = in_process::client(&stub);
    let url = queue_url(&client).await.unwrap();
    let begun = Instant::now();
    let asked = client.receive_message().queue_url(&url);
    let received = asked.wait_time_seconds(20).send().await.unwrap();
    assert!(received.messages().is_empty());
    assert_eq!(begun.elapsed(), Duration::from_secs(20));
}

#[tokio::test]
async fn attributes_name_the_dead_letter_queue() {
    let server = Server::start().await.unwrap();
    let client = client(server.stub.endpoint());
    let url = queue_url(&client).await.unwrap();
    let asked = client.get_queue_attributes().queue_url(url);
    let looked = asked.attribute_names(QueueAttributeName::All).send().await;
    let attributes = looked.unwrap().attributes.unwrap();
    assert_eq!(attributes[&QueueAttributeName::VisibilityTimeout], "30");
    let policy = &attributes[&QueueAttributeName::RedrivePolicy];
    assert!(
        policy.contains("000000000000:bench-dead-letters"),
        "{policy}"
    );
}

#[tokio::test]
async fn what_it_does_not_know_is_refused() {
    let server = Server::start().await.unwrap();
    let client = client(server.stub.endpoint());
    let url = queue_url(&client).await.unwrap();
    let other = client.get_queue_url().queue_name("other").send().await;
    assert_eq!(other.unwrap_err().code(), Some("QueueDoesNotExist"));
    let purged = client.purge_queue().queue_url(&url).send().await;
    assert_eq!(purged.unwrap_err().code(), Some("InvalidAction"));
    let delayed = SendMessageBatchRequestEntry::builder()
        .id("x")
        .message_body("x");
    let delayed = delayed.delay_seconds(5).build().unwrap();
    let asked = client.send_message_batch().queue_url(&url).entries(delayed);
    let refused = asked.send().await.unwrap_err();
    assert_eq!(refused.code(), Some("SerializationException"));
    let asked = client.receive_message().queue_url(&url);
    let refused = asked.max_number_of_messages(11).send().await.unwrap_err();
    assert_eq!(refused.code(), Some("InvalidParameterValue"));
}
