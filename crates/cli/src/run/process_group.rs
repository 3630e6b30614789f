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

/// How long what was killed may take to be gone.
const LAST_BREATH: Duration = Duration::from_secs(1);
/// How often what a program has left behind is looked at.
const GLANCE: Duration = Duration::from_secs(1);

/// How a program is made to end.
#[derive(Clone)]
pub(super) struct Ending {
    /// From SIGTERM to SIGKILL.
    pub(super) kill_after: Duration,
    /// From the beginning of a shutdown to its end.
    pub(super) grace: Duration,
    /// Cuts both short.
    pub(super) shutdown: Shutdown,
    /// Where what was killed is waited for.
    pub(super) tasks: TaskTracker,
}

impl Ending {
    /// Waits until what runs has to hear of a shutdown, to end itself before its grace is over.
    async fn last_call(&self) {
        self.shutdown.begun().await;
        let ahead = self.kill_after.min(self.grace / 2);
        tokio::time::sleep(self.grace.saturating_sub(ahead)).await;
    }
}

/// A running program. When it is dropped before its end, it and all that it has started are killed
/// at once: as soon as nobody waits for it, somebody else may start its message.
pub(super) struct ProcessGroup {
    running: Option<Running>,
    ending: Ending,
    was_called: bool,
}

struct Running {
    child: Child,
    group: Group,
    ear: Ear,
}

impl ProcessGroup {
    /// Starts a program. Ctrl-C on a terminal does not reach its group: we decide when it ends.
    pub(super) fn spawn(mut command: Command, ending: Ending) -> io::Result<Self> {
        #[cfg(unix)]
        command.process_group(0);
        let mut child = command.spawn()?;
        let group = Group::of(&child);
        let ear = Ear::of(child.stderr.take());
        let running = Some(Running { child, group, ear });
        Ok(Self {
            running,
            ending,
            was_called: false,
        })
    }

    /// Gives the program its message, and waits until it ends by itself. Shortly before the end of a
    /// shutdown's grace it gets a SIGTERM.
    ///
    /// # Errors
    ///
    /// When the operating system cannot wait for it.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may have given it a part of the message.
    pub(super) async fn attend(&mut self, body: Bytes) -> io::Result<ExitStatus> {
        let Some(Running { child, group, .. }) = &mut self.running else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let mut telling = pin!(tell(child.stdin.take(), body));
        let mut told = false;
        let mut last_call = pin!(self.ending.last_call());
        loop {
            tokio::select! {
                status = child.wait() => return status,
                () = &mut telling, if !told => told = true,
                () = &mut last_call, if !self.was_called => {
                    group.signal(Signal::Terminate);
                    self.was_called = true;
                }
            }
        }
    }

    /// Whether it was asked to end because of a shutdown.
    pub(super) const fn was_called(&self) -> bool {
        self.was_called
    }

    /// After its end: what it said at last. What it has started may live on.
    pub(super) async fn last_words(&mut self) -> String {
        let Some(Running { group, ear, .. }) = self.running.take() else {
            return String::new();
        };
        group.reap_in_time();
        ear.last_words().await
    }

    /// Ends the program and all that it has started, by SIGTERM first and by SIGKILL later; returns
    /// when that is done, with what it said at last.
    ///
    /// # Cancel safety
    ///
    /// A dropped call goes on when it is made again. Dropping the group too kills it at once.
    pub(super) async fn end(&mut self) -> String {
        let Some(running) = &mut self.running else {
            return String::new();
        };
        running.group.signal(Signal::Terminate);
        let gone = tokio::select! {
            () = running.gone() => true,
            () = tokio::time::sleep(self.ending.kill_after) => false,
            () = self.ending.shutdown.cut_short() => false,
        };
        if !gone {
            running.kill();
            running.breathe_last().await;
        }
        self.last_words().await
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.kill();
            self.ending.tasks.spawn(async move {
                running.breathe_last().await;
                running.group.reap_in_time();
                running.ear.last_words().await;
            });
        }
    }
}

impl Running {
    fn kill(&mut self) {
        self.group.signal(Signal::Kill);
        // Fails only if it has ended.
        let _ = self.child.start_kill();
    }

    /// Waits until the program has ended, and all that it has started.
    async fn gone(&mut self) {
        let _ = self.child.wait().await;
        self.group.gone().await;
    }

    /// The same, of what was killed: the program itself ends for sure. What it has started is waited
    /// for no longer than that usually takes, because its end may be for somebody else to notice.
    async fn breathe_last(&mut self) {
        let _ = self.child.wait().await;
        let _ = tokio::time::timeout(LAST_BREATH, self.group.gone()).await;
    }
}

/// A program need not read its stdin: that it does not is no error.
async fn tell(stdin: Option<ChildStdin>, body: Bytes) {
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(&body).await;
    }
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
#[derive(Clone, Copy)]
struct Group(Option<rustix::process::Pid>);

#[cfg(unix)]
impl Group {
    fn of(child: &Child) -> Self {
        let number = child.id().and_then(|id| i32::try_from(id).ok());
        Self(number.and_then(rustix::process::Pid::from_raw))
    }

    fn signal(self, signal: Signal) {
        let signal = match signal {
            Signal::Terminate => rustix::process::Signal::TERM,
            Signal::Kill => rustix::process::Signal::KILL,
        };
        if let Some(group) = self.0 {
            // Fails only if nothing is left of the group.
            let _ = rustix::process::kill_process_group(group, signal);
        }
    }

    /// Waits until nothing is left of it, once its leader has ended and was waited for. Nobody tells
    /// us about what is not our child: we look.
    async fn gone(self) {
        while let Some(group) = self.0 {
            self.reap();
            if rustix::process::test_kill_process_group(group).is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Reaps what has ended of it and was left to us, and says whether more of it was: the first
    /// process of a container, or a subreaper, inherits what programs leave behind.
    ///
    /// Its leader must have been waited for: its end is not ours to take.
    fn reap(self) -> bool {
        let Some(group) = self.0 else { return false };
        loop {
            match rustix::process::waitpgid(group, rustix::process::WaitOptions::NOHANG) {
                Ok(Some(_)) => {}
                Ok(None) => return true,
                // It has no child of ours.
                Err(_) => return false,
            }
        }
    }

    /// Reaps what is left of it, as it ends, and lets it live until then.
    fn reap_in_time(self) {
        if self.reap() {
            tokio::spawn(async move {
                while self.reap() {
                    tokio::time::sleep(GLANCE).await;
                }
            });
        }
    }
}

/// Elsewhere than on Unix there is only the program itself, which `end` kills.
#[cfg(not(unix))]
#[derive(Clone, Copy)]
struct Group;

#[cfg(not(unix))]
impl Group {
    fn of(_child: &Child) -> Self {
        Self
    }

    fn signal(self, _signal: Signal) {}

    async fn gone(self) {}

    fn reap_in_time(self) {}
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

#[cfg(all(test, target_os = "linux"))]
mod tests;
