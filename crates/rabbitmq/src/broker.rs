//! The port: a queue on RabbitMQ.

use std::fmt;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use backstop_core::{
    Broker, BrokerError, BrokerErrorKind, BrokerHandle, Capabilities, ConfigError, DeadLetterQueue,
    DeliveryLease, Finding, Message, MessageId, OrderScope, OrderedRetry, Outgoing, PartitionKey,
    ReleaseCost, SubscribeOptions, Subscription, SubscriptionOrder, Survival,
};
use futures_util::future::join_all;
use lapin::types::ShortString;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use xxhash_rust::xxh3::xxh3_64;

use crate::config::{RabbitMqConfig, Topology};
use crate::connection::Link;
use crate::dead_letters::DeadLetters;
use crate::delay::{self, Delays, Grain};
use crate::encode;
use crate::ending::Ending;
use crate::error::{again, misconfigured};
use crate::inspect;
use crate::publish::{Parcel, Press};
use crate::subscription::RabbitMqSubscription;
use crate::topology::{self, Hashing};
use crate::version::ServerVersion;

/// A queue on RabbitMQ. Cloning is cheap, and clones share the connection.
#[derive(Clone)]
pub struct RabbitMq {
    shared: Arc<Shared>,
}

/// What subscriptions and publishers of a queue have in common.
pub(crate) struct Shared {
    pub(crate) link: Arc<Link>,
    /// Nothing is consumed by this one, and nothing is published by the other.
    publishing: Arc<Link>,
    pub(crate) press: Press,
    pub(crate) delays: Delays,
    /// How the channels of ordered subscriptions end.
    pub(crate) endings: Mutex<Vec<Weak<Ending>>>,
    declared: OnceCell<()>,
}

impl RabbitMq {
    /// A queue by its URL, see [`RabbitMqConfig`]. Nothing is connected yet: the first use does that,
    /// and a server that cannot be reached is waited for by whoever can wait.
    ///
    /// # Errors
    ///
    /// When the URL makes no sense.
    pub fn open(url: &str) -> Result<Self, ConfigError> {
        RabbitMqConfig::from_url(url).map(Self::new)
    }

    /// A queue by its configuration. Nothing is connected yet.
    pub fn new(config: RabbitMqConfig) -> Self {
        let link = Arc::new(Link::new(config));
        let publishing = Arc::new(link.for_publishing());
        Self {
            shared: Arc::new(Shared {
                press: Press::new(Arc::clone(&publishing)),
                link,
                publishing,
                delays: Delays::default(),
                endings: Mutex::default(),
                declared: OnceCell::new(),
            }),
        }
    }

    /// Connects, and declares or looks at the queue.
    ///
    /// # Errors
    ///
    /// When the server cannot be reached or refuses the credentials, or the queue does not exist.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: what was declared stays.
    pub async fn connect(url: &str) -> Result<Self, BrokerError> {
        let broker = Self::open(url).map_err(|error| misconfigured(&error))?;
        broker.shared.ready().await?;
        let live = broker.shared.link.live().await?;
        for queue in broker.shared.link.config.source_queues() {
            topology::depth(&live, &queue).await?;
        }
        Ok(broker)
    }
}

impl Shared {
    fn version(&self) -> ServerVersion {
        self.link.version().unwrap_or(ServerVersion::OLDEST)
    }

    fn max_body(&self) -> usize {
        // The default of `max_message_size` from 4.0 on, release notes of 4.0
        // (https://www.rabbitmq.com/release-information). Older servers take 128 MiB; but a limit that
        // grew when the server is known would let through what was refused a moment ago.
        const DEFAULT: usize = 16 << 20;
        self.link.config.max_body.unwrap_or(DEFAULT)
    }

    /// Sees to it that what is to be declared has been.
    pub(crate) async fn ready(&self) -> Result<(), BrokerError> {
        if self.link.config.topology == Topology::Checked {
            return Ok(());
        }
        self.declared
            .get_or_try_init(|| topology::declare(&self.link))
            .await?;
        Ok(())
    }

    /// The exchange whose routing key is the partition key, if there is one now.
    pub(crate) async fn exchange_by_key(&self) -> Result<Option<String>, BrokerError> {
        let config = &self.link.config;
        if config.partitions.is_none() {
            return Ok(None);
        }
        let hashing = self.link.live().await?.hashing(config).await?;
        Ok((hashing == Hashing::Exchange).then(|| config.exchange()))
    }

    async fn parcel(&self, outgoing: &Outgoing) -> Result<Parcel, BrokerError> {
        let message = &outgoing.message;
        let properties = encode::properties(message, self.max_body())?;
        let (exchange, routing_key) = self.route(outgoing).await?;
        Ok(Parcel {
            exchange,
            routing_key,
            properties,
            body: message.body.clone(),
        })
    }

    async fn route(&self, outgoing: &Outgoing) -> Result<(ShortString, ShortString), BrokerError> {
        let config = &self.link.config;
        let Some(partitions) = config.partitions else {
            let queue = match outgoing.delay {
                delay if delay.is_zero() => config.queue.to_string(),
                delay => {
                    self.delays
                        .queue(&self.link, &config.queue, delay, Grain::Fine)
                        .await?
                }
            };
            return Ok(("".into(), queue.into()));
        };
        if !outgoing.delay.is_zero() {
            let text = "a delayed message has no place in the order of its key: publish it without a \
                        delay, or to a queue without partitions";
            return Err(BrokerError::new(BrokerErrorKind::Unsupported, text));
        }
        let key = routing_key(&outgoing.message);
        if let Some(exchange) = self.exchange_by_key().await? {
            let key = ShortString::try_new(key).map_err(|error| {
                let text = "a partition key is a routing key here, and has at most 255 bytes";
                BrokerError::new(BrokerErrorKind::TooLarge, text).with_source(error)
            })?;
            return Ok((exchange.into(), key));
        }
        let number = xxh3_64(key.as_bytes()) % u64::from(partitions.get());
        let queue = config.partition_queue(u16::try_from(number).unwrap_or_default());
        Ok(("".into(), queue.into()))
    }

    async fn publish(&self, messages: &[Outgoing]) -> Vec<Result<(), BrokerError>> {
        let mut parcels = Vec::with_capacity(messages.len());
        let mut refusals = Vec::with_capacity(messages.len());
        for outgoing in messages {
            match self.parcel(outgoing).await {
                Ok(parcel) => {
                    parcels.push(parcel);
                    refusals.push(None);
                }
                Err(error) => refusals.push(Some(error)),
            }
        }
        let mut published = self.press.publish(parcels).await.into_iter();
        let mut answers = Vec::with_capacity(messages.len());
        for (refusal, outgoing) in refusals.into_iter().zip(messages) {
            let answer = match refusal {
                Some(error) => Err(error),
                None => published.next().unwrap_or(Ok(())),
            };
            if matches!(&answer, Err(error) if error.kind() == BrokerErrorKind::Unroutable)
                && !outgoing.delay.is_zero()
            {
                // The delay queue may have gone; the next publication declares it anew.
                self.delays.forget_all().await;
            }
            answers.push(answer);
        }
        answers
    }
}

/// A message without a key may go anywhere; its id spreads such messages evenly.
fn routing_key(message: &Message) -> &str {
    let id = message.id.as_ref().map(MessageId::as_str);
    let key = message.partition_key.as_ref().map(PartitionKey::as_str);
    key.or(id).unwrap_or_default()
}

#[async_trait]
impl Broker for RabbitMq {
    fn queue(&self) -> &str {
        self.shared.link.config.queue()
    }

    fn capabilities(&self) -> Capabilities {
        let is_partitioned = self.shared.link.config.partitions.is_some();
        Capabilities {
            order: if is_partitioned {
                OrderScope::AcrossProcesses
            } else {
                OrderScope::WithinProcess
            },
            ordered_retry: OrderedRetry::HeldInLane,
            release: ReleaseCost::Free,
            lease: DeliveryLease::Connection,
            max_delay: Some(delay::LONGEST),
            max_publication_delay: Some(delay::LONGEST),
            max_body: self.shared.max_body(),
            survival: Survival::Durable,
        }
    }

    async fn inspect(&self, options: &SubscribeOptions) -> Result<Vec<Finding>, BrokerError> {
        self.shared.ready().await?;
        inspect::findings(&self.shared.link, options).await
    }

    async fn subscribe(
        &self,
        options: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>, BrokerError> {
        let is_partitioned = self.shared.link.config.partitions.is_some();
        let refuse = |text: &str| Err(BrokerError::new(BrokerErrorKind::Unsupported, text));
        match (options.order, is_partitioned) {
            (SubscriptionOrder::ByPartitionKey, false) => {
                return refuse(
                    "one queue keeps no order across consumers: give the URL partitions=N, and declare them",
                );
            }
            (SubscriptionOrder::Unordered, true) => {
                return refuse(
                    "a queue with partitions is consumed in order: make the consumer ordered, or leave partitions out of the URL",
                );
            }
            _ => {}
        }
        self.shared.ready().await?;
        let subscription = RabbitMqSubscription::start(Arc::clone(&self.shared), options).await?;
        Ok(Box::new(subscription))
    }

    async fn publish(&self, messages: &[Outgoing]) -> Vec<Result<(), BrokerError>> {
        // Connecting first makes the server's limits known.
        let ready = async {
            self.shared.link.live().await?;
            self.shared.ready().await
        };
        if let Err(error) = ready.await {
            return messages.iter().map(|_| Err(again(&error))).collect();
        }
        self.shared.publish(messages).await
    }

    async fn dead_letters(&self) -> Result<Box<dyn DeadLetterQueue>, BrokerError> {
        self.shared.ready().await?;
        let dead_letters = DeadLetters::open(Arc::clone(&self.shared)).await?;
        Ok(Box::new(dead_letters))
    }

    async fn close(&self) {
        // What a closed connection gives back would be overtaken.
        let endings: Vec<_> = self.shared.endings.lock().drain(..).collect();
        let endings: Vec<_> = endings.iter().filter_map(Weak::upgrade).collect();
        join_all(endings.iter().map(|ending| ending.end())).await;
        tokio::join!(self.shared.publishing.close(), self.shared.link.close());
    }
}

impl From<RabbitMq> for BrokerHandle {
    fn from(broker: RabbitMq) -> Self {
        Arc::new(broker)
    }
}

impl fmt::Debug for RabbitMq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMq")
            .field("config", &self.shared.link.config)
            .field("version", &self.shared.version())
            .finish_non_exhaustive()
    }
}
