//! `backstop run` with a program.

use serde_json::Value;

use crate::command::{Files, is_alive, output, run_fed, wait_for_end_of};

/// Runs a shell script for each line, and gives the summary.
async fn run_script(files: &Files, lines: &str, options: &[&str], script: &str) -> Value {
    let arguments = [options, &["--", "sh", "-c", script]].concat();
    let ended = output(&mut run_fed(files, lines, &arguments)).await;
    ended.with_code(0).json()
}

#[tokio::test]
async fn the_exit_code_decides_what_becomes_of_a_message() {
    let files = Files::new();
    let lines = r#"{"id":"good","body":"0"}
        {"id":"later","body":"75"}
        {"id":"never","body":"65"}
        {"id":"broken","body":"3"}"#;
    let script = r#"
        code=$(cat)
        echo "$BACKSTOP_MESSAGE_ID $BACKSTOP_ATTEMPT" >> starts
        test "$BACKSTOP_ATTEMPT" = 2 && test "$code" = 75 && exit 0
        exit "$code""#;
    let summary = run_script(&files, lines, &["--max-attempts", "3"], script).await;
    assert_eq!(summary["completed"], 2, "{summary}");
    assert_eq!(summary["dead_lettered"], 2, "{summary}");
    assert_eq!(summary["retried"], 3, "{summary}");
    let starts = files.read("starts");
    let mut starts: Vec<_> = starts.lines().collect();
    starts.sort_unstable();
    let expected = "broken 1,broken 2,broken 3,good 1,later 1,later 2,never 1";
    assert_eq!(starts.join(","), expected);
}

#[tokio::test]
async fn a_program_is_told_all_about_its_message() {
    let files = Files::new();
    let lines = r#"{"id":"m-1","key":"k-1","headers":{"x-Tenant":"a b","traceparent":"00-1"},"body":"the body"}"#;
    let script = r#"
        cat > body
        echo "$BACKSTOP_MESSAGE_ID|$BACKSTOP_IDEMPOTENCY_KEY|$BACKSTOP_ATTEMPT|$BACKSTOP_FENCE" > facts
        echo "$BACKSTOP_PARTITION_KEY|$BACKSTOP_REDRIVES|$BACKSTOP_QUEUE" >> facts
        echo "$BACKSTOP_HEADER_X_TENANT|$BACKSTOP_HEADER_TRACEPARENT" >> facts
        printf %s "$BACKSTOP_HEADERS" > headers"#;
    run_script(&files, lines, &["--key-from", "header:x-Tenant"], script).await;
    assert_eq!(files.read("body"), "the body");
    assert_eq!(files.read("facts"), "m-1|a b|1|1\nk-1|0|fed\na b|00-1\n");
    let headers: Value = serde_json::from_str(&files.read("headers")).unwrap();
    assert_eq!(headers["x-Tenant"], "a b");
    assert_eq!(headers["traceparent"], "00-1");
}

#[tokio::test]
async fn a_program_inherits_neither_the_urls_nor_the_facts_of_another_message() {
    let files = Files::new();
    let script = r#"
        echo "${BACKSTOP_STORE-unset}|${BACKSTOP_PARTITION_KEY-unset}" > facts
        echo "${BACKSTOP_HEADER_X_TENANT-unset}" >> facts"#;
    let arguments = ["--", "sh", "-c", script];
    let mut command = run_fed(&files, r#"{"body":"1"}"#, &arguments);
    command.env("BACKSTOP_STORE", "memory://secret");
    command.env("BACKSTOP_PARTITION_KEY", "another");
    command.env("BACKSTOP_HEADER_X_TENANT", "another");
    output(&mut command).await.with_code(0);
    assert_eq!(files.read("facts"), "unset|unset\nunset\n");
}

#[tokio::test]
async fn a_repeat_starts_no_program() {
    let files = Files::new();
    let lines = "{\"id\":\"a\",\"body\":\"1\"}\n".repeat(3);
    let options = ["--max-in-flight", "1"];
    let summary = run_script(&files, &lines, &options, "echo x >> starts").await;
    assert_eq!(summary["repeats"], 2, "{summary}");
    assert_eq!(files.read("starts"), "x\n");
}

#[tokio::test]
async fn a_key_is_handled_in_order_through_a_retry() {
    let files = Files::new();
    let line = |body: &str| format!("{{\"key\":\"k\",\"body\":\"{body}\"}}\n");
    let lines = ["1", "2", "3"].map(line).concat();
    let script = r#"
        body=$(cat)
        test "$body$BACKSTOP_ATTEMPT" = 11 && exit 1
        echo "$body" >> handled"#;
    run_script(&files, &lines, &["--ordered"], script).await;
    assert_eq!(files.read("handled"), "1\n2\n3\n");
}

#[tokio::test]
async fn a_program_that_hangs_is_ended_with_all_that_it_started() {
    let files = Files::new();
    let options = ["--handler-timeout", "10s", "--max-attempts", "1"];
    let script = "sleep 1000 & echo $! > child; echo $$ > self; wait";
    let summary = run_script(&files, r#"{"body":"1"}"#, &options, script).await;
    assert_eq!(summary["timed_out"], 1, "{summary}");
    assert_eq!(summary["dead_lettered"], 1, "{summary}");
    for name in ["self", "child"] {
        wait_for_end_of(&files.read(name)).await;
    }
}

#[tokio::test]
async fn a_program_gets_time_to_end_itself_before_it_is_killed() {
    let files = Files::new();
    let options = ["--handler-timeout", "10s", "--max-attempts", "1"];
    let script = "trap 'echo cleaned > trace; exit 0' TERM; while :; do sleep 0.05; done";
    run_script(&files, r#"{"body":"1"}"#, &options, script).await;
    assert_eq!(files.read("trace"), "cleaned\n");
}

#[tokio::test]
async fn a_program_that_ignores_sigterm_is_killed() {
    let files = Files::new();
    let options = [
        "--handler-timeout",
        "10s",
        "--max-attempts",
        "1",
        "--kill-after",
        "200ms",
    ];
    let script = "trap '' TERM; echo $$ > self; while :; do sleep 0.05; done";
    let summary = run_script(&files, r#"{"body":"1"}"#, &options, script).await;
    assert_eq!(summary["timed_out"], 1, "{summary}");
    wait_for_end_of(&files.read("self")).await;
}

#[tokio::test]
async fn what_a_program_leaves_behind_holds_nobody_up() {
    let files = Files::new();
    // It keeps the program's stdin and stderr open.
    let script = "sleep 600 > /dev/null & echo $! > child";
    let body = "x".repeat(1 << 20);
    let line = format!("{{\"body\":\"{body}\"}}");
    let summary = run_script(&files, &line, &[], script).await;
    assert_eq!(summary["completed"], 1, "{summary}");
    let child = files.read("child");
    assert!(
        is_alive(&child),
        "the command waited for what was left behind"
    );
    let killed = std::process::Command::new("kill")
        .arg(child.trim())
        .status();
    assert!(killed.unwrap().success());
}

#[tokio::test]
async fn a_program_may_leave_its_stdin_unread() {
    let files = Files::new();
    let body = "x".repeat(4 << 20);
    let line = format!("{{\"body\":\"{body}\"}}");
    let summary = run_script(&files, &line, &[], "exit 0").await;
    assert_eq!(summary["completed"], 1, "{summary}");
}

#[tokio::test]
async fn what_a_program_says_on_stderr_is_passed_on_and_becomes_the_error() {
    let files = Files::new();
    let script = "echo 'no such customer' >&2; exit 65";
    let arguments = ["--", "sh", "-c", script];
    let ended = output(&mut run_fed(
        &files,
        r#"{"body":"secret-body"}"#,
        &arguments,
    ))
    .await;
    let ended = ended.with_code(0);
    let lines: Vec<_> = ended.stderr.lines().collect();
    assert!(lines.contains(&"no such customer"), "{}", ended.stderr);
    let log = lines.iter().find(|line| line.contains("an attempt failed"));
    assert!(
        log.is_some_and(|log| log.contains("refused the message (exit code 65): no such customer"))
    );
    assert!(!ended.stderr.contains("secret-body"), "{}", ended.stderr);
}

#[tokio::test]
async fn with_json_stdout_holds_nothing_but_json() {
    let files = Files::new();
    let arguments = ["--", "sh", "-c", "echo chatter"];
    let ended = output(&mut run_fed(&files, r#"{"body":"1"}"#, &arguments)).await;
    let ended = ended.with_code(0).saying("chatter");
    let lines: Vec<Value> = ended
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["event"], "ready");
    assert_eq!(lines[1]["event"], "summary");
    assert_eq!(lines.len(), 2);
}

#[tokio::test]
async fn a_header_that_no_environment_can_carry_costs_no_message() {
    let files = Files::new();
    let long = "x".repeat(200 << 10);
    let line =
        format!(r#"{{"headers":{{"long":"{long}","nul":"a\u0000b","fine":"1"}},"body":"1"}}"#);
    let script = r#"echo "$BACKSTOP_HEADER_FINE|${BACKSTOP_HEADER_LONG-unset}" > facts"#;
    let summary = run_script(&files, &line, &[], script).await;
    assert_eq!(summary["completed"], 1, "{summary}");
    assert_eq!(files.read("facts"), "1|unset\n");
}
