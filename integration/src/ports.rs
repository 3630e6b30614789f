//! Ports of this host for servers that keep theirs over a restart.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the ports that the kernel gives to clients, so that a server that restarts finds its own free.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// A port that is free now, and that this process gives out only once in a while.
///
/// Another process may take it at the same moment: whoever binds it tries again with another.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes that start together have neighbouring ids; this spreads them.
    let pid = std::process::id().wrapping_mul(2_654_435_761);
    let start = u16::try_from(pid % u32::from(COUNT)).unwrap_or_default();
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = FIRST + (start + step) % COUNT;
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
}
