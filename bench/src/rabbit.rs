//! RabbitMQ by lapin, without backstop.

use std::collections::VecDeque;

use anyhow::{Context as _, Result, ensure};
use backstop_rabbitmq::RabbitMq;
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};

use lapin::types::FieldTable;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, PublisherConfirm,
};
use uuid::Uuid;

/// The size of a message's body, in bytes.
pub(crate) const BODY: usize = 256;

/// How many publications may be without their confirmation.
const UNCONFIRMED: usize = 2_000;

/// A queue of this run.
#[derive(Clone)]
pub(crate) struct Queue {
    /// Its name.
    pub(crate) name: String,
    /// The server and the queue, as backstop takes them.
    pub(crate) url: String,
    server: String,
}

impl Queue {
    /// Declares a quorum queue that is as backstop wants it.
    pub(crate) async fn declare(server: &str) -> Result<Self> {
        let name = format!("bench-{}", Uuid::now_v7());
        let server = server.trim_end_matches('/').to_owned();
        let url = format!("{server}/?queue={name}&declare=true");
        RabbitMq::connect(&url).await?;
        Ok(Self { name, url, server })
    }

    /// A connection of its own to the queue's server.
    pub(crate) async fn connect(&self) -> Result<Connection> {
        let connection = Connection::connect(&self.server, ConnectionProperties::default()).await;
        connection.context("RabbitMQ cannot be reached")
    }

    /// Puts messages in, persistent and confirmed.
    pub(crate) async fn fill(&self, messages: u32) -> Result<()> {
        let connection = self.connect().await?;
        let channel = connection.create_channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        let body = [7; BODY];
        let mut unconfirmed = VecDeque::new();
        for _ in 0..messages {
            if unconfirmed.len() == UNCONFIRMED
                && let Some(oldest) = unconfirmed.pop_front()
            {
                confirmed(oldest).await?;
            }
            unconfirmed.push_back(self.publish(&channel, &body).await?);
        }
        for oldest in unconfirmed {
            confirmed(oldest).await?;
        }
        connection.close(200, "done".into()).await?;
        Ok(())
    }

    /// Sends a persistent message with an id of its own.
    pub(crate) async fn publish(&self, channel: &Channel, body: &[u8]) -> Result<PublisherConfirm> {
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(Uuid::now_v7().to_string().into());
        let options = BasicPublishOptions::default();
        let name = self.name.as_str().into();
        let sent = channel.basic_publish("".into(), name, options, body, properties);
        Ok(sent.await?)
    }

    /// Deletes it, with its dead-letter queue, which has to be empty.
    pub(crate) async fn delete(self) -> Result<()> {
        let connection = self.connect().await?;
        let channel = connection.create_channel().await?;
        let dead = format!("{}.dead-letters", self.name);
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let declared = channel
            .queue_declare(dead.as_str().into(), passive, FieldTable::default())
            .await?;
        ensure!(
            declared.message_count() == 0,
            "messages were dead-lettered during the measurement"
        );
        for name in [&self.name, &dead] {
            let options = QueueDeleteOptions::default();
            channel.queue_delete(name.as_str().into(), options).await?;
        }
        connection.close(200, "done".into()).await?;
        Ok(())
    }
}

async fn confirmed(publication: PublisherConfirm) -> Result<()> {
    let answer = publication.await?;
    ensure!(
        matches!(answer, Confirmation::Ack(None)),
        "RabbitMQ did not take a message: {answer:?}"
    );
    Ok(())
}
