//! A consumer without any server: `cargo run -p backstop --example in_memory`.
//!
//! One order is sent twice and charged once, one fails at first and is retried, one can never
//! succeed and ends in the dead-letter queue with its reason.

use std::time::Duration;

use backstop::{
    Backoff, Consumer, Context, HandlerError, InProcessBroker, InProcessStore, Jitter, Message,
    Publisher, QueueCounts, Shutdown,
};

#[derive(serde::Deserialize)]
struct Order {
    id: u32,
    amount: i32,
}

async fn charge(order: Order, context: Context) -> Result<(), HandlerError> {
    if order.amount < 0 {
        // No attempt can succeed: to the dead-letter queue, now.
        return Err(HandlerError::permanent("a negative amount"));
    }
    if order.id == 2 && context.attempt().get() == 1 {
        // Any other error is retried, after the backoff. `?` does the same.
        return Err(HandlerError::transient("the bank does not answer"));
    }
    println!("order {}: charged {}", order.id, order.amount);
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let broker = InProcessBroker::new("orders");
    let publisher = Publisher::new(broker.clone());
    for (id, amount) in [(1, 10), (1, 10), (2, 20), (3, -5)] {
        let body = format!(r#"{{"id": {id}, "amount": {amount}}}"#);
        let message = Message::new(body).with_id(format!("order-{id}"));
        publisher.publish(message).await?;
    }

    let backoff = Backoff::new(
        Duration::from_millis(100),
        Duration::from_secs(1),
        Jitter::default(),
    )?;
    let consumer = Consumer::builder(broker.clone())
        .store(InProcessStore::new())
        // A repeat that comes while its original is handled waits this long at most; 30 s by default.
        .claim_lease(Duration::from_secs(3))
        .backoff(backoff)
        .json(charge)?;

    // A service runs until Ctrl-C or SIGTERM, by `Shutdown::on_signals()`. This one ends when the
    // queue is empty.
    let shutdown = Shutdown::new();
    let drained = async {
        broker.wait_for(QueueCounts::is_drained).await;
        shutdown.begin();
    };
    let (stats, ()) = tokio::join!(consumer.run(&shutdown), drained);

    let stats = stats?;
    println!(
        "{} completed, {} repeat absorbed, {} retried",
        stats.completed, stats.repeats, stats.retried
    );
    for record in broker.dead_letter_records() {
        let letter = record.dead_letter;
        println!("dead letter: {} ({})", letter.reason, letter.error);
    }
    Ok(())
}
