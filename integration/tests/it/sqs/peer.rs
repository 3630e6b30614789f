//! A client of SQS that is not ours: Python's boto3.

use std::path::{Path, PathBuf};
use std::process::Command;

use integration::{SQS_REGION, sqs};
use serde_json::Value;
use tokio::sync::OnceCell;

/// The version of boto3, so that a test of tomorrow is the test of today.
const BOTO3: &str = "boto3==1.42.72";

/// Sends messages with the bodies `fine` and `poison`; gives the ids that SQS gave them.
pub(crate) async fn fill(url: &str, good: usize, poison: usize) -> Vec<String> {
    let numbers = [good, poison].map(|number| number.to_string());
    let ids = ask("fill", url, &numbers).await;
    serde_json::from_value(ids).expect("a list of ids")
}

/// Takes so many messages out of a queue: each has `body`, `system` and `attributes`.
pub(crate) async fn take(url: &str, count: usize) -> Vec<Value> {
    let taken = ask("take", url, &[count.to_string()]).await;
    serde_json::from_value(taken).expect("a list of messages")
}

/// Sends so many messages of a queue to another, with all that they have, and takes them out.
pub(crate) async fn send_back(from: &str, to: &str, count: usize) {
    ask("send_back", from, &[to.to_owned(), count.to_string()]).await;
}

async fn ask(command: &str, url: &str, arguments: &[String]) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/sqs/peer.py");
    let endpoint = sqs().await;
    let mut python = tokio::process::Command::new(python().await);
    let is_emulator = endpoint.starts_with("http:");
    let region = std::env::var("AWS_REGION").ok().filter(|_| !is_emulator);
    let region = region.unwrap_or_else(|| SQS_REGION.to_owned());
    python.args([script, endpoint, &region, command, url]);
    python.args(arguments);
    if is_emulator {
        let credentials = [
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
        ];
        python.envs(credentials);
    }
    let output = python.output().await.expect("python starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command} of {url}: {error}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

async fn python() -> &'static Path {
    static PYTHON: OnceCell<PathBuf> = OnceCell::const_new();
    let made = PYTHON.get_or_init(|| async {
        let made = tokio::task::spawn_blocking(python_with_boto3);
        made.await.expect("an environment for Python")
    });
    made.await
}

/// Makes an environment with boto3 beside the other build products, once.
fn python_with_boto3() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let ready = directory.join(BOTO3);
    if !ready.exists() {
        // Under a name of its own first: another test run may be at the same. An environment knows
        // its own path only for its scripts, of which none is used.
        let new = directory.join(format!("{BOTO3}-{}", std::process::id()));
        let shown = new.display().to_string();
        succeed(Command::new("python3").args(["-m", "venv", &shown]));
        let quiet = ["--quiet", "--disable-pip-version-check", BOTO3];
        let mut install = Command::new(new.join("bin/python"));
        succeed(install.args(["-m", "pip", "install"]).args(quiet));
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
