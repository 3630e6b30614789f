//! Redis Cluster.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::sleep;

use crate::redis_nodes::{Nodes, until};

/// A replica gives up to take over after five seconds (`CLUSTER_MF_TIMEOUT` of Redis), and nothing but
/// its log tells so; asked before, it starts anew.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_secs(6);

/// A Redis Cluster of three masters, each with a replica.
pub struct Cluster {
    nodes: Nodes,
    ports: [u16; 6],
}

/// Starts a Redis Cluster.
///
/// # Errors
///
/// When there is no image, or it does not come up.
///
/// # Cancel safety
///
/// Cancel-safe: what was started ends with this process at the latest.
pub async fn start_cluster() -> Result<Cluster> {
    let script = include_str!("../scripts/cluster.sh");
    let (nodes, ports) = Nodes::run(script, "the cluster is up", |ports: [u16; 6]| {
        format!("redis+cluster://{}", addresses(&ports).join(","))
    })
    .await?;
    Ok(Cluster { nodes, ports })
}

impl Cluster {
    /// Its URL, with all nodes: `redis+cluster://host:port,host:port,…`.
    pub fn url(&self) -> &str {
        self.nodes.server().url()
    }

    /// The addresses of all six nodes, `host:port`.
    pub fn addresses(&self) -> Vec<String> {
        addresses(&self.ports)
    }

    /// Its nodes, to kill or freeze one.
    pub const fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// The ports of the nodes that are masters, once all that answer agree on who is: a master that
    /// comes back after its replacement takes itself for one until it hears from the others.
    ///
    /// # Errors
    ///
    /// When no node answers, or agreement takes longer than a minute.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn masters(&self) -> Result<Vec<u16>> {
        let nodes = until("agreement on the nodes", async || self.agreed_nodes().await).await?;
        Ok(masters_of(&nodes))
    }

    /// Makes a replica take over from its master, in agreement with it; returns the ports of the old
    /// master and of the new one.
    ///
    /// # Errors
    ///
    /// When no replica lives, or it takes longer than a minute.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: the replica may take over nevertheless.
    pub async fn fail_over(&self) -> Result<(u16, u16)> {
        let nodes = until("agreement on the nodes", async || self.agreed_nodes().await).await?;
        let replica = nodes.iter().find(|node| !node.is_master && !node.is_failed);
        let replica = replica.context("no replica lives")?;
        let master = nodes.iter().find(|node| node.id == replica.master_id);
        let (old, new) = (
            master.context("the replica has no master")?.port,
            replica.port,
        );
        let replaced = self.until_replaced(old);
        tokio::select! {
            biased;
            replaced = replaced => replaced?,
            failure = self.keep_asking_to_take_over(new) => return Err(failure),
        }
        Ok((old, new))
    }

    /// Waits until three nodes other than `old` are masters, and all nodes that answer agree on it.
    ///
    /// # Errors
    ///
    /// When no node answers, or it takes longer than a minute.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn until_replaced(&self, old: u16) -> Result<()> {
        until("the failover", async || {
            let masters = self.agreed_nodes().await?.map(|nodes| masters_of(&nodes));
            Ok(masters.filter(|masters| masters.len() == 3 && !masters.contains(&old)))
        })
        .await
        .map(drop)
    }

    async fn keep_asking_to_take_over(&self, replica: u16) -> anyhow::Error {
        loop {
            // One that is a master already refuses, and stays one.
            if let Err(error) = self.nodes.ask(replica, &["cluster", "failover"]).await {
                return error;
            }
            sleep(TAKE_OVER_TIMEOUT).await;
        }
    }

    /// The nodes as all that answer see them; none while they differ.
    async fn agreed_nodes(&self) -> Result<Option<Vec<Node>>> {
        let tables = self.nodes.ask_each(&self.ports, "cluster nodes").await?;
        let mut views = tables.iter().map(|table| {
            let mut nodes: Vec<_> = table.lines().filter_map(Node::parse).collect();
            nodes.sort_by_key(|node| node.port);
            nodes
        });
        let first = views.next().filter(|nodes| nodes.len() == self.ports.len());
        Ok(first.filter(|first| views.all(|view| view == *first)))
    }
}

fn masters_of(nodes: &[Node]) -> Vec<u16> {
    let masters = nodes
        .iter()
        .filter(|node| node.is_master && !node.is_failed);
    masters.map(|node| node.port).collect()
}

/// A line of `CLUSTER NODES`.
#[derive(PartialEq, Eq)]
struct Node {
    id: String,
    port: u16,
    is_master: bool,
    is_failed: bool,
    master_id: String,
}

impl Node {
    /// <https://redis.io/docs/latest/commands/cluster-nodes/>: id, address, flags, master, …
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let id = words.next()?.to_owned();
        let address = words.next()?.split('@').next()?;
        let port = address.rsplit(':').next()?.parse().ok()?;
        let flags: Vec<_> = words.next()?.split(',').collect();
        Some(Self {
            id,
            port,
            is_master: flags.contains(&"master"),
            is_failed: flags.iter().any(|flag| flag.starts_with("fail")),
            master_id: words.next()?.to_owned(),
        })
    }
}

fn addresses(ports: &[u16]) -> Vec<String> {
    ports
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect()
}
