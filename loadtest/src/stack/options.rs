//! What a stack is made of, and the flags of its parts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::binaries::{Profile, workspace_root};
use super::envoy::EnvoyChoice;
use super::parts::{ExtraFilter, FilterPlace, Watch};
use super::template::Template;

/// The name under which the workers serve the demo model.
pub const MODEL_NAME: &str = "pointsman-demo";
/// A quarter of epp's default lease: three reports of a response that runs may be lost.
const RENEWAL: Duration = Duration::from_secs(15);

/// How a stack is put together; each method changes one thing.
#[derive(Clone, Debug)]
pub struct StackOptions {
    pub(crate) workers: usize,
    pub(crate) endpoints: Vec<SocketAddr>,
    pub(crate) endpoints_file: bool,
    pub(crate) model: PathBuf,
    pub(crate) profile: Profile,
    pub(crate) worker_flags: Vec<String>,
    pub(crate) epp_flags: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) template: Template,
    pub(crate) watch: Watch,
    pub(crate) renewal: Duration,
    pub(crate) log_receiver: Option<SocketAddr>,
    pub(crate) tls: bool,
    pub(crate) filters: Vec<ExtraFilter>,
    pub(crate) fail_open: bool,
    pub(crate) gateway_port: Option<u16>,
    pub(crate) envoy: EnvoyChoice,
    pub(crate) folder: Option<PathBuf>,
}

impl Default for StackOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl StackOptions {
    /// One worker with the demo model, epp, and Envoy with `override_host` that reports through the access log and
    /// fails closed.
    pub fn new() -> Self {
        Self {
            workers: 1,
            endpoints: Vec::new(),
            endpoints_file: false,
            model: workspace_root().join("engine").join("demo-model"),
            profile: Profile::own(),
            worker_flags: Vec::new(),
            epp_flags: Vec::new(),
            environment: Vec::new(),
            template: Template::OverrideHost,
            watch: Watch::default(),
            renewal: RENEWAL,
            log_receiver: None,
            tls: false,
            filters: Vec::new(),
            fail_open: false,
            gateway_port: None,
            envoy: EnvoyChoice::Any,
            folder: None,
        }
    }

    /// How many engine workers are started; 0 is allowed, for a test that brings its own.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Adds an endpoint that the caller runs. epp and Envoy are told of it. It must answer `GET /health` with 200,
    /// or the stack does not become ready.
    #[must_use]
    pub fn endpoint(mut self, endpoint: SocketAddr) -> Self {
        self.endpoints.push(endpoint);
        self
    }

    /// Tells epp its endpoints by a file, which [`Stack::write_endpoints`](super::Stack::write_endpoints) changes,
    /// and not by flags.
    #[must_use]
    pub fn endpoints_file(mut self) -> Self {
        self.endpoints_file = true;
        self
    }

    /// The model folder of the workers and of epp's tokenizer.
    #[must_use]
    pub fn model(mut self, folder: impl Into<PathBuf>) -> Self {
        self.model = folder.into();
        self
    }

    /// The cargo profile of epp and the workers; by default that of this program.
    #[must_use]
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// Adds a flag, written `--name=value`, to every worker. It replaces a flag of that name that the stack sets.
    #[must_use]
    pub fn worker_flag(mut self, flag: impl Into<String>) -> Self {
        self.worker_flags.push(flag.into());
        self
    }

    /// Adds a flag, written `--name=value`, to epp. It replaces a flag of that name that the stack sets.
    #[must_use]
    pub fn epp_flag(mut self, flag: impl Into<String>) -> Self {
        self.epp_flags.push(flag.into());
        self
    }

    /// Sets a variable in the environment of epp and the workers, such as `RUST_LOG`.
    #[must_use]
    pub fn environment(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Which gateway configuration.
    #[must_use]
    pub fn template(mut self, template: Template) -> Self {
        self.template = template;
        self
    }

    /// How epp learns of responses; by default through Envoy's access log.
    #[must_use]
    pub fn watch(mut self, watch: Watch) -> Self {
        self.watch = watch;
        self
    }

    /// How often Envoy reports a response that still runs.
    #[must_use]
    pub fn renewal(mut self, interval: Duration) -> Self {
        self.renewal = interval;
        self
    }

    /// Sends Envoy's reports of responses there, and not to epp.
    #[must_use]
    pub fn log_receiver(mut self, address: SocketAddr) -> Self {
        self.log_receiver = Some(address);
        self
    }

    /// Has epp serve TLS with a certificate of its own making, and Envoy connect with it.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Adds an HTTP filter, one item of Envoy's `http_filters`, to the gateway.
    #[must_use]
    pub fn filter(mut self, place: FilterPlace, filter: serde_json::Value) -> Self {
        self.filters.push(ExtraFilter { place, filter });
        self
    }

    /// Whether the gateway serves on while epp is down.
    #[must_use]
    pub fn fail_open(mut self, fail_open: bool) -> Self {
        self.fail_open = fail_open;
        self
    }

    /// The gateway's port, if it is free; by default any free one.
    #[must_use]
    pub fn gateway_port(mut self, port: u16) -> Self {
        self.gateway_port = Some(port);
        self
    }

    /// Which Envoy; by default whichever is found.
    #[must_use]
    pub fn envoy(mut self, envoy: EnvoyChoice) -> Self {
        self.envoy = envoy;
        self
    }

    /// Where logs and rendered configurations go. By default a folder of the stack's own in cargo's target folder,
    /// which is removed with the stack unless a test panics.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }
}

/// The stack's own flags, then the caller's; an own flag whose name the caller uses is left out.
pub(crate) fn merge_flags(own: Vec<String>, callers: &[String]) -> Vec<String> {
    let name = |flag: &str| flag.split('=').next().unwrap_or_default().to_owned();
    let mut flags = own;
    flags.retain(|flag| callers.iter().all(|callers| name(callers) != name(flag)));
    flags.extend_from_slice(callers);
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_flag_replaces_the_stacks() {
        let strings = |flags: &[&str]| flags.iter().map(ToString::to_string).collect::<Vec<_>>();
        let own = strings(&["--threads=1", "--port=80", "--server-dev-mode"]);
        let callers = strings(&["--port=81", "--server-dev-mode=false", "--thread-names"]);
        let expected = strings(&[
            "--threads=1",
            "--port=81",
            "--server-dev-mode=false",
            "--thread-names",
        ]);
        assert_eq!(merge_flags(own, &callers), expected);
    }
}
