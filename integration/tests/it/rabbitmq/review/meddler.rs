//! Something between a client and RabbitMQ that reads along, frame by frame.

use std::future::Future;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A way to a server on which frames are looked at, and changed, before they go on.
pub(crate) struct Meddler {
    url: String,
    cut: watch::Sender<()>,
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    Server,
    Client,
}

/// A frame's payload on its way.
pub(crate) type Frame = Vec<u8>;

type Meddle = dyn Fn(To, Frame) -> BoxFuture<'static, Frame> + Send + Sync;

impl Meddler {
    /// Stands before the server at `url`, `amqp://user:password@host:port`.
    pub(crate) async fn start<F>(
        url: &str,
        meddle: impl Fn(To, Frame) -> F + Send + Sync + 'static,
    ) -> Result<Self>
    where
        F: Future<Output = Frame> + Send + 'static,
    {
        let (head, server) = url.rsplit_once('@').context("a URL without a user")?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("{head}@{}", listener.local_addr()?);
        let (cut, cuts) = watch::channel(());
        let meddle: Arc<Meddle> = Arc::new(move |to, frame| Box::pin(meddle(to, frame)));
        let server = server.to_owned();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&server).await else {
                    continue;
                };
                let (meddle, mut cuts) = (Arc::clone(&meddle), cuts.clone());
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    tokio::select! {
                        _ = cuts.changed() => {}
                        _ = pass(To::Server, from_client, to_server, &*meddle) => {}
                        _ = pass(To::Client, from_server, to_client, &*meddle) => {}
                    }
                });
            }
        });
        Ok(Self { url, cut })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Cuts every connection.
    pub(crate) fn cut(&self) {
        self.cut.send_replace(());
    }
}

async fn pass(
    to: To,
    mut from: OwnedReadHalf,
    mut into: OwnedWriteHalf,
    meddle: &Meddle,
) -> Result<()> {
    if to == To::Server {
        let mut greeting = [0; 8];
        from.read_exact(&mut greeting).await?;
        into.write_all(&greeting).await?;
    }
    loop {
        let mut head = [0; 7];
        from.read_exact(&mut head).await?;
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
        let mut payload = vec![0; usize::try_from(size)?];
        from.read_exact(&mut payload).await?;
        let end = from.read_u8().await?;
        let payload = meddle(to, payload).await;
        head[3..].copy_from_slice(&u32::try_from(payload.len())?.to_be_bytes());
        into.write_all(&[&head[..], &payload, &[end]].concat())
            .await?;
    }
}
