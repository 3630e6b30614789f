//! The frames that settle deliveries.

use futures_util::poll;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions};

use crate::acks::Ack;

/// What settles a delivery, by its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Ack(u64),
    /// Given back; from 4.3 on that raises no count.
    Nack(u64),
    /// Given back as a failure: raises the count of failed deliveries.
    Reject(u64),
}

pub(crate) type Written = Result<(), lapin::Error>;

/// A frame on its way.
pub(crate) struct Sending(std::pin::Pin<Box<dyn Future<Output = Written> + Send>>);

/// A frame that is in line.
pub(crate) enum Begun {
    Written(Written),
    InLine(Sending),
}

impl Sending {
    pub(crate) fn ack(channel: Channel, ack: Ack) -> Self {
        let options = BasicAckOptions {
            multiple: ack.multiple,
        };
        Self(Box::pin(async move {
            channel.basic_ack(ack.tag, options).await
        }))
    }

    pub(crate) fn nack(channel: Channel, tag: u64) -> Self {
        let options = BasicNackOptions {
            multiple: false,
            requeue: true,
        };
        Self(Box::pin(
            async move { channel.basic_nack(tag, options).await },
        ))
    }

    pub(crate) fn reject(channel: Channel, tag: u64) -> Self {
        let options = BasicRejectOptions { requeue: true };
        Self(Box::pin(
            async move { channel.basic_reject(tag, options).await },
        ))
    }

    /// Puts the frame in line, which the first poll does, without waiting for the socket.
    pub(crate) async fn begin(mut self) -> Begun {
        match poll!(&mut self.0) {
            std::task::Poll::Ready(written) => Begun::Written(written),
            std::task::Poll::Pending => Begun::InLine(self),
        }
    }
}

impl Begun {
    pub(crate) async fn end(self) -> Written {
        match self {
            Self::Written(written) => written,
            Self::InLine(sending) => sending.0.await,
        }
    }
}
