//! A program in a process group of its own, which ends as a whole.

use std::io;
use std::pin::pin;
use std::process::ExitStatus;
use std::time::Duration;

use backstop::Shutdown;
use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin, Command};
use tokio_util::task::TaskTracker;

use super::tail::Ear;

/// How a program is made to end.
#[derive(Clone)]
pub(super) struct Ending {
    /// From SIGTERM to SIGKILL.
    pub(super) kill_after: Duration,
    /// Cuts that short.
    pub(super) shutdown: Shutdown,
    /// Where endings go on when nobody waits for them.
    pub(super) tasks: TaskTracker,
}

/// A running program. When it is dropped before its end, it and all that it has started are ended:
/// by SIGTERM first, by SIGKILL later.
pub(super) struct ProcessGroup {
    running: Option<Running>,
    ending: Ending,
}

struct Running {
    child: Child,
    ear: Ear,
}

impl ProcessGroup {
    /// Starts a program. Ctrl-C on a terminal does not reach its group: we decide when it ends.
    pub(super) fn spawn(mut command: Command, ending: Ending) -> io::Result<Self> {
        #[cfg(unix)]
        command.process_group(0);
        let mut child = command.spawn()?;
        let ear = Ear::of(child.stderr.take());
        let running = Some(Running { child, ear });
        Ok(Self { running, ending })
    }

    /// Gives the program its message, and waits until it ends by itself.
    ///
    /// # Errors
    ///
    /// When the operating system cannot wait for it.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may have given it a part of the message.
    pub(super) async fn attend(&mut self, body: Bytes) -> io::Result<ExitStatus> {
        let Some(Running { child, .. }) = &mut self.running else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let mut telling = pin!(tell(child.stdin.take(), body));
        let mut told = false;
        loop {
            tokio::select! {
                status = child.wait() => return status,
                () = &mut telling, if !told => told = true,
            }
        }
    }

    /// After its end: what it said at last. What it has started may live on.
    pub(super) async fn last_words(&mut self) -> String {
        match self.running.take() {
            Some(running) => running.ear.last_words().await,
            None => String::new(),
        }
    }

    /// Ends the program and all that it has started; returns when that is done, with what it said at
    /// last.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: it goes on by itself.
    pub(super) async fn end(&mut self) -> String {
        let Some(running) = self.running.take() else {
            return String::new();
        };
        // As a task, so that it goes on if nobody waits.
        let ending = end(running, self.ending.clone());
        let ended = self.ending.tasks.spawn(ending).await;
        ended.unwrap_or_default()
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            self.ending.tasks.spawn(end(running, self.ending.clone()));
        }
    }
}

/// A program need not read its stdin: that it does not is no error.
async fn tell(stdin: Option<ChildStdin>, body: Bytes) {
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(&body).await;
    }
}

async fn end(running: Running, ending: Ending) -> String {
    let Running { mut child, ear } = running;
    let group = Group::of(&child);
    group.signal(Signal::Terminate);
    tokio::select! {
        () = async { let _ = child.wait().await; group.gone().await } => {}
        () = tokio::time::sleep(ending.kill_after) => {}
        () = ending.shutdown.cut_short() => {}
    }
    group.signal(Signal::Kill);
    let _ = child.start_kill();
    let _ = child.wait().await;
    ear.last_words().await
}

#[derive(Clone, Copy)]
enum Signal {
    Terminate,
    Kill,
}

/// Takes care that ends of programs can be waited for. Whoever started us may have ignored SIGCHLD,
/// which is inherited: the kernel then throws away how a program ended.
///
/// # Errors
///
/// When signals cannot be listened to.
pub(super) fn keep_ends() -> io::Result<()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        // What it does to the signal lasts longer than it.
        drop(signal(SignalKind::child())?);
    }
    Ok(())
}

/// The group by its number, which outlives the program that led it.
#[cfg(unix)]
struct Group(Option<rustix::process::Pid>);

#[cfg(unix)]
impl Group {
    fn of(child: &Child) -> Self {
        let number = child.id().and_then(|id| i32::try_from(id).ok());
        Self(number.and_then(rustix::process::Pid::from_raw))
    }

    fn signal(&self, signal: Signal) {
        let signal = match signal {
            Signal::Terminate => rustix::process::Signal::TERM,
            Signal::Kill => rustix::process::Signal::KILL,
        };
        if let Some(group) = self.0 {
            // Fails only if nothing is left of the group.
            let _ = rustix::process::kill_process_group(group, signal);
        }
    }

    /// Waits until nothing is left of it. Nobody tells us about what is not our child: we look.
    async fn gone(&self) {
        while let Some(group) = self.0
            && rustix::process::test_kill_process_group(group).is_ok()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Elsewhere than on Unix there is only the program itself, which `end` kills.
#[cfg(not(unix))]
struct Group;

#[cfg(not(unix))]
impl Group {
    fn of(_child: &Child) -> Self {
        Self
    }

    fn signal(&self, _signal: Signal) {}

    async fn gone(&self) {}
}

/// How a program ended, in words.
pub(super) fn in_words(status: ExitStatus) -> String {
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt as _;
        if let Some(signal) = status.signal() {
            return format!("was ended by signal {signal}");
        }
    }
    match status.code() {
        Some(code) => format!("failed with exit code {code}"),
        None => "ended without an exit code".to_owned(),
    }
}
