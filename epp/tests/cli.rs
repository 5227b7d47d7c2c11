//! The program as an operator meets it: help, refusals, its commands, start, ports, shutdown.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use support::{EnvoyStream, Gateway};

fn epp(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_epp"));
    command
        .args(arguments)
        .env_remove("RUST_LOG")
        .output()
        .expect("epp runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_reads_from_top_to_bottom() {
    let output = epp(&["--help"]);
    assert!(output.status.success());
    let help = text(&output.stdout);
    for part in [
        "Workers:",
        "Picking:",
        "Ports:",
        "Limits:",
        "Logging:",
        "Examples:",
        "--decision-timeout <DURATION>",
        "[default: 5s]",
    ] {
        assert!(help.contains(part), "{part} is missing from\n{help}");
    }
    assert!(
        !help.contains("--pool-name"),
        "flags that do nothing are hidden"
    );
}

#[test]
fn version_is_told() {
    assert!(text(&epp(&["--version"]).stdout).starts_with("epp 0."));
}

#[test]
fn nonsense_is_refused_with_status_2_and_its_flag() {
    let one = ["--endpoint", "127.0.0.1:1"];
    let cases: [(&[&str], &str); 8] = [
        (&[], "--endpoint"),
        (&["--endpoint", "127.0.0.1:1"], "two endpoints are named"),
        (&["--endpoint", "127.0.0.1:2,colour=red"], "colour"),
        (&["--endpoint", "localhost:8000"], "localhost:8000"),
        (&["--decision-timeout", "5"], "--decision-timeout"),
        (&["--no-such-flag"], "--no-such-flag"),
        (&["--pool-name", "vllm"], "--pool-name is not supported"),
        (&["--max-request-body-bytes", "64MB"], "64MB"),
    ];
    for (arguments, part) in cases {
        let output = epp(&[&one[..if arguments.is_empty() { 0 } else { 2 }], arguments].concat());
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains(part), "{arguments:?}: {error}");
    }
}

#[test]
fn what_cannot_start_says_so_with_status_1() {
    let cases: [(&[&str], &str); 2] = [
        (
            &["--endpoints-file", "/no/such/file.yaml"],
            "/no/such/file.yaml",
        ),
        (
            &[
                "--endpoint",
                "127.0.0.1:1",
                "--tokenizer",
                "/no/such/folder",
            ],
            "/no/such/folder",
        ),
    ];
    for (arguments, part) in cases {
        let output = epp(&[
            arguments,
            &["--grpc-port=0", "--grpc-health-port=0", "--metrics-port=0"],
        ]
        .concat());
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
        assert!(error.contains(part), "{arguments:?}: {error}");
    }
}

/// A started epp; dropping it kills it.
struct Running {
    child: Child,
    lines: BufReader<std::process::ChildStderr>,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_epp"))
            .args([
                "--bind-address=127.0.0.1",
                "--grpc-port=0",
                "--grpc-health-port=0",
                "--metrics-port=0",
            ])
            .args(["--log-format=json"])
            .args(arguments)
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .expect("epp starts");
        let lines = BufReader::new(child.stderr.take().expect("piped"));
        Self { child, lines }
    }

    /// The first log line from here on with this message.
    fn line(&mut self, message: &str, service: Option<&str>) -> serde_json::Value {
        loop {
            let mut line = String::new();
            assert_ne!(
                self.lines.read_line(&mut line).expect("a log line"),
                0,
                "the log ended"
            );
            let line: serde_json::Value = serde_json::from_str(&line).expect("a JSON line");
            let is_service = service.is_none_or(|service| line["service"] == service);
            if line["message"] == message && is_service {
                return line;
            }
        }
    }

    fn address(&mut self, service: &str) -> SocketAddr {
        let line = self.line("listening", Some(service));
        line["address"]
            .as_str()
            .expect("an address")
            .parse()
            .expect("an address")
    }

    fn terminate(&mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .expect("kill runs")
                .success()
        );
        self.child.wait().expect("epp ends").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the port is open");
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: epp\r\nconnection: close\r\n\r\n"
    )
    .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn starts_serves_metrics_and_drains_on_sigterm() {
    let mut epp = Running::start(&["--endpoint=127.0.0.1:1,name=one", "--enable-pprof=true"]);
    let warning = epp.line("flags accepted and without effect", None);
    assert_eq!(warning["flags"], "--enable-pprof");
    assert_ne!(epp.address("ext_proc").port(), 0);
    assert_ne!(epp.address("health").port(), 0);
    let metrics = epp.address("metrics");
    assert!(get(metrics, "/healthz").starts_with("HTTP/1.1 200"));
    let page = get(metrics, "/metrics");
    for part in [
        "content-type: text/plain; version=0.0.4",
        "llm_d_epp_ready_endpoints{name=\"default\"} 0",
        "llm_d_epp_info{commit=",
        "llm_d_epp_extproc_streams_inflight 0",
        "llm_d_epp_prefix_indexer_size 0",
    ] {
        assert!(page.contains(part), "{part} is missing from\n{page}");
    }
    assert_eq!(epp.terminate(), Some(0));
}

#[test]
fn taken_port_is_a_failure_with_status_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let output = epp(&[
        "--endpoint=127.0.0.1:1",
        "--bind-address=127.0.0.1",
        "--grpc-health-port=0",
        "--metrics-port=0",
        "--grpc-port",
        &port,
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(&format!("cannot open 127.0.0.1:{port} for ext_proc")));
}

const CONFIG: &str = "apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: queue-scorer
    weight: 3
  - pluginRef: max-score-picker
";

/// Writes a file, in the place of an older one at once, and gives its path.
fn written(folder: &Path, name: &str, content: &str) -> String {
    let (new, path) = (folder.join("new"), folder.join(name));
    std::fs::write(&new, content).expect("written");
    std::fs::rename(&new, &path).expect("moved");
    path.display().to_string()
}

#[test]
fn config_check_says_what_is_wrong_where_and_what_was_meant() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = written(folder.path(), "good.yaml", CONFIG);
    let output = epp(&["config", "check", &good]);
    assert_eq!(output.status.code(), Some(0));
    let told = text(&output.stdout);
    assert!(
        told.starts_with(&format!("{good}: good: 1 profiles, ")),
        "{told}"
    );

    let wrong = CONFIG
        .replace("- type: queue-scorer", "- type: queue-scorre")
        .replace("weight", "wieght");
    let bad = written(folder.path(), "bad.yaml", &wrong);
    let output = epp(&["config", "check", &bad]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stdout);
    for part in [
        format!(
            "{bad}:4:9: plugins[0].type: there is no plugin type \"queue-scorre\"; did you mean \"queue-scorer\"?"
        ),
        format!("{bad}:10:5: "),
        "did you mean \"weight\"?".to_owned(),
    ] {
        assert!(told.contains(&part), "{part} is missing from\n{told}");
    }

    let torn = written(folder.path(), "torn.yaml", "plugins: [");
    let output = epp(&["config", "check", &torn]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).starts_with(&format!("{torn}:2:1: ")));
    let output = epp(&["config", "check", "/no/such/file.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("/no/such/file.yaml"));
    assert_eq!(epp(&["config", "chekc", &good]).status.code(), Some(2));
}

#[test]
fn config_show_prints_what_loads_again_and_shows_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let given = written(folder.path(), "given.yaml", CONFIG);
    for arguments in [vec!["config", "show"], vec!["config", "show", &given]] {
        let shown = epp(&arguments);
        assert_eq!(shown.status.code(), Some(0));
        let shown = text(&shown.stdout);
        let file = written(folder.path(), "shown.yaml", &shown);
        let checked = epp(&["config", "check", &file]);
        assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stdout));
        assert_eq!(text(&epp(&["config", "show", &file]).stdout), shown);
    }
}

#[test]
fn wrong_configuration_is_a_failure_with_status_1_that_names_its_pool() {
    let folder = tempfile::tempdir().expect("a folder");
    let wrong = CONFIG.replace("- type: queue-scorer", "- type: queue-scorre");
    let bad = written(folder.path(), "bad.yaml", &wrong);
    let output = epp(&["--endpoint=127.0.0.1:1", "--config-file", &bad]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    for part in ["pool \"default\"", &format!("{bad}:4:9"), "queue-scorer"] {
        assert!(error.contains(part), "{part} is missing from\n{error}");
    }
    let pools = written(
        folder.path(),
        "pools.yaml",
        "pools: [{name: a, endpoint: x}]",
    );
    let output = epp(&["--pools-file", &pools]);
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    for part in [&*pools, "endpoint"] {
        assert!(error.contains(part), "{part} is missing from\n{error}");
    }
}

/// Endpoints at which nobody listens, which keeps them all as likely.
fn endpoints(addresses: &[&str]) -> String {
    let mut file = String::from("endpoints:\n");
    for address in addresses {
        let line = format!("- {{name: \"{address}\", address: {address}, port: \"9\"}}\n");
        file.push_str(&line);
    }
    file
}

/// Connects as a gateway without TLS does.
async fn gateway(epp: &mut Running) -> Gateway {
    let address = epp.address("ext_proc");
    Gateway::connect(&format!("http://{address}"), None).await
}

async fn destination(mut stream: EnvoyStream) -> String {
    let body = r#"{"model":"m","prompt":"hello"}"#;
    stream.post("/v1/completions", body).await;
    stream.picked().await.destination
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn configuration_that_names_its_endpoints_serves_and_follows_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let list = written(folder.path(), "endpoints.yaml", &endpoints(&["127.0.0.2"]));
    let discovery = format!(
        "- type: file-discovery\n  parameters: {{path: {list}, watchFile: true}}\nschedulingProfiles:"
    );
    let config = CONFIG.replace("schedulingProfiles:", &discovery)
        + "dataLayer: {discovery: {pluginRef: file-discovery}}\n";
    let config = written(folder.path(), "config.yaml", &config);
    let mut epp = Running::start(&["--secure-serving=false", "--config-file", &config]);
    let gateway = gateway(&mut epp).await;
    assert_eq!(destination(gateway.stream().await).await, "127.0.0.2:9");
    written(folder.path(), "endpoints.yaml", &endpoints(&["127.0.0.3"]));
    let moved = tokio::time::timeout(std::time::Duration::from_secs(10), async {
        while destination(gateway.stream().await).await != "127.0.0.3:9" {}
    });
    moved.await.expect("the new endpoint is used in time");
    drop(gateway);
    assert_eq!(epp.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn pools_of_a_file_are_served_by_one_process() {
    let folder = tempfile::tempdir().expect("a folder");
    written(folder.path(), "code.yaml", &endpoints(&["127.0.0.3"]));
    written(folder.path(), "config.yaml", CONFIG);
    let pools = "pools:
- {name: chat, default: true, endpoints: [127.0.0.2:9]}
- {name: code, authorities: [code.example.com], endpointsFile: code.yaml, configFile: config.yaml}
";
    let pools = written(folder.path(), "pools.yaml", pools);
    let mut epp = Running::start(&["--secure-serving=false", "--pools-file", &pools]);
    let gateway = gateway(&mut epp).await;
    assert_eq!(destination(gateway.stream().await).await, "127.0.0.2:9");
    let code = gateway.of_pool("code");
    assert_eq!(destination(code.stream().await).await, "127.0.0.3:9");
    let page = get(epp.address("metrics"), "/metrics");
    for pool in ["chat", "code"] {
        let line = format!("llm_d_epp_ready_endpoints{{name=\"{pool}\"}} 0");
        assert!(page.contains(&line), "{line} is missing from\n{page}");
    }
    drop((gateway, code));
    assert_eq!(epp.terminate(), Some(0));
}
