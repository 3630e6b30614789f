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
use crate::encode;
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

/// What goes out together before any of it is confirmed. lapin copies it all into frames, however
/// slowly they leave.
const LOAD_MESSAGES: usize = 512;
const LOAD_BYTES: usize = 8 << 20;

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
    /// A dropped call may have published some; what was begun goes on in its own task, and what was not
    /// is never published.
    pub(crate) async fn publish(&self, parcels: Vec<Parcel>) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(parcels.len());
        let number = self.next.fetch_add(1, Ordering::Relaxed) % LANES;
        for load in loads(parcels) {
            answers.extend(self.carry(number, load).await);
        }
        answers
    }

    async fn carry(&self, lane: usize, load: Vec<Parcel>) -> Vec<Answer> {
        let count = load.len();
        let link = Arc::clone(&self.link);
        let mut place = Arc::clone(&self.lanes[lane]).lock_owned().await;
        // A task of its own: a channel whose batch was abandoned half-way would hand the returns of
        // that batch to the next one.
        let flight = tokio::spawn(async move { fly(&link, &mut place, load).await });
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

/// Cuts a publication so that a load has at most [`LOAD_MESSAGES`], and more than [`LOAD_BYTES`] only if
/// it is one message.
fn loads(parcels: Vec<Parcel>) -> Vec<Vec<Parcel>> {
    let mut loads: Vec<Vec<Parcel>> = Vec::new();
    let mut bytes = 0;
    for parcel in parcels {
        let more = parcel.body.len() + encode::headers_size(&parcel.properties);
        match loads.last_mut() {
            Some(load) if load.len() < LOAD_MESSAGES && bytes + more <= LOAD_BYTES => {
                bytes += more;
                load.push(parcel);
            }
            _ => {
                bytes = more;
                loads.push(vec![parcel]);
            }
        }
    }
    loads
}

async fn fly(link: &Link, place: &mut Option<Lane>, parcels: Vec<Parcel>) -> Vec<Answer> {
    let limit = link.config.confirm_timeout;
    // Put back in the end, if the batch came through: a channel with an open question is not used again.
    let lane = match open(link, place.take()).await {
        Ok(lane) => lane,
        Err(error) => return parcels.iter().map(|_| Err(again(&error))).collect(),
    };
    let confirmed = tokio::time::timeout(limit, send(&lane.channel, &parcels)).await;
    let Ok(confirmations) = confirmed else {
        let why = if lane.live.is_blocked() {
            BLOCKED
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
    // The server does not read the question for a channel either.
    if live.is_blocked() {
        return Err(BrokerError::new(BrokerErrorKind::Throttled, BLOCKED));
    }
    let limit = link.config.confirm_timeout;
    let channel = tokio::time::timeout(limit, live.confirming_channel()).await;
    let channel = channel.unwrap_or_else(|_| {
        let text = format!("no channel was opened in time (confirm_timeout is {limit:?})");
        Err(BrokerError::new(BrokerErrorKind::Throttled, text))
    })?;
    Ok(Lane { live, channel })
}

const BLOCKED: &str = "the broker blocks publishers: it is short of memory or disk";

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

    #[test]
    fn a_load_is_bounded_by_bytes_and_by_count() {
        const MIB: usize = 1 << 20;
        let of = |bodies: &[usize]| {
            let parcels = bodies.iter().map(|size| Parcel {
                body: vec![0; *size].into(),
                ..parcel("queue")
            });
            let loads = loads(parcels.collect());
            let sizes = |load: &Vec<Parcel>| load.iter().map(|parcel| parcel.body.len()).collect();
            loads.iter().map(sizes).collect::<Vec<Vec<_>>>()
        };
        let sizes = [5 * MIB, 3 * MIB, 1, 16 * MIB, 16 * MIB, 2];
        let expected = [
            vec![5 * MIB, 3 * MIB],
            vec![1],
            vec![16 * MIB],
            vec![16 * MIB],
            vec![2],
        ];
        assert_eq!(of(&sizes), expected);
        let counts: Vec<_> = of(&[1; 1025]).iter().map(Vec::len).collect();
        assert_eq!(counts, [512, 512, 1]);
        assert!(of(&[]).is_empty());
    }

    #[test]
    fn headers_weigh_too() {
        let mut table = lapin::types::FieldTable::default();
        crate::headers::insert(&mut table, "large", &"h".repeat(100_000));
        let heavy = || Parcel {
            properties: BasicProperties::default().with_headers(table.clone()),
            ..parcel("queue")
        };
        let loads = loads((0..512).map(|_| heavy()).collect());
        assert!(loads.iter().all(|load| load.len() <= 84), "{}", loads.len());
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
