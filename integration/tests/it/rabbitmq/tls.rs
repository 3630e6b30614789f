//! RabbitMQ over TLS.

use anyhow::{Context as _, Result, ensure};
use backstop_core::{BrokerErrorKind, Message, Publisher};
use backstop_rabbitmq::RabbitMq;
use integration::start_rabbitmq_tls;

#[tokio::test]
async fn a_known_authority_is_trusted_and_an_unknown_one_is_not() -> Result<()> {
    let tls = start_rabbitmq_tls().await?;
    let url = format!("{}/?queue=secret&declare=true", tls.server.url());
    let file = std::env::temp_dir().join(format!("backstop-ca-{:016x}.pem", rand::random::<u64>()));
    std::fs::write(&file, &tls.ca)?;
    let trusting = format!("{url}&ca_file={}", file.display());
    let connected = RabbitMq::connect(&trusting).await;
    let published = match &connected {
        Ok(broker) => Publisher::new(broker.clone())
            .publish(Message::new("x"))
            .await
            .map(drop),
        Err(_) => Ok(()),
    };
    std::fs::remove_file(&file)?;
    connected?;
    published?;
    // Read again at each connection, as a rotated authority has to be: gone, it is named.
    let again = RabbitMq::connect(&trusting)
        .await
        .err()
        .context("without its authority")?;
    ensure!(again.kind() == BrokerErrorKind::Configuration, "{again}");
    ensure!(again.to_string().contains("ca_file"), "{again}");

    let stranger = RabbitMq::connect(&url)
        .await
        .err()
        .context("an unknown authority")?;
    ensure!(
        stranger.kind() == BrokerErrorKind::Configuration,
        "{:?}: {stranger}",
        stranger.kind()
    );
    ensure!(stranger.to_string().contains("ca_file"), "{stranger}");
    Ok(())
}
