//! Programs and their ends, seen by their parent.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::Path;
use std::time::Instant;

use rustix::process::{Pid, getpid, set_child_subreaper, test_kill_process_group};
use tempfile::TempDir;

use super::*;

/// Nothing here takes this long, but this machine may be busy.
const LONG: Duration = Duration::from_mins(5);
/// Ignores SIGTERM, and so does what it starts.
const STUBBORN: &str = "trap '' TERM; sleep 1000 & echo > started; wait";

/// Makes us inherit what programs leave behind, as the first process of a container does.
fn inherit() {
    set_child_subreaper(Some(getpid())).unwrap();
}

/// A program that nothing ends in time but what a test is about.
struct Started {
    group: ProcessGroup,
    number: Pid,
    ending: Ending,
    directory: TempDir,
}

impl Started {
    /// Starts a shell script, and waits until it has made the file `started`.
    fn script(script: &str) -> Self {
        inherit();
        let directory = tempfile::tempdir().unwrap();
        let ending = Ending {
            kill_after: Duration::from_hours(1),
            grace: Duration::from_hours(3),
            shutdown: Shutdown::new(),
            tasks: TaskTracker::new(),
        };
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .current_dir(directory.path())
            .stderr(std::process::Stdio::piped());
        let group = ProcessGroup::spawn(command, ending.clone()).unwrap();
        let number = group.running.as_ref().unwrap().group.0.unwrap();
        let started = directory.path().join("started");
        block_until(|| started.exists());
        Self {
            group,
            number,
            ending,
            directory,
        }
    }
}

/// Waits without letting any task run.
fn block_until(mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LONG, "it never comes to that");
        std::thread::sleep(Duration::from_millis(5));
    }
}

async fn wait_until_gone(group: Pid) {
    let gone = tokio::time::timeout(LONG, async {
        while test_kill_process_group(group).is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(gone.await.is_ok(), "something is left of the group");
}

/// Whether it runs no more, reaped or not.
fn is_dead(process: Pid) -> bool {
    let status = Path::new("/proc").join(process.to_string()).join("status");
    let status = std::fs::read_to_string(status).unwrap_or_default();
    status.is_empty() || status.contains("State:\tZ")
}

#[tokio::test]
async fn a_program_that_is_dropped_is_killed_at_once() {
    let started = Started::script(STUBBORN);
    drop(started.group);
    block_until(|| is_dead(started.number));
    wait_until_gone(started.number).await;
    started.ending.tasks.close();
    started.ending.tasks.wait().await;
}

#[tokio::test]
async fn a_program_that_is_dropped_while_it_ends_is_killed_at_once() {
    let mut started = Started::script(STUBBORN);
    let ending = tokio::time::timeout(Duration::from_millis(50), started.group.end());
    assert!(ending.await.is_err(), "it ignores SIGTERM");
    assert!(!is_dead(started.number));
    drop(started.group);
    block_until(|| is_dead(started.number));
    wait_until_gone(started.number).await;
}

#[tokio::test]
async fn what_is_left_of_a_program_is_killed_when_it_is_dropped_while_it_ends() {
    let script = "(trap '' TERM; echo > started; exec sleep 1000) & wait";
    let mut started = Started::script(script);
    let ending = tokio::time::timeout(LONG, async {
        tokio::select! {
            _ = started.group.end() => panic!("something ignores SIGTERM"),
            () = async { while !is_dead(started.number) { tokio::task::yield_now().await } } => {}
        }
    });
    ending.await.unwrap();
    drop(started.group);
    wait_until_gone(started.number).await;
}

#[tokio::test]
async fn an_end_does_not_wait_for_what_is_dead_and_was_left_to_us() {
    let mut started = Started::script("sleep 1000 & echo > started; wait");
    let ended = tokio::time::timeout(LONG, started.group.end()).await;
    assert!(ended.is_ok(), "it waits for a zombie");
    wait_until_gone(started.number).await;
}

#[tokio::test]
async fn what_a_program_leaves_behind_lives_on_and_is_reaped_when_it_ends() {
    let script = "(echo > started; until test -e go; do sleep 0.02; done) 2> /dev/null & ";
    let mut started = Started::script(script);
    let status = started.group.attend(Bytes::new()).await.unwrap();
    assert!(status.success());
    started.group.last_words().await;
    drop(started.group);
    assert!(test_kill_process_group(started.number).is_ok());
    std::fs::write(started.directory.path().join("go"), "").unwrap();
    wait_until_gone(started.number).await;
}

#[tokio::test(start_paused = true)]
async fn a_program_hears_of_a_shutdown_before_its_grace_is_over() {
    let script = "trap 'exit 7' TERM; echo > started; while :; do sleep 0.02; done";
    let mut started = Started::script(script);
    let begun = tokio::time::Instant::now();
    started.ending.shutdown.begin();
    let status = started.group.attend(Bytes::new()).await.unwrap();
    assert_eq!(status.code(), Some(7));
    assert!(started.group.was_called());
    assert!(begun.elapsed() >= Duration::from_hours(2));
}
