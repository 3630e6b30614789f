//! Several nodes of Redis in one container.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

use crate::container::{Plan, Server};
use crate::redis::plan;

const FAIL_OVER_TIMEOUT: Duration = Duration::from_mins(1);

/// The nodes of a Redis Cluster or of a Sentinel set, each known by its port on 127.0.0.1.
pub struct Nodes {
    server: Server,
}

impl Nodes {
    /// Runs a script, that starts a node for each of the ports, in one container.
    pub(crate) async fn run<const PORTS: usize>(
        script: &'static str,
        ready: &'static str,
        url: impl Fn([u16; PORTS]) -> String,
    ) -> Result<(Self, [u16; PORTS])> {
        let (server, ports) = Server::run(|ports: [u16; PORTS]| {
            let mut command = vec!["sh".to_owned(), "/nodes.sh".to_owned()];
            command.extend(ports.iter().map(ToString::to_string));
            Plan {
                command,
                ports: ports.iter().map(|port| (*port, *port)).collect(),
                files: vec![("/nodes.sh", script.to_owned())],
                url: url(ports),
                ..plan(ready)
            }
        })
        .await?;
        Ok((Self { server }, ports))
    }

    /// The container that they run in, to stop or freeze all of them.
    pub const fn server(&self) -> &Server {
        &self.server
    }

    /// Asks one of them, as `redis-cli` does, and gives its answer.
    ///
    /// # Errors
    ///
    /// When it does not answer within five seconds.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: the question may have been asked.
    pub async fn ask(&self, port: u16, question: &[&str]) -> Result<String> {
        let port = port.to_string();
        let mut command = vec!["timeout", "5", "redis-cli", "-p", &port];
        command.extend(question);
        self.server.exec(&command).await
    }

    /// Asks several of them the same, and gives the answers of those that answer within five seconds.
    ///
    /// # Errors
    ///
    /// When docker cannot, or none answers.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: the question may have been asked.
    pub(crate) async fn ask_each(&self, ports: &[u16], question: &str) -> Result<Vec<String>> {
        let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
        // One command for all: each that docker runs costs more than the answers.
        let script = format!(
            "for port in {}; do timeout 5 redis-cli -p $port {question} 2> /dev/null; printf '\\036'; done",
            ports.join(" ")
        );
        let output = self.server.exec(&["sh", "-c", &script]).await?;
        let answers = output.split('\x1e').map(str::trim);
        let answers: Vec<_> = answers
            .filter(|answer| !answer.is_empty())
            .map(ToOwned::to_owned)
            .collect();
        if answers.is_empty() {
            bail!("no node answers {question}");
        }
        Ok(answers)
    }

    /// Kills one by SIGKILL.
    ///
    /// # Errors
    ///
    /// When it does not run.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: it is killed or not.
    pub async fn kill(&self, port: u16) -> Result<()> {
        self.signal(port, "KILL").await
    }

    /// Starts one that was killed; returns before it is up.
    ///
    /// # Errors
    ///
    /// When docker cannot.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: it is started or not.
    pub async fn start(&self, port: u16) -> Result<()> {
        // A script of its own, for the shell that is its parent is the one that starts the others.
        let script = format!("redis-server /tmp/{port}.conf > /dev/null 2>&1 &");
        self.server.exec(&["sh", "-c", &script]).await.map(drop)
    }

    /// Freezes one: its connections stay open, and it does not answer.
    ///
    /// # Errors
    ///
    /// When it does not run.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: it is frozen or not.
    pub async fn freeze(&self, port: u16) -> Result<()> {
        self.signal(port, "STOP").await
    }

    /// Ends a freeze.
    ///
    /// # Errors
    ///
    /// When it does not run.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: it goes on or not.
    pub async fn thaw(&self, port: u16) -> Result<()> {
        self.signal(port, "CONT").await
    }

    async fn signal(&self, port: u16, signal: &str) -> Result<()> {
        let script = format!("kill -{signal} $(cat /tmp/{port}.pid)");
        self.server.exec(&["sh", "-c", &script]).await.map(drop)
    }
}

/// Asks again until there is an answer.
pub(crate) async fn until<T>(what: &str, answer: impl AsyncFn() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + FAIL_OVER_TIMEOUT;
    loop {
        if let Some(answer) = answer().await? {
            return Ok(answer);
        }
        if Instant::now() > end {
            bail!("{what} took longer than {FAIL_OVER_TIMEOUT:?}");
        }
        sleep(Duration::from_millis(100)).await;
    }
}
