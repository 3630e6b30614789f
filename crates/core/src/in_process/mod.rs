//! A broker and a store inside the process, for tests and first steps.

mod broker;
mod broker_builder;
mod broker_faults;
#[cfg(test)]
mod broker_tests;
mod connection;
mod counts;
mod dead_letters;
mod deadlines;
mod findings;
mod queue;
mod ready;
mod store;
mod store_faults;
mod store_records;
mod subscription;
#[cfg(test)]
mod tests;

pub use broker::InProcessBroker;
pub use broker_builder::InProcessBrokerBuilder;
pub use broker_faults::{BrokerCall, BrokerFault, BrokerFaults, BrokerOperation};
pub use counts::QueueCounts;
pub use store::{InProcessStore, InProcessStoreBuilder, StoreSnapshot};
pub use store_faults::StoreFaults;
