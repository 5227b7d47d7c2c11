//! Where an endpoint's events come from: what discovery says, and what the worker says.
//!
//! A worker answers `GET /kv_event_sources` with one entry per data-parallel rank, `{"0":
//! {"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://*:5557",
//! "replay_endpoint": …}}`. Those are the addresses it *binds*, so a wildcard host stands for the
//! address at which the worker itself is reached.
//!
//! An address that discovery names is that of the worker's first rank. The worker is asked all the
//! same, for how many ranks it has: each further one listens at the next port, which is how vLLM
//! and SGLang lay them out.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use super::super::endpoint::EndpointSpec;
use super::super::http::{FetchError, WorkerClient};

/// Ranks of one endpoint that are followed. Of a worker with more, those of the lowest numbers are,
/// and the others are counted and written about.
pub const RANKS_MAX: usize = 64;
/// A larger answer is refused.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Where one rank's publisher is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Addresses {
    /// `tcp://host:port` to subscribe to.
    pub events: String,
    /// `tcp://host:port` that replays, if there is one.
    pub replay: Option<String>,
}

/// The publishers of an endpoint.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Sources {
    /// By rank, at most [`RANKS_MAX`].
    pub ranks: BTreeMap<u32, Addresses>,
    /// Ranks beyond the bound, or beyond the last port.
    pub refused: usize,
}

/// Why an endpoint's sources are not known.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SourcesError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("/kv_event_sources is not what it should be: {0}")]
    Answer(String),
    #[error("/kv_event_sources names the rank {0:?}, which is no number")]
    Rank(String),
    #[error("{0:?} is not an address of the form tcp://host:port")]
    Address(String),
}

/// What discovery says of the first rank.
pub fn configured(spec: &EndpointSpec) -> Result<Option<Addresses>, SourcesError> {
    let Some(events) = &spec.kv_events else {
        return Ok(None);
    };
    addresses(events, spec.kv_replay.as_deref(), spec.address.ip()).map(Some)
}

/// What the worker says; no ranks where it publishes no events.
pub async fn ask(spec: &EndpointSpec, client: &WorkerClient) -> Result<Sources, SourcesError> {
    let url = format!("http://{}/kv_event_sources", spec.address);
    let mut body = Vec::new();
    match client.get(&url, ANSWER_BYTES_MAX, &mut body).await {
        Ok(()) => read_answer(&body, spec.address.ip()),
        Err(FetchError::Status(404)) => Ok(Sources::default()),
        Err(error) => Err(error.into()),
    }
}

/// Reads a worker's answer. `ip` is where the worker is reached.
pub fn read_answer(body: &[u8], ip: IpAddr) -> Result<Sources, SourcesError> {
    let answer: BTreeMap<String, RawRank> =
        serde_json::from_slice(body).map_err(|error| SourcesError::Answer(error.to_string()))?;
    let mut ranks = BTreeMap::new();
    for (rank, raw) in answer {
        let Some(events) = raw.endpoint.as_deref().filter(|_| raw.is_zmq()) else {
            continue;
        };
        let number = rank.parse().map_err(|_| SourcesError::Rank(rank.clone()))?;
        let addresses = addresses(events, raw.replay_endpoint.as_deref(), ip)?;
        ranks.insert(number, addresses);
    }
    Ok(bounded(ranks, 0))
}

/// Puts what discovery and the worker say together. What discovery says goes before.
pub fn combined(configured: Option<&Addresses>, found: Sources) -> Sources {
    let Some(configured) = configured else {
        return found;
    };
    let Some(first) = found.ranks.keys().next().copied() else {
        return Sources {
            ranks: BTreeMap::from([(0, configured.clone())]),
            refused: found.refused,
        };
    };
    let mut refused = found.refused;
    let mut ranks = BTreeMap::new();
    for (rank, said) in found.ranks {
        let events = offset(&configured.events, rank - first);
        let replay = match &configured.replay {
            Some(replay) => offset(replay, rank - first),
            None => said.replay,
        };
        match events {
            Some(events) => {
                ranks.insert(rank, Addresses { events, replay });
            }
            None => refused += 1,
        }
    }
    Sources { ranks, refused }
}

fn bounded(mut ranks: BTreeMap<u32, Addresses>, refused: usize) -> Sources {
    let beyond = ranks.keys().nth(RANKS_MAX).copied();
    let dropped = beyond.map_or_else(BTreeMap::new, |rank| ranks.split_off(&rank));
    Sources {
        ranks,
        refused: refused + dropped.len(),
    }
}

/// The address some ports further on; none past the last port.
fn offset(address: &str, ports: u32) -> Option<String> {
    let (host, port) = address.rsplit_once(':')?;
    let port = u16::try_from(u32::from(port.parse::<u16>().ok()?).checked_add(ports)?).ok()?;
    Some(format!("{host}:{port}"))
}

/// The address to dial for one that is bound: wildcards become `ip`. Transports other than TCP
/// reach no other machine and are refused.
pub fn dial_address(bound: &str, ip: IpAddr) -> Result<String, SourcesError> {
    let refused = || SourcesError::Address(bound.to_owned());
    let rest = bound.strip_prefix("tcp://").ok_or_else(refused)?;
    let (host, port) = rest.rsplit_once(':').ok_or_else(refused)?;
    let port: u16 = port.parse().map_err(|_| refused())?;
    let host = host.trim_matches(['[', ']']);
    let is_wildcard = host == "*"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|host| host.is_unspecified());
    if is_wildcard {
        return Ok(match ip {
            IpAddr::V4(ip) => format!("tcp://{ip}:{port}"),
            IpAddr::V6(ip) => format!("tcp://[{ip}]:{port}"),
        });
    }
    if host.is_empty() || port == 0 {
        return Err(refused());
    }
    if host.contains(':') {
        return Ok(format!("tcp://[{host}]:{port}"));
    }
    Ok(format!("tcp://{host}:{port}"))
}

fn addresses(events: &str, replay: Option<&str>, ip: IpAddr) -> Result<Addresses, SourcesError> {
    Ok(Addresses {
        events: dial_address(events, ip)?,
        replay: replay
            .filter(|address| !address.is_empty())
            .map(|address| dial_address(address, ip))
            .transpose()?,
    })
}

/// Workers add fields of their own; only these are read.
#[derive(Debug, Deserialize)]
struct RawRank {
    #[serde(default)]
    enable_kv_cache_events: Option<bool>,
    #[serde(default)]
    publisher: Option<String>,
    #[serde(default)]
    endpoint: Option<String>,
    #[serde(default)]
    replay_endpoint: Option<String>,
}

impl RawRank {
    fn is_zmq(&self) -> bool {
        self.enable_kv_cache_events.unwrap_or(true)
            && self.publisher.as_deref().is_none_or(|kind| kind == "zmq")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 5));

    fn dial(bound: &str) -> Result<String, SourcesError> {
        dial_address(bound, IP)
    }

    #[test]
    fn wildcards_become_the_workers_address() {
        for bound in [
            "tcp://*:5557",
            "tcp://0.0.0.0:5557",
            "tcp://[::]:5557",
            "tcp://:::5557",
        ] {
            assert_eq!(dial(bound).unwrap(), "tcp://10.0.0.5:5557", "{bound}");
        }
        let six = dial_address("tcp://*:5557", "fd00::5".parse().unwrap());
        assert_eq!(six.unwrap(), "tcp://[fd00::5]:5557");
    }

    #[test]
    fn other_hosts_stay_and_nonsense_is_refused() {
        for kept in [
            "tcp://127.0.0.1:5557",
            "tcp://worker-0.svc:1",
            "tcp://[fd00::1]:5557",
        ] {
            assert_eq!(dial(kept).unwrap(), kept);
        }
        for refused in [
            "",
            "ipc:///tmp/x",
            "inproc://x",
            "tcp://",
            "tcp://host",
            "tcp://host:",
            "tcp://:1",
            "tcp://host:0",
            "tcp://host:70000",
            "10.0.0.1:5557",
        ] {
            assert!(dial(refused).is_err(), "{refused:?}");
        }
    }

    fn at(events: u16, replay: Option<u16>) -> Addresses {
        let dialled = |port: u16| format!("tcp://10.0.0.5:{port}");
        Addresses {
            events: dialled(events),
            replay: replay.map(dialled),
        }
    }

    fn sources<const N: usize>(ranks: [(u32, Addresses); N]) -> Sources {
        Sources {
            ranks: BTreeMap::from(ranks),
            refused: 0,
        }
    }

    #[test]
    fn an_answer_lists_ranks() {
        let body = br#"{
            "10": {"endpoint": "tcp://*:5567"},
            "9": {"endpoint": "tcp://*:5566", "replay_endpoint": "tcp://*:5666", "topic": "x"},
            "1": {"endpoint": "tcp://*:5558", "enable_kv_cache_events": false},
            "2": {"endpoint": "tcp://*:5559", "publisher": "null"},
            "3": {"endpoint": null}
        }"#;
        let expected = sources([(9, at(5566, Some(5666))), (10, at(5567, None))]);
        assert_eq!(read_answer(body, IP), Ok(expected));
        assert_eq!(read_answer(b"{}", IP), Ok(Sources::default()));
        let refused = |body: &[u8]| read_answer(body, IP).unwrap_err();
        assert!(matches!(refused(b"[]"), SourcesError::Answer(_)));
        assert!(matches!(
            refused(br#"{"0": {"endpoint": "nonsense"}}"#),
            SourcesError::Address(_)
        ));
        assert_eq!(
            refused(br#"{"first": {"endpoint": "tcp://*:1"}}"#).to_string(),
            "/kv_event_sources names the rank \"first\", which is no number"
        );
    }

    #[test]
    fn of_too_many_ranks_the_lowest_are_followed() {
        let entries: Vec<String> = (0..RANKS_MAX + 3)
            .map(|rank| format!(r#""{rank}": {{"endpoint": "tcp://*:{}"}}"#, 5557 + rank))
            .collect();
        let body = format!("{{{}}}", entries.join(","));
        let found = read_answer(body.as_bytes(), IP).unwrap();
        assert_eq!(found.ranks.len(), RANKS_MAX);
        assert_eq!(found.ranks.keys().last(), Some(&(RANKS_MAX as u32 - 1)));
        assert_eq!(found.refused, 3);
    }

    #[test]
    fn a_configured_address_is_that_of_the_first_rank() {
        let worker = || sources([(2, at(5559, Some(5659))), (4, at(5561, Some(5661)))]);
        let configured = at(7000, Some(8000));
        assert_eq!(combined(None, worker()), worker());
        assert_eq!(
            combined(Some(&configured), worker()),
            sources([(2, at(7000, Some(8000))), (4, at(7002, Some(8002)))])
        );
        assert_eq!(
            combined(Some(&at(7000, None)), worker()),
            sources([(2, at(7000, Some(5659))), (4, at(7002, Some(5661)))])
        );
        assert_eq!(
            combined(Some(&configured), Sources::default()),
            sources([(0, configured.clone())])
        );
        let at_the_end = combined(Some(&at(u16::MAX, None)), worker());
        assert_eq!((at_the_end.ranks.len(), at_the_end.refused), (1, 1));
    }
}
