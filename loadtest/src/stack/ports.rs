//! Free TCP ports on loopback.
//!
//! The usual way, binding port 0 and closing it again, hands out ports of the ephemeral range, and between the close
//! and the child's own bind any outgoing connection of the machine may be given the same port. So ports are taken
//! from below that range (32768 and up on Linux), each once per process, beginning at a place that depends on the
//! process id so that test processes that run side by side seldom try the same one.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, bail};

/// The ports that are handed out: above the well-known ones, below the ephemeral range.
const FIRST: u32 = 12_000;
const COUNT: u32 = 20_000;

/// A port of 127.0.0.1 that nobody listens on, and that this process has not handed out before.
pub fn free_port() -> Result<u16> {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    for _ in 0..COUNT {
        let step = TAKEN.fetch_add(1, Ordering::Relaxed);
        // A prime spreads neighbouring process ids over the range.
        let start = std::process::id().wrapping_mul(7919) % COUNT;
        let port = (FIRST + (start + step) % COUNT) as u16;
        if is_free(port) {
            return Ok(port);
        }
    }
    bail!("no free port between {FIRST} and {}", FIRST + COUNT)
}

/// `port` if nobody listens on it, else any free one.
pub fn preferred_port(port: u16) -> Result<u16> {
    if is_free(port) { Ok(port) } else { free_port() }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_handed_out_once() {
        let mut ports: Vec<u16> = (0..50).map(|_| free_port().unwrap()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 50);
    }

    #[test]
    fn a_taken_port_is_not_preferred() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let taken = listener.local_addr().unwrap().port();
        assert_ne!(preferred_port(taken).unwrap(), taken);
    }
}
