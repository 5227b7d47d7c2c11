//! The Envoy configurations of the folder `envoy/`, and what fills their placeholders.
//!
//! The texts are compiled in, so a binary and its templates always fit. Values are typed here and become text in one
//! place: no caller can hand in something that changes the structure of the YAML.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::parts::{ExtraFilter, Parts, Watch, add_filters, keep_parts};
use super::render::render;

/// Which gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Template {
    /// epp picks an ordered list of endpoints, and Envoy reports which one served.
    OverrideHost,
    /// epp picks one address in a header, as other gateways configure it.
    OriginalDst,
    /// No epp: each worker in turn.
    RoundRobin,
}

/// What a gateway is told. Parts that a template does not know are left out for it.
#[derive(Clone, Debug)]
pub struct TemplateValues<'a> {
    pub listener_port: u16,
    pub admin_port: u16,
    pub epp: SocketAddr,
    /// Who receives Envoy's log of responses: epp, unless a test puts something else there.
    pub log: SocketAddr,
    /// How often a response that still runs is reported.
    pub renewal: Duration,
    pub workers: &'a [SocketAddr],
    /// `failure_mode_allow`: serve on while epp is down.
    pub fail_open: bool,
    /// Where the JSON access log goes; created by Envoy.
    pub access_log: &'a Path,
    pub parts: Parts,
    pub filters: &'a [ExtraFilter],
}

impl Template {
    pub const ALL: [Template; 3] = [
        Template::OverrideHost,
        Template::OriginalDst,
        Template::RoundRobin,
    ];

    /// The file's name in `envoy/`, without its ending.
    pub fn name(self) -> &'static str {
        match self {
            Template::OverrideHost => "override-host",
            Template::OriginalDst => "original-dst",
            Template::RoundRobin => "round-robin",
        }
    }

    /// Whether requests pass epp.
    pub fn uses_epp(self) -> bool {
        self != Template::RoundRobin
    }

    /// Whether Envoy itself knows (and health-checks) the workers.
    pub fn knows_workers(self) -> bool {
        self != Template::OriginalDst
    }

    /// A complete Envoy configuration.
    pub fn render(self, values: &TemplateValues<'_>) -> Result<String> {
        let path = values
            .access_log
            .to_str()
            .context("the access log's path is not UTF-8")?;
        // A JSON string is a YAML string, whatever characters it has.
        let path = serde_json::to_string(path)?;
        let mut filled = vec![
            ("listener_port", values.listener_port.to_string()),
            ("admin_port", values.admin_port.to_string()),
            ("access_log_path", path),
        ];
        if self.uses_epp() {
            filled.push(("epp_host", values.epp.ip().to_string()));
            filled.push(("epp_port", values.epp.port().to_string()));
            filled.push(("failure_mode_allow", values.fail_open.to_string()));
            if values.parts.watch == Watch::AccessLog {
                filled.push(("log_host", values.log.ip().to_string()));
                filled.push(("log_port", values.log.port().to_string()));
                let renewal = format!("{:.3}s", values.renewal.as_secs_f64());
                filled.push(("renewal_interval", renewal));
            }
        }
        if self.knows_workers() {
            filled.push(("workers", worker_lines(values.workers)));
        }
        let file = || format!("envoy/{}.yaml", self.name());
        let text = keep_parts(self.text(), values.parts).with_context(file)?;
        let text = render(&text, &filled).with_context(file)?;
        add_filters(text, values.filters).with_context(file)
    }

    fn text(self) -> &'static str {
        match self {
            Template::OverrideHost => include_str!("../../../envoy/override-host.yaml"),
            Template::OriginalDst => include_str!("../../../envoy/original-dst.yaml"),
            Template::RoundRobin => include_str!("../../../envoy/round-robin.yaml"),
        }
    }
}

fn worker_lines(workers: &[SocketAddr]) -> String {
    let lines: Vec<String> = workers
        .iter()
        .map(|worker| {
            let (address, port) = (worker.ip(), worker.port());
            format!(
                "- endpoint: {{address: {{socket_address: {{address: \"{address}\", port_value: {port}}}}}}}"
            )
        })
        .collect();
    // Without a worker the list is empty, which YAML writes as [].
    if lines.is_empty() {
        "[]".to_owned()
    } else {
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(template: Template, workers: &[SocketAddr], access_log: &str) -> String {
        rendered_with(template, workers, access_log, Parts::default())
    }

    fn rendered_with(
        template: Template,
        workers: &[SocketAddr],
        access_log: &str,
        parts: Parts,
    ) -> String {
        let values = TemplateValues {
            listener_port: 8080,
            admin_port: 9901,
            epp: "[::1]:9002".parse().unwrap(),
            log: "[::1]:9012".parse().unwrap(),
            renewal: Duration::from_millis(15_500),
            workers,
            fail_open: true,
            access_log: Path::new(access_log),
            parts,
            filters: &[],
        };
        template.render(&values).unwrap()
    }

    #[test]
    fn every_template_renders_and_keeps_no_placeholder() {
        let workers = [
            "10.0.0.1:8000".parse().unwrap(),
            "[fd00::2]:8000".parse().unwrap(),
        ];
        for template in Template::ALL {
            let text = rendered(template, &workers, "/dev/stdout");
            assert!(!text.contains("{{"), "{template:?}");
            assert!(text.contains("port_value: 8080"), "{template:?}");
        }
    }

    #[test]
    fn workers_stand_one_a_line() {
        let workers = [
            "10.0.0.1:8000".parse().unwrap(),
            "[fd00::2]:8001".parse().unwrap(),
        ];
        let text = rendered(Template::RoundRobin, &workers, "/dev/stdout");
        let expected = concat!(
            "        - endpoint: {address: {socket_address: {address: \"10.0.0.1\", port_value: 8000}}}\n",
            "        - endpoint: {address: {socket_address: {address: \"fd00::2\", port_value: 8001}}}\n",
        );
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn a_strange_path_stays_one_string() {
        let text = rendered(Template::RoundRobin, &[], "/tmp/a \"b\": {c}");
        assert!(text.contains(r#"path: "/tmp/a \"b\": {c}" "#), "{text}");
    }

    #[test]
    fn the_watch_decides_on_the_modes_and_the_log() {
        for template in [Template::OverrideHost, Template::OriginalDst] {
            let log = rendered(template, &[], "/dev/stdout");
            for part in [
                "response_body_mode: NONE",
                "access_log_flush_interval: 15.500s",
                "port_value: 9012",
                "name: envoy.filters.http.sse_to_metadata",
            ] {
                assert!(log.contains(part), "{template:?} lacks {part}");
            }
            assert!(!log.contains("response_header_mode: SEND"), "{template:?}");
            let parts = Parts {
                watch: Watch::Stream,
                ..Parts::default()
            };
            let stream = rendered_with(template, &[], "/dev/stdout", parts);
            let body = "                response_body_mode: FULL_DUPLEX_STREAMED";
            assert!(stream.contains(body), "{template:?}");
            for part in [
                "epp_als",
                "filters.http.sse_to",
                "mode: NONE",
                "flush_interval",
            ] {
                assert!(!stream.contains(part), "{template:?} keeps {part}");
            }
        }
    }

    /// What a client must never choose for itself, in both templates that let epp route.
    #[test]
    fn routing_headers_of_clients_are_removed() {
        for template in [Template::OverrideHost, Template::OriginalDst] {
            for header in [
                "x-gateway-destination-endpoint",
                "x-gateway-destination-endpoint-subset",
                "x-gateway-destination-endpoint-served",
                "x-gateway-destination-endpoint-scores",
                "x-prefiller-host-port",
                "x-encoder-hosts-ports",
                "x-data-parallel-host-port",
                "x-kv-cache-source-host-port",
            ] {
                let line = format!("              - remove: {header}\n");
                assert!(
                    template.text().contains(&line),
                    "{template:?} keeps {header}"
                );
            }
        }
    }
}
