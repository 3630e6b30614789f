//! Arguments that make no sense: each has an exit code and a sentence that says what to do.

use crate::command::{Files, run};

async fn refused(arguments: &str, code: i32, says: &[&str]) {
    let mut ended = run(arguments.split_whitespace()).await.with_code(code);
    for text in says {
        ended = ended.saying(text);
    }
    assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
}

#[tokio::test]
async fn an_unknown_url_scheme_is_named_with_those_that_are_known() {
    let says = ["kafka://", "memory://<queue>", "amqp://"];
    refused("publish --url kafka://u:hunter2@h/q x", 64, &says).await;
    refused(
        "run --url kafka://u:hunter2@h/q --store memory:// -- true",
        64,
        &says,
    )
    .await;
    refused("demo --url kafka://u:hunter2@h/q", 64, &says).await;
    refused("publish --url u:hunter2@h/q x", 64, &["no scheme"]).await;
}

#[tokio::test]
async fn an_unknown_store_is_named_with_those_that_are_known() {
    let files = Files::new();
    let feed = files.write("feed", "{\"body\":1}\n");
    let run = format!("run --url memory://q --feed {} -- true", feed.display());
    let with = |store: &str| run.replace("--feed", &format!("--store {store} --feed"));
    let says = ["memcached://", "redis://"];
    refused(&with("memcached://u:hunter2@h"), 64, &says).await;
    refused(
        &with("redis://u:hunter2@h/nonsense"),
        64,
        &["a database by its number"],
    )
    .await;
}

#[tokio::test]
async fn a_consumer_without_store_has_to_say_that_it_needs_none() {
    let says = ["--store redis://", "--idempotent-by-nature"];
    refused("run --url amqp://u:hunter2@h?queue=q -- true", 64, &says).await;
}

#[tokio::test]
async fn a_program_is_looked_for_before_anything_is_consumed() {
    let files = Files::new();
    let text = files.write("notes.txt", "no program");
    let start = "run --url amqp://u:hunter2@unreachable.invalid?queue=q --store memory:// --";
    refused(&format!("{start} no-such-program-here"), 66, &["in PATH"]).await;
    refused(
        &format!("{start} ./no/such/program"),
        66,
        &["does not exist"],
    )
    .await;
    refused(&format!("{start} {}", text.display()), 77, &["chmod +x"]).await;
    let nobody = "run --url amqp://h?queue=q --store memory://";
    refused(nobody, 64, &["behind `--`, or --endpoint"]).await;
}

#[tokio::test]
async fn a_setting_out_of_range_is_named_with_its_value_and_what_is_allowed() {
    let files = Files::new();
    let feed = files.write("feed", "{\"body\":1}\n");
    for (option, says) in [
        ("--max-attempts 0", "--max-attempts cannot be 0: 1 to 1000"),
        (
            "--max-in-flight 0",
            "--max-in-flight cannot be 0: 1 to 10000",
        ),
        ("--max-in-flight 10001", "--max-in-flight cannot be 10001"),
        (
            "--base 5s --cap 1s",
            "--cap cannot be 1s: at least the base of 5s",
        ),
        ("--cap 30days", "--cap cannot be"),
        (
            "--handler-timeout 0s",
            "--handler-timeout cannot be 0s: 1ms to 23h 59m 50s",
        ),
        (
            "--handler-timeout 1us",
            "--handler-timeout cannot be 1us: 1ms to",
        ),
        (
            "--handler-timeout 24h",
            "--handler-timeout cannot be 1day: 1ms to 23h 59m 50s",
        ),
        (
            "--handler-timeout 13h --kill-after 12h",
            "--handler-timeout cannot be 13h: 1ms to 11h 59m 55s",
        ),
        ("--claim-lease 1ms", "--claim-lease cannot be 1ms: 100ms to"),
        ("--retention 1s", "--retention cannot be 1s: longer than"),
        ("--ordered --max-buffered 0", "--max-buffered cannot be 0"),
        ("--max-body 99999999999", "--max-body cannot be"),
        ("--max-attempts many", "invalid digit"),
        ("--handler-timeout soon", "--handler-timeout"),
        ("--key-from nothing", "header:<name>"),
        (
            "--kill-after 13h",
            "--kill-after cannot be 13h: at most 12h",
        ),
        (
            "--kill-after 18446744073709551615s",
            "--kill-after cannot be",
        ),
    ] {
        let run = format!(
            "run --url memory://q --store memory:// --feed {} {option} -- true",
            feed.display()
        );
        refused(&run, 64, &[says]).await;
    }
}

#[tokio::test]
async fn a_memory_queue_needs_a_feed_and_only_it_takes_one() {
    refused(
        "run --url memory://q --store memory:// -- true",
        64,
        &["--feed FILE"],
    )
    .await;
    let real = "run --url amqp://h?queue=q --store memory:// --feed Cargo.toml -- true";
    refused(real, 64, &["backstop publish --file"]).await;
    let absent = "run --url memory://q --store memory:// --feed no-such-file -- true";
    refused(absent, 66, &["cannot read no-such-file"]).await;
}

#[tokio::test]
async fn an_endpoint_that_is_no_http_url_is_refused() {
    let start = "run --url amqp://h?queue=q --store memory:// --endpoint";
    refused(
        &format!("{start} ftp://u:hunter2@h"),
        64,
        &["ftp://", "http://host/path"],
    )
    .await;
    refused(&format!("{start} nonsense"), 64, &["http://host/path"]).await;
    refused(
        &format!("{start} http://h -- true"),
        64,
        &["cannot be used with"],
    )
    .await;
}

#[tokio::test]
async fn the_demo_touches_no_queue_but_its_own() {
    refused(
        "demo --url memory://orders",
        64,
        &["\"orders\"", "\"backstop-demo\""],
    )
    .await;
    refused("demo --messages 5", 64, &["100"]).await;
}

#[tokio::test]
async fn nonsense_is_a_usage_error_and_help_is_none() {
    refused("", 64, &["Usage"]).await;
    refused("dance", 64, &["unrecognized subcommand"]).await;
    refused(
        "publish --url memory://q x --header nonsense",
        64,
        &["NAME=VALUE"],
    )
    .await;
    for arguments in [
        "--help",
        "--version",
        "run --help",
        "publish --help",
        "demo --help",
    ] {
        let ended = run(arguments.split_whitespace()).await.with_code(0);
        assert!(!ended.stdout.is_empty());
    }
}
