//! Runs the real command.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpSocket;
use tokio::process::{Child, Command};

/// Nothing here takes this long, but this machine may be busy.
pub(crate) const LONG: Duration = Duration::from_mins(5);

/// What the command said, and how it ended.
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let ended = Self {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        };
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        ended
    }

    /// Asserts the exit code, and shows all if it is another.
    #[track_caller]
    pub(crate) fn with_code(self, code: i32) -> Self {
        let (stdout, stderr) = (&self.stdout, &self.stderr);
        assert_eq!(self.code, code, "stdout: {stdout}\nstderr: {stderr}");
        self
    }

    /// Asserts that stderr says this.
    #[track_caller]
    pub(crate) fn saying(self, text: &str) -> Self {
        assert!(
            self.stderr.contains(text),
            "no {text:?} in: {}",
            self.stderr
        );
        self
    }

    /// The last line of stdout, as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        let line = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|error| {
            panic!("{error}\nstdout: {}\nstderr: {}", self.stdout, self.stderr)
        })
    }
}

/// The command, without anything that this environment may say to it.
pub(crate) fn backstop<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backstop"));
    command.args(arguments).kill_on_drop(true);
    command.stdin(Stdio::null());
    for name in [
        "RUST_LOG",
        "BACKSTOP_URL",
        "BACKSTOP_STORE",
        "BACKSTOP_ENDPOINT",
        "BACKSTOP_DEMO_URL",
        "BACKSTOP_DEMO_STORE",
    ] {
        command.env_remove(name);
    }
    command
}

/// Runs it to its end.
pub(crate) async fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ended {
    output(&mut backstop(arguments)).await
}

/// Runs it to its end.
pub(crate) async fn output(command: &mut Command) -> Ended {
    let output = tokio::time::timeout(LONG, command.output()).await;
    Ended::of(
        &output
            .expect("the command ends")
            .expect("the command starts"),
    )
}

/// Runs it to its end, with this on stdin.
pub(crate) async fn run_with_stdin(arguments: &[&str], stdin: &[u8]) -> Ended {
    let mut child = start(backstop(arguments).stdin(Stdio::piped()));
    let mut pipe = child.stdin.take().unwrap();
    // A command that stops reading is no error here.
    let _ = pipe.write_all(stdin).await;
    drop(pipe);
    wait(child).await
}

/// Starts it, with its output kept.
pub(crate) fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the command starts")
}

/// Waits for its end.
pub(crate) async fn wait(child: Child) -> Ended {
    let output = tokio::time::timeout(LONG, child.wait_with_output()).await;
    Ended::of(
        &output
            .expect("the command ends")
            .expect("its output can be read"),
    )
}

/// Sends it a signal, by its name.
pub(crate) async fn signal(child: &Child, name: &str) {
    let id = child.id().expect("the command runs");
    let kill = Command::new("kill")
        .args([format!("-{name}"), id.to_string()])
        .status();
    assert!(kill.await.unwrap().success());
}

/// An address where nobody listens, and nobody else can while this is kept.
pub(crate) fn nobody() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// Waits for the end of a process of which only the number is known.
pub(crate) async fn wait_for_end_of(pid: &str) {
    let ended = tokio::time::timeout(LONG, async {
        while is_alive(pid) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(ended.await.is_ok(), "process {pid} lives on");
}

pub(crate) fn is_alive(pid: &str) -> bool {
    assert!(
        !pid.trim().is_empty(),
        "the program did not come to say its number"
    );
    let status = Path::new("/proc").join(pid.trim()).join("status");
    let status = std::fs::read_to_string(status).unwrap_or_default();
    // What has ended and was not looked at by its parent yet has no life either.
    !status.is_empty() && !status.contains("State:\tZ")
}

/// A directory for the files of a test.
pub(crate) struct Files(tempfile::TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The content of a file; nothing if it is not there.
    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Waits until a file holds a line with this text, and gives its content.
    pub(crate) async fn wait_for(&self, name: &str, text: &str) -> String {
        let waited = tokio::time::timeout(LONG, async {
            loop {
                let content = self.read(name);
                if content.ends_with('\n') && content.contains(text) {
                    return content;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        waited
            .await
            .unwrap_or_else(|_| panic!("{name} never says {text:?}: {}", self.read(name)))
    }

    pub(crate) fn directory(&self) -> &Path {
        self.0.path()
    }
}

/// `run` with messages from a file, in a memory queue; in the files' directory, JSON on stdout.
pub(crate) fn run_fed(files: &Files, lines: &str, arguments: &[&str]) -> Command {
    let feed = files.write("feed.jsonl", lines);
    let mut command = backstop(["run", "--url", "memory://fed", "--json", "--feed"]);
    command.arg(feed).args(["--store", "memory://"]);
    command.args(["--base", "20ms", "--cap", "100ms"]);
    command.args(arguments).current_dir(files.directory());
    command
}
