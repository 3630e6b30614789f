//! Redis Cluster.

use anyhow::{Context as _, Result};

use crate::redis_nodes::{Nodes, until};

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

    /// The ports of the nodes that are masters now, as one that lives sees it.
    ///
    /// # Errors
    ///
    /// When no node answers.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn masters(&self) -> Result<Vec<u16>> {
        let nodes = self.known_nodes().await?;
        let is_master = |node: &&Node| node.is_master && !node.is_failed;
        Ok(nodes
            .iter()
            .filter(is_master)
            .map(|node| node.port)
            .collect())
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
        let nodes = self.known_nodes().await?;
        let replica = nodes.iter().find(|node| !node.is_master && !node.is_failed);
        let replica = replica.context("no replica lives")?;
        let master = nodes.iter().find(|node| node.id == replica.master_id);
        let (old, new) = (
            master.context("the replica has no master")?.port,
            replica.port,
        );
        self.nodes.ask(new, &["cluster", "failover"]).await?;
        self.until_replaced(old).await?;
        Ok((old, new))
    }

    /// Waits until three nodes other than `old` are masters.
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
            let masters = self.masters().await?;
            Ok(masters.len() == 3 && !masters.contains(&old))
        })
        .await
    }

    async fn known_nodes(&self) -> Result<Vec<Node>> {
        let mut failure = None;
        for port in self.ports {
            match self.nodes.ask(port, &["cluster", "nodes"]).await {
                Ok(table) => return Ok(table.lines().filter_map(Node::parse).collect()),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.context("a cluster has nodes")?)
    }
}

/// A line of `CLUSTER NODES`.
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
