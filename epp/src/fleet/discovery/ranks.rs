//! One entry of a list of endpoints, and the endpoints that it stands for: one per port.
//!
//! A worker of several data-parallel ranks serves each at a port of its own, at one address. So an
//! entry (a pod, in Kubernetes) may list up to eight ports, and each is an endpoint: it has its own
//! queue, its own cache and its own place in every decision. They are named `<name>-rank-<index>`,
//! where the index counts all ports of the list, so that a rank keeps its name while another one is
//! switched off by the active-ports annotation.
//!
//! KV events: where only one address is given it is that of the first rank, and each further rank
//! publishes at the next port, which is how the engines lay them out.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::super::endpoint::EndpointSpec;

/// Ports of one entry; more are refused. It is the field's limit.
pub const PORTS_MAX: usize = 8;
/// The annotation or label that lists which of the ports serve, separated by commas; the first name
/// is the present one.
pub const ACTIVE_PORTS: [&str; 2] = [
    "llm-d.ai/active-ports",
    "inference.networking.k8s.io/active-ports",
];

/// An entry, as a list of endpoints has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    pub name: String,
    pub ip: IpAddr,
    /// One to eight different ones.
    pub ports: Vec<u16>,
    /// Of the ports, those that serve; `None` = all.
    pub active: Option<Vec<u16>>,
    pub labels: BTreeMap<String, String>,
    /// `tcp://` addresses: none, that of the first rank, or one per port.
    pub kv_events: Vec<String>,
    /// The same for replays.
    pub kv_replay: Vec<String>,
}

/// Why an entry was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RankError {
    #[error("no port is given")]
    NoPort,
    #[error("{0} ports are given; an entry has at most {PORTS_MAX}")]
    TooManyPorts(usize),
    #[error("port {0} is given twice")]
    PortTwice(u16),
    #[error("{addresses} addresses are given for {ports} ports: give one, or one for each port")]
    AddressCount { addresses: usize, ports: usize },
    #[error("{0:?} does not begin with tcp://")]
    NotTcp(String),
    #[error("{0:?} does not end in a port, so the addresses of further ranks are not known")]
    NoAddressPort(String),
    #[error("rank {rank} of {address:?} would be past the last port")]
    PastLastPort { address: String, rank: u32 },
}

/// Which part of an entry is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    Ports,
    KvEvents,
    KvReplay,
}

impl Entry {
    /// The endpoints, in the order of the ports. None where no port is active.
    pub fn endpoints(self) -> Result<Vec<EndpointSpec>, (Part, RankError)> {
        check_ports(&self.ports).map_err(|error| (Part::Ports, error))?;
        let count = self.ports.len();
        let of = |part, given: &[String]| {
            addresses(given, count).map_err(|error: RankError| (part, error))
        };
        let events = of(Part::KvEvents, &self.kv_events)?;
        let replay = of(Part::KvReplay, &self.kv_replay)?;
        let is_active = |port: u16| {
            let active = self.active.as_ref();
            active.is_none_or(|ports| ports.contains(&port))
        };
        let specs = (0_u32..)
            .zip(&self.ports)
            .zip(events.into_iter().zip(replay))
            .filter(|((_, port), _)| is_active(**port))
            .map(|((rank, port), (kv_events, kv_replay))| {
                let name = match count {
                    1 => self.name.clone(),
                    _ => format!("{}-rank-{rank}", self.name),
                };
                EndpointSpec {
                    name,
                    pod: self.name.clone(),
                    rank,
                    address: SocketAddr::new(self.ip, *port),
                    labels: self.labels.clone(),
                    kv_events,
                    kv_replay,
                }
            });
        Ok(specs.collect())
    }
}

/// The ports that annotations or labels say are active; `None` where they say nothing. An empty list
/// switches all off. Annotations go before labels, the present name before the older one.
pub fn active_ports(
    annotations: &BTreeMap<String, String>,
    labels: &BTreeMap<String, String>,
) -> Result<Option<Vec<u16>>, String> {
    let found = ACTIVE_PORTS
        .iter()
        .find_map(|key| annotations.get(*key).or_else(|| labels.get(*key)));
    let Some(list) = found else {
        return Ok(None);
    };
    list.split(',')
        .map(str::trim)
        .filter(|port| !port.is_empty())
        .map(read_port)
        .collect::<Result<Vec<u16>, String>>()
        .map(Some)
}

/// Reads a port from 1 to 65535.
pub fn read_port(text: &str) -> Result<u16, String> {
    text.trim()
        .parse()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| format!("{text:?} is not a port from 1 to 65535"))
}

/// Reads a literal IP address, IPv6 with or without brackets.
pub fn read_ip(text: &str) -> Option<IpAddr> {
    let bare = match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').filter(|bare| bare.contains(':'))?,
        None => text,
    };
    bare.parse().ok()
}

fn check_ports(ports: &[u16]) -> Result<(), RankError> {
    if ports.is_empty() {
        return Err(RankError::NoPort);
    }
    if ports.len() > PORTS_MAX {
        return Err(RankError::TooManyPorts(ports.len()));
    }
    for (place, port) in ports.iter().enumerate() {
        if ports.iter().skip(place + 1).any(|other| other == port) {
            return Err(RankError::PortTwice(*port));
        }
    }
    Ok(())
}

/// One address per port.
fn addresses(given: &[String], ports: usize) -> Result<Vec<Option<String>>, RankError> {
    if let Some(other) = given.iter().find(|text| !text.starts_with("tcp://")) {
        return Err(RankError::NotTcp(other.clone()));
    }
    match given {
        [] => Ok(vec![None; ports]),
        each if each.len() == ports => Ok(each.iter().cloned().map(Some).collect()),
        [first] => (0_u32..)
            .take(ports)
            .map(|rank| offset(first, rank))
            .collect(),
        more => Err(RankError::AddressCount {
            addresses: more.len(),
            ports,
        }),
    }
}

fn offset(address: &str, rank: u32) -> Result<Option<String>, RankError> {
    let no_port = || RankError::NoAddressPort(address.to_owned());
    let (host, port) = address.rsplit_once(':').ok_or_else(no_port)?;
    let port: u16 = port.parse().map_err(|_| no_port())?;
    let moved = u32::from(port) + rank;
    let port = u16::try_from(moved).map_err(|_| RankError::PastLastPort {
        address: address.to_owned(),
        rank,
    })?;
    Ok(Some(format!("{host}:{port}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(ports: &[u16]) -> Entry {
        Entry {
            name: "pod".to_owned(),
            ip: "fd00::5".parse().unwrap(),
            ports: ports.to_vec(),
            active: None,
            labels: BTreeMap::new(),
            kv_events: Vec::new(),
            kv_replay: Vec::new(),
        }
    }

    /// Name, rank, address and event address of each endpoint.
    fn shown(entry: Entry) -> Vec<String> {
        let specs = entry.endpoints().unwrap();
        let show = |spec: &EndpointSpec| {
            let events = spec.kv_events.as_deref().unwrap_or("-");
            format!("{} {} {} {events}", spec.name, spec.rank, spec.address)
        };
        specs.iter().map(show).collect()
    }

    fn owned(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn each_port_is_an_endpoint_with_a_rank() {
        assert_eq!(shown(entry(&[8000])), ["pod 0 [fd00::5]:8000 -"]);
        let two = Entry {
            kv_events: owned(&["tcp://[fd00::5]:5557"]),
            ..entry(&[8000, 9000])
        };
        assert_eq!(
            shown(two.clone()),
            [
                "pod-rank-0 0 [fd00::5]:8000 tcp://[fd00::5]:5557",
                "pod-rank-1 1 [fd00::5]:9000 tcp://[fd00::5]:5558",
            ]
        );
        let pods: Vec<String> = two
            .clone()
            .endpoints()
            .unwrap()
            .into_iter()
            .map(|spec| spec.pod)
            .collect();
        assert_eq!(pods, ["pod", "pod"]);
        let own = Entry {
            kv_events: owned(&["tcp://h:1", "tcp://h:9"]),
            ..two
        };
        assert_eq!(
            shown(own),
            [
                "pod-rank-0 0 [fd00::5]:8000 tcp://h:1",
                "pod-rank-1 1 [fd00::5]:9000 tcp://h:9",
            ]
        );
    }

    #[test]
    fn inactive_ports_leave_the_other_ranks_as_they_are() {
        let some = Entry {
            active: Some(vec![9000, 1]),
            kv_events: owned(&["tcp://h:5557"]),
            ..entry(&[8000, 9000])
        };
        assert_eq!(shown(some), ["pod-rank-1 1 [fd00::5]:9000 tcp://h:5558"]);
        let none = Entry {
            active: Some(Vec::new()),
            ..entry(&[8000])
        };
        assert!(shown(none).is_empty());
    }

    #[test]
    fn active_ports_are_read_from_annotations_and_labels_of_both_names() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
            pairs.iter().map(owned).collect()
        };
        let [present, legacy] = ACTIVE_PORTS;
        let none = BTreeMap::new();
        assert_eq!(active_ports(&none, &none), Ok(None));
        let read = |annotations: &[(&str, &str)], labels: &[(&str, &str)]| {
            active_ports(&map(annotations), &map(labels))
        };
        assert_eq!(
            read(&[(present, "8000, 8001,")], &[]),
            Ok(Some(vec![8000, 8001]))
        );
        assert_eq!(read(&[(legacy, "1")], &[(present, "2")]), Ok(Some(vec![2])));
        assert_eq!(
            read(&[(present, "1")], &[(present, "2")]),
            Ok(Some(vec![1]))
        );
        assert_eq!(read(&[(present, "")], &[]), Ok(Some(Vec::new())));
        assert!(read(&[(present, "http")], &[]).is_err());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |entry: Entry| entry.endpoints().unwrap_err();
        assert_eq!(refused(entry(&[])), (Part::Ports, RankError::NoPort));
        let nine: Vec<u16> = (1..10).collect();
        assert_eq!(
            refused(entry(&nine)),
            (Part::Ports, RankError::TooManyPorts(9))
        );
        assert_eq!(
            refused(entry(&[1, 2, 1])),
            (Part::Ports, RankError::PortTwice(1))
        );
        let events = |addresses: &[&str]| {
            let (part, error) = refused(Entry {
                kv_events: owned(addresses),
                ..entry(&[1, 2, 3])
            });
            assert_eq!(part, Part::KvEvents);
            error
        };
        assert!(matches!(events(&["ipc://x"]), RankError::NotTcp(_)));
        assert!(matches!(
            events(&["tcp://h:1", "tcp://h:2"]),
            RankError::AddressCount { .. }
        ));
        assert!(matches!(events(&["tcp://h"]), RankError::NoAddressPort(_)));
        assert!(matches!(
            events(&["tcp://h:65534"]),
            RankError::PastLastPort { rank: 2, .. }
        ));
        let replay = Entry {
            kv_replay: owned(&["x"]),
            ..entry(&[1])
        };
        assert_eq!(refused(replay).0, Part::KvReplay);
    }

    #[test]
    fn addresses_are_literal() {
        for (text, expected) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("fd00::1", Some("fd00::1")),
            ("[fd00::1]", Some("fd00::1")),
            ("[10.0.0.1]", None),
            ("[fd00::1", None),
            ("fd00::1]", None),
            ("fe80::1%eth0", None),
            ("worker", None),
            ("", None),
        ] {
            let expected = expected.map(|text| text.parse().unwrap());
            assert_eq!(read_ip(text), expected, "{text}");
        }
    }
}
