//! Receiving.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use backstop_core::{
    BrokerError, BrokerErrorKind, Delivery, LeaseId, LeaseState, SettleError, Settlement,
    SubscribeOptions, Subscription, SubscriptionOrder, with_causes,
};
use futures_util::FutureExt;
use lapin::Channel;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

use crate::arrivals::{Arrival, Arrivals};
use crate::broker::Shared;
use crate::decode::{self, NativeCount, Reading};
use crate::desk::Desk;
use crate::ending::Ending;
use crate::error::{closed, failed};
use crate::settle::released;
use crate::shelf::{Look, Shelf};
use crate::source::{Source, lease};
use crate::topology::close;

/// What consumes a queue.
pub(crate) struct RabbitMqSubscription {
    shared: Arc<Shared>,
    consumer: Arc<str>,
    order: SubscriptionOrder,
    prefetch: u16,
    desk: Arc<Desk>,
    shelf: Arc<Shelf>,
    reception: Mutex<Option<Reception>>,
    channels: AtomicU64,
    stopped: CancellationToken,
}

/// One channel's deliveries.
struct Reception {
    source: Source,
    arrivals: Arrivals,
    tags: Vec<ShortString>,
    by_key: Option<String>,
}

impl Reception {
    fn ending(&self) -> Option<&Ending> {
        self.source.ending.as_deref()
    }
}

impl Drop for Reception {
    fn drop(&mut self) {
        if let Some(ending) = self.ending() {
            ending.end_soon();
        }
    }
}

/// A channel that is about to be consumed from.
///
/// A consumer that was asked for, and whose answer nobody waits for any more, cannot be cancelled; it
/// would be sent messages that nobody has. So the channel is closed, and they go back.
struct Opening(Option<Channel>);

impl Opening {
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let (Some(channel), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(close(channel));
        }
    }
}

impl RabbitMqSubscription {
    pub(crate) async fn start(
        shared: Arc<Shared>,
        options: &SubscribeOptions,
    ) -> Result<Self, BrokerError> {
        let buffered = options.max_buffered.get();
        let shelf = Arc::new(Shelf::default());
        let is_ordered = options.order == SubscriptionOrder::ByPartitionKey;
        // Never more than there is room for: a message that is sent ahead waits behind those that are
        // handled, while another consumer may be idle.
        let prefetch = match shared.link.config.partitions {
            // Enough for a few busy partitions to fill the buffer.
            Some(partitions) => (2 * buffered)
                .div_ceil(usize::from(partitions.get()))
                .max(16),
            None => buffered,
        };
        let subscription = Self {
            desk: Arc::new(Desk::new(
                Arc::clone(&shared),
                buffered / 4,
                is_ordered.then(|| Arc::clone(&shelf)),
            )),
            shared,
            consumer: Arc::clone(&options.consumer),
            order: options.order,
            prefetch: u16::try_from(prefetch).unwrap_or(u16::MAX),
            shelf,
            reception: Mutex::new(None),
            channels: AtomicU64::new(0),
            stopped: CancellationToken::new(),
        };
        let reception = subscription.consume().await?;
        *subscription.reception.lock().await = Some(reception);
        Ok(subscription)
    }

    /// Begins to consume on a new channel.
    async fn consume(&self) -> Result<Reception, BrokerError> {
        let by_key = self.shared.exchange_by_key().await?;
        let live = self.shared.link.live().await?;
        let channel = live.channel().await?;
        // What is ordered ends by its reception.
        let is_unordered = self.order == SubscriptionOrder::Unordered;
        let opening = Opening(is_unordered.then(|| channel.clone()));
        let limited = channel
            .basic_qos(self.prefetch, BasicQosOptions::default())
            .await;
        limited.map_err(|error| failed("the prefetch limit cannot be set", error))?;
        let number = self.channels.fetch_add(1, Ordering::Relaxed) + 1;
        let ending = (self.order == SubscriptionOrder::ByPartitionKey).then(|| {
            let ending = Arc::new(Ending::new(Arc::clone(&live), channel.clone()));
            let mut endings = self.shared.endings.lock();
            endings.retain(|ending| ending.strong_count() > 0);
            endings.push(Arc::downgrade(&ending));
            ending
        });
        let source = Source {
            number,
            channel,
            live,
            ending,
        };
        let mut reception = Reception {
            source,
            arrivals: Arrivals::default(),
            tags: Vec::new(),
            by_key,
        };
        for queue in self.shared.link.config.source_queues() {
            let consumer = self.consume_queue(&reception.source, &queue).await?;
            reception.tags.push(consumer.tag());
            reception.arrivals.add(consumer);
        }
        self.shelf.clear();
        self.desk.open(reception.source.clone()).await;
        opening.done();
        Ok(reception)
    }

    async fn consume_queue(
        &self,
        source: &Source,
        queue: &str,
    ) -> Result<lapin::Consumer, BrokerError> {
        let random = rand::random::<u64>();
        let name: String = self.consumer.chars().take(60).collect();
        let tag = format!("{name}-{random:016x}");
        let mut arguments = FieldTable::default();
        if self.order == SubscriptionOrder::ByPartitionKey {
            // The active consumer of a partition is the one with the highest priority (from 4.0 on): a
            // number by chance spreads the partitions over the processes.
            let priority = i32::try_from(xxh3_64(tag.as_bytes()) % 1000).unwrap_or_default();
            arguments.insert("x-priority".into(), AMQPValue::LongInt(priority));
        }
        let options = BasicConsumeOptions::default();
        let consumer = source
            .channel
            .basic_consume(queue.into(), tag.as_str().into(), options, arguments)
            .await;
        consumer.map_err(|error| failed(&format!("the queue {queue:?} cannot be consumed"), error))
    }

    /// A new reception after the channel of the last is gone. It worked before, so that whatever stands
    /// in its way is waited out: whoever deleted the queue may be about to declare it anew, and a server
    /// that comes up refuses users whose virtual host or directory is not up yet.
    async fn resume(&self) -> Result<Reception, BrokerError> {
        self.consume().await.map_err(|error| {
            let text = match error.kind() {
                BrokerErrorKind::NotFound => "the queue has gone; waiting for it to come back",
                BrokerErrorKind::Closed => return error,
                _ if error.is_transient() => return error,
                _ => "RabbitMQ lets the queue not be consumed any more; waiting for it to do so",
            };
            BrokerError::new(BrokerErrorKind::Other, text).with_source(error)
        })
    }

    async fn receive_unordered(
        &self,
        reception: &mut Reception,
        max: NonZeroUsize,
    ) -> Result<Vec<Delivery>, BrokerError> {
        let first = reception.arrivals.next().await;
        let mut deliveries = Vec::with_capacity(max.get().min(64));
        deliveries.push(self.read(reception, first)?);
        // No await from here on: what is taken is handed over.
        while deliveries.len() < max.get()
            && let Some(native) = reception.arrivals.next_ready()
        {
            deliveries.push(self.decode(reception, native));
        }
        Ok(deliveries)
    }

    async fn receive_ordered(
        &self,
        reception: &mut Reception,
        max: NonZeroUsize,
    ) -> Result<Vec<Delivery>, BrokerError> {
        loop {
            while let Some(next) = reception.arrivals.next().now_or_never() {
                let delivery = self.read(reception, next)?;
                self.shelf.push(delivery);
            }
            let due = match self.shelf.take(max.get()) {
                Look::Taken(taken) => return Ok(taken),
                Look::Nothing(due) => due,
            };
            let comes_due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                next = reception.arrivals.next() => {
                    let delivery = self.read(reception, next)?;
                    self.shelf.push(delivery);
                }
                () = self.shelf.changed() => {}
                () = comes_due => {}
            }
        }
    }

    fn read(&self, reception: &Reception, next: Option<Arrival>) -> Result<Delivery, BrokerError> {
        match next {
            Some(Arrival::Native(native)) => Ok(self.decode(reception, *native)),
            // Whatever ended the channel, a delivery that was not settled in time, say, a new one may
            // do better.
            Some(Arrival::Broken(error)) => {
                let text = "the connection to RabbitMQ broke, or RabbitMQ ended the channel";
                Err(BrokerError::new(BrokerErrorKind::Unreachable, text).with_source(error))
            }
            Some(Arrival::End) | None => {
                let text =
                    "RabbitMQ ended the subscription: the queue was deleted, or its node went down";
                Err(BrokerError::new(BrokerErrorKind::Unreachable, text))
            }
        }
    }

    fn decode(&self, reception: &Reception, native: lapin::message::Delivery) -> Delivery {
        let count = match self.order {
            SubscriptionOrder::Unordered => NativeCount::Counts,
            SubscriptionOrder::ByPartitionKey => NativeCount::Ignored,
        };
        let reading = Reading {
            by_key: reception.by_key.as_deref(),
            count,
        };
        let lease = lease(reception.source.number, native.delivery_tag);
        decode::delivery(native, lease, reading)
    }

    /// Cancels the consumers, and gives back what was sent ahead.
    async fn cancel(&self, mut reception: Reception) {
        for tag in &reception.tags {
            if let Err(error) = reception
                .source
                .channel
                .basic_cancel(tag.clone(), BasicCancelOptions::default())
                .await
            {
                tracing::debug!(error = %with_causes(&error), "a consumer could not be cancelled: its channel is gone already");
                return;
            }
        }
        let mut ahead = Vec::new();
        while let Some(native) = reception.arrivals.next_ready() {
            ahead.push(released(self.decode(&reception, native)));
        }
        for answer in self.desk.settle(ahead).await {
            if let Err(error) = answer {
                tracing::debug!(error = %with_causes(&error.cause), "a delivery could not be given back; it comes back with the channel");
            }
        }
    }
}

fn broken(reason: Option<lapin::Error>) -> BrokerError {
    let text = "the channel broke; what it brought is delivered again";
    let error = BrokerError::new(BrokerErrorKind::Unreachable, text);
    match reason {
        Some(reason) => error.with_source(reason),
        None => error,
    }
}

#[async_trait]
impl Subscription for RabbitMqSubscription {
    async fn receive(&self, max: NonZeroUsize) -> Result<Vec<Delivery>, BrokerError> {
        let mut place = tokio::select! {
            biased;
            () = self.stopped.cancelled() => return Err(closed()),
            place = self.reception.lock() => place,
        };
        let receiving = async {
            let Some(reception) = place.as_mut() else {
                *place = Some(self.resume().await?);
                return Ok(Vec::new());
            };
            match self.order {
                SubscriptionOrder::Unordered => self.receive_unordered(reception, max).await,
                SubscriptionOrder::ByPartitionKey => self.receive_ordered(reception, max).await,
            }
        };
        let received = tokio::select! {
            biased;
            () = self.stopped.cancelled() => return Err(closed()),
            received = receiving => received,
        };
        // What lapin still had of a channel that is gone is with somebody else already.
        let received = received.and_then(|deliveries| {
            if self.desk.is_open() {
                Ok(deliveries)
            } else {
                let reception = place.as_mut();
                Err(broken(
                    reception.and_then(|reception| reception.arrivals.take_broken()),
                ))
            }
        });
        if received.is_err() {
            self.desk.shut();
            self.shelf.clear();
            *place = None;
        }
        received
    }

    async fn settle(&self, batch: Vec<Settlement>) -> Vec<Result<(), SettleError>> {
        self.desk.settle(batch).await
    }

    async fn extend(&self, leases: &[LeaseId]) -> Vec<Result<LeaseState, BrokerError>> {
        leases
            .iter()
            .map(|lease| Ok(self.desk.state(*lease)))
            .collect()
    }

    async fn stop(&self) {
        self.stopped.cancel();
        // The receive under way, if any, has let go of the lock then.
        let mut place = self.reception.lock().await;
        if self.order == SubscriptionOrder::Unordered
            && let Some(reception) = place.take()
        {
            self.cancel(reception).await;
        }
    }

    async fn close(&self) {
        self.stop().await;
        self.desk.finish().await;
        let reception = self.reception.lock().await.take();
        if let Some(ending) = reception.as_ref().and_then(Reception::ending) {
            ending.end().await;
        }
        self.desk.close_channel().await;
    }
}

impl Drop for RabbitMqSubscription {
    fn drop(&mut self) {
        self.stopped.cancel();
        self.desk.abandon();
    }
}
