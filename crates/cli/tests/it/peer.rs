//! A client of RabbitMQ that is not ours: Python's pika.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tokio::sync::OnceCell;

/// The version of pika, so that a test of tomorrow is the test of today.
const PIKA: &str = "pika==1.3.2";

/// A queue on RabbitMQ, as pika sees it.
pub(crate) struct Peer {
    python: &'static Path,
    url: String,
    queue: String,
}

impl Peer {
    pub(crate) async fn of(queue: &str) -> Self {
        static PYTHON: OnceCell<PathBuf> = OnceCell::const_new();
        let python = PYTHON
            .get_or_init(|| async {
                let made = tokio::task::spawn_blocking(python_with_pika);
                made.await.expect("an environment for Python")
            })
            .await;
        Self {
            python,
            url: format!("{}/%2F", integration::rabbitmq().await),
            queue: queue.to_owned(),
        }
    }

    /// Publishes messages with ids `good-<n>` and `poison-<n>`, and bodies `fine` and `poison`.
    pub(crate) async fn fill(&self, good: u32, poison: u32) {
        self.ask("fill", &self.queue, &[good, poison]).await;
    }

    /// How many messages are in the queue and delivered to nobody.
    pub(crate) async fn depth(&self) -> u64 {
        let depth = self.ask("depth", &self.queue, &[]).await;
        depth.as_u64().expect("a number")
    }

    /// Takes all messages out of the queue.
    pub(crate) async fn take(&self) -> Vec<Value> {
        self.take_from(&self.queue).await
    }

    /// Takes all messages out of its dead-letter queue.
    pub(crate) async fn take_dead_letters(&self) -> Vec<Value> {
        self.take_from(&format!("{}.dead-letters", self.queue))
            .await
    }

    /// Declares it as a classic queue.
    pub(crate) async fn declare_classic(&self) {
        self.ask("classic", &self.queue, &[]).await;
    }

    async fn take_from(&self, queue: &str) -> Vec<Value> {
        match self.ask("take", queue, &[]).await {
            Value::Array(taken) => taken,
            other => panic!("{other}"),
        }
    }

    async fn ask(&self, command: &str, queue: &str, numbers: &[u32]) -> Value {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/peer.py");
        let mut python = tokio::process::Command::new(self.python);
        python.args([script, &self.url, command, queue]);
        python.args(numbers.iter().map(ToString::to_string));
        let output = python.output().await.expect("python starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command} of {queue}: {error}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }
}

/// Makes an environment with pika beside the other build products, once.
fn python_with_pika() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let ready = directory.join(PIKA);
    if !ready.exists() {
        // Under a name of its own first: another test run may be at the same. An environment knows
        // its own path only for its scripts, of which none is used.
        let new = directory.join(format!("{PIKA}-{}", std::process::id()));
        let shown = new.display().to_string();
        succeed(Command::new("python3").args(["-m", "venv", &shown]));
        let install = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            PIKA,
        ];
        succeed(Command::new(new.join("bin/python")).args(install));
        if std::fs::rename(&new, &ready).is_err() {
            assert!(ready.exists(), "cannot rename {shown}");
            let _ = std::fs::remove_dir_all(&new);
        }
    }
    ready.join("bin/python")
}

fn succeed(command: &mut Command) {
    let output = command.output();
    let output = output.unwrap_or_else(|error| {
        panic!("{command:?}: {error}: these tests need Python 3 with venv (python3-venv on Debian)")
    });
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
}
