//! (e) What SQS bills: the calls of backstop's client, as an interceptor of that client counts them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use backstop_sqs::Sqs;

use super::client::{self, BODY};
use super::consumers::{self, IN_FLIGHT};
use super::server::Server;
use crate::report::{Report, Wanted, number};
use crate::rounds::Progress;
use crate::tally::Tally;

/// How long an empty queue is consumed.
const IDLE: Duration = Duration::from_mins(2);

/// What a consumer calls when it starts is over by then.
const START: Duration = Duration::from_secs(5);

/// Measures calls a message while the queue is full, and calls a minute while it is empty.
pub(crate) async fn measure(rounds: u32, messages: u32, report: &mut Report) -> Result<()> {
    let progress = Progress::new("e", u64::from(rounds) + 1);
    let mut under_load = Vec::new();
    for _ in 0..rounds {
        progress.doing("a full queue");
        let server = Server::start().await?;
        client::fill(&client::client(server.stub.endpoint()), messages).await?;
        let calls = until_empty(consumers::broker(&server.stub)?, messages).await?;
        under_load.push(count(calls) / f64::from(messages));
        let (receives, deletions) = (
            server.stub.calls("ReceiveMessage"),
            server.stub.calls("DeleteMessageBatch"),
        );
        progress.seen(&format!(
            "{calls} calls, of them {receives} receives and {deletions} deletions, for {messages} messages"
        ));
    }
    progress.doing("an empty queue");
    let server = Server::start().await?;
    let a_minute = while_empty(consumers::broker(&server.stub)?, IDLE).await?;
    progress.seen(&format!("{} calls a minute", number(a_minute)));
    drop(progress);
    let (what, unit) = ("SQS calls, full queue", "a message");
    report.target("e", what, unit, Wanted::AtMost(0.21), &under_load);
    report.figure("e", what, unit, under_load);
    let (what, unit) = ("SQS calls, empty queue", "a minute");
    report.target("e", what, unit, Wanted::AtMost(3.0), &[a_minute]);
    report.figure("e", what, unit, vec![a_minute]);
    report.note(format!(
        "(e) all calls from start to end for {messages} messages of {BODY} bytes, {IN_FLIGHT} in flight; 0.2 \
         is the floor, one receive and one deletion for ten. The empty queue was consumed for {IDLE:?}, \
         with long polls of 20 s, after a start of {START:?}."
    ));
    Ok(())
}

/// All calls that it takes to consume so many messages.
async fn until_empty(broker: Sqs, messages: u32) -> Result<u64> {
    let tally = Arc::new(Tally::new(messages));
    consumers::consume_all(broker.clone(), &tally).await?;
    Ok(broker.api_calls())
}

/// The calls a minute of a consumer that has started, and has nothing to consume.
async fn while_empty(broker: Sqs, span: Duration) -> Result<f64> {
    let tally = Arc::new(Tally::new(u32::MAX));
    let watching = async {
        tokio::time::sleep(START).await;
        let before = broker.api_calls();
        tokio::time::sleep(span).await;
        tally.full().begin();
        Ok(broker.api_calls() - before)
    };
    let consuming = consumers::consume(broker.clone(), &tally);
    let (calls, _) = tokio::try_join!(watching, consuming)?;
    Ok(count(calls) * 60.0 / span.as_secs_f64())
}

fn count(calls: u64) -> f64 {
    f64::from(u32::try_from(calls).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::super::in_process;
    use super::super::stub::Stub;
    use super::*;

    /// A consumer of a stub that is called without a network, so that time can be paused.
    fn broker(stub: &Arc<Stub>) -> Sqs {
        let config = consumers::config(stub).unwrap();
        Sqs::new(config.sdk_config(in_process::sdk_config(stub)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_costs_hardly_more_than_two_tenths_of_a_call() {
        let stub = Arc::new(Stub::new("http://127.0.0.1:1"));
        client::fill(&in_process::client(&stub), 1_000)
            .await
            .unwrap();
        let calls = until_empty(broker(&stub), 1_000).await.unwrap();
        assert!((200..=210).contains(&calls), "{calls} calls");
        assert_eq!(stub.queue.deleted(), 1_000);
        let made = [
            "GetQueueUrl",
            "GetQueueAttributes",
            "ReceiveMessage",
            "DeleteMessageBatch",
        ];
        let made: u64 = made.iter().map(|name| stub.calls(name)).sum();
        assert_eq!(made - 1, calls, "all but the one of who filled the queue");
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_queue_costs_three_calls_a_minute() {
        let stub = Arc::new(Stub::new("http://127.0.0.1:1"));
        let calls = while_empty(broker(&stub), 10 * IDLE).await.unwrap();
        assert!((calls - 3.0).abs() < 0.001, "{calls} calls a minute");
    }
}
