//! The channel that deliveries come from, and how a lease names it.

use std::sync::Arc;

use backstop_core::LeaseId;
use lapin::Channel;

use crate::connection::Live;
use crate::ending::Ending;

/// A lease's number holds the channel's, so that a delivery of a channel that is gone is never
/// settled on its successor, where the same tag is another message.
const TAG_BITS: u32 = 40;

pub(crate) const fn lease(channel: u64, tag: u64) -> LeaseId {
    LeaseId(channel << TAG_BITS | tag)
}

pub(crate) const fn tag_of(lease: LeaseId) -> u64 {
    lease.0 & ((1 << TAG_BITS) - 1)
}

pub(crate) const fn channel_of(lease: LeaseId) -> u64 {
    lease.0 >> TAG_BITS
}

/// The channel that deliveries come from and are settled on.
#[derive(Clone)]
pub(crate) struct Source {
    /// Numbers the channels of a subscription, from 1.
    pub(crate) number: u64,
    pub(crate) channel: Channel,
    pub(crate) live: Arc<Live>,
    /// How the channel ends, if the subscription is ordered.
    pub(crate) ending: Option<Arc<Ending>>,
}

impl Source {
    pub(crate) fn stands(&self) -> bool {
        self.live.is_connected() && self.channel.status().connected()
    }
}
