//! Where calls go: to one server, or to the nodes of a Cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::address::Address;
use crate::cluster::Cluster;
use crate::config::Deployment;
use crate::connection::Dialer;
use crate::error::Fault;
use crate::link::Link;
use crate::slots;

/// Connections to one server, used in turn.
pub(crate) struct Lanes {
    links: Vec<Arc<Link>>,
    next: AtomicUsize,
}

impl Lanes {
    /// One connection carries everything, many batches at a time. A `WAIT` holds up whatever comes
    /// after it on its connection, so where batches wait for replicas there are a few.
    pub(crate) fn new(dialer: &Arc<Dialer>, node: Option<&Address>) -> Self {
        let count = match dialer.config.replica_wait {
            None => 1,
            Some(_) => 4,
        };
        let link = |_| Link::new(Arc::clone(dialer), node.cloned());
        Self {
            links: (0..count).map(link).collect(),
            next: AtomicUsize::new(0),
        }
    }

    pub(crate) fn next(&self) -> Arc<Link> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        Arc::clone(&self.links[next % self.links.len()])
    }
}

/// The servers of a store.
pub(crate) struct Servers {
    pub(crate) dialer: Arc<Dialer>,
    kind: Kind,
}

enum Kind {
    One(Lanes),
    Cluster(Cluster),
}

/// Where a cluster's node says that a key is.
#[derive(Clone, Debug)]
pub(crate) struct Redirect {
    pub(crate) slot: u16,
    pub(crate) address: Address,
}

/// How long a Cluster's node is waited for before the others are asked whether it has a successor.
const NODE_PATIENCE: Duration = Duration::from_millis(200);

impl Servers {
    pub(crate) fn new(dialer: Dialer) -> Self {
        let dialer = Arc::new(dialer);
        let kind = match dialer.config.deployment {
            Deployment::Single | Deployment::Sentinel { .. } => {
                Kind::One(Lanes::new(&dialer, None))
            }
            Deployment::Cluster => Kind::Cluster(Cluster::new(Arc::clone(&dialer))),
        };
        Self { dialer, kind }
    }

    /// How many keys a call may have. One script holds up everybody else on its server: 64 keys take
    /// it a quarter of a millisecond. The keys of a call on a Cluster would have to be of one slot, of
    /// which there are too many for that.
    pub(crate) fn keys_in_a_call(&self) -> usize {
        match self.kind {
            Kind::One(_) => 64,
            Kind::Cluster(_) => 1,
        }
    }

    /// The slot of a key, where there are slots.
    pub(crate) fn slot(&self, key: &[u8]) -> u16 {
        match self.kind {
            Kind::One(_) => 0,
            Kind::Cluster(_) => slots::slot(key),
        }
    }

    /// What [`learn`](Self::learn) compares.
    pub(crate) fn version(&self) -> u64 {
        match &self.kind {
            Kind::One(_) => 0,
            Kind::Cluster(cluster) => cluster.version(),
        }
    }

    /// The lanes to the server of a slot, once it is known.
    pub(crate) async fn route(&self, slot: u16, until: Instant) -> Result<Route<'_>, Fault> {
        match &self.kind {
            Kind::One(lanes) => Ok(Route::One(lanes)),
            Kind::Cluster(cluster) => {
                let version = cluster.version();
                if let Some(node) = cluster.node_of(slot) {
                    return Ok(Route::Node(node));
                }
                cluster.learn(version, until).await?;
                let node = cluster.node_of(slot).ok_or_else(|| {
                    let text = format!("no node of {} has slot {slot}", self.dialer.target(None));
                    Fault::new(
                        backstop_core::StoreErrorKind::Unreachable,
                        crate::error::Remedy::AskAgain,
                        text,
                    )
                })?;
                Ok(Route::Node(node))
            }
        }
    }

    /// The lanes to a node that another one named.
    pub(crate) fn route_to(&self, address: &Address) -> Option<Route<'_>> {
        match &self.kind {
            Kind::One(_) => None,
            Kind::Cluster(cluster) => Some(Route::Node(cluster.node_at(address))),
        }
    }

    /// The lanes to every master.
    pub(crate) async fn all(&self, until: Instant) -> Result<Vec<Route<'_>>, Fault> {
        match &self.kind {
            Kind::One(lanes) => Ok(vec![Route::One(lanes)]),
            Kind::Cluster(cluster) => {
                cluster.learn(cluster.version(), until).await?;
                Ok(cluster.masters().into_iter().map(Route::Node).collect())
            }
        }
    }

    /// Finds out who took over, after something failed since `version`, and heeds what nodes said.
    pub(crate) async fn learn(&self, version: u64, moved: &[Redirect], until: Instant) {
        let Kind::Cluster(cluster) = &self.kind else {
            return;
        };
        if let Err(fault) = cluster.learn(version, until).await {
            tracing::debug!(%fault, "the nodes do not say who has which slots");
        }
        for Redirect { slot, address } in moved {
            cluster.moved(*slot, address);
        }
    }

    /// How long to wait for a connection of a route.
    pub(crate) fn patience(&self, until: Instant) -> Instant {
        match self.kind {
            Kind::One(_) => until,
            Kind::Cluster(_) => until.min(Instant::now() + NODE_PATIENCE),
        }
    }
}

/// The way to one server.
pub(crate) enum Route<'a> {
    One(&'a Lanes),
    Node(Arc<crate::cluster::Node>),
}

impl Route<'_> {
    pub(crate) fn lanes(&self) -> &Lanes {
        match self {
            Self::One(lanes) => lanes,
            Self::Node(node) => &node.lanes,
        }
    }

    /// The node of a Cluster.
    pub(crate) fn node(&self) -> Option<&Address> {
        match self {
            Self::One(_) => None,
            Self::Node(node) => Some(&node.address),
        }
    }

    /// Whether both lead to one server.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        std::ptr::eq(self.lanes(), other.lanes())
    }
}
