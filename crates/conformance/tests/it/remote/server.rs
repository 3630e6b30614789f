//! Lends an in-process queue and store to worker processes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use backstop_core::{
    BrokerHandle, Claim, Delivery, LeaseId, LeaseState, Ownership, Settlement, StoreError,
    StoreHandle, Subscription, Verdict,
};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use super::wire::{
    Grant, Options, Parcel, Proof, Request, Response, Ruling, Settled, Wish, read, write,
};

/// Serves until it is dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    accepting: AbortHandle,
}

impl Server {
    pub(super) async fn start(broker: BrokerHandle, store: StoreHandle) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let lender = Arc::new(Lender {
            broker,
            store,
            lent: Mutex::default(),
            numbers: AtomicU64::new(0),
        });
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let lender = Arc::clone(&lender);
                tokio::spawn(async move { lender.serve(BufStream::new(stream)).await });
            }
        });
        Ok(Self {
            address,
            accepting: accepting.abort_handle(),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

struct Lender {
    broker: BrokerHandle,
    store: StoreHandle,
    lent: Mutex<HashMap<u64, Arc<Lent>>>,
    numbers: AtomicU64,
}

/// A subscription and what is received by it.
struct Lent {
    subscription: Box<dyn Subscription>,
    deliveries: Mutex<HashMap<u64, Delivery>>,
}

impl Lender {
    async fn serve(&self, mut stream: BufStream<TcpStream>) -> Result<()> {
        match read(&mut stream).await? {
            Request::Subscribe(options) => self.lend(options, stream).await,
            request => {
                // A caller that gives up, or dies, ends a receive under way.
                let mut byte = [0];
                let (caller, gone) = (self.answer(request), stream.read(&mut byte));
                let response = tokio::select! {
                    response = caller => response.unwrap_or(Response::Failed),
                    _ = gone => return Ok(()),
                };
                write(stream.get_mut(), &response).await
            }
        }
    }

    async fn lend(&self, options: Options, mut stream: BufStream<TcpStream>) -> Result<()> {
        let subscription = self.broker.subscribe(&options.unpack()).await?;
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let lent = Arc::new(Lent {
            subscription,
            deliveries: Mutex::default(),
        });
        self.lent.lock().insert(number, lent);
        write(stream.get_mut(), &Response::Subscribed(number)).await?;
        let _ = stream.read(&mut [0]).await;
        let ended = self.lent.lock().remove(&number);
        if let Some(lent) = ended {
            lent.subscription.close().await;
        }
        Ok(())
    }

    fn lent(&self, number: u64) -> Result<Arc<Lent>> {
        self.lent
            .lock()
            .get(&number)
            .cloned()
            .context("no such subscription")
    }

    async fn answer(&self, request: Request) -> Result<Response> {
        Ok(match request {
            Request::Subscribe(_) => Response::Failed,
            Request::Receive { subscription, max } => {
                let lent = self.lent(subscription)?;
                let received = lent.subscription.receive(max).await?;
                let parcels = received.iter().map(Parcel::pack).collect();
                let by_lease = received.into_iter().map(|d| (d.receipt.lease().0, d));
                lent.deliveries.lock().extend(by_lease);
                Response::Received(parcels)
            }
            Request::Settle {
                subscription,
                batch,
            } => Response::Settled(self.lent(subscription)?.settle(batch).await),
            Request::Extend {
                subscription,
                leases,
            } => {
                let leases: Vec<_> = leases.into_iter().map(LeaseId).collect();
                let states = self.lent(subscription)?.subscription.extend(&leases).await;
                let lasts = |state| match state {
                    Ok(LeaseState::Held(lasts)) => lasts,
                    _ => None,
                };
                Response::Extended(states.into_iter().map(lasts).collect())
            }
            Request::Stop { subscription } => {
                self.lent(subscription)?.subscription.stop().await;
                Response::Done
            }
            Request::Close { subscription } => {
                self.lent(subscription)?.subscription.close().await;
                Response::Done
            }
            Request::Claim(wishes) => {
                let requests: Vec<_> = wishes.into_iter().map(Wish::unpack).collect();
                let claims: Result<Vec<Claim>, _> =
                    self.store.claim(&requests).await.into_iter().collect();
                Response::Claimed(claims?.into_iter().map(Grant::pack).collect())
            }
            Request::Renew(proofs, lease) => {
                owned(self.store.renew(&tickets(proofs), lease).await)?
            }
            Request::Complete(proofs, retention) => {
                owned(self.store.complete(&tickets(proofs), retention).await)?
            }
            Request::Release(proofs, retention) => {
                let ends = proofs.into_iter();
                let ends: Vec<_> = ends.map(|(p, end)| (p.unpack(), end.unpack())).collect();
                owned(self.store.release(&ends, retention).await)?
            }
        })
    }
}

fn tickets(proofs: Vec<Proof>) -> Vec<backstop_core::Ticket> {
    proofs.into_iter().map(Proof::unpack).collect()
}

fn owned(answers: Vec<Result<Ownership, StoreError>>) -> Result<Response> {
    let answers: Result<Vec<_>, _> = answers.into_iter().collect();
    let held = answers?.into_iter().map(|answer| answer == Ownership::Held);
    Ok(Response::Owned(held.collect()))
}

impl Lent {
    async fn settle(&self, batch: Vec<(u64, Ruling)>) -> Vec<Settled> {
        let mut answers = Vec::new();
        for (lease, ruling) in batch {
            let delivery = self.deliveries.lock().remove(&lease);
            answers.push(match delivery {
                Some(delivery) => self.settle_one(delivery, ruling.unpack()).await,
                None => Settled::Lost,
            });
        }
        answers
    }

    async fn settle_one(&self, delivery: Delivery, verdict: Verdict) -> Settled {
        let settlement = Settlement { delivery, verdict };
        let answer = self.subscription.settle(vec![settlement]).await.pop();
        match answer {
            Some(Ok(())) => Settled::Done,
            Some(Err(error)) => match error.kept {
                Some(kept) => {
                    let delivery = kept.delivery;
                    let lease = delivery.receipt.lease().0;
                    self.deliveries.lock().insert(lease, delivery);
                    Settled::Kept
                }
                None => Settled::Lost,
            },
            None => Settled::Lost,
        }
    }
}
