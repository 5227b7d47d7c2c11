//! The routers of PyPI: how each is installed and started, and when it can be asked.
//!
//! All three grew out of one program and still have its flags and its list of workers. Each runs its cache-aware policy with
//! its own defaults, which is how its users run it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::fleet::{Fleet, Front};
use crate::pypi;
use crate::stack::{Process, ProcessSpec, free_port};

/// One has to look at all workers before it is ready.
const START_DEADLINE: Duration = Duration::from_mins(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Which router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Sglang,
    Smg,
    Vllm,
}

impl Kind {
    pub(super) const ALL: [Kind; 3] = [Kind::Sglang, Kind::Smg, Kind::Vllm];

    /// PyPI's name, which is ours as well.
    pub(super) fn package(self) -> &'static str {
        match self {
            Kind::Sglang => "sglang-router",
            Kind::Smg => "smg",
            Kind::Vllm => "vllm-router",
        }
    }

    /// The one that is installed where none is named.
    pub(super) fn version(self) -> &'static str {
        match self {
            Kind::Sglang => "0.3.2",
            Kind::Smg => "1.13.0",
            Kind::Vllm => "0.1.17",
        }
    }

    /// What starts it: a program of the environment, and its first arguments.
    fn command(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Kind::Sglang => ("python", &["-m", "sglang_router.launch_router"]),
            Kind::Smg => ("smg", &["launch"]),
            Kind::Vllm => ("vllm-router", &[]),
        }
    }

    fn quiet(self) -> &'static str {
        match self {
            Kind::Sglang | Kind::Smg => "--log-level=warn",
            Kind::Vllm => "--log-level=warning",
        }
    }
}

/// One that is installed.
#[derive(Clone, Debug)]
pub(super) struct Router {
    kind: Kind,
    pub(super) version: String,
    /// Of its environment.
    programs: PathBuf,
}

impl Router {
    pub(super) async fn install(kind: Kind, version: &str, target: &Path) -> Result<Router> {
        let package = format!("{}=={version}", kind.package());
        let folder = target.join("peers").join(&package);
        let python = pypi::environment(&folder, [&package])
            .await
            .with_context(|| package.clone())?;
        let programs = python.parent().context("a Python without a folder")?;
        Ok(Router {
            kind,
            version: version.to_owned(),
            programs: programs.to_path_buf(),
        })
    }

    /// Starts it before the fleet. Returns when it calls every worker healthy.
    pub(super) async fn start(&self, fleet: &Fleet) -> Result<Front> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let (program, first) = self.kind.command();
        let workers = fleet.addresses();
        let mut arguments: Vec<String> = first.iter().map(ToString::to_string).collect();
        arguments.extend([
            format!("--host={}", address.ip()),
            format!("--port={}", address.port()),
            "--policy=cache_aware".to_owned(),
            "--prometheus-host=127.0.0.1".to_owned(),
            format!("--prometheus-port={}", free_port()?),
            self.kind.quiet().to_owned(),
            "--worker-urls".to_owned(),
        ]);
        arguments.extend(workers.iter().map(|worker| format!("http://{worker}")));
        let spec = ProcessSpec {
            name: self.kind.package().to_owned(),
            program: self.programs.join(program),
            arguments,
            environment: Vec::new(),
        };
        let process = Process::spawn(&spec, fleet.folder())?;
        let url = format!("http://{address}");
        let list = format!("{url}/workers");
        let is_ready = async || {
            let reply = fleet.http.get(&list, CALL_TIMEOUT).await;
            reply.is_ok_and(|reply| healthy_workers(&reply.body) == workers.len())
        };
        process.until(START_DEADLINE, is_ready).await?;
        Ok(Front::Router { process, url })
    }
}

/// How many workers a router's list calls healthy.
fn healthy_workers(body: &[u8]) -> usize {
    let list: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let workers = list["workers"].as_array().map_or(&[][..], Vec::as_slice);
    let is_healthy = |worker: &&serde_json::Value| {
        let status = worker["status"].as_str();
        worker["is_healthy"] == true && status.is_none_or(|status| status == "ready")
    };
    workers.iter().filter(is_healthy).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_count_once_they_can_be_asked() {
        let list = br#"{"workers":[{"is_healthy":true},{"is_healthy":false},
            {"is_healthy":true,"status":"pending"},{"is_healthy":true,"status":"ready"}],"total":4}"#;
        assert_eq!(healthy_workers(list), 2);
        assert_eq!(healthy_workers(b"no JSON"), 0);
        assert_eq!(healthy_workers(b"{}"), 0);
    }

    #[test]
    fn packages_are_told_apart() {
        let mut names = Kind::ALL.map(Kind::package);
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
