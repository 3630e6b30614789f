//! Ctrl-C, SIGTERM, and readers that go away.

use std::fs::File;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

use crate::command::{Files, backstop, output, run_fed, signal, start, wait, wait_for_end_of};

const THREE: &str = "{\"body\":\"1\"}\n{\"body\":\"2\"}\n{\"body\":\"3\"}\n";

/// Says that it runs, and waits until it may end.
const WAITING: &str = "echo $$ > started; until test -e go; do sleep 0.02; done; echo x >> done";

/// Starts it with its stderr in a file, so that a test can wait for what it says.
fn start_logging(files: &Files, command: &mut Command) -> Child {
    let log = File::create(files.path("log")).unwrap();
    command.stdout(Stdio::piped()).stderr(log);
    command.spawn().expect("the command starts")
}

#[tokio::test]
async fn a_signal_lets_what_runs_finish_and_starts_nothing_more() {
    for name in ["TERM", "INT"] {
        let files = Files::new();
        let arguments = ["--max-in-flight", "1", "--", "sh", "-c", WAITING];
        let child = start_logging(&files, &mut run_fed(&files, THREE, &arguments));
        files.wait_for("started", "").await;
        signal(&child, name).await;
        files.wait_for("log", "shutting down").await;
        files.write("go", "");
        let ended = wait(child).await.with_code(0);
        assert_eq!(files.read("done"), "x\n", "{name}");
        assert_eq!(ended.json()["completed"], 1, "{name}");
    }
}

#[tokio::test]
async fn a_second_signal_stops_at_once_and_gives_back() {
    let files = Files::new();
    let script = "trap '' TERM; echo $$ > started; while :; do sleep 0.05; done";
    let arguments = [
        "--kill-after",
        "1h",
        "--grace",
        "1h",
        "--",
        "sh",
        "-c",
        script,
    ];
    let mut command = run_fed(&files, r#"{"body":"1"}"#, &arguments);
    let child = start_logging(&files, &mut command);
    let program = files.wait_for("started", "").await;
    signal(&child, "TERM").await;
    files.wait_for("log", "shutting down").await;
    signal(&child, "TERM").await;
    let summary = wait(child).await.with_code(75).json();
    assert!(files.read("log").contains("given back"));
    assert_eq!(summary["completed"], 0, "{summary}");
    assert_eq!(summary["dead_lettered"], 0, "{summary}");
    wait_for_end_of(&program).await;
}

/// Starts a run of one message, sends it SIGTERM once, and gives the program's number and the summary.
async fn shut_down(files: &Files, options: &[&str], script: &str) -> (String, Value) {
    let arguments = [options, &["--", "sh", "-c", script]].concat();
    let mut command = run_fed(files, r#"{"body":"1"}"#, &arguments);
    let child = start_logging(files, &mut command);
    let program = files.wait_for("started", "").await;
    signal(&child, "TERM").await;
    (program, wait(child).await.with_code(0).json())
}

#[tokio::test]
async fn a_program_is_killed_when_the_grace_is_over() {
    let files = Files::new();
    let options = ["--kill-after", "1h", "--grace", "200ms"];
    let script = "trap '' TERM; echo $$ > started; while :; do sleep 0.05; done";
    let (program, summary) = shut_down(&files, &options, script).await;
    assert_eq!(summary["released"], 1, "{summary}");
    assert_eq!(summary["failed"], 0, "{summary}");
    wait_for_end_of(&program).await;
}

#[tokio::test]
async fn a_program_that_gives_way_to_a_shutdown_has_not_failed() {
    let files = Files::new();
    let options = ["--max-attempts", "1", "--grace", "2s"];
    let script = "trap 'exit 1' TERM; echo $$ > started; while :; do sleep 0.05; done";
    let (program, summary) = shut_down(&files, &options, script).await;
    assert_eq!(summary["released"], 1, "{summary}");
    assert_eq!(summary["failed"], 0, "{summary}");
    wait_for_end_of(&program).await;
}

#[tokio::test]
async fn ends_are_known_also_where_sigchld_was_ignored() {
    let files = Files::new();
    let run = run_fed(&files, THREE, &["--", "sh", "-c", "echo x >> done"]);
    let run = run.as_std();
    let mut command = Command::new("env");
    for (name, _) in run.get_envs() {
        command.env_remove(name);
    }
    command.arg("--ignore-signal=CHLD").arg(run.get_program());
    command.args(run.get_args());
    command.current_dir(files.directory()).kill_on_drop(true);
    let summary = output(&mut command).await.with_code(0).json();
    assert_eq!(summary["completed"], 3, "{summary}");
    assert_eq!(files.read("done"), "x\nx\nx\n");
}

#[tokio::test]
async fn a_signal_ends_publishing_with_what_is_confirmed_and_the_line_to_go_on_from() {
    for name in ["TERM", "INT"] {
        let files = Files::new();
        let mut command = backstop(["publish", "--url", "memory://q", "--json"]);
        command.env("RUST_LOG", "backstop=debug");
        let mut child = start_logging(&files, command.stdin(Stdio::piped()));
        let mut stdin = child.stdin.take().unwrap();
        // More than a batch, and more may follow.
        let lines = "{\"body\":1}\n".repeat(503);
        stdin.write_all(lines.as_bytes()).await.unwrap();
        files.wait_for("log", "500 messages confirmed").await;
        signal(&child, name).await;
        let result = wait(child).await.with_code(75).json();
        drop(stdin);
        let published = result["published"].as_u64().unwrap();
        assert!((500..=503).contains(&published), "{result}");
        assert_eq!(result["resume_from_line"], published + 1, "{result}");
        assert_eq!(result["not_confirmed"].as_array().map(Vec::len), Some(0));
        let said = files.read("log");
        assert!(said.contains("interrupted: 50"), "{said}");
        let tail = format!("tail -n +{}", published + 1);
        assert!(said.contains(&tail), "{said}");
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_error() {
    for arguments in [
        &["publish", "--url", "memory://q", "--json", "1"][..],
        &["publish", "--url", "memory://q", "1"],
        &["--help"],
    ] {
        let mut child = start(&mut backstop(arguments));
        drop(child.stdout.take());
        wait(child).await.with_code(0);
    }
}

#[tokio::test]
async fn a_failure_is_one_also_if_nobody_reads_about_it() {
    let files = Files::new();
    let bad = files.write("bad.jsonl", "{\"body\":1}\nnonsense\n");
    let publish = ["publish", "--url", "memory://q", "--json", "--file"];
    let mut publish = backstop(publish);
    let mut child = start(publish.arg(bad));
    drop(child.stdout.take());
    wait(child).await.with_code(65).saying("line 2");

    let script = "trap '' TERM; echo $$ > started; while :; do sleep 0.05; done";
    let arguments = ["--grace", "1h", "--", "sh", "-c", script];
    let mut command = run_fed(&files, r#"{"body":"1"}"#, &arguments);
    let mut child = start_logging(&files, &mut command);
    drop(child.stdout.take());
    files.wait_for("started", "").await;
    signal(&child, "TERM").await;
    files.wait_for("log", "shutting down").await;
    signal(&child, "TERM").await;
    wait(child).await.with_code(75);
}

#[tokio::test]
async fn nobody_has_to_read_stderr() {
    let files = Files::new();
    let mut command = run_fed(&files, THREE, &["--", "sh", "-c", "echo said >&2"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    let ended = wait(child).await.with_code(0);
    assert_eq!(ended.json()["completed"], 3);
}
