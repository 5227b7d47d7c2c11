//! `loadtest drive` as a program, against a worker with a simulated GPU and against servers that misbehave or speak TLS.

#![expect(clippy::unwrap_used, reason = "every function here is part of a test")]

mod https;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use pointsman_loadtest::client::HttpClient;
use pointsman_loadtest::drive::{ErrorClass, Record, Report};
use pointsman_loadtest::stack::{
    Binaries, Process, ProcessSpec, Profile, free_port, workspace_root,
};
use pointsman_loadtest::workload::Workload;
use pointsman_loadtest::workload::generate::{GenerateOptions, Kind, generate};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::Barrier;

/// A worker on a busy machine is up after a few seconds.
const START_DEADLINE: Duration = Duration::from_mins(2);
const BLOCK_TOKENS: u64 = 16;
/// Chats that are over soon.
const CHATS: &str = r#"{"turns": 4, "think_seconds": 0.05,
    "system": {"mean": 60, "sigma": 0.2, "most": 100}, "message": {"mean": 30, "sigma": 0.5, "most": 60},
    "answer": {"mean": 12, "sigma": 0.5, "most": 40}}"#;

/// An `engine --backend sim` that computes in no time.
struct Worker {
    url: String,
    _process: Process,
    _logs: TempDir,
}

impl Worker {
    async fn start() -> Self {
        let binaries = Binaries::build(Profile::Dev).await.unwrap();
        let logs = tempfile::tempdir().unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
        let model = workspace_root().join("engine/demo-model");
        let spec = ProcessSpec {
            name: "worker".to_owned(),
            program: binaries.engine.clone(),
            arguments: vec![
                "--backend=sim".to_owned(),
                "--sim-speedup=inf".to_owned(),
                "--served-model-name=sim".to_owned(),
                format!("--model={}", model.display()),
                format!("--host={}", address.ip()),
                format!("--port={}", address.port()),
            ],
            environment: Vec::new(),
        };
        let process = Process::spawn(&spec, logs.path()).unwrap();
        let (http, url) = (HttpClient::new(), format!("http://{address}"));
        let health = format!("{url}/health");
        let healthy = async || {
            let reply = http.get(&health, Duration::from_secs(5)).await;
            reply.is_ok_and(|reply| reply.status.is_success())
        };
        process.until(START_DEADLINE, healthy).await.unwrap();
        Self {
            url,
            _process: process,
            _logs: logs,
        }
    }
}

/// What a call of the program left behind.
struct Driven {
    report: Report,
    records: Vec<Record>,
    /// What went to standard error, which is no terminal here.
    warnings: String,
    folder: TempDir,
}

impl Driven {
    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap()
    }
}

async fn drive(url: &str, flags: &[&str]) -> Driven {
    drive_by(program(), url, flags).await
}

/// With a program whose environment is the test's.
async fn drive_by(mut program: Command, url: &str, flags: &[&str]) -> Driven {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    program.args([
        format!("--out={}", at("report.json")),
        format!("--html={}", at("report.html")),
        format!("--requests-out={}", at("requests.jsonl")),
        format!("--url={url}"),
    ]);
    let output = program.args(flags).output().await.unwrap();
    let lines = std::fs::read_to_string(folder.path().join("requests.jsonl")).unwrap();
    let mut records: Vec<Record> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    records.sort_by_key(|record| record.request);
    Driven {
        report: serde_json::from_str(&last_line(&output)).unwrap(),
        records,
        warnings: String::from_utf8(output.stderr).unwrap(),
        folder,
    }
}

/// `loadtest drive`, which ends with the test.
fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.arg("drive").kill_on_drop(true);
    command
}

/// The JSON of a call that succeeded.
fn last_line(output: &Output) -> String {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    text.lines().last().unwrap().to_owned()
}

/// The requests that a closed loop of chats sends: lengths and predecessors, though not the same ids.
fn chats(requests: usize) -> Workload {
    let options = GenerateOptions {
        seed: 3,
        rate: 1.0,
        requests: Some(requests),
        duration: None,
    };
    generate(&Kind::MultiTurn.shape(Some(CHATS)).unwrap(), options).unwrap()
}

#[tokio::test]
async fn lengths_are_exact_and_follow_ups_find_what_was_said() {
    let worker = Worker::start().await;
    let flags = [
        "--workload=multi-turn",
        "--parameters",
        CHATS,
        "--concurrency=4",
        "--requests=40",
        "--seed=3",
    ];
    let driven = drive(&worker.url, &flags).await;
    let run = &driven.report.runs[0];
    assert_eq!(
        (run.succeeded, run.failed.len()),
        (40, 0),
        "{:?}",
        run.failed
    );
    assert_eq!(driven.report.model, "sim");
    let planned = chats(40);
    let mut follow_ups = 0;
    for (record, planned) in driven.records.iter().zip(&planned.requests) {
        assert_eq!(record.prompt_tokens, planned.prompt_tokens());
        assert_eq!(record.answer_tokens, u64::from(planned.answer.tokens));
        let first = record.first_token.unwrap();
        assert!(record.intended <= record.sent.unwrap() && record.sent.unwrap() <= first);
        assert!(first <= record.last_token.unwrap() && record.last_token.unwrap() <= record.end);
        if let Some(after) = planned.after {
            follow_ups += 1;
            let before = &driven.records[after.request];
            // The last token of an answer is never computed, so its keys and values are not there to be found.
            let kept = before.prompt_tokens + before.answer_tokens - 1;
            let found = kept / BLOCK_TOKENS * BLOCK_TOKENS;
            assert!(record.cached_tokens.unwrap() >= found, "{record:?}");
            assert!(record.intended >= before.end + after.pause.as_secs_f64() - 1e-6);
        }
    }
    assert!(follow_ups >= 10, "{follow_ups}");
    assert!(run.cached.is_known && run.cached.share <= run.cached.bound_share + 0.02);
    let page = driven.file("report.html");
    assert!(
        page.contains("<svg") && page.contains("TTFT over time"),
        "{page}"
    );
    assert_eq!(
        serde_json::from_str::<Report>(&driven.file("report.json")).unwrap(),
        driven.report
    );
}

#[tokio::test]
async fn chats_are_answered_and_two_reports_compared() {
    let worker = Worker::start().await;
    let flags = |seed: &'static str| {
        [
            "--form=chat",
            "--workload=multi-turn",
            "--parameters",
            CHATS,
            "--rates=100,200",
            "--requests=20",
            seed,
        ]
    };
    let before = drive(&worker.url, &flags("--seed=1")).await;
    let after = drive(&worker.url, &flags("--seed=2")).await;
    for run in before.report.runs.iter().chain(&after.report.runs) {
        assert_eq!(
            (run.succeeded, run.failed.len()),
            (20, 0),
            "{:?}",
            run.failed
        );
    }
    assert!(before.file("report.html").contains("Goodput against rate"));
    let report = |driven: &Driven| driven.folder.path().join("report.json");
    let compared = compare(
        &report(&before),
        &report(&after),
        &after.folder.path().join("c.html"),
    )
    .await;
    assert_eq!(compared["runs"].as_array().unwrap().len(), 2);
    assert!(
        compared["notes"][0]
            .as_str()
            .unwrap()
            .starts_with("another seed"),
        "{compared}"
    );
    assert!(after.file("c.html").contains("To be kept in mind"));
}

async fn compare(before: &Path, after: &Path, html: &Path) -> serde_json::Value {
    let paths = [before, after, html].map(|path: &Path| path.display().to_string());
    let flags = [
        "--compare",
        &paths[0],
        &paths[1],
        "--html",
        &paths[2],
        "--json",
    ];
    let output = program().args(flags).output().await.unwrap();
    serde_json::from_str(&last_line(&output)).unwrap()
}

#[tokio::test]
async fn failures_are_told_apart() {
    let few = [
        "--workload=unique",
        "--requests=3",
        "--rate=1000",
        "--model=other",
    ];
    let closed_port = free_port().unwrap();
    let refused = drive(&format!("http://127.0.0.1:{closed_port}"), &few).await;
    let failed = &refused.report.runs[0].failed;
    assert_eq!(failed[&ErrorClass::Connect].count, 3, "{failed:?}");
    let worker = Worker::start().await;
    let unknown_model = drive(&worker.url, &few).await;
    let failed = &unknown_model.report.runs[0].failed;
    assert_eq!(failed[&ErrorClass::Status4xx].count, 3, "{failed:?}");
    assert_eq!(unknown_model.records[0].status, Some(404));
    assert!((unknown_model.report.runs[0].goodput).abs() < 1e-9);
}

/// The server answers nothing until the last request has come. Each is charged for all of its wait.
#[tokio::test]
async fn a_stall_is_charged_to_every_request_that_it_delays() {
    const REQUESTS: usize = 20;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(stalled_server(listener, Arc::new(Barrier::new(REQUESTS))));
    let flags = [
        "--workload=unique",
        "--requests=20",
        "--rate=50",
        "--arrivals=fixed",
        "--model=m",
        "--ignore-eos=false",
        "--slo-ttft=200ms",
    ];
    let driven = drive(&url, &flags).await;
    server.abort();
    let run = &driven.report.runs[0];
    assert_eq!(
        (run.succeeded, run.failed.len()),
        (REQUESTS, 0),
        "{:?}",
        run.failed
    );
    let last_due = driven.records.last().unwrap().intended;
    assert!((last_due - 0.38).abs() < 1e-6, "{last_due}");
    for record in &driven.records {
        assert!(
            record.ttft().unwrap() >= last_due - record.intended,
            "{record:?}"
        );
    }
    assert!(run.ttft.as_ref().unwrap().p50_ms >= 180.0);
    let workers = run
        .workers
        .iter()
        .map(|worker| (worker.name.as_str(), worker.requests));
    assert_eq!(workers.collect::<Vec<_>>(), [("w", REQUESTS)]);
    assert!(run.good_share <= 0.56, "{}", run.good_share);
}

/// A request beyond `--in-flight-max` is not sent, and counted.
#[tokio::test]
async fn requests_beyond_the_bound_are_counted() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // It waits for more requests than there will ever be.
    let server = tokio::spawn(stalled_server(listener, Arc::new(Barrier::new(100))));
    let flags = [
        "--workload=unique",
        "--requests=10",
        "--rate=1000",
        "--model=m",
        "--in-flight-max=4",
        "--timeout=300ms",
    ];
    let driven = drive(&url, &flags).await;
    server.abort();
    let failed = &driven.report.runs[0].failed;
    assert_eq!(failed[&ErrorClass::InFlightLimit].count, 6, "{failed:?}");
    assert_eq!(failed[&ErrorClass::Timeout].count, 4, "{failed:?}");
}

async fn stalled_server(listener: TcpListener, all_are_here: Arc<Barrier>) {
    while let Ok((socket, _)) = listener.accept().await {
        tokio::spawn(answer_when_all_are_here(socket, Arc::clone(&all_are_here)));
    }
}

async fn answer_when_all_are_here(mut socket: TcpStream, all_are_here: Arc<Barrier>) {
    let mut request = Vec::new();
    while !is_whole(&request) {
        let mut buffer = [0; 4096];
        match socket.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => request.extend_from_slice(&buffer[..length]),
        }
    }
    all_are_here.wait().await;
    let answer = "HTTP/1.1 200 OK\r\nx-served-by: w\r\nconnection: close\r\n\r\n\
        data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":\"length\"}]}\n\ndata: [DONE]\n\n";
    let _sent = socket.write_all(answer.as_bytes()).await;
}

/// Whether head and body are there.
fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let head = head.to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    length.is_some_and(|length| body.len() >= length.trim().parse().unwrap())
}

/// What a comparison reads is checked: another file is refused by name.
#[tokio::test]
async fn a_file_that_is_no_report_is_refused() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let path = path.display().to_string();
    let output = program()
        .args(["--compare", &path, &path])
        .output()
        .await
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        !output.status.success() && text.contains("Cargo.toml is no report of loadtest drive"),
        "{text}"
    );
}
