//! The tasks that carry batches and renew leases while a consumer runs.

use std::sync::Arc;

use tokio::task::AbortHandle;
use tokio_util::task::TaskTracker;

use super::engine::Engine;
use super::{LAST_SETTLEMENTS, within};
use crate::codec::Codec;
use crate::handler::Handler;

/// The tasks of an engine.
///
/// When it is dropped, also because a run is, everything under way is cancelled: no task is left
/// behind that handles, settles or renews what nobody waits for.
pub(crate) struct Drivers<C, H> {
    engine: Arc<Engine<C, H>>,
    carriers: TaskTracker,
    tasks: Vec<AbortHandle>,
}

impl<C: Codec, H: Handler<C::Payload>> Drivers<C, H> {
    pub(crate) fn start(engine: &Arc<Engine<C, H>>) -> Self {
        let carriers = TaskTracker::new();
        let settling = Arc::clone(engine);
        let settling = carriers.spawn(async move {
            settling.settlements.drive(&*settling.subscription).await;
        });
        let claiming = Arc::clone(engine);
        let claiming = carriers.spawn(async move {
            if let Some(claims) = &claiming.claims {
                claims.drive().await;
            }
        });
        carriers.close();
        let keeping = Arc::clone(engine);
        let keeping = tokio::spawn(async move {
            let store = keeping.settings.store().cloned();
            keeping.keeper.run(&*keeping.subscription, store).await;
        });
        let tasks = [settling, claiming, keeping].map(|task| task.abort_handle());
        Self {
            engine: Arc::clone(engine),
            carriers,
            tasks: tasks.into(),
        }
    }

    /// Lets what was asked be answered, for a bounded time, and ends.
    pub(crate) async fn finish(self) {
        self.engine.settlements.close();
        if let Some(claims) = &self.engine.claims {
            claims.close();
        }
        if !within(LAST_SETTLEMENTS, self.carriers.wait()).await {
            tracing::error!(
                "the broker or the store did not answer in time; settlements may be missing"
            );
        }
    }
}

impl<C, H> Drop for Drivers<C, H> {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        // Before handlers are cancelled, which would give back what they held.
        self.engine.settlements.abandon();
        if let Some(claims) = &self.engine.claims {
            claims.abandon();
        }
        self.engine.stop_asking();
        self.engine.stop_handling();
    }
}
