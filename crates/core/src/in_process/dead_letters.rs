//! The dead-letter queue of an in-process broker.

use std::num::NonZeroUsize;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::Instant;

use super::broker_faults::BrokerOperation;
use super::connection::Connection;
use crate::error::BrokerError;
use crate::ports::{DeadLetterQueue, DeadLetterRecord};

/// The dead-letter queue, seen through a connection.
pub(super) struct DeadLetters {
    pub(super) connection: Arc<Connection>,
}

impl DeadLetters {
    async fn look<T>(
        &self,
        look: impl FnOnce(&[DeadLetterRecord]) -> T + Send,
    ) -> Result<T, BrokerError> {
        let answer = self
            .connection
            .begin(BrokerOperation::DeadLetters, "")
            .await?;
        let seen = look(self.connection.shared.queue.lock().dead(Instant::now()));
        answer.give(seen)
    }
}

#[async_trait]
impl DeadLetterQueue for DeadLetters {
    async fn depth(&self) -> Result<u64, BrokerError> {
        self.look(|dead| dead.len() as u64).await
    }

    async fn browse(&self, max: NonZeroUsize) -> Result<Vec<DeadLetterRecord>, BrokerError> {
        self.look(|dead| dead.iter().take(max.get()).cloned().collect())
            .await
    }
}
