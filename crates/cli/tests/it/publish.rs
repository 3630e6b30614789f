//! `backstop publish`.

use crate::command::{Files, run, run_with_stdin};

const TO: [&str; 3] = ["publish", "--url", "memory://q"];

async fn publish(arguments: &[&str]) -> crate::command::Ended {
    run(TO.iter().chain(arguments)).await
}

#[tokio::test]
async fn a_message_from_the_arguments_is_confirmed() {
    let options = [
        "--id", "a", "--key", "k", "--header", "h=v", "--delay", "5s", "body",
    ];
    let ended = publish(&options).await.with_code(0);
    assert!(
        ended.stdout.starts_with("published 1 message to \"q\""),
        "{}",
        ended.stdout
    );
}

#[tokio::test]
async fn every_line_of_a_file_is_confirmed_and_counted() {
    let files = Files::new();
    let lines: Vec<_> = (0..2_500).map(|n| format!("{{\"body\":{n}}}")).collect();
    let file = files.write("orders.jsonl", &lines.join("\n"));
    let ended = publish(&["--json", "--file", file.to_str().unwrap()]).await;
    let result = ended.with_code(0).json();
    assert_eq!(result["published"], 2_500);
    assert_eq!(result["queue"], "q");
    assert_eq!(result["error"], serde_json::Value::Null);
}

#[tokio::test]
async fn lines_come_from_stdin_too() {
    for arguments in [&["--json"][..], &["--json", "--file", "-"]] {
        let arguments: Vec<_> = TO.iter().chain(arguments).copied().collect();
        let ended = run_with_stdin(&arguments, b"{\"body\":1}\n\n{\"body\":2}").await;
        assert_eq!(ended.with_code(0).json()["published"], 2);
    }
}

#[tokio::test]
async fn lines_may_be_bodies() {
    let arguments = [&TO[..], &["--json", "--format", "lines"]].concat();
    let ended = run_with_stdin(&arguments, b"hello\nworld\n").await;
    assert_eq!(ended.with_code(0).json()["published"], 2);
}

#[tokio::test]
async fn a_bad_line_of_a_file_is_named_and_nothing_is_published() {
    let files = Files::new();
    let lines = "{\"body\":1}\n{\"body\":2}\n{\"bdy\":3}\n";
    let file = files.write("orders.jsonl", lines);
    let ended = publish(&["--json", "--file", file.to_str().unwrap()]).await;
    let ended = ended
        .with_code(65)
        .saying("orders.jsonl, line 3: unknown field `bdy`")
        .saying("nothing was published");
    assert_eq!(ended.json()["published"], 0);
}

#[tokio::test]
async fn what_stands_before_a_bad_line_of_stdin_is_published() {
    let arguments = [&TO[..], &["--json"]].concat();
    let ended = run_with_stdin(&arguments, b"{\"body\":1}\n{\"body\":2}\nnonsense\n").await;
    let ended = ended.with_code(65).saying("stdin, line 3: not valid JSON");
    assert_eq!(ended.json()["published"], 2);
}

#[tokio::test]
async fn a_body_above_the_brokers_limit_is_refused_with_its_line() {
    let files = Files::new();
    let body = "x".repeat((16 << 20) + 1);
    let lines = format!("{{\"body\":1}}\n{{\"body\":\"{body}\"}}\n");
    let file = files.write("large.jsonl", &lines);
    let ended = publish(&["--file", file.to_str().unwrap()]).await;
    ended
        .with_code(65)
        .saying("large.jsonl, line 2: the body has 16777217 bytes")
        .saying("at most 16777216");
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named() {
    let files = Files::new();
    let ended = publish(&["--file", "no-such-file"]).await;
    ended.with_code(66).saying("cannot read no-such-file");
    let directory = files.directory().to_str().unwrap();
    let ended = publish(&["--file", directory]).await;
    ended
        .with_code(66)
        .saying("cannot read")
        .saying("directory");
}

#[tokio::test]
async fn a_memory_queue_says_that_it_ends_with_the_command() {
    let ended = publish(&["1"]).await.with_code(0);
    ended.saying("lives inside this command");
}
