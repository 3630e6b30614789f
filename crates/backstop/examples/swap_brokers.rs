//! The same handler on any broker: the URLs choose, and the features they need.
//!
//! ```sh
//! cargo run -p backstop --example swap_brokers
//! cargo run -p backstop --example swap_brokers --features rabbitmq,redis -- \
//!     'amqp://guest:guest@localhost?queue=greetings&declare=true' redis://localhost
//! cargo run -p backstop --example swap_brokers --features sqs,redis -- \
//!     'sqs:///greetings?region=eu-central-1&declare=true' redis://localhost
//! ```
//!
//! Ctrl-C ends it.

use backstop::{Consumer, Context, HandlerError, Message, Publisher, Shutdown};
use bytes::Bytes;

async fn greet(name: Bytes, context: Context) -> Result<(), HandlerError> {
    let name = String::from_utf8_lossy(&name);
    println!("hello, {name} (attempt {})", context.attempt());
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let memory = || "memory://greetings".to_owned();
    let mut urls = std::env::args().skip(1);
    let broker = backstop::connect(&urls.next().unwrap_or_else(memory)).await?;
    let store = backstop::connect_store(&urls.next().unwrap_or_else(memory)).await?;

    let publisher = Publisher::new(broker.clone());
    for name in ["Ada", "Grace", "Barbara"] {
        publisher.publish(Message::new(name)).await?;
    }

    let consumer = Consumer::builder(broker).store(store).raw(greet)?;
    println!("consuming; Ctrl-C ends it");
    let stats = consumer.run(&Shutdown::on_signals()?).await?;
    println!("{} completed", stats.completed);
    Ok(())
}
