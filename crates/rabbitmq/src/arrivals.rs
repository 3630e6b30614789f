//! What the consumers of a channel bring.

use futures_util::stream::{self, BoxStream, SelectAll};
use futures_util::{FutureExt, Stream, StreamExt};
use lapin::message::Delivery;

/// What a queue's consumer brings.
pub(crate) enum Arrival {
    Native(Box<Delivery>),
    Broken(lapin::Error),
    /// Nothing more. Without it the end of one partition would go unnoticed among the others.
    End,
}

impl From<Result<Delivery, lapin::Error>> for Arrival {
    fn from(next: Result<Delivery, lapin::Error>) -> Self {
        match next {
            Ok(native) => Self::Native(Box::new(native)),
            Err(error) => Self::Broken(error),
        }
    }
}

/// What the consumers of all queues bring, in the order of arrival.
#[derive(Default)]
pub(crate) struct Arrivals {
    streams: SelectAll<BoxStream<'static, Arrival>>,
    /// Why the channel broke, until somebody is told.
    broken: Option<lapin::Error>,
}

impl Arrivals {
    /// Adds a queue's consumer.
    pub(crate) fn add<S>(&mut self, consumer: S)
    where
        S: Stream<Item = Result<Delivery, lapin::Error>> + Send + 'static,
    {
        let end = stream::once(std::future::ready(Arrival::End));
        self.streams
            .push(consumer.map(Arrival::from).chain(end).boxed());
    }

    /// The next arrival.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: nothing is taken before it is given.
    pub(crate) async fn next(&mut self) -> Option<Arrival> {
        match self.broken.take() {
            Some(error) => Some(Arrival::Broken(error)),
            None => self.streams.next().await,
        }
    }

    /// A delivery that is there already. An error that is there instead is kept for whoever asks next:
    /// behind it there is nothing but an end that does not say why.
    pub(crate) fn next_ready(&mut self) -> Option<Delivery> {
        match self.streams.next().now_or_never()?? {
            Arrival::Native(native) => Some(*native),
            Arrival::Broken(error) => {
                self.broken = Some(error);
                None
            }
            Arrival::End => None,
        }
    }

    /// Why the channel broke, if that is known and nobody was told.
    pub(crate) fn take_broken(&mut self) -> Option<lapin::Error> {
        self.broken.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals() -> Arrivals {
        let native = Delivery::mock(1, "".into(), "q".into(), false, Vec::new());
        let reset = std::io::Error::other("connection reset by peer");
        let mut arrivals = Arrivals::default();
        arrivals.add(stream::iter([Ok(native), Err(lapin::Error::from(reset))]));
        arrivals
    }

    #[tokio::test]
    async fn why_a_channel_broke_is_told_also_behind_deliveries() {
        let mut arrivals = arrivals();
        assert!(arrivals.next_ready().is_some());
        assert!(arrivals.next_ready().is_none(), "the error is no delivery");
        let Some(Arrival::Broken(error)) = arrivals.next().await else {
            panic!("the reason is lost");
        };
        assert!(error.to_string().contains("reset by peer"), "{error}");
        assert!(matches!(arrivals.next().await, Some(Arrival::End)));
        assert!(arrivals.next().await.is_none());
    }

    #[tokio::test]
    async fn why_a_channel_broke_can_be_asked_for() {
        let mut arrivals = arrivals();
        while arrivals.next_ready().is_some() {}
        assert!(arrivals.take_broken().is_some());
        assert!(arrivals.take_broken().is_none(), "it is told once");
    }
}
