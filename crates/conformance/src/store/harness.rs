//! What a store brings to the suite.

use std::time::Duration;

use async_trait::async_trait;
use backstop_core::StoreHandle;

/// Makes handles to one store.
///
/// # Cancel safety
///
/// The suite drops a call only together with its case, which it does when a case hangs for 10 minutes:
/// nothing is asked of what is left behind then.
#[async_trait]
pub trait StoreHarness: Send + Sync + 'static {
    /// The store, for the report.
    fn name(&self) -> String;

    /// The shortest time that the store measures well; leases and retentions of the cases that wait
    /// for their end are multiples of it. Two calls must fit into it easily.
    fn tick(&self) -> Duration;

    /// A handle to the same records as every other; with connections of its own, if the store has
    /// connections.
    ///
    /// # Errors
    ///
    /// When the store cannot be reached; the case fails.
    async fn connect(&self) -> anyhow::Result<StoreHandle>;
}
