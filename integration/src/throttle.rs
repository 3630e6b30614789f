//! A proxy for AWS's JSON protocols that refuses requests as a service does that is asked too often.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, JoinSet};

use crate::proxy::{listen_anywhere, split};

/// What SQS answers, by its documentation of each action
/// (<https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html>).
const BODY: &str = r#"{"__type":"com.amazonaws.sqs#RequestThrottled","message":"Rate exceeded"}"#;

/// A proxy in front of an HTTP server. Dropping it closes everything.
pub struct Throttle {
    url: String,
    state: Arc<State>,
    listener: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    /// Of a thousand requests so many are refused.
    per_mille: AtomicU64,
    refused: AtomicU64,
    forwarded: AtomicU64,
    /// Grows by `per_mille` with each request; a full thousand is a refusal.
    due: AtomicU64,
}

impl Throttle {
    /// Starts a proxy in front of the server that a URL names, such as `http://host:port`. It forwards
    /// everything until it is told otherwise.
    ///
    /// # Errors
    ///
    /// When the URL names no port, or no port can be listened on.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: nothing has been started.
    pub async fn start(url: &str) -> Result<Self> {
        let (before, target, after) = split(url).context("the URL names no host and port")?;
        let listener = listen_anywhere().await?;
        let url = format!("{before}{}{after}", listener.local_addr()?);
        let (state, target) = (Arc::new(State::default()), target.to_owned());
        let shared = Arc::clone(&state);
        let listener = tokio::spawn(async move {
            // They end with this task.
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                connections.spawn(serve(client, target.clone(), Arc::clone(&shared)));
            }
        });
        Ok(Self {
            url,
            state,
            listener,
        })
    }

    /// The URL that it was started with, with its own address in place of the server's.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Refuses this many of a thousand requests from now on, evenly spread.
    pub fn refuse(&self, per_mille: u16) {
        let per_mille = u64::from(per_mille.min(1000));
        self.state.per_mille.store(per_mille, Ordering::Relaxed);
    }

    /// How many requests were refused.
    pub fn refused(&self) -> u64 {
        self.state.refused.load(Ordering::Relaxed)
    }

    /// How many requests were forwarded.
    pub fn forwarded(&self) -> u64 {
        self.state.forwarded.load(Ordering::Relaxed)
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl State {
    fn refuses(&self) -> bool {
        let per_mille = self.per_mille.load(Ordering::Relaxed);
        let before = self.due.fetch_add(per_mille, Ordering::Relaxed);
        let refuses = before / 1000 != (before + per_mille) / 1000;
        let counted = if refuses {
            &self.refused
        } else {
            &self.forwarded
        };
        counted.fetch_add(1, Ordering::Relaxed);
        refuses
    }
}

/// A client waits for one answer before it asks again, so whoever answers has the connection to itself.
async fn serve(client: TcpStream, target: String, state: Arc<State>) {
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    if client.set_nodelay(true).is_err() || server.set_nodelay(true).is_err() {
        return;
    }
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    let client_writes = Arc::new(Mutex::new(client_writes));
    tokio::select! {
        () = forward(client_reads, server_writes, &client_writes, &state) => {}
        () = answer(server_reads, &client_writes) => {}
    }
}

async fn answer(mut server: OwnedReadHalf, client: &Mutex<OwnedWriteHalf>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = server.read(&mut buffer).await {
        if client
            .lock()
            .await
            .write_all(&buffer[..count])
            .await
            .is_err()
        {
            return;
        }
    }
}

async fn forward(
    mut client: OwnedReadHalf,
    mut server: OwnedWriteHalf,
    answers: &Mutex<OwnedWriteHalf>,
    state: &State,
) {
    let refusal = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/x-amz-json-1.0\r\n\
         x-amzn-query-error: RequestThrottled;Sender\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let mut read = Vec::new();
    while let Some(length) = request(&mut client, &mut read).await {
        let request: Vec<u8> = read.drain(..length).collect();
        let sent = if state.refuses() {
            answers.lock().await.write_all(refusal.as_bytes()).await
        } else {
            server.write_all(&request).await
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Reads until a whole request is there; gives its length, or none when the client has gone.
async fn request(client: &mut OwnedReadHalf, read: &mut Vec<u8>) -> Option<usize> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if let Some(length) = whole(read)
            && read.len() >= length
        {
            return Some(length);
        }
        let Ok(count @ 1..) = client.read(&mut buffer).await else {
            return None;
        };
        read.extend_from_slice(&buffer[..count]);
    }
}

/// The length of the request that begins here, once its head is there.
fn whole(read: &[u8]) -> Option<usize> {
    let end = read.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .and_then(|length| length.trim().parse::<usize>().ok());
    Some(end + length.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::{State, whole};
    use std::sync::atomic::Ordering;

    #[test]
    fn a_request_ends_with_its_body() {
        let request = b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcPOST";
        assert_eq!(whole(request), Some(request.len() - 4));
        assert_eq!(whole(b"GET / HTTP/1.1\r\n\r\n"), Some(18));
        assert_eq!(whole(b"GET / HTTP/1.1\r\n"), None);
    }

    #[test]
    fn refusals_are_spread() {
        let state = State::default();
        assert!((0..100).all(|_| !state.refuses()));
        state.per_mille.store(500, Ordering::Relaxed);
        let refused: Vec<_> = (0..4).map(|_| state.refuses()).collect();
        assert_eq!(refused, [false, true, false, true]);
        state.per_mille.store(1000, Ordering::Relaxed);
        assert!((0..100).all(|_| state.refuses()));
    }
}
