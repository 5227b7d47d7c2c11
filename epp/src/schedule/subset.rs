//! The proxy's subset hint: the endpoints it allows, each an address with or without a port.
//!
//! An entry with a port matches that port only. An entry without one matches every port of that
//! host, which is what pools with several ports a pod need. IPv6 comes in brackets when it has a
//! port, and with or without them otherwise. Host names are not resolved: the protocol speaks of
//! addresses, and a lookup has no place in a decision.

use std::net::{IpAddr, SocketAddr};

/// One allowed address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SubsetEntry {
    pub ip: IpAddr,
    /// `None` = any port.
    pub port: Option<u16>,
}

impl SubsetEntry {
    /// Reads `ip`, `ip:port`, `[ipv6]` or `[ipv6]:port`; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Some(Self {
                ip: address.ip(),
                port: Some(address.port()),
            });
        }
        let bare = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(text);
        let ip = bare.parse().ok()?;
        Some(Self { ip, port: None })
    }

    /// Whether the entry allows this address. An IPv4 address written as IPv6 is the same address.
    pub fn allows(&self, address: SocketAddr) -> bool {
        self.ip.to_canonical() == address.ip().to_canonical()
            && self.port.is_none_or(|port| port == address.port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(entry: &str, address: &str) -> bool {
        SubsetEntry::parse(entry)
            .unwrap()
            .allows(address.parse().unwrap())
    }

    #[test]
    fn an_entry_with_a_port_matches_that_port_only() {
        assert!(allows("10.0.0.1:8000", "10.0.0.1:8000"));
        assert!(!allows("10.0.0.1:8000", "10.0.0.1:8001"));
        assert!(!allows("10.0.0.1:8000", "10.0.0.2:8000"));
    }

    #[test]
    fn an_entry_without_a_port_matches_every_port() {
        assert!(allows("10.0.0.1", "10.0.0.1:8001"));
        assert!(allows(" fd00::1 ", "[fd00::1]:8001"));
        assert!(allows("[fd00::1]", "[fd00::1]:8001"));
        assert!(allows("::ffff:10.0.0.1", "10.0.0.1:8000"));
    }

    #[test]
    fn nonsense_is_no_entry() {
        for text in [
            "",
            "worker-1:8000",
            "10.0.0.1:",
            "10.0.0.1:99999",
            "[fd00::1",
            "[]",
        ] {
            assert_eq!(SubsetEntry::parse(text), None, "{text:?}");
        }
        assert!(allows("[fd00::1]:8000", "[fd00::1]:8000"));
    }
}
