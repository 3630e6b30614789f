//! Redis under the watch of sentinels.

use anyhow::{Context as _, Result};

use crate::redis_nodes::{Nodes, until};

/// A master and a replica of Redis, and three sentinels that watch over them.
pub struct Sentinels {
    nodes: Nodes,
    sentinels: [u16; 3],
}

/// Starts a master, a replica and three sentinels.
///
/// # Errors
///
/// When there is no image, or it does not come up.
///
/// # Cancel safety
///
/// Cancel-safe: what was started ends with this process at the latest.
pub async fn start_sentinels() -> Result<Sentinels> {
    let script = include_str!("../scripts/sentinels.sh");
    let url = |[_, _, sentinels @ ..]: [u16; 5]| {
        let addresses = addresses(sentinels).join(",");
        format!("redis+sentinel://{addresses}/{}", Sentinels::SERVICE)
    };
    let (nodes, [_, _, sentinels @ ..]) = Nodes::run(script, "the sentinels are up", url).await?;
    Ok(Sentinels { nodes, sentinels })
}

impl Sentinels {
    /// What the sentinels call the master.
    pub const SERVICE: &str = "main";

    /// Its URL: `redis+sentinel://host:port,host:port,host:port/main`.
    pub fn url(&self) -> &str {
        self.nodes.server().url()
    }

    /// The addresses of the sentinels, `host:port`.
    pub fn addresses(&self) -> Vec<String> {
        addresses(self.sentinels)
    }

    /// Its nodes, to kill or freeze one.
    pub const fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// The port of the node that is the master now, as the sentinels see it.
    ///
    /// # Errors
    ///
    /// When no sentinel answers.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn master(&self) -> Result<u16> {
        let question = ["sentinel", "get-master-addr-by-name", Self::SERVICE];
        let mut failure = None;
        for sentinel in self.sentinels {
            match self.nodes.ask(sentinel, &question).await {
                Ok(answer) => {
                    let port = answer.lines().nth(1).context("no address of a master")?;
                    return Ok(port.trim().parse()?);
                }
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.context("there are sentinels")?)
    }

    /// Makes the sentinels promote the replica; returns the ports of the old master and of the new one.
    ///
    /// # Errors
    ///
    /// When the replica is not fit, or it takes longer than a minute.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: the failover may go on.
    pub async fn fail_over(&self) -> Result<(u16, u16)> {
        let old = self.master().await?;
        let command = ["sentinel", "failover", Self::SERVICE];
        self.nodes.ask(self.sentinels[0], &command).await?;
        let new = self.next_master(old).await?;
        Ok((old, new))
    }

    /// Waits for the sentinels to name another master than `old`, and gives its port.
    ///
    /// # Errors
    ///
    /// When no sentinel answers, or it takes longer than a minute.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn next_master(&self, old: u16) -> Result<u16> {
        until("the failover", async || Ok(self.master().await? != old)).await?;
        self.master().await
    }
}

fn addresses(sentinels: [u16; 3]) -> Vec<String> {
    sentinels.map(|port| format!("127.0.0.1:{port}")).to_vec()
}
