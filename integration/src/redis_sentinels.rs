//! Redis under the watch of sentinels.

use anyhow::{Context as _, Result, ensure};

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

    /// The port of the node that is the master, once all sentinels that answer agree on it.
    ///
    /// # Errors
    ///
    /// When no sentinel answers, or agreement takes longer than a minute.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn master(&self) -> Result<u16> {
        until("agreement on the master", async || {
            self.agreed_master().await
        })
        .await
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
        let answer = self.nodes.ask(self.sentinels[0], &command).await?;
        // redis-cli takes a refusal for an answer.
        ensure!(answer.trim() == "OK", "no failover: {answer}");
        let new = self.next_master(old).await?;
        Ok((old, new))
    }

    /// Waits for all sentinels that answer to name another master than `old`, and gives its port.
    ///
    /// # Errors
    ///
    /// When no sentinel answers, or it takes longer than a minute.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn next_master(&self, old: u16) -> Result<u16> {
        until("the failover", async || {
            let master = self.agreed_master().await?;
            Ok(master.filter(|master| *master != old))
        })
        .await
    }

    async fn agreed_master(&self) -> Result<Option<u16>> {
        let question = format!("sentinel get-master-addr-by-name {}", Self::SERVICE);
        let answers = self.nodes.ask_each(&self.sentinels, &question).await?;
        let (first, others) = answers.split_first().context("there are sentinels")?;
        if others.iter().any(|other| other != first) {
            return Ok(None);
        }
        let port = first.lines().nth(1).context("no address of a master")?;
        Ok(Some(port.trim().parse()?))
    }
}

fn addresses(sentinels: [u16; 3]) -> Vec<String> {
    sentinels.map(|port| format!("127.0.0.1:{port}")).to_vec()
}
