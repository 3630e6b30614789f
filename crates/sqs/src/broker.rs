//! The port: a queue on SQS.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use backstop_core::{
    Broker, BrokerError, BrokerErrorKind, BrokerHandle, Capabilities, ConfigError, DeadLetterQueue,
    DeliveryLease, Finding, OrderScope, OrderedRetry, Outgoing, ReleaseCost, SubscribeOptions,
    Subscription, SubscriptionOrder, Survival,
};
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::config::{QueueKind, SqsConfig, SqsTopology};
use crate::connection::Link;
use crate::dead_letters::DeadLetters;
use crate::encode::{self, MAX_BYTES, Native};
use crate::error::{again, misconfigured};
use crate::inspect;
use crate::publish;
use crate::subscription::SqsSubscription;
use crate::topology::{self, Queue};

/// A queue on Amazon SQS. Cloning is cheap, and clones share the connections.
#[derive(Clone)]
pub struct Sqs {
    shared: Arc<Shared>,
}

/// What subscriptions and publishers of a queue have in common.
pub(crate) struct Shared {
    pub(crate) link: Arc<Link>,
    declared: OnceCell<()>,
    target: Mutex<Option<Arc<Target>>>,
    subscriptions: Mutex<Vec<Weak<SqsSubscription>>>,
}

/// The dead-letter queue.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) url: Arc<str>,
    /// How often SQS hands a message out before it moves it there.
    pub(crate) max_receive_count: u32,
}

/// `DelaySeconds` goes up to 15 minutes.
const LONGEST_DELAY: Duration = Duration::from_mins(15);

impl Sqs {
    /// A queue by its URL, see [`SqsConfig`]. Nothing is connected yet: the first use does that, and a
    /// service that cannot be reached is waited for by whoever can wait.
    ///
    /// # Errors
    ///
    /// When the URL makes no sense.
    pub fn open(url: &str) -> Result<Self, ConfigError> {
        SqsConfig::from_url(url).map(Self::new)
    }

    /// A queue by its configuration. Nothing is connected yet.
    pub fn new(config: SqsConfig) -> Self {
        Self {
            shared: Arc::new(Shared {
                link: Arc::new(Link::new(config)),
                declared: OnceCell::new(),
                target: Mutex::default(),
                subscriptions: Mutex::default(),
            }),
        }
    }

    /// Connects, and declares or looks for the queue.
    ///
    /// # Errors
    ///
    /// When SQS cannot be reached or refuses the credentials, or the queue does not exist.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: what was declared stays.
    pub async fn connect(url: &str) -> Result<Self, BrokerError> {
        let broker = Self::open(url).map_err(|error| misconfigured(&error))?;
        broker.shared.ready().await?;
        broker.shared.link.queue_url().await?;
        Ok(broker)
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Asks a script instead of SQS.
    #[cfg(test)]
    pub(crate) fn ask(&self, script: &crate::scripted::Script) {
        self.shared.link.ask(script);
    }

    /// HTTP requests that were sent to SQS through this handle and its clones, retries included: what is
    /// billed.
    pub fn api_calls(&self) -> u64 {
        self.shared.link.calls()
    }
}

impl Shared {
    /// Sees to it that what is to be declared has been.
    pub(crate) async fn ready(&self) -> Result<(), BrokerError> {
        if self.link.config.topology == SqsTopology::Checked {
            return Ok(());
        }
        self.declared
            .get_or_try_init(|| topology::declare(&self.link))
            .await?;
        Ok(())
    }

    /// The dead-letter queue, as the queue's `RedrivePolicy` names it.
    pub(crate) async fn target(&self) -> Result<Arc<Target>, BrokerError> {
        if let Some(target) = self.target.lock().clone() {
            return Ok(target);
        }
        let (_, source) = topology::look_at_source(&self.link).await?;
        let target = Arc::new(self.target_of(&source).await?);
        *self.target.lock() = Some(Arc::clone(&target));
        Ok(target)
    }

    async fn target_of(&self, source: &Queue) -> Result<Target, BrokerError> {
        let queue = &self.link.config.queue;
        let Some((policy, (account, name))) = source
            .redrive
            .as_ref()
            .and_then(|policy| Some((policy, policy.target()?)))
        else {
            let text = format!(
                "the queue {queue:?} has no dead-letter queue: set its RedrivePolicy, or have it declared \
                 (declare=true)"
            );
            return Err(BrokerError::new(BrokerErrorKind::NotFound, text));
        };
        Ok(Target {
            name: name.to_owned(),
            url: self.link.look_up_in(name, Some(account)).await?,
            max_receive_count: policy.max_receive_count,
        })
    }

    /// Looks for the dead-letter queue again next time.
    pub(crate) fn forget_target(&self) {
        *self.target.lock() = None;
    }

    fn native(&self, outgoing: &Outgoing) -> Result<Native, BrokerError> {
        let kind = self.link.config.kind();
        let delay = outgoing.delay;
        let refuse = |text| Err(BrokerError::new(BrokerErrorKind::Unsupported, text));
        if kind == QueueKind::Fifo && !delay.is_zero() {
            let text = "a FIFO queue delays no single message: publish it without a delay, or to a \
                        standard queue";
            return refuse(text.to_owned());
        }
        if delay > LONGEST_DELAY {
            return refuse(format!(
                "delay cannot be {delay:?}: SQS delays a message by at most {LONGEST_DELAY:?}"
            ));
        }
        let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
        let seconds = i32::try_from(seconds).unwrap_or(i32::MAX);
        encode::message(&outgoing.message, kind, seconds)
    }

    async fn publish(
        &self,
        messages: &[Outgoing],
    ) -> Result<Vec<Result<(), BrokerError>>, BrokerError> {
        self.ready().await?;
        let client = self.link.client().await?;
        let url = self.link.queue_url().await?;
        let natives = messages
            .iter()
            .map(|outgoing| self.native(outgoing))
            .collect();
        let kind = self.link.config.kind();
        let answers = publish::send(client, &url, natives, kind).await;
        let is_missing = |answer: &Result<(), BrokerError>| matches!(answer, Err(error) if error.kind() == BrokerErrorKind::NotFound);
        if answers.iter().any(is_missing) {
            self.link.forget_queue_url();
        }
        Ok(answers)
    }
}

#[async_trait]
impl Broker for Sqs {
    fn queue(&self) -> &str {
        self.shared.link.config.queue()
    }

    fn capabilities(&self) -> Capabilities {
        let (order, max_publication_delay) = match self.shared.link.config.kind() {
            QueueKind::Standard => (OrderScope::WithinProcess, LONGEST_DELAY),
            QueueKind::Fifo => (OrderScope::AcrossProcesses, Duration::ZERO),
        };
        Capabilities {
            order,
            ordered_retry: OrderedRetry::HeldInLane,
            release: ReleaseCost::Counted,
            lease: DeliveryLease::Timed {
                max_total: Some(SqsConfig::MAX_LEASE),
            },
            max_delay: Some(SqsConfig::MAX_LEASE),
            max_publication_delay: Some(max_publication_delay),
            max_body: MAX_BYTES,
            survival: Survival::Durable,
        }
    }

    async fn inspect(&self, options: &SubscribeOptions) -> Result<Vec<Finding>, BrokerError> {
        self.shared.ready().await?;
        inspect::findings(&self.shared, options).await
    }

    async fn subscribe(
        &self,
        options: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>, BrokerError> {
        let kind = self.shared.link.config.kind();
        if options.order == SubscriptionOrder::ByPartitionKey && kind == QueueKind::Standard {
            let text = "a standard queue keeps no order across consumers: use a FIFO queue, whose name \
                        ends with .fifo";
            return Err(BrokerError::new(BrokerErrorKind::Unsupported, text));
        }
        self.shared.ready().await?;
        let subscription = SqsSubscription::start(&self.shared, options).await?;
        let mut subscriptions = self.shared.subscriptions.lock();
        subscriptions.retain(|subscription| subscription.strong_count() > 0);
        subscriptions.push(Arc::downgrade(&subscription));
        drop(subscriptions);
        Ok(Box::new(crate::subscription::Handle(subscription)))
    }

    async fn publish(&self, messages: &[Outgoing]) -> Vec<Result<(), BrokerError>> {
        match self.shared.publish(messages).await {
            Ok(answers) => answers,
            Err(error) => messages.iter().map(|_| Err(again(&error))).collect(),
        }
    }

    async fn dead_letters(&self) -> Result<Box<dyn DeadLetterQueue>, BrokerError> {
        self.shared.ready().await?;
        self.shared.forget_target();
        let target = self.shared.target().await?;
        Ok(Box::new(DeadLetters::new(Arc::clone(&self.shared), target)))
    }

    async fn close(&self) {
        let subscriptions: Vec<_> = self.shared.subscriptions.lock().drain(..).collect();
        let subscriptions: Vec<_> = subscriptions.iter().filter_map(Weak::upgrade).collect();
        join_all(subscriptions.iter().map(|subscription| subscription.end())).await;
        self.shared.link.close();
    }
}

impl From<Sqs> for BrokerHandle {
    fn from(broker: Sqs) -> Self {
        Arc::new(broker)
    }
}

impl fmt::Debug for Sqs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqs")
            .field("config", &self.shared.link.config)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
