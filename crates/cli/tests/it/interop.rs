//! Beside clients that are not ours, and through kills.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use serde_json::Value;
use tokio::process::Child;

use crate::command::{Files, LONG, backstop, run, signal, start, wait};
use crate::peer::Peer;
use crate::rabbitmq::{queue, url};

const GOOD: u32 = 400;
const POISON: u32 = 5;

/// One line for each message that is handled: which, and under which fence.
const SCRIPT: &str = r#"
    if test "$(cat)" = poison; then echo "no such customer" >&2; exit 65; fi
    echo "$BACKSTOP_MESSAGE_ID $BACKSTOP_FENCE $BACKSTOP_HEADER_NUMBER" >> handled"#;

async fn drain(files: &Files, queue: &str) -> Child {
    let (url, store) = (url(queue).await, integration::redis().await);
    let mut command = backstop(["run", "--json", "--url", &url, "--store", store]);
    command.args(["--claim-lease", "2s", "--max-in-flight", "8"]);
    command.args(["--", "sh", "-c", SCRIPT]);
    start(command.current_dir(files.directory()))
}

fn handled(files: &Files) -> usize {
    let lines = files.read("handled");
    let ids: HashSet<_> = lines.lines().map(|line| line.split(' ').next()).collect();
    ids.len()
}

async fn wait_until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(LONG, async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    waited
        .await
        .unwrap_or_else(|_| panic!("never came: {what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_pika_fills_is_drained_through_kills_and_its_poison_is_readable_by_pika() {
    let files = Files::new();
    let queue = queue("interop");
    let declaring = url(&queue).await + "&declare=true";
    let nothing = files.write("nothing", "");
    let declared = run([
        "publish",
        "--url",
        &declaring,
        "--file",
        nothing.to_str().unwrap(),
    ]);
    declared.await.with_code(0);
    let peer = Peer::of(&queue).await;
    peer.fill(GOOD, POISON).await;

    for killed_at in [GOOD / 4, GOOD / 2] {
        let mut child = drain(&files, &queue).await;
        wait_until("a part is handled", async || {
            handled(&files) >= killed_at as usize
        })
        .await;
        child.kill().await.unwrap();
    }
    // What is under a dead process's claim is held, here or in a queue for that delay, and given back
    // at the signal: then it takes another drain.
    let mut letters = Vec::new();
    wait_until("everything came to its end", async || {
        let child = drain(&files, &queue).await;
        wait_until("the queue is empty", async || peer.depth().await == 0).await;
        signal(&child, "TERM").await;
        wait(child).await.with_code(0);
        letters.extend(peer.take_dead_letters().await);
        let is_over = handled(&files) == GOOD as usize && ids(&letters).len() == POISON as usize;
        is_over && peer.depth().await == 0
    })
    .await;
    assert_handled_once_a_fence(&files);
    assert_readable_and_once_an_attempt(&letters, &queue);
}

/// Killed between its effect and its completion, a message is handled again, under a higher fence.
fn assert_handled_once_a_fence(files: &Files) {
    let mut fences: BTreeMap<String, HashSet<u32>> = BTreeMap::new();
    for line in files.read("handled").lines() {
        let [id, fence, number] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}");
        };
        assert_eq!(number, "5", "a header that pika sent as a number");
        let fences = fences.entry(id.to_owned()).or_default();
        assert!(fences.insert(fence.parse().unwrap()), "twice: {line}");
    }
    assert_eq!(fences.len(), GOOD as usize);
}

/// Killed between the copy into the dead-letter queue and its settlement, a message is dead-lettered
/// again, as a further attempt: repeated, and not lost.
fn assert_readable_and_once_an_attempt(letters: &[Value], queue: &str) {
    let mut seen = HashSet::new();
    for letter in letters {
        let header = |name: &str| letter["headers"][name].as_str().unwrap_or_default();
        let copy = (
            letter["id"].as_str(),
            header("backstop-dead-letter-attempts"),
        );
        assert!(seen.insert(copy), "twice: {letter}");
        assert_eq!(letter["body"], "poison");
        assert_eq!(header("backstop-dead-letter-reason"), "permanent-error");
        let error = header("backstop-dead-letter-error");
        assert!(error.contains("exit code 65): no such customer"), "{error}");
        assert_eq!(header("backstop-dead-letter-origin"), queue);
        assert_eq!(header("text"), "a b", "its own headers are kept");
        assert_eq!(letter["persistent"], true);
    }
    let expected = (0..POISON).map(|number| format!("poison-{number}"));
    assert_eq!(ids(letters), expected.collect());
}

fn ids(letters: &[Value]) -> BTreeSet<String> {
    let ids = letters.iter().filter_map(|letter| letter["id"].as_str());
    ids.map(str::to_owned).collect()
}
