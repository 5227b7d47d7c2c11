//! Where an endpoint's events come from: what discovery says, else what the worker says.
//!
//! A worker answers `GET /kv_event_sources` with one entry per data-parallel rank, `{"0":
//! {"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://*:5557",
//! "replay_endpoint": …}}`. Those are the addresses it *binds*, so a wildcard host stands for the
//! address at which the worker itself is reached.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use super::super::endpoint::EndpointSpec;
use super::super::http::{FetchError, WorkerClient};

/// Ranks of one endpoint that are followed. A worker with more is followed on its first ones.
pub const RANKS_MAX: usize = 16;
/// A larger answer is refused.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// One publisher.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// `tcp://host:port` to subscribe to.
    pub events: String,
    /// `tcp://host:port` that replays, if there is one.
    pub replay: Option<String>,
}

/// Why an endpoint's sources are not known.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SourcesError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("/kv_event_sources is not what it should be: {0}")]
    Answer(String),
    #[error("{0:?} is not an address of the form tcp://host:port")]
    Address(String),
}

/// The sources of an endpoint, by rank; none where the worker publishes no events.
pub async fn find(spec: &EndpointSpec, client: &WorkerClient) -> Result<Vec<Source>, SourcesError> {
    let ip = spec.address.ip();
    if let Some(events) = &spec.kv_events {
        let replay = spec.kv_replay.as_deref();
        return Ok(vec![source(events, replay, ip)?]);
    }
    let url = format!("http://{}/kv_event_sources", spec.address);
    let mut body = Vec::new();
    match client.get(&url, ANSWER_BYTES_MAX, &mut body).await {
        Ok(()) => read_answer(&body, ip),
        Err(FetchError::Status(404)) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Reads a worker's answer. `ip` is where the worker is reached.
pub fn read_answer(body: &[u8], ip: IpAddr) -> Result<Vec<Source>, SourcesError> {
    let ranks: BTreeMap<String, RawRank> =
        serde_json::from_slice(body).map_err(|error| SourcesError::Answer(error.to_string()))?;
    let mut ranks: Vec<_> = ranks.into_iter().collect();
    // "10" comes after "9".
    ranks.sort_by_key(|(rank, _)| rank.parse::<u32>().unwrap_or(u32::MAX));
    ranks
        .iter()
        .filter(|(_, rank)| rank.is_zmq())
        .filter_map(|(_, rank)| {
            let events = rank.endpoint.as_deref()?;
            Some(source(events, rank.replay_endpoint.as_deref(), ip))
        })
        .take(RANKS_MAX)
        .collect()
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

fn source(events: &str, replay: Option<&str>, ip: IpAddr) -> Result<Source, SourcesError> {
    Ok(Source {
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

    #[test]
    fn an_answer_lists_ranks_in_their_order() {
        let body = br#"{
            "10": {"endpoint": "tcp://*:5567"},
            "9": {"endpoint": "tcp://*:5566", "replay_endpoint": "tcp://*:5666", "topic": "x"},
            "1": {"endpoint": "tcp://*:5558", "enable_kv_cache_events": false},
            "2": {"endpoint": "tcp://*:5559", "publisher": "null"},
            "3": {"endpoint": null}
        }"#;
        let sources = read_answer(body, IP).unwrap();
        assert_eq!(
            sources,
            [
                Source {
                    events: "tcp://10.0.0.5:5566".to_owned(),
                    replay: Some("tcp://10.0.0.5:5666".to_owned()),
                },
                Source {
                    events: "tcp://10.0.0.5:5567".to_owned(),
                    replay: None,
                },
            ]
        );
        assert_eq!(read_answer(b"{}", IP), Ok(Vec::new()));
        assert!(matches!(
            read_answer(b"[]", IP),
            Err(SourcesError::Answer(_))
        ));
        assert!(read_answer(br#"{"0": {"endpoint": "nonsense"}}"#, IP).is_err());
    }
}
