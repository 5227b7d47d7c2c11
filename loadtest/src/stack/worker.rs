//! One engine worker of a stack.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::binaries::Binaries;
use super::options::{MODEL_NAME, StackOptions, merge_flags};
use super::ports::free_port;
use super::process::{Process, ProcessSpec};
use crate::client::HttpClient;

/// A worker that is not ready after this time is broken: it reads a few megabytes.
const START_DEADLINE: Duration = Duration::from_mins(1);
/// How long the last requests of a worker may take to let go of their blocks.
const RESET_DEADLINE: Duration = Duration::from_secs(10);
/// How long one question to a worker may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a worker is given to stop, before it is killed. Above its own drain time, see [`flags`].
const STOP_GRACE: Duration = Duration::from_secs(5);

/// A worker and how to start it again under the same address.
#[derive(Debug)]
pub struct Worker {
    address: SocketAddr,
    spec: ProcessSpec,
    log_folder: PathBuf,
    process: Process,
    http: HttpClient,
}

impl Worker {
    /// Starts worker `name` on a free port. It is not ready yet; see [`Worker::until_ready`].
    pub(crate) fn spawn(
        name: &str,
        options: &StackOptions,
        binaries: &Binaries,
        log_folder: &Path,
        http: &HttpClient,
    ) -> Result<Worker> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let spec = ProcessSpec {
            name: name.to_owned(),
            program: binaries.engine.clone(),
            arguments: merge_flags(flags(address, options)?, &options.worker_flags),
            environment: options.environment.clone(),
        };
        let process = Process::spawn(&spec, log_folder)?;
        let (log_folder, http) = (log_folder.to_path_buf(), http.clone());
        Ok(Worker {
            address,
            spec,
            log_folder,
            process,
            http,
        })
    }

    /// As in `worker-1`; also the endpoint's name in epp.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Waits until the worker's `/health` says 200.
    pub async fn until_ready(&self) -> Result<()> {
        let url = format!("{}/health", self.url());
        let healthy = async || {
            let reply = self.http.get(&url, CALL_TIMEOUT).await;
            reply.is_ok_and(|reply| reply.status.is_success())
        };
        self.process.until(START_DEADLINE, healthy).await
    }

    /// Empties the worker's prefix cache. The worker refuses while a request holds blocks, so one that is just ending
    /// is waited for.
    pub async fn reset_prefix_cache(&self) -> Result<()> {
        let url = format!("{}/reset_prefix_cache", self.url());
        let reset = async || {
            let reply = self.http.post(&url, "", CALL_TIMEOUT).await;
            let body = reply
                .ok()
                .and_then(|reply| serde_json::from_slice(&reply.body).ok());
            body.is_some_and(|body: serde_json::Value| body["success"] == true)
        };
        let reset = self.process.until(RESET_DEADLINE, reset).await;
        reset.with_context(|| format!("POST {url} did not succeed"))
    }

    /// The text of the worker's `/metrics`.
    pub async fn metrics(&self) -> Result<String> {
        let reply = self
            .http
            .get(&format!("{}/metrics", self.url()), CALL_TIMEOUT)
            .await?;
        Ok(reply.text())
    }

    /// Lets the worker drain and end.
    pub async fn stop(&self) -> Result<()> {
        self.process.stop(STOP_GRACE).await?;
        Ok(())
    }

    /// Ends the worker as a crash would.
    pub async fn kill(&self) -> Result<()> {
        self.process.kill().await?;
        Ok(())
    }

    /// Stops the worker in its tracks: it keeps its sockets and answers nothing.
    pub fn pause(&self) {
        self.process.signal(Signal::STOP);
    }

    /// Undoes [`Worker::pause`].
    pub fn resume(&self) {
        self.process.signal(Signal::CONT);
    }

    /// Kills the worker if it still runs, starts it again under its address and waits until it is ready.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill().await?;
        self.process = Process::spawn(&self.spec, &self.log_folder)?;
        self.until_ready().await
    }
}

/// What each worker of a stack is started with, in the form `--name=value`.
fn flags(address: SocketAddr, options: &StackOptions) -> Result<Vec<String>> {
    let model = options
        .model
        .to_str()
        .context("the model folder's path is not UTF-8")?;
    let events = serde_json::json!({
        "enable_kv_cache_events": true,
        "publisher": "zmq",
        "endpoint": format!("tcp://127.0.0.1:{}", free_port()?),
        "replay_endpoint": format!("tcp://127.0.0.1:{}", free_port()?),
        "topic": format!("kv@{address}@{MODEL_NAME}"),
    });
    Ok(vec![
        format!("--model={model}"),
        format!("--served-model-name={MODEL_NAME}"),
        format!("--host={}", address.ip()),
        format!("--port={}", address.port()),
        format!("--kv-events-config={events}"),
        // Workers share this machine's few cores.
        "--threads=1".to_owned(),
        "--drain-timeout=2s".to_owned(),
        // For POST /reset_prefix_cache.
        "--server-dev-mode".to_owned(),
    ])
}
