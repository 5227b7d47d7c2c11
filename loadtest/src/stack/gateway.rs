//! One Envoy of a stack: rendered, validated by the binary, started.
//!
//! Always with `--disable-hot-restart`: with it on, Envoy asks the kernel for SIGTERM when the *thread* that started
//! it ends, and two Envoys of one machine would meet in shared memory. One worker thread, because the machine's few
//! cores are the models'. The access log is flushed at once and not every ten seconds, because tests read it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::access_log::{self, AccessLogEntry};
use super::envoy::Envoy;
use super::options::StackOptions;
use super::parts::{Parts, Watch};
use super::ports::{free_port, preferred_port};
use super::process::{Process, ProcessSpec};
use super::template::{Template, TemplateValues};
use crate::client::{ChatClient, HttpClient};

const START_DEADLINE: Duration = Duration::from_mins(1);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Envoy ends at SIGTERM without waiting for anyone.
const STOP_GRACE: Duration = Duration::from_secs(3);
/// How long an entry of the access log is waited for; it is flushed every 20 ms.
const LOG_DEADLINE: Duration = Duration::from_secs(10);
const LOG_POLL: Duration = Duration::from_millis(10);
/// epp's second cluster, which has no health check: Envoy calls its host healthy even when epp is down.
const UNCHECKED_CLUSTER: &str = "epp_als";

/// What a gateway is started with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GatewaySpec<'a> {
    pub(crate) envoy: &'a Envoy,
    pub(crate) template: Template,
    pub(crate) watch: Watch,
    pub(crate) epp: SocketAddr,
    pub(crate) workers: &'a [SocketAddr],
    /// What else the templates ask for.
    pub(crate) options: &'a StackOptions,
    /// Taken where it is free.
    pub(crate) port: Option<u16>,
}

/// A running Envoy.
#[derive(Debug)]
pub struct Gateway {
    template: Template,
    watch: Watch,
    port: u16,
    admin_port: u16,
    access_log: PathBuf,
    process: Process,
    http: HttpClient,
}

impl Gateway {
    pub(crate) async fn spawn(
        spec: GatewaySpec<'_>,
        folder: &Path,
        http: &HttpClient,
    ) -> Result<Gateway> {
        let port = spec.port.map_or_else(free_port, preferred_port)?;
        let admin_port = free_port()?;
        let name = format!("envoy-{}", gateway_name(spec.template, spec.watch));
        let access_log = folder.join(format!("{name}.access.log"));
        let configuration = spec.template.render(&TemplateValues {
            listener_port: port,
            admin_port,
            epp: spec.epp,
            log: spec.options.log_receiver.unwrap_or(spec.epp),
            renewal: spec.options.renewal,
            workers: spec.workers,
            fail_open: spec.options.fail_open,
            access_log: &access_log,
            parts: Parts {
                watch: spec.watch,
                usage: spec.envoy.usage_filter(),
                tls: spec.options.tls,
            },
            filters: &spec.options.filters,
        })?;
        let file = folder.join(format!("{name}.yaml"));
        std::fs::write(&file, configuration)
            .with_context(|| format!("cannot write {}", file.display()))?;
        spec.envoy.validate(&file).await?;
        let process = Process::spawn(&process_spec(name, spec.envoy, &file), folder)?;
        let http = http.clone();
        Ok(Gateway {
            template: spec.template,
            watch: spec.watch,
            port,
            admin_port,
            access_log,
            process,
            http,
        })
    }

    pub fn template(&self) -> Template {
        self.template
    }

    pub fn watch(&self) -> Watch {
        self.watch
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where clients send requests.
    pub fn url(&self) -> String {
        format!(
            "http://{}",
            SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
        )
    }

    pub fn admin_url(&self) -> String {
        format!(
            "http://{}",
            SocketAddr::from((Ipv4Addr::LOCALHOST, self.admin_port))
        )
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    /// A client for this gateway.
    pub fn chat(&self) -> ChatClient {
        ChatClient::new(self.http.clone(), &self.url())
    }

    /// What Envoy has logged so far, in the order in which requests ended.
    pub fn access_log(&self) -> Result<Vec<AccessLogEntry>> {
        access_log::read(&self.access_log)
    }

    /// The first entry that `wanted` accepts, waited for: Envoy logs a request after its end.
    pub async fn logged(&self, wanted: impl Fn(&AccessLogEntry) -> bool) -> Result<AccessLogEntry> {
        let search = async {
            loop {
                if let Some(entry) = self.access_log()?.into_iter().find(&wanted) {
                    return Ok(entry);
                }
                tokio::time::sleep(LOG_POLL).await;
            }
        };
        match tokio::time::timeout(LOG_DEADLINE, search).await {
            Ok(found) => found,
            Err(_elapsed) => bail!("no such entry in {}", self.access_log.display()),
        }
    }

    /// Waits until Envoy serves and its health checks have found epp and every worker healthy.
    pub async fn until_ready(&self) -> Result<()> {
        let ready = async || self.is_ready().await.unwrap_or(false);
        self.process
            .until(START_DEADLINE, ready)
            .await
            .with_context(|| {
                format!(
                    "{} does not find all its upstreams healthy",
                    self.process.name()
                )
            })
    }

    /// Waits until the health check of `endpoint` (epp or a worker) finds what `healthy` says.
    pub async fn until_health(&self, endpoint: SocketAddr, healthy: bool) -> Result<()> {
        let seen = async || {
            let hosts = self.hosts().await.unwrap_or_default();
            hosts
                .iter()
                .any(|host| host.address == Some(endpoint) && host.healthy == healthy)
        };
        self.process.until(START_DEADLINE, seen).await
    }

    /// A counter or gauge of Envoy's `/stats`, such as `cluster.epp.upstream_rq_total`; 0 where there is none.
    pub async fn stat(&self, name: &str) -> Result<u64> {
        let url = format!(
            "{}/stats?filter=^{}$",
            self.admin_url(),
            name.replace('.', "%5C.")
        );
        let text = self.http.get(&url, CALL_TIMEOUT).await?.text();
        let Some((_, value)) = text.trim().split_once(": ") else {
            return Ok(0);
        };
        value
            .parse()
            .with_context(|| format!("stat {name} is {value:?}"))
    }

    pub(crate) async fn stop(&self) -> Result<()> {
        self.process.stop(STOP_GRACE).await?;
        Ok(())
    }

    async fn is_ready(&self) -> Result<bool> {
        let live = self
            .http
            .get(&format!("{}/ready", self.admin_url()), CALL_TIMEOUT)
            .await?;
        Ok(live.status.is_success() && self.hosts().await?.iter().all(|host| host.healthy))
    }

    async fn hosts(&self) -> Result<Vec<Host>> {
        let url = format!("{}/clusters?format=json", self.admin_url());
        parse_hosts(&self.http.get(&url, CALL_TIMEOUT).await?.body)
    }
}

/// What a gateway is called. One stack may have two of a template that differ in their watch.
pub(crate) fn gateway_name(template: Template, watch: Watch) -> String {
    match watch {
        Watch::Stream if template.uses_epp() => format!("{}-stream", template.name()),
        _ => template.name().to_owned(),
    }
}

fn process_spec(name: String, envoy: &Envoy, configuration: &Path) -> ProcessSpec {
    let mut arguments: Vec<String> = [
        "--disable-hot-restart",
        "--concurrency",
        "1",
        "--file-flush-interval-msec",
        "20",
    ]
    .map(str::to_owned)
    .into();
    arguments.extend(["--log-level", "warning", "--config-path"].map(str::to_owned));
    arguments.push(configuration.display().to_string());
    ProcessSpec {
        name,
        program: envoy.path.clone(),
        arguments,
        environment: Vec::new(),
    }
}

/// One upstream address, as Envoy's `/clusters` shows it.
#[derive(Clone, Debug, PartialEq)]
struct Host {
    /// `None` for what is no IP address, such as a pipe.
    address: Option<SocketAddr>,
    healthy: bool,
}

fn parse_hosts(json: &[u8]) -> Result<Vec<Host>> {
    let clusters: Clusters = serde_json::from_slice(json).context("unreadable /clusters")?;
    let hosts = clusters
        .cluster_statuses
        .into_iter()
        .filter(|cluster| cluster.name != UNCHECKED_CLUSTER)
        .flat_map(|cluster| cluster.host_statuses);
    Ok(hosts.map(HostStatus::into_host).collect())
}

#[derive(Deserialize)]
struct Clusters {
    #[serde(default)]
    cluster_statuses: Vec<ClusterStatus>,
}

#[derive(Deserialize)]
struct ClusterStatus {
    #[serde(default)]
    name: String,
    #[serde(default)]
    host_statuses: Vec<HostStatus>,
}

#[derive(Deserialize)]
struct HostStatus {
    address: serde_json::Value,
    #[serde(default)]
    health_status: HealthStatus,
}

#[derive(Default, Deserialize)]
struct HealthStatus {
    #[serde(default)]
    failed_active_health_check: bool,
    #[serde(default)]
    pending_active_hc: bool,
}

impl HostStatus {
    fn into_host(self) -> Host {
        let socket = &self.address["socket_address"];
        let ip = socket["address"]
            .as_str()
            .and_then(|address| address.parse().ok());
        let port = socket["port_value"]
            .as_u64()
            .and_then(|port| u16::try_from(port).ok());
        let health = self.health_status;
        Host {
            address: ip.zip(port).map(|(ip, port)| SocketAddr::new(ip, port)),
            healthy: !health.failed_active_health_check && !health.pending_active_hc,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::{EnvoyChoice, TESTED_VERSIONS, UsageFilter};

    #[test]
    fn reads_the_health_of_hosts() {
        let json = br#"{"cluster_statuses":[{"name":"epp","host_statuses":[
            {"address":{"socket_address":{"address":"127.0.0.1","port_value":9002}},
             "health_status":{"failed_active_health_check":true,"eds_health_status":"HEALTHY"}},
            {"address":{"pipe":{"path":"/x"}},"health_status":{"eds_health_status":"HEALTHY"}}]},
            {"name":"epp_als","host_statuses":[
            {"address":{"socket_address":{"address":"127.0.0.1","port_value":9002}},"health_status":{}}]},
            {"name":"odst"}]}"#;
        let hosts = parse_hosts(json).unwrap();
        let epp = Host {
            address: Some("127.0.0.1:9002".parse().unwrap()),
            healthy: false,
        };
        assert_eq!(
            hosts,
            [
                epp,
                Host {
                    address: None,
                    healthy: true
                }
            ]
        );
    }

    /// All that a template can be told, one after the other.
    fn all_parts(usage: UsageFilter) -> Vec<Parts> {
        let watch = [Watch::AccessLog, Watch::Stream];
        let parts = watch
            .iter()
            .flat_map(|&watch| [false, true].map(|tls| Parts { watch, usage, tls }));
        parts.collect()
    }

    /// The first run on a machine installs three Envoys, which takes a while.
    #[tokio::test]
    async fn each_envoy_itself_accepts_every_template() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("envoy.yaml");
        let workers: Vec<SocketAddr> = (0..3)
            .map(|i| SocketAddr::from(([10, 0, 0, 1], 8000 + i)))
            .collect();
        for version in TESTED_VERSIONS {
            let choice = EnvoyChoice::Version(version.to_owned());
            let envoy = Envoy::find(&choice).await.unwrap();
            for (template, parts) in Template::ALL.into_iter().flat_map(|template| {
                all_parts(envoy.usage_filter())
                    .into_iter()
                    .map(move |parts| (template, parts))
            }) {
                let values = TemplateValues {
                    listener_port: 8080,
                    admin_port: 9901,
                    epp: "[::1]:9002".parse().unwrap(),
                    log: "[::1]:9002".parse().unwrap(),
                    renewal: Duration::from_secs(15),
                    workers: if parts.tls { &workers } else { &[] },
                    fail_open: parts.tls,
                    access_log: &folder.path().join("access.log"),
                    parts,
                    filters: &[],
                };
                std::fs::write(&file, template.render(&values).unwrap()).unwrap();
                let validated = envoy.validate(&file).await;
                validated
                    .unwrap_or_else(|error| panic!("{version} {template:?} {parts:?}: {error}"));
            }
        }
    }

    #[tokio::test]
    async fn envoy_refuses_a_field_that_it_does_not_know() {
        let envoy = Envoy::find(&EnvoyChoice::Any).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("envoy.yaml");
        std::fs::write(&file, "static_resources: {listenerz: []}\n").unwrap();
        let error = envoy.validate(&file).await.unwrap_err();
        assert!(error.to_string().contains("listenerz"), "{error}");
    }
}
