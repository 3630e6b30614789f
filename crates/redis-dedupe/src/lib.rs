//! The idempotency store of backstop on Redis: one server, a Cluster, or a master under Sentinel.
//!
//! [`RedisStore::connect`] takes a URL; [`RedisStoreConfig`] says which, and holds the settings.
//! Redis 7.0 or later, or Valkey, is needed. A consumer looks when it starts whether the servers are set
//! up for it.
//!
//! # How it works
//!
//! Each record is one key, and each operation one Lua script, so it is atomic. A call of a script carries
//! up to 64 keys, each with an answer of its own; in a Cluster it carries one, since the keys of a call
//! would have to be of one slot. The scripts judge leases by the server's clock. A batch is one pipeline
//! for each server, and batches do not wait for each other. An answer that was lost is asked for again within
//! [`response_timeout`](RedisStoreConfig::response_timeout), and by the consumer after that: the
//! scripts give the same owner, fence and nonce the same answer. A connection that breaks or falls
//! silent is replaced, with backoff and jitter, for as long as the store lives.
//!
//! # What Redis can lose
//!
//! A record that is lost means that a repeat of its message is handled again. It never means that a
//! message is lost.
//!
//! - **A failover.** Replication is asynchronous: a promoted replica lacks what the old master
//!   acknowledged last, and a master that is cut off acknowledges on until it notices. Measured: a
//!   master that went on for 1.5 s beside its successor lost 6,879 of 13,314 acknowledged claims; 2
//!   with `min-replicas-to-write 1`; none with a checked `WAIT`, which
//!   [`wait_for_replicas`](RedisStoreConfig::wait_for_replicas) does. That is still not consensus: the
//!   replica that is promoted need not be one that answered.
//! - **A restart.** Without `appendonly yes` it loses all records, or all since the last snapshot; with
//!   `appendfsync everysec`, a crash of the machine loses up to two seconds; with `always`, nothing.
//! - **Eviction.** With a `maxmemory-policy` other than `noeviction` a full server drops records to
//!   make room. With `noeviction` it refuses new claims, which stops handling until there is room;
//!   renewals, completions and releases are still taken.
//! - **Clocks.** A lease is judged by the clock of the master of the moment. A promoted replica whose
//!   clock is ahead ends leases early by as much; fences still keep the stale owner out.
//!
//! # Memory
//!
//! On Redis 8.0.6, with a name of 46 bytes (`backstop:orders:` and an id of 30), `MEMORY USAGE` gives
//! 136 bytes for a completed record, and 152 for one that is in progress, released or dead-lettered.
//! 100,000 completed records take 198 bytes each of `used_memory`, with the tables that hold them and
//! their expiry. For other names, in bytes:
//!
//! ```text
//! completed record = 134 + (length of the name + 4, rounded up to a multiple of 16)
//! memory           = messages a second × retention in seconds × that
//! ```
//!
//! A thousand messages a second, kept for 24 hours, are 86.4 million records: 17 GB. Half the
//! retention is half of that; it has to outlast the longest span of a message's retries and
//! redeliveries.
//!
//! # Permissions
//!
//! The user of a URL needs these commands on the keys `<prefix>:*`:
//!
//! ```text
//! ACL SETUSER app on >… resetkeys ~backstop:* nocommands
//!     +evalsha +script|load +time +mget +set +pexpire +del     always
//!     +select                                                   for a database but 0
//!     +info                                                     to look at the set-up
//!     +wait                                                     to wait for replicas
//!     +cluster|slots +asking                                    in a Cluster
//!     +role                                                     under Sentinel
//! ```
//!
//! The user of the sentinels, if they have one, needs `+sentinel|get-master-addr-by-name`.

mod address;
mod batch;
mod cluster;
mod config;
mod connection;
mod error;
mod inspect;
mod link;
mod operation;
mod record;
mod scripts;
mod sentinel;
mod servers;
mod slots;
mod store;
mod url;

pub use config::RedisStoreConfig;
pub use store::RedisStore;
