//! The docker command: images, and the end of containers that outlive their owner.

use std::process::{Child, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;
use tokio::time::timeout;

const PULL_TIMEOUT: Duration = Duration::from_mins(2);

/// The label of every container of ours; its value names the process that owns it.
pub(crate) const OWNER_LABEL: &str = "backstop-test.owner";

/// Runs docker and gives its output, stdout before stderr.
pub(crate) async fn docker(arguments: &[&str]) -> Result<String> {
    let output = Command::new("docker")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .context("cannot run docker: install Docker, and let this user use it")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("docker {}: {}", arguments.join(" "), stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &stderr)
}

/// The image to run: the official one if it is here, else the local one, else the official one once
/// it is pulled. What is here comes first because a pull may hang where no registry is reached.
pub(crate) async fn choose_image(official: &str, local: &str) -> Result<String> {
    let mut unusable = None;
    for image in [official, local] {
        match docker(&["image", "inspect", "--format", "{{.Id}}", image]).await {
            Ok(_) => return Ok(image.to_owned()),
            Err(error) => unusable = Some(error),
        }
    }
    let pull = timeout(PULL_TIMEOUT, pull(official)).await;
    let reason = match pull {
        Ok(Ok(())) => return Ok(official.to_owned()),
        Ok(Err(error)) => error,
        Err(_) => unusable.context("no image was looked for")?,
    };
    Err(reason.context(format!(
        "there is no image {local}, and {official} cannot be pulled: run `cargo xtask images`, or name \
         a running server in BACKSTOP_TEST_RABBITMQ_URL, BACKSTOP_TEST_REDIS_URL or \
         BACKSTOP_TEST_SQS_URL"
    )))
}

async fn pull(image: &str) -> Result<()> {
    let output = Command::new("docker")
        .args(["pull", "--quiet", image])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("cannot run docker")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Who owns the containers that this process starts. From the first call on, a watcher removes them
/// when this process ends.
///
/// Statics are never dropped and a killed process drops nothing, so the watcher is a process of its
/// own. It waits for the end of a pipe that only this process holds, hence also for a `kill -9`.
pub(crate) fn owner() -> Result<&'static str> {
    static OWNER: OnceLock<Option<(String, Child)>> = OnceLock::new();
    let started = OWNER.get_or_init(|| {
        let pid = std::process::id();
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let owner = format!("{pid}-{}", since.unwrap_or_default().as_millis());
        let watcher = watch(&owner).ok()?;
        Some((owner, watcher))
    });
    let (owner, _) = started
        .as_ref()
        .context("cannot start the watcher that removes containers")?;
    Ok(owner)
}

fn watch(owner: &str) -> std::io::Result<Child> {
    use std::os::unix::process::CommandExt as _;

    // The second round takes what was being created while the process died.
    let script = "cat > /dev/null\n\
         for pause in 0 5; do\n\
             sleep $pause\n\
             docker ps --all --quiet --filter label=\"$1\" | xargs -r docker rm --force --volumes\n\
         done";
    std::process::Command::new("sh")
        .args(["-c", script, "sh", &format!("{OWNER_LABEL}={owner}")])
        // An interrupt from the terminal is for the tests.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}
