//! What a person at a terminal sees.

use tokio::process::Command;

use crate::command::{Ended, Files, backstop, output};

/// Runs the command at a pseudo-terminal, that of `script` from util-linux. All that it says comes
/// from there on stdout.
async fn at_a_terminal(arguments: &[&str]) -> Ended {
    let words = [&[env!("CARGO_BIN_EXE_backstop")], arguments].concat();
    let quoted: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
    // A terminal that nobody has opened has no width.
    let line = format!("stty cols 120 rows 30 && exec {}", quoted.join(" "));
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    let clean = backstop([""; 0]);
    for (name, value) in clean.as_std().get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    script
        .env("TERM", "xterm")
        .stdin(std::process::Stdio::null());
    output(script.kill_on_drop(true)).await
}

fn assert_shows(ended: &Ended, texts: &[&str]) {
    for text in texts {
        assert!(
            ended.stdout.contains(text),
            "no {text:?} in {:?}",
            ended.stdout
        );
    }
}

#[tokio::test]
async fn a_file_is_published_under_a_bar() {
    let files = Files::new();
    let lines: Vec<_> = (0..2_500).map(|n| format!("{{\"body\":{n}}}")).collect();
    let file = files.write("orders.jsonl", &lines.join("\n"));
    let file = file.to_str().unwrap();
    let ended = at_a_terminal(&["publish", "--url", "memory://q", "--file", file]).await;
    let ended = ended.with_code(0);
    assert_shows(&ended, &["█", " %  ", "messages confirmed", " left"]);
    assert_shows(&ended, &["published 2,500 messages to \"q\""]);
}

#[tokio::test]
async fn the_demo_is_told_above_a_bar() {
    let ended = at_a_terminal(&["demo", "--messages", "300"])
        .await
        .with_code(0);
    assert_shows(
        &ended,
        &["█", "of 300 charged", "(the bank is out of service)"],
    );
    assert_shows(
        &ended,
        &["the worker crashes with", "3 messages to look at"],
    );
}
