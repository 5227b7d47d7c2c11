//! The binary as an operator meets it: help, mistakes, start, signals.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers as well"
)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use clap::CommandFactory;
use pointsman_engine::flags::Flags;
use serde_json::{Value, json};

fn engine() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
    command
        .env_remove("RUST_LOG")
        .env_remove("VLLM_SERVER_DEV_MODE")
        .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
        .env_remove("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        .env_remove("PYTHONHASHSEED");
    command
}

fn run(arguments: &[&str]) -> Output {
    engine().args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn demo_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-model")
}

/// A worker that serves, and its address from the log. Killed on drop.
struct Worker {
    child: Child,
    log: BufReader<std::process::ChildStderr>,
    address: String,
}

impl Worker {
    fn start(arguments: &[&str]) -> Self {
        let mut child = engine()
            .args([
                "--model",
                demo_model().to_str().unwrap(),
                "--port",
                "0",
                "--backend",
                "cpu",
            ])
            .args(["--threads", "1", "--log-format", "json"])
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut worker = Self {
            child,
            log,
            address: String::new(),
        };
        let mut seen = String::new();
        while worker.address.is_empty() {
            let mut line = String::new();
            let read = worker.log.read_line(&mut line).unwrap();
            assert!(read > 0, "the worker ended:\n{seen}");
            if let Some(address) = line.split("\"address\":\"").nth(1) {
                worker.address = address.split('"').next().unwrap().to_owned();
            }
            seen.push_str(&line);
        }
        worker
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([name, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// The exit code and the rest of the log.
    fn wait(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It has ended already in the tests that pass.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn help_is_grouped_and_has_examples() {
    let output = run(&["--help"]);
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    for part in [
        "Model:",
        "KV cache:",
        "Scheduling:",
        "KV events:",
        "Server:",
        "Examples:",
        "[default: 16]",
    ] {
        assert!(help.contains(part), "{part} is missing:\n{help}");
    }
}

#[test]
fn bad_flags_are_named() {
    for (arguments, message) in [
        (&["--model", "m", "--block-size", "0"][..], "--block-size"),
        (
            &["--model", "m", "--kv-events-config", "{\"port\":1}"][..],
            "unknown field `port`",
        ),
        (
            &["--model", "m", "--drain-timeout", "30"][..],
            "is not one of ms, s, m, h",
        ),
        (
            &["--model", "m", "--kv-cache-memory-bytes", "4X"][..],
            "is not one of KiB, MiB, GiB",
        ),
        (&["--port", "1"][..], "--model"),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(
            stderr(&output).contains(message),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn a_folder_that_is_no_model_is_named_before_anything_listens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let output = run(&["--model", path]);
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    assert!(
        message.contains("config.json") && message.contains(path),
        "{message}"
    );
    assert!(!message.contains("serving"), "{message}");
}

#[test]
fn weights_that_nothing_vouches_for_are_refused_where_that_is_asked() {
    let model = demo_model();
    let output = run(&[
        "--model",
        model.to_str().unwrap(),
        "--require-verified-weights",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    assert!(
        message.contains("demo-model: verified weights are required"),
        "{message}"
    );
    assert!(!message.contains("serving"), "{message}");
}

#[test]
fn a_context_beyond_the_models_is_refused() {
    let model = demo_model();
    let output = run(&[
        "--model",
        model.to_str().unwrap(),
        "--max-model-len",
        "1000000",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("--max-model-len 1000000"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn sigterm_ends_an_idle_worker_with_success() {
    let worker = Worker::start(&[]);
    assert!(worker.address.starts_with("127.0.0.1:"));
    assert!(!worker.address.ends_with(":0"), "the real port is told");
    worker.signal("-TERM");
    let (code, log) = worker.wait();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("draining") && log.contains("stopped"), "{log}");
}

#[test]
fn a_second_signal_does_not_wait_for_running_requests() {
    use std::io::Write;

    let worker = Worker::start(&["--drain-timeout", "10m", "--max-num-seqs", "1"]);
    // A request that runs for as long as the context lasts, twenty of them in line.
    let body =
        "{\"prompt\":[5,6,7],\"max_tokens\":2000,\"ignore_eos\":true,\"n\":20,\"stream\":true}";
    let mut connection = std::net::TcpStream::connect(&worker.address).unwrap();
    write!(
        connection,
        "POST /v1/completions HTTP/1.1\r\nhost: engine\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut status = String::new();
    BufReader::new(&connection).read_line(&mut status).unwrap();
    assert!(status.contains("200"), "{status}");
    worker.signal("-TERM");
    let mut worker = worker;
    let mut line = String::new();
    while !line.contains("draining") {
        line.clear();
        assert!(
            worker.log.read_line(&mut line).unwrap() > 0,
            "the worker ended early"
        );
    }
    worker.signal("-INT");
    let (code, log) = worker.wait();
    assert_eq!(code, Some(130), "{log}");
}

/// The README's words that look like flags, from the first column of its table or from anywhere.
fn flags_of_readme(first_column: bool) -> BTreeSet<String> {
    let readme = include_str!("../README.md");
    let lines = readme.lines().filter(|line| {
        let in_table = line.starts_with("| `--");
        in_table == first_column
    });
    let texts = lines.map(|line| {
        if first_column {
            line.split('|').nth(1).unwrap_or_default()
        } else {
            line
        }
    });
    texts
        .flat_map(|text| text.split('`'))
        .filter(|word| word.starts_with("--"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_readme_names_every_flag_and_no_other() {
    let command = Flags::command();
    let flags = command.get_arguments().filter_map(|flag| flag.get_long());
    let flags: BTreeSet<String> = flags
        .filter(|name| !["help", "version"].contains(name))
        .map(|name| format!("--{name}"))
        .collect();
    let table = flags_of_readme(true);
    let missing: Vec<_> = flags.difference(&table).collect();
    assert!(missing.is_empty(), "not in engine/README.md: {missing:?}");
    let named: BTreeSet<String> = table.union(&flags_of_readme(false)).cloned().collect();
    let unknown: Vec<_> = named.difference(&flags).collect();
    assert!(unknown.is_empty(), "engine has no {unknown:?}");
}

#[test]
fn a_request_that_ended_is_one_line_with_stable_fields() {
    use std::io::Write;

    let worker = Worker::start(&["--enable-log-requests", "--access-log"]);
    let body = "{\"prompt\":[5,6,7],\"max_tokens\":3,\"ignore_eos\":true}";
    let mut connection = std::net::TcpStream::connect(&worker.address).unwrap();
    write!(
        connection,
        "POST /v1/completions HTTP/1.1\r\nhost: engine\r\nconnection: close\r\nx-request-id: r-1\r\n\
         x-session-id: s-1\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    worker.signal("-TERM");
    let (code, log) = worker.wait();
    assert_eq!(code, Some(0), "{log}");
    let line = |message: &str| {
        let lines = log.lines().map(|line| serde_json::from_str(line).unwrap());
        let mut lines = lines.filter(|line: &Value| line["fields"]["message"] == message);
        let line = lines
            .next()
            .unwrap_or_else(|| panic!("no {message:?} in {log}"));
        assert!(lines.next().is_none(), "two of {message:?} in {log}");
        line["fields"].clone()
    };
    let ended = line("request ended");
    for (field, value) in [
        ("id", json!("cmpl-r-1")),
        ("session", json!("s-1")),
        ("rank", json!(0)),
        ("finish", json!("length")),
        ("prompt_tokens", json!(3)),
        ("cached_tokens", json!(0)),
        ("generated_tokens", json!(3)),
        ("max_tokens", json!(3)),
        ("preemptions", json!(0)),
    ] {
        assert_eq!(ended[field], value, "{field} of {ended}");
    }
    for field in ["queue_ms", "prefill_ms", "decode_ms", "total_ms"] {
        assert!(ended[field].is_f64(), "{field} of {ended}");
    }
    let served = line("http request");
    assert_eq!(
        (&served["path"], &served["status"], &served["id"]),
        (&json!("/v1/completions"), &json!(200), &json!("r-1"))
    );
}
