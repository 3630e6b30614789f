//! The queues and stores that `memory://` names: one of a name in a process.

use std::collections::HashMap;
use std::sync::LazyLock;

use backstop_core::{InProcessBroker, InProcessStore};
use parking_lot::Mutex;

static QUEUES: LazyLock<Mutex<HashMap<String, InProcessBroker>>> = LazyLock::new(Mutex::default);
static STORES: LazyLock<Mutex<HashMap<String, InProcessStore>>> = LazyLock::new(Mutex::default);

/// A connection to the queue that `memory://<name>` names in this process; made at its first use,
/// and there until the process ends.
///
/// It gives what a [`BrokerHandle`](crate::BrokerHandle) does not: counts, and faults to inject.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let broker = backstop::connect("memory://parcels").await.unwrap();
/// backstop::Publisher::new(broker).publish(backstop::Message::new("1")).await.unwrap();
/// assert_eq!(backstop::in_process_queue("parcels").counts().ready, 1);
/// # });
/// # Ok::<_, std::io::Error>(())
/// ```
pub fn in_process_queue(name: &str) -> InProcessBroker {
    let mut queues = QUEUES.lock();
    let queue = queues
        .entry(name.to_owned())
        .or_insert_with(|| InProcessBroker::new(name));
    queue.clone()
}

/// The idempotency store that `memory://<name>` names in this process; made at its first use, and
/// there until the process ends.
pub fn in_process_store(name: &str) -> InProcessStore {
    let mut stores = STORES.lock();
    stores.entry(name.to_owned()).or_default().clone()
}
