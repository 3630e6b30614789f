//! Queues and exchanges: declared if asked, otherwise left to somebody else.

use backstop_core::{BrokerError, BrokerErrorKind};
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};

use crate::config::RabbitMqConfig;
use crate::connection::{Link, Live};
use crate::error::{failed, refusal};
use crate::version::ServerVersion;

/// How a message finds its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hashing {
    /// A consistent-hash exchange of the server's does it, for every publisher.
    Exchange,
    /// Our publisher does it.
    Publisher,
}

/// Declares the queue with its dead-letter queue, and its partitions if it has any.
pub(crate) async fn declare(link: &Link) -> Result<(), BrokerError> {
    let config = &link.config;
    let live = link.live().await?;
    let dead_letters = dead_letter_arguments(live.version);
    declare_queue(&live, &config.dead_letter_queue, dead_letters).await?;
    for queue in config.source_queues() {
        declare_queue(&live, &queue, source_arguments(config)).await?;
    }
    if config.partitions.is_some() {
        declare_exchange(link, &live).await?;
    }
    Ok(())
}

pub(crate) fn source_arguments(config: &RabbitMqConfig) -> FieldTable {
    let mut arguments = FieldTable::default();
    set(&mut arguments, "x-queue-type", "quorum");
    set(&mut arguments, "x-dead-letter-exchange", "");
    set(
        &mut arguments,
        "x-dead-letter-routing-key",
        &config.dead_letter_queue,
    );
    // What the broker dead-letters by itself is not to be lost either; needs `reject-publish`
    // (https://www.rabbitmq.com/docs/quorum-queues#dead-lettering).
    set(&mut arguments, "x-dead-letter-strategy", "at-least-once");
    set(&mut arguments, "x-overflow", "reject-publish");
    let limit = AMQPValue::LongInt(i32::try_from(config.delivery_limit).unwrap_or(i32::MAX));
    arguments.insert("x-delivery-limit".into(), limit);
    if config.partitions.is_some() {
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    }
    arguments
}

/// No delivery limit that is ever reached: looking at a message counts, and from 4.0 on the default
/// is 20.
pub(crate) fn dead_letter_arguments(version: ServerVersion) -> FieldTable {
    let mut arguments = FieldTable::default();
    set(&mut arguments, "x-queue-type", "quorum");
    let limit = version.no_delivery_limit();
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(limit));
    arguments
}

fn set(arguments: &mut FieldTable, name: &str, value: &str) {
    arguments.insert(name.into(), AMQPValue::LongString(value.into()));
}

/// A queue that exists is left as it is: [`findings`] judges it.
async fn declare_queue(live: &Live, name: &str, arguments: FieldTable) -> Result<(), BrokerError> {
    if exists(live, name).await? {
        return Ok(());
    }
    let channel = live.channel().await?;
    let declared = channel
        .queue_declare(name.into(), QueueDeclareOptions::durable(), arguments)
        .await;
    declared.map_err(|error| failed(&format!("the queue {name:?} cannot be declared"), error))?;
    close(channel).await;
    Ok(())
}

/// Binds the partitions to a consistent-hash exchange, if the server has the plugin.
async fn declare_exchange(link: &Link, live: &Live) -> Result<(), BrokerError> {
    let name = link.config.exchange();
    if hashing(&link.config, live).await? == Hashing::Publisher {
        // A connection of its own: an unknown type of exchange ends the connection.
        let connection = link.open().await?;
        let channel = connection.create_channel().await;
        let channel = channel.map_err(|error| failed("no channel can be opened", error))?;
        let options = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let kind = ExchangeKind::Custom("x-consistent-hash".to_owned());
        let declared = channel
            .exchange_declare(name.as_str().into(), kind, options, FieldTable::default())
            .await;
        if let Err(error) = declared {
            if !lacks_plugin(&error) {
                let text = format!("the exchange {name:?} cannot be declared");
                return Err(failed(&text, error));
            }
            tracing::warn!("{}", NO_PLUGIN);
            return Ok(());
        }
        let _ = connection.close(200, "done".into()).await;
    }
    let channel = live.channel().await?;
    for queue in link.config.source_queues() {
        let (queue, exchange) = (queue.as_str().into(), name.as_str().into());
        // The binding key is the partition's weight.
        let bound = channel.queue_bind(
            queue,
            exchange,
            "1".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        bound
            .await
            .map_err(|error| failed(&format!("the exchange {name:?} cannot be bound"), error))?;
    }
    close(channel).await;
    Ok(())
}

/// 4.x refuses an unknown type on the channel, earlier versions end the connection.
fn lacks_plugin(error: &lapin::Error) -> bool {
    refusal(error).is_some_and(|(_, text)| text.contains("exchange type"))
}

pub(crate) const NO_PLUGIN: &str = "the server lacks the plugin rabbitmq_consistent_hash_exchange: only backstop's \
     publisher finds a key's partition; to let others publish, run `rabbitmq-plugins enable \
     rabbitmq_consistent_hash_exchange` and declare again";

/// Who hashes, by whether the exchange is there.
pub(crate) async fn hashing(config: &RabbitMqConfig, live: &Live) -> Result<Hashing, BrokerError> {
    let channel = live.channel().await?;
    let options = ExchangeDeclareOptions {
        passive: true,
        ..ExchangeDeclareOptions::default()
    };
    let kind = ExchangeKind::Custom("x-consistent-hash".to_owned());
    let name = config.exchange();
    match channel
        .exchange_declare(name.as_str().into(), kind, options, FieldTable::default())
        .await
    {
        Ok(()) => {
            close(channel).await;
            Ok(Hashing::Exchange)
        }
        Err(error) => {
            let error = failed(&format!("the exchange {name:?} cannot be looked at"), error);
            match error.kind() {
                BrokerErrorKind::NotFound => Ok(Hashing::Publisher),
                _ => Err(error),
            }
        }
    }
}

/// Whether a queue is there.
pub(crate) async fn exists(live: &Live, name: &str) -> Result<bool, BrokerError> {
    match depth(live, name).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == BrokerErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// How many messages wait in a queue.
pub(crate) async fn depth(live: &Live, name: &str) -> Result<u64, BrokerError> {
    let channel = live.channel().await?;
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::durable()
    };
    let queue = channel
        .queue_declare(name.into(), options, FieldTable::default())
        .await;
    let queue = queue.map_err(|error| {
        let text = format!("there is no queue {name:?}, or it cannot be looked at: declare it, or have it declared (declare=true)");
        failed(&text, error)
    })?;
    close(channel).await;
    Ok(u64::from(queue.message_count()))
}

pub(crate) async fn close(channel: Channel) {
    // It ends with its connection at the latest.
    let _ = channel.close(200, "done".into()).await;
}
