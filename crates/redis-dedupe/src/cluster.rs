//! Which node of a Cluster has which slot.
//!
//! Not by the crate's own client of Clusters: that one hides over which connection a command went,
//! and a `WAIT` over another than its writes' counts nothing and looks like success.

use std::sync::Arc;

use backstop_core::StoreErrorKind;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use parking_lot::RwLock;
use redis::{Pipeline, Value};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use crate::address::Address;
use crate::connection::{Dialer, no_error};
use crate::error::{Fault, Remedy};
use crate::servers::Lanes;
use crate::slots::SLOTS;

/// A node that is or was a master.
pub(crate) struct Node {
    pub(crate) address: Address,
    pub(crate) lanes: Lanes,
}

/// Who has what, as far as is known.
#[derive(Clone)]
struct Map {
    version: u64,
    nodes: Vec<Arc<Node>>,
    /// Indices of `nodes`.
    slots: Vec<Option<usize>>,
}

impl Map {
    fn node(&self, address: &Address) -> Option<usize> {
        self.nodes.iter().position(|node| node.address == *address)
    }
}

/// The nodes of a Cluster.
pub(crate) struct Cluster {
    dialer: Arc<Dialer>,
    map: RwLock<Map>,
    learning: Mutex<()>,
}

/// The masters' slots, from `CLUSTER SLOTS`.
type Ranges = Vec<(u16, u16, Address)>;

impl Cluster {
    pub(crate) fn new(dialer: Arc<Dialer>) -> Self {
        let map = Map {
            version: 0,
            nodes: Vec::new(),
            slots: vec![None; usize::from(SLOTS)],
        };
        Self {
            dialer,
            map: RwLock::new(map),
            learning: Mutex::new(()),
        }
    }

    /// What grows whenever something new is known.
    pub(crate) fn version(&self) -> u64 {
        self.map.read().version
    }

    pub(crate) fn node_of(&self, slot: u16) -> Option<Arc<Node>> {
        let map = self.map.read();
        let index = map.slots.get(usize::from(slot)).copied().flatten()?;
        map.nodes.get(index).cloned()
    }

    pub(crate) fn node_at(&self, address: &Address) -> Arc<Node> {
        let mut map = self.map.write();
        let index = self.index_of(&mut map, address);
        Arc::clone(&map.nodes[index])
    }

    /// The masters that have slots.
    pub(crate) fn masters(&self) -> Vec<Arc<Node>> {
        let map = self.map.read();
        let has_slots = |index: &usize| map.slots.contains(&Some(*index));
        let masters = (0..map.nodes.len()).filter(has_slots);
        masters.map(|index| Arc::clone(&map.nodes[index])).collect()
    }

    /// Heeds a node's word that a slot is elsewhere.
    pub(crate) fn moved(&self, slot: u16, address: &Address) {
        let mut map = self.map.write();
        let index = self.index_of(&mut map, address);
        if let Some(place) = map.slots.get_mut(usize::from(slot)) {
            *place = Some(index);
            map.version += 1;
        }
    }

    /// Asks the nodes who has what, unless somebody did since `version`.
    pub(crate) async fn learn(&self, version: u64, until: Instant) -> Result<(), Fault> {
        let learning = async {
            let _one_at_a_time = self.learning.lock().await;
            if self.version() != version {
                return Ok(());
            }
            let ranges = self.ask_all().await?;
            self.adopt(&ranges);
            Ok(())
        };
        timeout_at(until, learning)
            .await
            .unwrap_or_else(|_| Err(self.unreachable()))
    }

    /// Asks every known node at once; the first that knows of slots is believed. One that is frozen or
    /// gone delays nobody.
    async fn ask_all(&self) -> Result<Ranges, Fault> {
        let mut addresses = self.dialer.config.addresses.clone();
        for node in &self.map.read().nodes {
            if !addresses.contains(&node.address) {
                addresses.push(node.address.clone());
            }
        }
        let mut asked: FuturesUnordered<_> = addresses
            .iter()
            .map(|address| self.ask_one(address))
            .collect();
        let mut failure = self.unreachable();
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(ranges) => return Ok(ranges),
                Err(fault) => failure = fault,
            }
        }
        Err(failure)
    }

    async fn ask_one(&self, address: &Address) -> Result<Ranges, Fault> {
        let login = self.dialer.config.login.as_ref();
        let connection = self.dialer.open(address, login).await?;
        let mut question = Pipeline::new();
        question.cmd("CLUSTER").arg("SLOTS");
        let answers = connection.ask(&question).await?;
        let answer = answers.into_iter().next().ok_or_else(Fault::senseless)?;
        let is_disabled = matches!(&answer, Value::ServerError(error)
            if error.details().is_some_and(|text| text.contains("cluster support disabled")));
        if is_disabled {
            let text = format!("redis at {address} is no Cluster: give a URL that begins redis://");
            let kind = StoreErrorKind::Configuration;
            return Err(Fault::new(kind, Remedy::Tell, text));
        }
        let ranges = read_ranges(no_error(address, answer)?, address);
        let ranges = ranges.ok_or_else(Fault::senseless)?;
        if ranges.is_empty() {
            let text = format!("redis at {address} knows of no slots of its Cluster");
            let kind = StoreErrorKind::Unreachable;
            return Err(Fault::new(kind, Remedy::AskAgain, text));
        }
        Ok(ranges)
    }

    fn adopt(&self, ranges: &Ranges) {
        let mut map = self.map.write();
        let before = std::mem::take(&mut map.nodes);
        map.slots.fill(None);
        map.version += 1;
        for (first, last, address) in ranges {
            let index = map.node(address).unwrap_or_else(|| {
                // One that stays keeps its connections.
                let known = before.iter().find(|node| node.address == *address);
                let node = known.map_or_else(|| self.make(address), Arc::clone);
                map.nodes.push(node);
                map.nodes.len() - 1
            });
            let last = (*last).min(SLOTS - 1);
            for slot in *first..=last {
                map.slots[usize::from(slot)] = Some(index);
            }
        }
    }

    fn index_of(&self, map: &mut Map, address: &Address) -> usize {
        map.node(address).unwrap_or_else(|| {
            map.nodes.push(self.make(address));
            map.nodes.len() - 1
        })
    }

    fn make(&self, address: &Address) -> Arc<Node> {
        Arc::new(Node {
            address: address.clone(),
            lanes: Lanes::new(&self.dialer, Some(address)),
        })
    }

    fn unreachable(&self) -> Fault {
        let text = format!("{} cannot be reached in time", self.dialer.target(None));
        Fault::new(StoreErrorKind::Unreachable, Remedy::AskAgain, text)
    }
}

/// Reads ranges of slots: first, last, master (host, port, …), replicas.
///
/// <https://redis.io/docs/latest/commands/cluster-slots/>
fn read_ranges(answer: Value, asked: &Address) -> Option<Ranges> {
    let Value::Array(ranges) = answer else {
        return None;
    };
    ranges
        .iter()
        .map(|range| {
            let Value::Array(range) = range else {
                return None;
            };
            let [
                Value::Int(first),
                Value::Int(last),
                Value::Array(master),
                ..,
            ] = &range[..]
            else {
                return None;
            };
            let [host, Value::Int(port), ..] = &master[..] else {
                return None;
            };
            let host = match host {
                Value::BulkString(host) => std::str::from_utf8(host).ok()?,
                Value::Nil => "",
                _ => return None,
            };
            // A node that does not know its own address: it is where it was asked.
            let host = match host {
                "" | "?" => &asked.host,
                host => host,
            };
            let address = Address::new(host, u16::try_from(*port).ok()?);
            Some((
                u16::try_from(*first).ok()?,
                u16::try_from(*last).ok()?,
                address,
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests;
