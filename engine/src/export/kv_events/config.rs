//! The value of `--kv-events-config`, a JSON object with vLLM's fields and defaults.
//!
//! Whether an endpoint is bound or connected to is read from its host. vLLM binds wildcards and connects to
//! everything else; a worker that is told its own address, or loopback, can only mean to listen there, so those
//! are bound here too. Any other host is a collector that binds, and the worker connects to it.

use std::net::{IpAddr, TcpListener};

use pointsman_proto::kv_events::HashForm;
use serde::Deserialize;

/// vLLM's `KVEventsConfig`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KvEventsConfig {
    /// Off means that no event is built at all.
    pub enable_kv_cache_events: bool,
    /// `zmq`, or `null` for none. The default is `zmq` where events are enabled.
    pub publisher: Option<String>,
    /// Where the PUB socket is.
    pub endpoint: String,
    /// Where the ROUTER socket for replays is bound; none means that nothing can be replayed.
    pub replay_endpoint: Option<String>,
    /// Batches kept for replay; the oldest is dropped for a new one. 10,000 steps of decoding take about 3 MiB.
    pub buffer_steps: usize,
    /// Batches queued for one slow subscriber before its batches are dropped. The ZMQ library fixes it at
    /// 100,000, vLLM's default; other values are accepted and have no effect.
    pub hwm: usize,
    /// Batches on their way from the engine thread to the socket. A batch that finds the queue full is dropped,
    /// which a subscriber sees as a gap that replay cannot fill.
    pub max_queue_size: usize,
    /// First frame of each message; the field's convention is `kv@<pod ip:port>@<model>`.
    pub topic: String,
    /// How blocks are named; a flag of its own, as in vLLM, where it is an environment variable.
    #[serde(skip)]
    pub hashes: HashForm,
}

impl Default for KvEventsConfig {
    fn default() -> Self {
        Self {
            enable_kv_cache_events: false,
            publisher: None,
            endpoint: "tcp://*:5557".to_owned(),
            replay_endpoint: None,
            buffer_steps: 10_000,
            hwm: 100_000,
            max_queue_size: 100_000,
            topic: String::new(),
            hashes: HashForm::Integer,
        }
    }
}

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum KvEventsConfigError {
    /// Not a JSON object of the known fields.
    #[error("not a KV events configuration: {0}")]
    Json(#[from] serde_json::Error),
    /// A publisher other than `zmq` and `null`.
    #[error("publisher {0:?} is not known: use \"zmq\" or \"null\"")]
    Publisher(String),
    /// A count that must not be 0.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// An endpoint that is not `tcp://HOST:PORT`.
    #[error("{field} {endpoint:?} is not of the form tcp://HOST:PORT")]
    Endpoint {
        field: &'static str,
        endpoint: String,
    },
    /// A port that leaves no room for the data-parallel ranks above it.
    #[error("port {port} plus data-parallel rank {rank} is past 65535")]
    Port { port: u16, rank: u32 },
}

impl KvEventsConfig {
    /// Reads and checks the flag's value.
    pub fn parse(json: &str) -> Result<Self, KvEventsConfigError> {
        let config: Self = serde_json::from_str(json)?;
        match config.publisher.as_deref() {
            None | Some("zmq" | "null") => {}
            Some(other) => return Err(KvEventsConfigError::Publisher(other.to_owned())),
        }
        for (field, value) in [
            ("buffer_steps", config.buffer_steps),
            ("max_queue_size", config.max_queue_size),
        ] {
            if value == 0 {
                return Err(KvEventsConfigError::Zero(field));
            }
        }
        Address::parse("endpoint", &config.endpoint)?;
        if let Some(endpoint) = &config.replay_endpoint {
            Address::parse("replay_endpoint", endpoint)?;
        }
        Ok(config)
    }

    /// The configuration of one data-parallel rank: rank `r` has the ports that many above those configured, as in
    /// vLLM. Port 0 stays 0, so that every rank takes a free one.
    ///
    /// # Errors
    /// When a port would pass 65535.
    pub fn for_rank(&self, rank: u32) -> Result<Self, KvEventsConfigError> {
        let endpoint = Address::parse("endpoint", &self.endpoint)?;
        let replay = self.replay_endpoint.as_deref();
        let replay = replay.map(|replay| Address::parse("replay_endpoint", replay)?.for_rank(rank));
        Ok(Self {
            endpoint: endpoint.for_rank(rank)?,
            replay_endpoint: replay.transpose()?,
            ..self.clone()
        })
    }

    /// Whether events are to be published.
    pub fn publishes(&self) -> bool {
        self.enable_kv_cache_events && self.publisher.as_deref() != Some("null")
    }
}

/// A ZMQ address over TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    host: String,
    port: u16,
}

impl Address {
    pub(super) fn parse(field: &'static str, endpoint: &str) -> Result<Self, KvEventsConfigError> {
        let parts = endpoint
            .strip_prefix("tcp://")
            .and_then(|rest| rest.rsplit_once(':'))
            .filter(|(host, _)| !host.is_empty())
            .and_then(|(host, port)| Some((host, port.parse().ok()?)));
        match parts {
            Some((host, port)) => Ok(Self {
                host: host.to_owned(),
                port,
            }),
            None => Err(KvEventsConfigError::Endpoint {
                field,
                endpoint: endpoint.to_owned(),
            }),
        }
    }

    fn for_rank(&self, rank: u32) -> Result<String, KvEventsConfigError> {
        if self.port == 0 {
            return Ok(self.with_port(0));
        }
        let port = u32::from(self.port).saturating_add(rank);
        let port = u16::try_from(port).map_err(|_| KvEventsConfigError::Port {
            port: self.port,
            rank,
        })?;
        Ok(self.with_port(port))
    }

    /// The endpoint to bind, if this is an address of this machine. Tries the address for it.
    pub(super) fn to_bind(&self) -> Option<String> {
        let host = match self.host.as_str() {
            "*" => "0.0.0.0",
            "::" => "[::]",
            "localhost" => "127.0.0.1",
            host => host,
        };
        let ip: IpAddr = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse()
            .ok()?;
        let ours = ip.is_unspecified() || ip.is_loopback() || TcpListener::bind((ip, 0)).is_ok();
        ours.then(|| format!("tcp://{host}:{}", self.port))
    }

    /// The endpoint to connect to.
    pub(super) fn to_connect(&self) -> String {
        format!("tcp://{}:{}", self.host, self.port)
    }

    /// The address as it was given, with the port that was really bound.
    pub(super) fn with_port(&self, port: u16) -> String {
        format!("tcp://{}:{port}", self.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_value_is_read_whole() {
        let config = KvEventsConfig::parse(
            r#"{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://127.0.0.1:5557",
                "replay_endpoint":"tcp://127.0.0.1:5558","topic":"kv@ID@MODEL","buffer_steps":5,"hwm":7}"#,
        )
        .unwrap();
        assert!(config.publishes());
        assert_eq!(
            config.replay_endpoint.as_deref(),
            Some("tcp://127.0.0.1:5558")
        );
        assert_eq!(
            (config.buffer_steps, config.hwm, config.max_queue_size),
            (5, 7, 100_000)
        );
    }

    #[test]
    fn nothing_is_published_unless_asked_for() {
        assert!(!KvEventsConfig::parse("{}").unwrap().publishes());
        let null = r#"{"enable_kv_cache_events":true,"publisher":"null"}"#;
        assert!(!KvEventsConfig::parse(null).unwrap().publishes());
    }

    #[test]
    fn mistakes_are_named() {
        for (json, message) in [
            (r#"{"endpont":""}"#, "unknown field `endpont`"),
            (
                r#"{"publisher":"kafka"}"#,
                "publisher \"kafka\" is not known",
            ),
            (r#"{"buffer_steps":0}"#, "buffer_steps must be at least 1"),
            (
                r#"{"endpoint":"ipc:///tmp/x"}"#,
                "endpoint \"ipc:///tmp/x\" is not of the form",
            ),
            (
                r#"{"replay_endpoint":"tcp://*:70000"}"#,
                "replay_endpoint \"tcp://*:70000\" is not",
            ),
        ] {
            let error = KvEventsConfig::parse(json).unwrap_err().to_string();
            assert!(error.contains(message), "{json}: {error}");
        }
    }

    #[test]
    fn own_addresses_are_bound_and_others_connected_to() {
        let bind = |endpoint| Address::parse("endpoint", endpoint).unwrap().to_bind();
        assert_eq!(bind("tcp://*:5557").as_deref(), Some("tcp://0.0.0.0:5557"));
        assert_eq!(
            bind("tcp://127.0.0.1:0").as_deref(),
            Some("tcp://127.0.0.1:0")
        );
        assert_eq!(bind("tcp://[::]:5557").as_deref(), Some("tcp://[::]:5557"));
        assert_eq!(bind("tcp://collector.observability.svc:5557"), None);
        assert_eq!(bind("tcp://192.0.2.1:5557"), None);
    }
}
