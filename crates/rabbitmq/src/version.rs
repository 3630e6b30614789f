//! Which RabbitMQ it is.
//!
//! The server says so in the first frame of a connection, which lapin keeps to itself; so it is asked
//! by a connection of its own that ends after that frame. The server's log has a line about it.

use std::fmt;
use std::time::Duration;

use futures_util::{AsyncReadExt, AsyncWriteExt};
use lapin::tcp::AMQPUriTcpExt;

use crate::config::RabbitMqConfig;

/// A server's version, as far as behaviour differs by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ServerVersion {
    major: u32,
    minor: u32,
}

impl ServerVersion {
    /// What is assumed of a server that does not tell: the least that is supported.
    pub(crate) const OLDEST: Self = Self::new(3, 10);

    const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// Whether `basic.nack` leaves `x-delivery-count` alone. Measured: 4.3.6 raises only
    /// `x-acquired-count`; 4.0.5 and 3.10.8 raise the delivery count.
    pub(crate) fn gives_back_for_free(self) -> bool {
        self >= Self::new(4, 3)
    }

    /// The delivery limit of a quorum queue that sets none: 20 from 4.0 on, none before
    /// (<https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>).
    pub(crate) fn default_delivery_limit(self) -> Option<u32> {
        (self >= Self::new(4, 0)).then_some(20)
    }

    /// The delivery limit of a quorum queue that is to have none. Measured: 4.0.5 and 4.3.6 take -1 so;
    /// 3.10.8 drops a message with limit -1 when it is given back for the first time.
    pub(crate) fn no_delivery_limit(self) -> i32 {
        if self >= Self::new(4, 0) {
            -1
        } else {
            i32::MAX
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(['.', '-', '+']).map(str::parse);
        match (numbers.next()?, numbers.next()?) {
            (Ok(major), Ok(minor)) => Some(Self::new(major, minor)),
            _ => None,
        }
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Asks the server, if it answers so that one can tell.
pub(crate) async fn ask(config: &RabbitMqConfig) -> Option<ServerVersion> {
    let asked = tokio::time::timeout(Duration::from_secs(5), first_frame(config)).await;
    asked.ok().flatten().as_deref().and_then(find)
}

async fn first_frame(config: &RabbitMqConfig) -> Option<Vec<u8>> {
    const LARGEST: usize = 64 * 1024;
    let runtime = lapin::runtime::default_runtime().ok()?;
    let tls = config.tls().ok()?;
    let connect = config.uri.connect_with_config_async(tls.as_ref(), &runtime);
    let mut stream = connect.await.ok()?;
    stream.write_all(b"AMQP\x00\x00\x09\x01").await.ok()?;
    stream.flush().await.ok()?;
    let mut head = [0; 7];
    stream.read_exact(&mut head).await.ok()?;
    let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
    let size = usize::try_from(size).ok().filter(|size| *size <= LARGEST)?;
    let mut payload = vec![0; size];
    stream.read_exact(&mut payload).await.ok()?;
    Some(payload)
}

/// Finds the property `version` in `connection.start`: its name as a short string, then `S` and a
/// long string.
fn find(payload: &[u8]) -> Option<ServerVersion> {
    const NAME: &[u8] = b"\x07versionS";
    let at = payload
        .windows(NAME.len())
        .position(|window| window == NAME)?;
    let rest = &payload[at + NAME.len()..];
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let text = std::str::from_utf8(rest.get(..length)?).ok()?;
    ServerVersion::parse(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_among_the_properties() {
        let mut frame = b"\x00\x0a\x00\x0a\x00\x09junk\x08platformS\x00\x00\x00\x06Erlang".to_vec();
        frame.extend(b"\x07versionS\x00\x00\x00\x054.3.6\x07productS");
        assert_eq!(find(&frame), Some(ServerVersion::new(4, 3)));
        assert_eq!(find(&frame[..40]), None);
    }

    #[test]
    fn versions_compare_as_numbers() {
        let old = ServerVersion::parse("3.10.8").unwrap();
        let new = ServerVersion::parse("4.3.0-rc.1").unwrap();
        assert!(old > ServerVersion::new(3, 9) && new > old);
        assert!(new.gives_back_for_free() && !old.gives_back_for_free());
        assert_eq!(ServerVersion::parse("next"), None);
    }
}
