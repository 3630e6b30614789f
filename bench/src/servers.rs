//! The servers that are measured.

/// The URLs of RabbitMQ and Redis, past docker's proxy where that is possible.
pub(crate) async fn running() -> (String, String) {
    let (rabbitmq, redis) = (integration::rabbitmq().await, integration::redis().await);
    (
        integration::past_proxy(rabbitmq).await,
        integration::past_proxy(redis).await,
    )
}
