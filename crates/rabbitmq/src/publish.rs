//! Publishing: persistent, mandatory, confirmed, many at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use backstop_core::{BrokerError, BrokerErrorKind};
use bytes::Bytes;
use futures_util::poll;
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use std::task::Poll;
use tokio::sync::Mutex;

use crate::connection::{Link, Live};
use crate::error::{again, failed};

/// A message on its way to an exchange.
pub(crate) struct Parcel {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Bytes,
}

/// Publishes by a few channels, each of which carries one batch at a time.
pub(crate) struct Press {
    link: Arc<Link>,
    lanes: [Arc<Mutex<Option<Lane>>>; LANES],
    next: AtomicUsize,
}

const LANES: usize = 4;

struct Lane {
    live: Arc<Live>,
    channel: Channel,
}

type Answer = Result<(), BrokerError>;

impl Press {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self {
            link,
            lanes: std::array::from_fn(|_| Arc::default()),
            next: AtomicUsize::new(0),
        }
    }

    /// Publishes in order; each answer says that the broker has the message safely, or why not.
    ///
    /// # Cancel safety
    ///
    /// A dropped call goes on in its own task: what was begun is published.
    pub(crate) async fn publish(&self, parcels: Vec<Parcel>) -> Vec<Answer> {
        if parcels.is_empty() {
            return Vec::new();
        }
        let count = parcels.len();
        let number = self.next.fetch_add(1, Ordering::Relaxed) % LANES;
        let (link, lane) = (Arc::clone(&self.link), Arc::clone(&self.lanes[number]));
        // A task of its own: a channel whose batch was abandoned half-way would hand the returns of
        // that batch to the next one.
        let flight =
            tokio::spawn(async move { fly(&link, &mut *lane.lock().await, parcels).await });
        match flight.await {
            Ok(answers) => answers,
            Err(error) => {
                let error = BrokerError::new(BrokerErrorKind::Other, "publishing broke off")
                    .with_source(error);
                (0..count).map(|_| Err(again(&error))).collect()
            }
        }
    }
}

async fn fly(link: &Link, place: &mut Option<Lane>, parcels: Vec<Parcel>) -> Vec<Answer> {
    // Put back in the end, if the batch came through: a channel with an open question is not used again.
    let lane = match open(link, place.take()).await {
        Ok(lane) => lane,
        Err(error) => return parcels.iter().map(|_| Err(again(&error))).collect(),
    };
    let limit = link.config.confirm_timeout;
    let confirmed = tokio::time::timeout(limit, send(&lane.channel, &parcels)).await;
    let Ok(confirmations) = confirmed else {
        let why = if lane.live.is_blocked() {
            "the broker blocks publishers: it is short of memory or disk"
        } else {
            "the broker did not confirm in time"
        };
        let text = format!("{why} (confirm_timeout is {limit:?}); the message may have arrived");
        let error = BrokerError::new(BrokerErrorKind::Throttled, text);
        return parcels.iter().map(|_| Err(again(&error))).collect();
    };
    let (answers, is_sound) = judge(&parcels, confirmations);
    if is_sound {
        *place = Some(lane);
    }
    answers
}

async fn open(link: &Link, lane: Option<Lane>) -> Result<Lane, BrokerError> {
    if let Some(lane) = lane
        && lane.live.is_connected()
        && lane.channel.status().connected()
    {
        return Ok(lane);
    }
    let live = link.live().await?;
    let channel = live.confirming_channel().await?;
    Ok(Lane { live, channel })
}

type Sent = Result<Confirmation, lapin::Error>;

/// Hands all to the channel in their order, and waits for every confirmation.
async fn send(channel: &Channel, parcels: &[Parcel]) -> Vec<Sent> {
    let mut sending = Vec::with_capacity(parcels.len());
    for parcel in parcels {
        let options = BasicPublishOptions {
            mandatory: true,
            immediate: false,
        };
        let mut publish = Box::pin(channel.basic_publish(
            parcel.exchange.clone(),
            parcel.routing_key.clone(),
            options,
            &parcel.body,
            parcel.properties.clone(),
        ));
        // The first poll puts the frames in line: that fixes the order without waiting for the socket.
        match poll!(&mut publish) {
            Poll::Ready(sent) => sending.push(Sending::Sent(sent)),
            Poll::Pending => sending.push(Sending::InLine(publish)),
        }
    }
    let mut confirmations = Vec::with_capacity(sending.len());
    for sending in sending {
        let sent = match sending {
            Sending::Sent(sent) => sent,
            Sending::InLine(publish) => publish.await,
        };
        confirmations.push(match sent {
            Ok(confirm) => confirm.await,
            Err(error) => Err(error),
        });
    }
    confirmations
}

enum Sending<F> {
    Sent(Result<PublisherConfirm, lapin::Error>),
    InLine(std::pin::Pin<Box<F>>),
}

/// What became of each, and whether the channel may be used again.
fn judge(parcels: &[Parcel], confirmations: Vec<Sent>) -> (Vec<Answer>, bool) {
    let mut is_sound = true;
    let mut unroutable = Vec::new();
    let mut answers = Vec::with_capacity(parcels.len());
    for confirmation in confirmations {
        let answer = match confirmation {
            // lapin hands a returned message to whichever confirmation comes next, be it an ack or a
            // nack of another message: which one came back is told by where it went.
            Ok(Confirmation::Ack(returned)) => {
                unroutable.extend(returned.as_ref().map(target));
                Ok(())
            }
            Ok(Confirmation::Nack(returned)) => {
                unroutable.extend(returned.as_ref().map(target));
                Err(refused())
            }
            Ok(Confirmation::NotRequested) => {
                is_sound = false;
                let text = "the channel does not confirm";
                Err(BrokerError::new(BrokerErrorKind::Other, text))
            }
            Err(error) => {
                is_sound = false;
                Err(failed(
                    "the connection broke while publishing; the message may have arrived",
                    error,
                ))
            }
        };
        answers.push(answer);
    }
    for (parcel, answer) in parcels.iter().zip(&mut answers) {
        let to = (&parcel.exchange, &parcel.routing_key);
        if unroutable
            .iter()
            .any(|(exchange, key)| (exchange, key) == to)
        {
            *answer = Err(no_route(parcel));
        }
    }
    (answers, is_sound)
}

fn target(returned: &BasicReturnMessage) -> (ShortString, ShortString) {
    (returned.exchange.clone(), returned.routing_key.clone())
}

/// A quorum queue refuses when it is full (`reject-publish`) or has lost its majority.
fn refused() -> BrokerError {
    let text = "the broker refuses the message: the queue is at its limit, or has lost its quorum";
    BrokerError::new(BrokerErrorKind::Throttled, text)
}

fn no_route(parcel: &Parcel) -> BrokerError {
    let text = match parcel.exchange.as_str() {
        "" => format!(
            "there is no queue {:?}: declare it, or have it declared (declare=true)",
            parcel.routing_key.as_str()
        ),
        exchange => format!("the exchange {exchange:?} has no queue bound for this message"),
    };
    BrokerError::new(BrokerErrorKind::Unroutable, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parcel(queue: &str) -> Parcel {
        Parcel {
            exchange: "".into(),
            routing_key: queue.into(),
            properties: BasicProperties::default(),
            body: Bytes::from_static(b"body"),
        }
    }

    fn returned(queue: &str) -> BasicReturnMessage {
        BasicReturnMessage {
            delivery: lapin::message::Delivery::mock(0, "".into(), queue.into(), false, Vec::new()),
            reply_code: 312,
            reply_text: "NO_ROUTE".into(),
        }
    }

    fn kinds(parcels: &[Parcel], confirmations: Vec<Sent>) -> Vec<Option<BrokerErrorKind>> {
        let (answers, is_sound) = judge(parcels, confirmations);
        assert!(is_sound);
        answers
            .into_iter()
            .map(|answer| answer.err().map(|error| error.kind()))
            .collect()
    }

    /// RabbitMQ sends what it refuses before what it confirms, so a refusal may come between a
    /// returned message and its own confirmation.
    #[test]
    fn a_refused_message_is_not_taken_for_published_because_another_was_returned() {
        let parcels = [parcel("nowhere"), parcel("full"), parcel("fine")];
        let confirmations = vec![
            Ok(Confirmation::Ack(None)),
            Ok(Confirmation::Nack(Some(returned("nowhere")))),
            Ok(Confirmation::Ack(None)),
        ];
        assert_eq!(
            kinds(&parcels, confirmations),
            [
                Some(BrokerErrorKind::Unroutable),
                Some(BrokerErrorKind::Throttled),
                None
            ]
        );
    }

    #[test]
    fn a_returned_message_is_found_whichever_confirmation_carries_it() {
        let parcels = [parcel("fine"), parcel("nowhere"), parcel("nowhere")];
        let confirmations = vec![
            Ok(Confirmation::Ack(Some(returned("nowhere")))),
            Ok(Confirmation::Ack(Some(returned("nowhere")))),
            Ok(Confirmation::Ack(None)),
        ];
        let unroutable = Some(BrokerErrorKind::Unroutable);
        assert_eq!(
            kinds(&parcels, confirmations),
            [None, unroutable, unroutable]
        );
    }
}
