//! A consumer on RabbitMQ with its idempotency store on Redis:
//!
//! ```sh
//! docker run -d -p 5672:5672 rabbitmq:4
//! docker run -d -p 6379:6379 redis:8
//! cargo run -p backstop --example rabbitmq --features rabbitmq,redis
//! ```
//!
//! Ctrl-C drains it: running handlers finish, what was not started goes back to the queue.

use backstop::{Consumer, Context, HandlerError, Message, Permanence as _, Publisher, Shutdown};

#[derive(serde::Serialize, serde::Deserialize)]
struct Order {
    id: u32,
    amount: i64,
}

async fn charge(order: Order, context: Context) -> Result<(), HandlerError> {
    // An error marked as permanent goes to `orders.dead-letters` at once; any other is retried.
    let amount = u64::try_from(order.amount).permanent()?;
    // Written next to the effect, the fence lets a database refuse a stalled process.
    let fence = context.fence().map_or(0, |fence| fence.0);
    println!("order {}: charged {amount}, fence {fence}", order.id);
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // `declare=true` makes the queue, its dead-letter queue and what retries need, where missing.
    let url = "amqp://guest:guest@localhost?queue=orders&declare=true";
    let broker = backstop::connect(url).await?;
    let store = backstop::connect_store("redis://localhost").await?;

    let publisher = Publisher::new(broker.clone());
    for (id, amount) in [(1, 10), (1, 10), (2, 20), (3, -5)] {
        let message = Message::json(&Order { id, amount })?.with_id(format!("order-{id}"));
        publisher.publish(message).await?;
    }

    let consumer = Consumer::builder(broker).store(store).json(charge)?;
    println!("consuming; Ctrl-C ends it");
    let stats = consumer.run(&Shutdown::on_signals()?).await?;
    println!(
        "{} completed, {} repeats absorbed, {} dead-lettered",
        stats.completed, stats.repeats, stats.dead_lettered
    );
    Ok(())
}
