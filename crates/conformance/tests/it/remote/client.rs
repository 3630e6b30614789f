//! The broker and the store, as a worker process sees them.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use async_trait::async_trait;
use backstop_core::{
    Broker, BrokerError, BrokerErrorKind, Capabilities, Claim, ClaimRequest, DeadLetterQueue,
    Delivery, Finding, IdempotencyKey, IdempotencyStore, InProcessBroker, LeaseId, LeaseState,
    Outgoing, Ownership, ReleaseKind, SettleError, Settlement, StoreError, StoreErrorKind,
    SubscribeOptions, Subscription, Survival, Ticket,
};
use tokio::io::BufStream;
use tokio::net::TcpStream;

use super::wire::{
    End, Options, Parcel, Proof, Request, Response, Ruling, Settled, Wish, read, unpack_ownership,
    write,
};

/// The way to the test that holds the broker and the store; every call has its own connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Remote {
    pub(super) address: SocketAddr,
}

impl Remote {
    async fn call(self, request: &Request) -> Response {
        let called = async {
            let mut stream = BufStream::new(TcpStream::connect(self.address).await?);
            let response = exchange(&mut stream, request).await?;
            anyhow::Ok(response)
        };
        called.await.unwrap_or(Response::Failed)
    }
}

async fn exchange(
    stream: &mut BufStream<TcpStream>,
    request: &Request,
) -> anyhow::Result<Response> {
    write(stream.get_mut(), request).await?;
    read(stream).await
}

fn unreachable() -> BrokerError {
    let text = "the test that holds the broker did not answer";
    BrokerError::new(BrokerErrorKind::Unreachable, text)
}

fn out_of_reach() -> StoreError {
    let text = "the test that holds the store did not answer";
    StoreError::new(StoreErrorKind::Unreachable, text)
}

#[async_trait]
impl Broker for Remote {
    fn queue(&self) -> &'static str {
        "remote"
    }

    fn capabilities(&self) -> Capabilities {
        InProcessBroker::new("remote").capabilities()
    }

    async fn inspect(&self, _: &SubscribeOptions) -> Result<Vec<Finding>, BrokerError> {
        Ok(Vec::new())
    }

    async fn subscribe(
        &self,
        options: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>, BrokerError> {
        let request = Request::Subscribe(Options::pack(options));
        let subscribed = async {
            let mut stream = BufStream::new(TcpStream::connect(self.address).await?);
            let response = exchange(&mut stream, &request).await?;
            anyhow::Ok((response, stream))
        };
        match subscribed.await {
            Ok((Response::Subscribed(number), stream)) => Ok(Box::new(RemoteSubscription {
                remote: *self,
                number,
                _held: stream,
            })),
            _ => Err(unreachable()),
        }
    }

    async fn publish(&self, messages: &[Outgoing]) -> Vec<Result<(), BrokerError>> {
        messages.iter().map(|_| Err(unreachable())).collect()
    }

    async fn dead_letters(&self) -> Result<Box<dyn DeadLetterQueue>, BrokerError> {
        Err(unreachable())
    }

    async fn close(&self) {}
}

struct RemoteSubscription {
    remote: Remote,
    number: u64,
    // The subscription ends when this connection does, also because the process is killed.
    _held: BufStream<TcpStream>,
}

#[async_trait]
impl Subscription for RemoteSubscription {
    async fn receive(&self, max: NonZeroUsize) -> Result<Vec<Delivery>, BrokerError> {
        let subscription = self.number;
        let request = Request::Receive { subscription, max };
        match self.remote.call(&request).await {
            Response::Received(parcels) => Ok(parcels.into_iter().map(Parcel::unpack).collect()),
            _ => Err(unreachable()),
        }
    }

    async fn settle(&self, batch: Vec<Settlement>) -> Vec<Result<(), SettleError>> {
        let pack = |s: &Settlement| (s.delivery.receipt.lease().0, Ruling::pack(&s.verdict));
        let request = Request::Settle {
            subscription: self.number,
            batch: batch.iter().map(pack).collect(),
        };
        let answers = match self.remote.call(&request).await {
            Response::Settled(answers) => answers,
            _ => vec![Settled::Lost; batch.len()],
        };
        let answer = |(settlement, answer)| match answer {
            Settled::Done => Ok(()),
            Settled::Kept => Err(SettleError {
                cause: unreachable(),
                kept: Some(Box::new(settlement)),
            }),
            Settled::Lost => {
                let text = "the lease ended before the delivery was settled";
                Err(SettleError {
                    cause: BrokerError::new(BrokerErrorKind::LeaseLost, text),
                    kept: None,
                })
            }
        };
        batch.into_iter().zip(answers).map(answer).collect()
    }

    async fn extend(&self, leases: &[LeaseId]) -> Vec<Result<LeaseState, BrokerError>> {
        let request = Request::Extend {
            subscription: self.number,
            leases: leases.iter().map(|lease| lease.0).collect(),
        };
        match self.remote.call(&request).await {
            Response::Extended(states) => states
                .into_iter()
                .map(|lasts| Ok(lasts.map_or(LeaseState::Lost, |l| LeaseState::Held(Some(l)))))
                .collect(),
            _ => leases.iter().map(|_| Err(unreachable())).collect(),
        }
    }

    async fn stop(&self) {
        let subscription = self.number;
        self.remote.call(&Request::Stop { subscription }).await;
    }

    async fn close(&self) {
        let subscription = self.number;
        self.remote.call(&Request::Close { subscription }).await;
    }
}

impl Remote {
    async fn owned(self, request: Request, count: usize) -> Vec<Result<Ownership, StoreError>> {
        match self.call(&request).await {
            Response::Owned(held) => held.into_iter().map(unpack_ownership).map(Ok).collect(),
            _ => (0..count).map(|_| Err(out_of_reach())).collect(),
        }
    }
}

#[async_trait]
impl IdempotencyStore for Remote {
    fn survival(&self) -> Survival {
        Survival::Durable
    }

    async fn inspect(&self) -> Result<Vec<Finding>, StoreError> {
        Ok(Vec::new())
    }

    async fn claim(&self, requests: &[ClaimRequest]) -> Vec<Result<Claim, StoreError>> {
        let request = Request::Claim(requests.iter().map(Wish::pack).collect());
        match self.call(&request).await {
            Response::Claimed(grants) => grants.into_iter().map(|g| Ok(g.unpack())).collect(),
            _ => requests.iter().map(|_| Err(out_of_reach())).collect(),
        }
    }

    async fn renew(
        &self,
        tickets: &[Ticket],
        lease: Duration,
    ) -> Vec<Result<Ownership, StoreError>> {
        let proofs = tickets.iter().map(Proof::pack).collect();
        self.owned(Request::Renew(proofs, lease), tickets.len())
            .await
    }

    async fn complete(
        &self,
        tickets: &[Ticket],
        retention: Duration,
    ) -> Vec<Result<Ownership, StoreError>> {
        let proofs = tickets.iter().map(Proof::pack).collect();
        self.owned(Request::Complete(proofs, retention), tickets.len())
            .await
    }

    async fn release(
        &self,
        tickets: &[(Ticket, ReleaseKind)],
        retention: Duration,
    ) -> Vec<Result<Ownership, StoreError>> {
        let pack = |(ticket, kind): &(Ticket, ReleaseKind)| (Proof::pack(ticket), End::pack(*kind));
        let proofs = tickets.iter().map(pack).collect();
        self.owned(Request::Release(proofs, retention), tickets.len())
            .await
    }

    async fn forget(&self, keys: &[IdempotencyKey]) -> Vec<Result<(), StoreError>> {
        keys.iter().map(|_| Err(out_of_reach())).collect()
    }
}
