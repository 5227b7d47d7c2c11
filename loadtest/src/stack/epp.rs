//! The endpoint picker of a stack.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::binaries::Binaries;
use super::exposition::metric_sum;
use super::options::{StackOptions, merge_flags};
use super::ports::free_port;
use super::process::{Process, ProcessSpec};
use crate::client::HttpClient;

const START_DEADLINE: Duration = Duration::from_mins(1);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long epp is given to stop, before it is killed. Above its own drain time, see [`flags`].
const STOP_GRACE: Duration = Duration::from_secs(5);

/// A named endpoint, as epp is told of it.
pub(crate) type NamedEndpoint = (String, SocketAddr);

/// epp and how to start it again under the same addresses.
#[derive(Debug)]
pub struct Epp {
    address: SocketAddr,
    health: SocketAddr,
    metrics: SocketAddr,
    spec: ProcessSpec,
    log_folder: PathBuf,
    process: Process,
    http: HttpClient,
}

impl Epp {
    /// Starts epp on free ports for `endpoints`, or for those in `endpoints_file` where there is one. It is not
    /// ready yet; see [`Epp::until_ready`].
    pub(crate) fn spawn(
        endpoints: &[NamedEndpoint],
        endpoints_file: Option<&Path>,
        options: &StackOptions,
        binaries: &Binaries,
        log_folder: &Path,
        http: &HttpClient,
    ) -> Result<Epp> {
        let port = || Ok::<_, anyhow::Error>(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)));
        let (address, health, metrics) = (port()?, port()?, port()?);
        let mut arguments = merge_flags(
            flags(address, health, metrics, options)?,
            &options.epp_flags,
        );
        match endpoints_file {
            Some(file) => arguments.push(format!("--endpoints-file={}", file.display())),
            None => arguments.extend(
                endpoints
                    .iter()
                    .map(|(name, address)| format!("--endpoint={address},name={name}")),
            ),
        }
        let spec = ProcessSpec {
            name: "epp".to_owned(),
            program: binaries.epp.clone(),
            arguments,
            environment: options.environment.clone(),
        };
        let process = Process::spawn(&spec, log_folder)?;
        let (log_folder, http) = (log_folder.to_path_buf(), http.clone());
        Ok(Epp {
            address,
            health,
            metrics,
            spec,
            log_folder,
            process,
            http,
        })
    }

    /// Where Envoy connects (ext_proc).
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where gRPC health is served.
    pub fn health_address(&self) -> SocketAddr {
        self.health
    }

    pub fn metrics_url(&self) -> String {
        format!("http://{}/metrics", self.metrics)
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The text of epp's `/metrics`.
    pub async fn metrics(&self) -> Result<String> {
        Ok(self
            .http
            .get(&self.metrics_url(), CALL_TIMEOUT)
            .await?
            .text())
    }

    /// Waits until epp has read the metrics of `workers` workers. Whether Envoy reaches epp is the gateway's question.
    pub async fn until_ready(&self, workers: usize) -> Result<()> {
        let knows_workers = async || {
            let page = self.metrics().await.unwrap_or_default();
            metric_sum(&page, "llm_d_epp_ready_endpoints")
                .is_some_and(|ready| ready >= workers as f64)
        };
        self.process.until(START_DEADLINE, knows_workers).await
    }

    /// Lets epp drain and end.
    pub async fn stop(&self) -> Result<()> {
        self.process.stop(STOP_GRACE).await?;
        Ok(())
    }

    /// Ends epp as a crash would.
    pub async fn kill(&self) -> Result<()> {
        self.process.kill().await?;
        Ok(())
    }

    /// Stops epp in its tracks: it keeps its sockets and answers nothing.
    pub fn pause(&self) {
        self.process.signal(Signal::STOP);
    }

    /// Undoes [`Epp::pause`].
    pub fn resume(&self) {
        self.process.signal(Signal::CONT);
    }

    /// Kills epp if it still runs and starts it again under its addresses. It is not ready yet; see
    /// [`Epp::until_ready`].
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill().await?;
        self.process = Process::spawn(&self.spec, &self.log_folder)?;
        Ok(())
    }
}

/// What epp is started with, in the form `--name=value`.
fn flags(
    address: SocketAddr,
    health: SocketAddr,
    metrics: SocketAddr,
    options: &StackOptions,
) -> Result<Vec<String>> {
    let model = options
        .model
        .to_str()
        .context("the model folder's path is not UTF-8")?;
    let mut flags = vec![
        format!("--bind-address={}", address.ip()),
        format!("--grpc-port={}", address.port()),
        format!("--grpc-health-port={}", health.port()),
        format!("--metrics-port={}", metrics.port()),
        format!("--tokenizer={model}"),
        format!("--secure-serving={}", options.tls),
        "--drain-timeout=2s".to_owned(),
    ];
    if options.template.knows_workers() {
        // A list for the gateway that can use one.
        flags.push("--fallback-endpoints=2".to_owned());
    }
    Ok(flags)
}
