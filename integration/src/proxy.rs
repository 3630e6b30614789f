//! A TCP proxy that can be told to misbehave.

use std::future::pending;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use crate::ports::free_port;

const RETRY: Duration = Duration::from_millis(20);

/// How a proxy treats what goes through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It forwards.
    Forward,
    /// It forwards what it read after holding it this long, in each direction.
    Delay(Duration),
    /// It keeps connections open, takes new ones, and forwards nothing in either direction until the
    /// mode changes: a half-open connection.
    BlackHole,
    /// It drops what clients send, and forwards what the server sends.
    DropToServer,
    /// It drops what the server sends, and forwards what clients send.
    DropToClient,
    /// It does not listen: new connections are refused. The old ones go on.
    Refuse,
}

/// A proxy in front of a server. Dropping it closes everything.
pub struct Proxy {
    address: SocketAddr,
    url: String,
    mode: watch::Sender<Mode>,
    connections: Arc<Mutex<JoinSet<()>>>,
    listener: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy in front of the server that a URL names, such as `amqp://user:secret@host:port/x`.
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
        let address = listener.local_addr()?;
        let mode = watch::Sender::new(Mode::Forward);
        let connections = Arc::new(Mutex::new(JoinSet::new()));
        let accept = Accept {
            address,
            target: target.to_owned(),
            mode: mode.clone(),
            connections: Arc::clone(&connections),
        };
        Ok(Self {
            address,
            url: format!("{before}{address}{after}"),
            mode,
            connections,
            listener: tokio::spawn(accept.run(listener)),
        })
    }

    /// The URL that it was started with, with its own address in place of the server's.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Treats everything like this from now on. What is on its way in that moment may still be treated
    /// as before.
    pub fn set_mode(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Cuts every connection that is open now.
    pub fn cut(&self) {
        self.connections.lock().abort_all();
    }

    /// How many connections are open.
    pub fn open_connections(&self) -> usize {
        let mut connections = self.connections.lock();
        while connections.try_join_next().is_some() {}
        connections.len()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
        self.cut();
    }
}

/// The part of a URL before the address, the address, and the rest.
pub(crate) fn split(url: &str) -> Option<(&str, &str, &str)> {
    let authority = url.find("://")? + "://".len();
    let path = url[authority..].find(['/', '?', '#']);
    let end = path.map_or(url.len(), |path| authority + path);
    let login = url[authority..end].rfind('@');
    let start = login.map_or(authority, |at| authority + at + 1);
    let address = &url[start..end];
    address
        .contains(':')
        .then_some((&url[..start], address, &url[end..]))
}

pub(crate) async fn listen_anywhere() -> Result<TcpListener> {
    let mut tries = 0;
    loop {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, free_port())).await {
            Err(_) if tries < 10 => tries += 1,
            result => return result.context("no port can be listened on"),
        }
    }
}

/// What accepts connections.
struct Accept {
    address: SocketAddr,
    target: String,
    mode: watch::Sender<Mode>,
    connections: Arc<Mutex<JoinSet<()>>>,
}

impl Accept {
    async fn run(self, listener: TcpListener) {
        let mut modes = self.mode.subscribe();
        let mut listener = Some(listener);
        loop {
            let refuses = *modes.borrow_and_update() == Mode::Refuse;
            if refuses {
                listener = None;
            } else if listener.is_none() {
                listener = TcpListener::bind(self.address).await.ok();
            }
            tokio::select! {
                biased;
                _ = modes.changed() => {}
                client = accept(listener.as_ref()) => self.connect(client),
                // The port may be taken for a moment.
                () = sleep(RETRY), if listener.is_none() && !refuses => {}
            }
        }
    }

    fn connect(&self, client: TcpStream) {
        let forwarding = forward(client, self.target.clone(), self.mode.clone());
        self.connections.lock().spawn(forwarding);
    }
}

async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else {
        return pending().await;
    };
    loop {
        match listener.accept().await {
            Ok((client, _)) => return client,
            // A client that went away while it waited, or no more file descriptors.
            Err(_) => sleep(RETRY).await,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

async fn forward(client: TcpStream, target: String, mode: watch::Sender<Mode>) {
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    // Like a wire: what comes in small pieces goes out in small pieces.
    if client.set_nodelay(true).is_err() || server.set_nodelay(true).is_err() {
        return;
    }
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    tokio::select! {
        () = pump(client_reads, server_writes, Direction::ToServer, mode.subscribe()) => {}
        () = pump(server_reads, client_writes, Direction::ToClient, mode.subscribe()) => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    direction: Direction,
    mut modes: watch::Receiver<Mode>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let is_gone = modes
            .wait_for(|mode| *mode != Mode::BlackHole)
            .await
            .is_err();
        if is_gone {
            return;
        }
        let read = tokio::select! {
            biased;
            changed = modes.changed() => {
                if changed.is_err() { return; }
                continue;
            }
            read = from.read(&mut buffer) => read,
        };
        let Ok(count @ 1..) = read else { return };
        let mode = *modes.borrow();
        let is_dropped = match mode {
            Mode::DropToServer => direction == Direction::ToServer,
            Mode::DropToClient => direction == Direction::ToClient,
            Mode::Forward | Mode::Delay(_) | Mode::BlackHole | Mode::Refuse => false,
        };
        if let Mode::Delay(delay) = mode {
            sleep(delay).await;
        }
        if !is_dropped && to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn the_address_is_found_in_a_url() {
        let split_parts = split("amqp://me:p%40ss@host:5672/vhost?queue=a@b");
        let parts = ("amqp://me:p%40ss@", "host:5672", "/vhost?queue=a@b");
        assert_eq!(split_parts, Some(parts));
        assert_eq!(split("redis://host:1"), Some(("redis://", "host:1", "")));
    }

    #[test]
    fn a_url_without_a_port_is_refused() {
        assert_eq!(split("amqp://host/vhost"), None);
        assert_eq!(split("host:5672"), None);
    }
}
