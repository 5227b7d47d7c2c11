//! The program as an operator meets it: help, refusals, start, ports, shutdown.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Output, Stdio};

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
