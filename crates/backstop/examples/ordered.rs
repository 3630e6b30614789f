//! Order within a key: `cargo run -p backstop --example ordered`.
//!
//! Messages of one account are handled one at a time and in order, also through a retry; accounts
//! do not wait for each other.

use std::time::Duration;

use backstop::{
    Backoff, Consumer, Context, HandlerError, InProcessBroker, InProcessStore, Jitter, Message,
    Publisher, QueueCounts, Shutdown,
};
use bytes::Bytes;

async fn apply(change: Bytes, context: Context) -> Result<(), HandlerError> {
    let account = context.message().partition_key.clone();
    let account = account.as_ref().map_or("none", |key| key.as_str());
    let change = String::from_utf8_lossy(&change);
    if account == "alice" && change == "open" && context.attempt().get() < 3 {
        println!("{account}: {change} failed, attempt {}", context.attempt());
        // What follows for alice waits behind this; bob goes on.
        return Err(HandlerError::transient("the ledger is locked"));
    }
    println!("{account}: {change}");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let broker = InProcessBroker::new("accounts");
    let publisher = Publisher::new(broker.clone());
    for change in ["open", "deposit", "close"] {
        for account in ["alice", "bob"] {
            let message = Message::new(change).with_partition_key(account);
            publisher.publish(message).await?;
        }
    }

    let backoff = Backoff::new(
        Duration::from_millis(100),
        Duration::from_secs(1),
        Jitter::default(),
    )?;
    let consumer = Consumer::builder(broker.clone())
        .store(InProcessStore::new())
        .ordered()
        .backoff(backoff)
        .raw(apply)?;

    let shutdown = Shutdown::new();
    let drained = async {
        broker.wait_for(QueueCounts::is_drained).await;
        shutdown.begin();
    };
    let (stats, ()) = tokio::join!(consumer.run(&shutdown), drained);
    println!("{} completed", stats?.completed);
    Ok(())
}
