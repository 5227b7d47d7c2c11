//! The worker under measurement: its own process, as an operator starts it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::client::HttpClient;
use crate::stack::{Process, ProcessSpec, free_port};

/// Packing the weights of the model takes well under a second; on a busy machine a few.
const START_DEADLINE: Duration = Duration::from_mins(2);
/// What every worker under measurement calls its model.
pub(super) const BENCH_MODEL: &str = "bench";
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const STOP_GRACE: Duration = Duration::from_secs(5);

/// A worker that answers.
#[derive(Debug)]
pub(super) struct BenchWorker {
    pub(super) address: SocketAddr,
    pub(super) url: String,
    pub(super) http: HttpClient,
    process: Process,
}

impl BenchWorker {
    /// Starts `engine` with `flags` and waits until it can serve.
    pub(super) async fn start(
        name: &str,
        engine: &Path,
        flags: &[String],
        logs: &Path,
    ) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let mut arguments = vec![
            format!("--host={}", address.ip()),
            format!("--port={}", address.port()),
            format!("--served-model-name={BENCH_MODEL}"),
            "--drain-timeout=1s".to_owned(),
        ];
        arguments.extend_from_slice(flags);
        let spec = ProcessSpec {
            name: name.to_owned(),
            program: engine.to_owned(),
            arguments,
            environment: Vec::new(),
        };
        let worker = Self {
            address,
            url: format!("http://{address}"),
            http: HttpClient::new(),
            process: Process::spawn(&spec, logs)?,
        };
        let health = format!("{}/health", worker.url);
        let healthy = async || {
            let reply = worker.http.get(&health, CALL_TIMEOUT).await;
            reply.is_ok_and(|reply| reply.status.is_success())
        };
        worker.process.until(START_DEADLINE, healthy).await?;
        Ok(worker)
    }

    pub(super) async fn stop(&self) -> Result<()> {
        self.process.stop(STOP_GRACE).await?;
        Ok(())
    }
}
