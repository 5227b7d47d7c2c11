//! A running stack: starts its parts in the order in which they need each other, and ends them in the reverse.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::binaries::{Binaries, target_folder};
use super::envoy::Envoy;
use super::epp::{Epp, NamedEndpoint};
use super::gateway::{Gateway, GatewaySpec, gateway_name};
use super::options::StackOptions;
use super::parts::Watch;
use super::progress::{Progress, Silent};
use super::template::Template;
use super::worker::Worker;
use crate::client::{ChatClient, HttpClient};

/// Envoy, epp and workers. Dropping it kills them all; [`Stack::stop`] ends them politely.
///
/// Fields are dropped in their order: Envoy first, so that nobody sees the parts behind it vanish.
#[derive(Debug)]
pub struct Stack {
    /// The first is the one of the options; [`Stack::add_gateway`] adds others.
    gateways: Vec<Gateway>,
    epp: Epp,
    workers: Vec<Worker>,
    endpoints: Vec<NamedEndpoint>,
    endpoints_file: Option<PathBuf>,
    envoy: Envoy,
    options: StackOptions,
    http: HttpClient,
    folder: Folder,
}

impl Stack {
    /// Builds the binaries, starts every part and returns when a request can be sent to [`Stack::gateway`].
    pub async fn start(options: StackOptions) -> Result<Stack> {
        let envoy = Envoy::find(&options.envoy).await?;
        let binaries = Binaries::build(options.profile).await?;
        Self::start_with(options, envoy, binaries, &Silent).await
    }

    /// Like [`Stack::start`], with programs that the caller has got ready, and telling which part is starting.
    pub async fn start_with(
        options: StackOptions,
        envoy: Envoy,
        binaries: &Binaries,
        progress: &dyn Progress,
    ) -> Result<Stack> {
        let folder = Folder::create(&options)?;
        let http = HttpClient::new();
        let workers = start_workers(&options, binaries, folder.path(), &http, progress).await?;
        let endpoints = named_endpoints(&workers, &options.endpoints);
        let endpoints_file = options
            .endpoints_file
            .then(|| folder.path().join("endpoints.yaml"));
        if let Some(file) = &endpoints_file {
            write_endpoints(file, &endpoints)?;
        }

        progress.begin("starting epp");
        let file = endpoints_file.as_deref();
        let epp = Epp::spawn(&endpoints, file, &options, binaries, folder.path(), &http)?;
        epp.until_ready(workers.len()).await?;
        progress.ready();

        let gateways = Vec::new();
        let (template, watch, port) = (options.template, options.watch, options.gateway_port);
        let mut stack = Stack {
            gateways,
            epp,
            workers,
            endpoints,
            endpoints_file,
            envoy,
            options,
            http,
            folder,
        };
        stack
            .add_gateway_at(template, watch, port, progress)
            .await?;
        Ok(stack)
    }

    /// The gateway of the options.
    pub fn gateway(&self) -> &Gateway {
        &self.gateways[0]
    }

    /// All gateways, that of the options first.
    pub fn gateways(&self) -> &[Gateway] {
        &self.gateways
    }

    /// A client for [`Stack::gateway`].
    pub fn chat(&self) -> ChatClient {
        self.gateway().chat()
    }

    /// Starts one more Envoy in front of the same epp and workers, and returns it when it is ready. No two gateways of
    /// a stack may have both template and watch in common: their files would be the same.
    pub async fn add_gateway(
        &mut self,
        template: Template,
        watch: Watch,
        progress: &dyn Progress,
    ) -> Result<&Gateway> {
        self.add_gateway_at(template, watch, None, progress).await
    }

    pub fn epp(&self) -> &Epp {
        &self.epp
    }

    pub fn epp_mut(&mut self) -> &mut Epp {
        &mut self.epp
    }

    pub fn workers(&self) -> &[Worker] {
        &self.workers
    }

    pub fn workers_mut(&mut self) -> &mut [Worker] {
        &mut self.workers
    }

    pub fn envoy(&self) -> &Envoy {
        &self.envoy
    }

    /// A plain client, for what is not a chat.
    pub fn http(&self) -> &HttpClient {
        &self.http
    }

    /// Where the logs and the rendered configurations are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Rewrites epp's endpoints file to the endpoints whose address `keep` accepts. Envoy's own list stays.
    pub fn write_endpoints(&self, keep: impl Fn(SocketAddr) -> bool) -> Result<()> {
        let file = self
            .endpoints_file
            .as_ref()
            .context("started without endpoints_file()")?;
        let kept: Vec<NamedEndpoint> = self
            .endpoints
            .iter()
            .filter(|(_, address)| keep(*address))
            .cloned()
            .collect();
        write_endpoints(file, &kept)
    }

    /// Ends every part politely, Envoy first. Whatever still runs afterwards is killed.
    pub async fn stop(self) -> Result<()> {
        for gateway in &self.gateways {
            gateway.stop().await?;
        }
        self.epp.stop().await?;
        for worker in &self.workers {
            worker.stop().await?;
        }
        Ok(())
    }

    async fn add_gateway_at(
        &mut self,
        template: Template,
        watch: Watch,
        port: Option<u16>,
        progress: &dyn Progress,
    ) -> Result<&Gateway> {
        progress.begin(&format!(
            "starting Envoy {} ({})",
            self.envoy.version,
            gateway_name(template, watch)
        ));
        let workers: Vec<SocketAddr> = self.endpoints.iter().map(|(_, address)| *address).collect();
        let spec = GatewaySpec {
            envoy: &self.envoy,
            template,
            watch,
            epp: self.epp.address(),
            workers: &workers,
            options: &self.options,
            port,
        };
        let gateway = Gateway::spawn(spec, self.folder.path(), &self.http).await?;
        gateway.until_ready().await?;
        progress.ready();
        Ok(self.gateways.push_mut(gateway))
    }
}

/// Starts the workers of the options, one after the other.
pub(crate) async fn start_workers(
    options: &StackOptions,
    binaries: &Binaries,
    folder: &Path,
    http: &HttpClient,
    progress: &dyn Progress,
) -> Result<Vec<Worker>> {
    let mut workers = Vec::with_capacity(options.workers);
    for number in 1..=options.workers {
        progress.begin(&format!("starting worker {number}"));
        let name = format!("worker-{number}");
        let worker = Worker::spawn(&name, options, binaries, folder, http)?;
        worker.until_ready().await?;
        progress.ready();
        workers.push(worker);
    }
    Ok(workers)
}

fn named_endpoints(workers: &[Worker], others: &[SocketAddr]) -> Vec<NamedEndpoint> {
    let own = workers
        .iter()
        .map(|worker| (worker.name().to_owned(), worker.address()));
    let others = others.iter().enumerate();
    let others = others.map(|(index, address)| (format!("endpoint-{}", index + 1), *address));
    own.chain(others).collect()
}

/// Writes beside the file and renames, so that epp never reads half a list. JSON is YAML.
fn write_endpoints(file: &Path, endpoints: &[NamedEndpoint]) -> Result<()> {
    let entry = |(name, address): &NamedEndpoint| serde_json::json!({"name": name, "address": address.ip(), "port": address.port()});
    let list: Vec<serde_json::Value> = endpoints.iter().map(entry).collect();
    let text = serde_json::json!({"endpoints": list}).to_string();
    let unfinished = file.with_extension("unfinished");
    std::fs::write(&unfinished, text)
        .and_then(|()| std::fs::rename(&unfinished, file))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// The stack's files: the caller's folder, or one of its own that goes with it.
#[derive(Debug)]
pub(crate) enum Folder {
    Callers(PathBuf),
    /// `None` only while it is being dropped.
    Own(Option<TempDir>),
}

impl Folder {
    pub(crate) fn create(options: &StackOptions) -> Result<Folder> {
        let parent = options
            .folder
            .clone()
            .unwrap_or_else(|| target_folder().join("stacks"));
        std::fs::create_dir_all(&parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
        if options.folder.is_some() {
            return Ok(Folder::Callers(parent));
        }
        let own = tempfile::Builder::new()
            .prefix("stack-")
            .tempdir_in(parent)?;
        Ok(Folder::Own(Some(own)))
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Folder::Callers(path) => path,
            Folder::Own(folder) => folder.as_ref().map_or(Path::new("."), TempDir::path),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The logs of a failed test are what its reader needs next.
        if let Folder::Own(folder) = self
            && std::thread::panicking()
            && let Some(folder) = folder.take()
        {
            let kept = folder.keep();
            let _shown = writeln!(std::io::stderr(), "logs of the stack: {}", kept.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_written_in_the_fields_file_format() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("endpoints.yaml");
        let endpoints = [("worker-1".to_owned(), "[::1]:8000".parse().unwrap())];
        write_endpoints(&file, &endpoints).unwrap();
        let expected = r#"{"endpoints":[{"name":"worker-1","address":"::1","port":8000}]}"#;
        assert_eq!(std::fs::read_to_string(&file).unwrap(), expected);
    }
}
