//! Endpoints from a file in the field's `file-discovery` format, YAML or JSON:
//!
//! ```yaml
//! targetPorts: [8000, 8001]       # optional, ours: for entries that list no port
//! endpoints:
//!   - name: worker-1              # unique within its namespace
//!     namespace: default          # optional
//!     address: 10.0.0.1           # a literal IPv4 or IPv6 address
//!     port: "8000"                # text or number
//!     labels: {role: decode}      # optional
//!     kvEvents: tcp://10.0.0.1:5557    # optional, ours
//!     kvReplay: tcp://10.0.0.1:5558    # optional, ours
//!   - name: worker-2
//!     address: fd00::2
//!     ports: [8000, 8001]         # ours, or targetPorts: an endpoint for each, see ranks
//!     annotations: {llm-d.ai/active-ports: "8000"}    # optional, ours; a label does it, too
//!     kvEvents: tcp://[fd00::2]:5557   # of the first port, or a list with one for each
//! ```
//!
//! A list is taken whole or not at all: half a list would move the other half's traffic. The file
//! is followed by reading it once a second and comparing its content, not by file-system events,
//! because content is what matters and events are lost exactly where files are swapped: a ConfigMap
//! volume renames a directory link above the file, editors replace the file, network file systems
//! send no events at all. A file of the size limit costs a second some hundred microseconds.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::Deserialize;
use tracing::{info, warn};

use super::super::endpoint::EndpointSpec;
use super::super::members::{MembershipError, check_unique};
use super::super::shell::Fleet;
use super::ranks::{Entry, Part, active_ports, read_ip, read_port};

/// Larger files are refused; it is the field's limit.
pub const FILE_BYTES_MAX: usize = 1 << 20;
/// How often the file is read again.
const INTERVAL: Duration = Duration::from_secs(1);
/// The namespace that need not be written, and does not show in an endpoint's name.
const DEFAULT_NAMESPACE: &str = "default";

/// Why a file was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FileError {
    #[error("{file}: {reason}")]
    Read { file: String, reason: String },
    #[error("{file} is larger than {FILE_BYTES_MAX} bytes")]
    TooLarge { file: String },
    #[error("{file}{}: {reason}", line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Syntax {
        file: String,
        line: Option<u64>,
        reason: String,
    },
    #[error("{file}, targetPorts: {reason}")]
    Ports { file: String, reason: String },
    /// `entry` counts from 0.
    #[error("{file}, endpoints[{entry}].{field}: {reason}")]
    Field {
        file: String,
        entry: usize,
        field: &'static str,
        reason: String,
    },
    #[error("{file}: {error}")]
    Membership {
        file: String,
        error: MembershipError,
    },
}

/// Reads and checks a file.
pub fn load(path: &Path) -> Result<Vec<EndpointSpec>, FileError> {
    parse(&path.display().to_string(), &read(path)?)
}

/// Checks the content of a file. `file` is what error messages call it.
pub fn parse(file: &str, content: &[u8]) -> Result<Vec<EndpointSpec>, FileError> {
    if content.len() > FILE_BYTES_MAX {
        return Err(FileError::TooLarge {
            file: file.to_owned(),
        });
    }
    let syntax = |line, reason| FileError::Syntax {
        file: file.to_owned(),
        line,
        reason,
    };
    let text = std::str::from_utf8(content).map_err(|error| syntax(None, error.to_string()))?;
    let list: RawList = serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map(|location| location.line());
        // The parser's message goes on with an excerpt of the file; its first line says what is
        // wrong.
        let reason = error
            .to_string()
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned();
        syntax(line, reason)
    })?;
    let defaults = list.default_ports().map_err(|reason| FileError::Ports {
        file: file.to_owned(),
        reason,
    })?;
    let specs = list
        .endpoints
        .into_iter()
        .enumerate()
        .map(|(entry, raw)| {
            raw.check(&defaults)
                .map_err(|(field, reason)| FileError::Field {
                    file: file.to_owned(),
                    entry,
                    field,
                    reason,
                })
        })
        .collect::<Result<Vec<Vec<_>>, _>>()?
        .concat();
    check_unique(&specs).map_err(|error| FileError::Membership {
        file: file.to_owned(),
        error,
    })?;
    Ok(specs)
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct FileCounters {
    /// Contents taken over.
    pub loaded: AtomicU64,
    /// Contents refused, each counted once.
    pub refused: AtomicU64,
}

/// Follows a file that changes.
#[derive(Debug)]
pub struct FileWatch {
    path: PathBuf,
    fleet: Arc<Fleet>,
    /// What the file last held, good or bad; the error's text where it could not be read.
    last: Result<Vec<u8>, FileError>,
    counters: Arc<FileCounters>,
}

impl FileWatch {
    /// Loads the file into the fleet for the first time. At the start a bad file is an error.
    pub fn start(path: PathBuf, fleet: Arc<Fleet>) -> Result<Self, FileError> {
        let content = read(&path)?;
        let watch = Self {
            last: Ok(content),
            path,
            fleet,
            counters: Arc::default(),
        };
        watch.take_over()?;
        Ok(watch)
    }

    /// The counts, to be exported.
    pub fn counters(&self) -> Arc<FileCounters> {
        Arc::clone(&self.counters)
    }

    /// Follows the file until the future is dropped.
    pub async fn run(mut self) {
        let mut turns = tokio::time::interval(INTERVAL);
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            let path = self.path.clone();
            if let Ok(content) = tokio::task::spawn_blocking(move || read(&path)).await {
                self.look(content);
            }
        }
    }

    /// Takes a new content over. One that is refused leaves the fleet as it is, and is reported
    /// once.
    fn look(&mut self, content: Result<Vec<u8>, FileError>) {
        if content == self.last {
            return;
        }
        self.last = content;
        if let Err(error) = self.take_over() {
            self.counters.refused.fetch_add(1, Relaxed);
            warn!(%error, "endpoints file refused, the fleet stays as it is");
        }
    }

    fn take_over(&self) -> Result<(), FileError> {
        let content = self.last.as_ref().map_err(Clone::clone)?;
        let file = self.path.display().to_string();
        let specs = parse(&file, content)?;
        let change = self
            .fleet
            .apply(specs)
            .map_err(|error| FileError::Membership { file, error })?;
        self.counters.loaded.fetch_add(1, Relaxed);
        info!(
            file = %self.path.display(),
            added = change.added.len(),
            removed = change.removed.len(),
            "endpoints file loaded"
        );
        Ok(())
    }
}

/// Reads no more than one byte past the limit, whatever the file's size.
fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let mut content = Vec::new();
    let outcome = std::fs::File::open(path).and_then(|file| {
        file.take(FILE_BYTES_MAX as u64 + 1)
            .read_to_end(&mut content)
    });
    match outcome {
        Ok(_) => Ok(content),
        Err(error) => Err(FileError::Read {
            file: path.display().to_string(),
            reason: error.to_string(),
        }),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawList {
    endpoints: Vec<RawEndpoint>,
    #[serde(default)]
    target_ports: Option<Vec<RawPort>>,
    #[serde(default)]
    ports: Option<Vec<RawPort>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawEndpoint {
    name: String,
    #[serde(default)]
    namespace: Option<String>,
    address: String,
    #[serde(default)]
    port: Option<RawPort>,
    #[serde(default)]
    ports: Option<Vec<RawPort>>,
    #[serde(default)]
    target_ports: Option<Vec<RawPort>>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// Only the active ports are read from them.
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    kv_events: Addresses,
    #[serde(default)]
    kv_replay: Addresses,
}

/// The field writes ports as text, and as `{number: 8000}` in an InferencePool; a number is what
/// everybody writes first.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum RawPort {
    Number(u64),
    Text(String),
    Target(TargetPort),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetPort {
    number: u64,
}

/// One address, or one per port.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Addresses {
    One(String),
    Each(Vec<String>),
}

impl Default for Addresses {
    fn default() -> Self {
        Self::Each(Vec::new())
    }
}

impl Addresses {
    fn into_list(self) -> Vec<String> {
        match self {
            Self::One(address) => vec![address],
            Self::Each(addresses) => addresses,
        }
    }
}

impl RawList {
    /// The ports of entries that list none.
    fn default_ports(&self) -> Result<Vec<u16>, String> {
        match (&self.target_ports, &self.ports) {
            (Some(_), Some(_)) => Err("ports says the same; give one of both".to_owned()),
            (Some(ports), None) | (None, Some(ports)) => ports.iter().map(RawPort::check).collect(),
            (None, None) => Ok(Vec::new()),
        }
    }
}

impl RawEndpoint {
    fn check(self, defaults: &[u16]) -> Result<Vec<EndpointSpec>, (&'static str, String)> {
        if self.name.is_empty() {
            return Err(("name", "must not be empty".to_owned()));
        }
        let ip = read_ip(&self.address).ok_or_else(|| {
            let reason = format!("{:?} is not an IP address", self.address);
            ("address", reason)
        })?;
        let (ports_field, ports) = self.ports(defaults)?;
        let active = active_ports(&self.annotations, &self.labels)
            .map_err(|reason| ("annotations", format!("active ports: {reason}")))?;
        let name = match self.namespace.as_deref() {
            None | Some("" | DEFAULT_NAMESPACE) => self.name,
            Some(namespace) => format!("{namespace}/{}", self.name),
        };
        let entry = Entry {
            name,
            ip,
            ports,
            active,
            labels: self.labels,
            kv_events: self.kv_events.into_list(),
            kv_replay: self.kv_replay.into_list(),
        };
        entry.endpoints().map_err(|(part, error)| {
            let field = match part {
                Part::Ports => ports_field,
                Part::KvEvents => "kvEvents",
                Part::KvReplay => "kvReplay",
            };
            (field, error.to_string())
        })
    }

    /// The ports, and which field says so.
    fn ports(&self, defaults: &[u16]) -> Result<(&'static str, Vec<u16>), (&'static str, String)> {
        let read = |field, ports: &[RawPort]| {
            let ports = ports
                .iter()
                .map(RawPort::check)
                .collect::<Result<Vec<_>, _>>();
            ports
                .map(|ports| (field, ports))
                .map_err(|reason| (field, reason))
        };
        match (&self.port, &self.ports, &self.target_ports) {
            (Some(port), None, None) => read("port", std::slice::from_ref(port)),
            (None, Some(ports), None) => read("ports", ports),
            (None, None, Some(ports)) => read("targetPorts", ports),
            (None, None, None) => Ok(("port", defaults.to_vec())),
            _ => Err((
                "port",
                "port, ports and targetPorts say the same; give one of them".to_owned(),
            )),
        }
    }
}

impl RawPort {
    fn check(&self) -> Result<u16, String> {
        match self {
            Self::Number(number) | Self::Target(TargetPort { number }) => {
                read_port(&number.to_string())
            }
            Self::Text(text) => read_port(text),
        }
    }
}

#[cfg(test)]
mod tests;
