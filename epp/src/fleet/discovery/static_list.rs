//! Endpoints from the command line, once per entry:
//! `ADDRESS[,name=NAME][,ports=PORT;PORT…][,kv-events=tcp://…][,kv-replay=tcp://…]`.
//!
//! `ADDRESS` is a literal `ip:port`, IPv6 in brackets; with `ports` it is the IP address alone, and
//! each port is an endpoint. `kv-events` and `kv-replay` are those of the first port, or one for each
//! with `;` between them. Host names are not resolved: an endpoint's address is what the proxy is
//! told to dial, so it has to be one.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::super::endpoint::EndpointSpec;
use super::ranks::{Entry, Part, RankError, read_ip, read_port};

/// Why the text of one entry was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StaticEndpointError {
    #[error("{0:?} is not an address of the form ip:port or [ipv6]:port")]
    Address(String),
    #[error("{0:?} is not an IP address; with ports= it stands without a port")]
    Ip(String),
    #[error("{0:?} is not of the form key=value")]
    NotAPair(String),
    #[error("unknown key {0:?}; known are name, ports, kv-events, kv-replay")]
    UnknownKey(String),
    #[error("key {0} is given twice")]
    Twice(String),
    #[error("key {0} has no value")]
    Empty(String),
    #[error("key ports: {0}")]
    Port(String),
    #[error("key {key}: {error}")]
    Ranks { key: &'static str, error: RankError },
}

/// Reads the text of one entry: one endpoint, or one for each of its ports. Without a name, the
/// address is the name.
pub fn parse_endpoints(text: &str) -> Result<Vec<EndpointSpec>, StaticEndpointError> {
    let mut parts = text.split(',').map(str::trim);
    let address = parts.next().unwrap_or_default();
    let keys = Keys::read(parts)?;
    let (ip, ports) = if let Some(ports) = &keys.ports {
        (ip(address)?, read_ports(ports)?)
    } else {
        let address = socket_address(address)?;
        (address.ip(), read_ports(&address.port().to_string())?)
    };
    let list = |text: Option<String>| -> Vec<String> {
        let text = text.unwrap_or_default();
        let parts = text
            .split(';')
            .map(str::trim)
            .filter(|part| !part.is_empty());
        parts.map(str::to_owned).collect()
    };
    let entry = Entry {
        name: keys.name.unwrap_or_else(|| address.to_owned()),
        ip,
        ports,
        active: None,
        labels: BTreeMap::new(),
        kv_events: list(keys.kv_events),
        kv_replay: list(keys.kv_replay),
    };
    entry.endpoints().map_err(|(part, error)| {
        let key = match part {
            Part::Ports => "ports",
            Part::KvEvents => "kv-events",
            Part::KvReplay => "kv-replay",
        };
        StaticEndpointError::Ranks { key, error }
    })
}

/// What stands behind the address.
#[derive(Default)]
struct Keys {
    name: Option<String>,
    ports: Option<String>,
    kv_events: Option<String>,
    kv_replay: Option<String>,
}

impl Keys {
    fn read<'a>(parts: impl Iterator<Item = &'a str>) -> Result<Self, StaticEndpointError> {
        let mut keys = Self::default();
        for part in parts {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| StaticEndpointError::NotAPair(part.to_owned()))?;
            let field = match key {
                "name" => &mut keys.name,
                "ports" => &mut keys.ports,
                "kv-events" => &mut keys.kv_events,
                "kv-replay" => &mut keys.kv_replay,
                _ => return Err(StaticEndpointError::UnknownKey(key.to_owned())),
            };
            if value.is_empty() {
                return Err(StaticEndpointError::Empty(key.to_owned()));
            }
            if field.replace(value.to_owned()).is_some() {
                return Err(StaticEndpointError::Twice(key.to_owned()));
            }
        }
        Ok(keys)
    }
}

fn ip(text: &str) -> Result<IpAddr, StaticEndpointError> {
    read_ip(text).ok_or_else(|| StaticEndpointError::Ip(text.to_owned()))
}

/// An address without a zone: a zone means something on this machine only, not to the proxy.
fn socket_address(text: &str) -> Result<SocketAddr, StaticEndpointError> {
    text.parse()
        .ok()
        .filter(|address| !matches!(address, SocketAddr::V6(six) if six.scope_id() != 0))
        .ok_or_else(|| StaticEndpointError::Address(text.to_owned()))
}

fn read_ports(text: &str) -> Result<Vec<u16>, StaticEndpointError> {
    text.split(';')
        .map(|port| read_port(port).map_err(StaticEndpointError::Port))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> EndpointSpec {
        let specs = parse_endpoints(text).unwrap();
        assert_eq!(specs.len(), 1, "{text}");
        specs[0].clone()
    }

    #[test]
    fn an_address_alone_is_enough() {
        let spec = one("10.0.0.1:8000");
        assert_eq!(spec.name, "10.0.0.1:8000");
        assert_eq!((spec.pod.as_str(), spec.rank), ("10.0.0.1:8000", 0));
        assert_eq!(spec.kv_events, None);
        let spec = one("[fd00::1]:8000,name=six");
        assert_eq!(spec.name, "six");
        assert!(spec.address.is_ipv6());
    }

    #[test]
    fn event_addresses_are_taken() {
        let text = "127.0.0.1:8001,kv-events=tcp://127.0.0.1:5557,kv-replay=tcp://127.0.0.1:5558";
        let spec = one(text);
        assert_eq!(spec.kv_events.as_deref(), Some("tcp://127.0.0.1:5557"));
        assert_eq!(spec.kv_replay.as_deref(), Some("tcp://127.0.0.1:5558"));
    }

    #[test]
    fn each_port_is_an_endpoint() {
        let specs = parse_endpoints(
            "[fd00::1],ports=8000; 8001,name=w,kv-events=tcp://[fd00::1]:5557,\
             kv-replay=tcp://h:1;tcp://h:7",
        )
        .unwrap();
        let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        assert_eq!(names, ["w-rank-0", "w-rank-1"]);
        assert_eq!(specs[1].address, "[fd00::1]:8001".parse().unwrap());
        assert_eq!(specs[1].kv_events.as_deref(), Some("tcp://[fd00::1]:5558"));
        assert_eq!(specs[1].kv_replay.as_deref(), Some("tcp://h:7"));
        let bare = parse_endpoints("fd00::1,ports=8000").unwrap();
        assert_eq!(
            (bare[0].name.as_str(), bare[0].address.port()),
            ("fd00::1", 8000)
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let message = |text: &str| parse_endpoints(text).unwrap_err().to_string();
        assert!(message("worker:8000").contains("\"worker:8000\""));
        assert!(message("").contains("ip:port"));
        assert!(message("[fe80::1%2]:8000").contains("ip:port"));
        assert!(message("fd00::1:8000:").contains("ip:port"));
        assert!(message("10.0.0.1:8000,name").contains("key=value"));
        assert!(message("10.0.0.1:8000,nmae=a").contains("\"nmae\""));
        assert!(message("10.0.0.1:8000,name=").contains("no value"));
        assert!(message("10.0.0.1:8000,name=a,name=b").contains("twice"));
        assert!(message("10.0.0.1:8000,kv-events=ipc:///x").contains("tcp://"));
        assert!(message("10.0.0.1:8000,ports=8001").contains("without a port"));
        assert!(message("10.0.0.1,ports=8001;x").contains("\"x\" is not a port"));
        assert!(message("10.0.0.1,ports=1;1").contains("key ports: port 1 is given twice"));
        assert!(message("10.0.0.1:0").contains("port"));
    }
}
