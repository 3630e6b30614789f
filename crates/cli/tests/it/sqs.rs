//! The command on Amazon SQS, by an emulator.

use std::time::Duration;

use integration::{SQS_REGION, redis, sqs, sqs_client};
use tokio::process::Command;

use crate::command::{Ended, Files, LONG, backstop, output, signal, start, wait};
use crate::rabbitmq::queue;

/// A queue of its own, and its dead-letter queue, which the command declares.
struct Queue {
    name: String,
    url: String,
}

impl Queue {
    /// Leased for so long that what a crash leaves behind comes back soon.
    async fn new(name: &str, ending: &str) -> Self {
        let name = format!("{}{ending}", queue(name));
        let (scheme, host) = sqs().await.split_once("://").unwrap();
        // On AWS the region is part of the host's name.
        let region = match scheme {
            "http" => format!("region={SQS_REGION}&"),
            _ => String::new(),
        };
        let host = host.trim_end_matches('/');
        let url = format!("sqs://{host}/{name}?{region}declare=true&lease=5&wait=2");
        Self { name, url }
    }

    /// None may stay in an account.
    async fn delete(self) {
        let client = sqs_client(sqs().await);
        let dead_letters = match self.name.strip_suffix(".fifo") {
            Some(stem) => format!("{stem}-dead-letters.fifo"),
            None => format!("{}-dead-letters", self.name),
        };
        for name in [self.name, dead_letters] {
            let found = client.get_queue_url().queue_name(name).send().await;
            let url = found.unwrap().queue_url.unwrap();
            client.delete_queue().queue_url(url).send().await.unwrap();
        }
    }
}

/// The command, with the credentials of the emulator or of this environment.
async fn command<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = backstop(arguments);
    if sqs().await.starts_with("http:") {
        command.env("AWS_ACCESS_KEY_ID", "test");
        command.env("AWS_SECRET_ACCESS_KEY", "test");
    }
    command
}

async fn run<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Ended {
    output(&mut command(arguments).await).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_handed_to_a_program() {
    let files = Files::new();
    let queue = Queue::new("backstop-test-handed", "").await;
    let lines = files.write(
        "lines",
        "{\"id\":\"a\",\"body\":1}\n{\"id\":\"b\",\"body\":2}\n",
    );
    let published = run([
        "publish",
        "--json",
        "--url",
        &queue.url,
        "--file",
        lines.to_str().unwrap(),
    ]);
    assert_eq!(published.await.with_code(0).json()["published"], 2);
    let script = "echo \"$(cat) $BACKSTOP_MESSAGE_ID\" >> handled";
    let (options, program) = (["--store", redis().await], ["--", "sh", "-c", script]);
    let arguments = ["run", "--json", "--url", &queue.url];
    let arguments = arguments.into_iter().chain(options).chain(program);
    let child = start(command(arguments).await.current_dir(files.directory()));
    let handled = async {
        while files.read("handled").lines().count() < 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LONG, handled).await.unwrap();
    signal(&child, "TERM").await;
    wait(child).await.with_code(0);
    let handled = files.read("handled");
    let mut lines: Vec<_> = handled.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["1 a", "2 b"]);
    queue.delete().await;
}

/// LocalStack breaks one now and then: it hands out what follows a message in flight of its group when what
/// a crash left behind comes back one by one. A test of `integration` notices when it does so no more.
fn broken_by_the_server(endpoint: &str) -> &'static [&'static str] {
    if endpoint.starts_with("http:") {
        &["order was kept within each customer"]
    } else {
        &[]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_keeps_its_promises_on_a_fifo_queue_and_redis() {
    let queue = Queue::new("backstop-demo", ".fifo").await;
    let options = ["--json", "--messages", "300", "--url", &queue.url];
    let store = ["--store", redis().await];
    let arguments = ["demo"].into_iter().chain(options).chain(store);
    let ended = run(arguments).await;
    let outcome = ended.json();
    let promises = outcome["promises"].as_array().unwrap();
    assert!(promises.len() >= 7, "{outcome}");
    let excused = broken_by_the_server(sqs().await);
    for promise in promises {
        let text = promise["promise"].as_str().unwrap();
        let kept = promise["kept"] == true || excused.contains(&text);
        assert!(kept, "{text}: {outcome}");
    }
    let code = if outcome["passed"] == true { 0 } else { 65 };
    ended.with_code(code);
    assert_eq!(outcome["handled_once"], 300, "{outcome}");
    assert_eq!(outcome["place"], "on sqs and redis", "{outcome}");
    queue.delete().await;
}

/// The story is one of order, which a standard queue does not keep.
#[tokio::test(flavor = "multi_thread")]
async fn the_demo_refuses_a_standard_queue_with_the_reason() {
    let queue = Queue::new("backstop-demo", "").await;
    let ended = run(["demo", "--messages", "100", "--url", &queue.url]).await;
    let ended = ended
        .with_code(78)
        .saying("this broker cannot play the demo");
    assert!(
        ended.stderr.contains("order within one process"),
        "{}",
        ended.stderr
    );
    queue.delete().await;
}
