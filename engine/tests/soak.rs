//! A worker at saturation under clients that misbehave: nothing is lost, nothing is held, memory stays flat.
//!
//! Sixteen clients ask without pause for more than the worker can hold: few blocks, so that requests are preempted all
//! the time; a short queue, so that some are refused. Some clients leave in the middle of a stream, some before their
//! answer, some in the middle of their own request. Afterwards nothing may run, wait or hold a block, and the process
//! may not have grown. Ten seconds by default; `SOAK_SECONDS=600` for the real thing.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers as well"
)]

#[path = "api/support.rs"]
#[expect(
    dead_code,
    reason = "made for the tests of the API, which use all of it"
)]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use pointsman_engine::worker::EngineHandle;
use serde_json::{Value, json};
use support::{DEADLINE, Events, Reply, Worker};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const CLIENTS: u64 = 16;
/// Prompts begin with one of so many texts, so that some prefixes are shared and all compete for the blocks.
const PREFIXES: u64 = 5;
/// The longest run that is too short for the memory to have settled at a quarter of it.
const SHORT: Duration = Duration::from_mins(1);

/// What became of the requests.
#[derive(Default, Debug)]
struct Tally {
    answered: AtomicU64,
    streamed: AtomicU64,
    left_stream: AtomicU64,
    left_before_answer: AtomicU64,
    left_own_request: AtomicU64,
    refused: AtomicU64,
    tokens: AtomicU64,
}

impl Tally {
    fn count(cell: &AtomicU64) {
        cell.fetch_add(1, Ordering::Relaxed);
    }
}

/// Repeatable numbers (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }
}

/// A request of any length and any kind of sampling.
fn request(dice: &mut Dice, stream: bool) -> Value {
    let prefix = dice.roll(PREFIXES);
    let shared = (0..dice.roll(12) * 16).map(|token| 5 + prefix * 7 + token % 90);
    let own: Vec<u64> = (0..=dice.roll(60)).map(|_| 5 + dice.roll(200)).collect();
    let prompt: Vec<u64> = shared.chain(own).collect();
    let mut body = json!({
        "prompt": prompt,
        "max_tokens": 1 + dice.roll(90),
        "ignore_eos": dice.roll(4) > 0,
        "stream": stream,
        "temperature": dice.roll(2),
    });
    if dice.roll(4) == 0 {
        body["n"] = json!(1 + dice.roll(3));
    }
    if dice.roll(4) == 0 {
        body["logprobs"] = json!(dice.roll(4));
    }
    if dice.roll(4) == 0 {
        body["repetition_penalty"] = json!(1.2);
    }
    body
}

/// Sends a request; none where the worker had no room.
async fn send(
    worker: &Worker,
    tally: &Tally,
    body: &Value,
) -> Option<hyper::Response<hyper::body::Incoming>> {
    let response = worker
        .send(Method::POST, "/v1/completions", &[], body.to_string())
        .await;
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        assert!(response.headers().contains_key("retry-after"));
        Tally::count(&tally.refused);
        return None;
    }
    assert_eq!(response.status(), StatusCode::OK, "{body}");
    Some(response)
}

async fn whole(worker: &Worker, tally: &Tally, body: &Value) {
    let Some(response) = send(worker, tally, body).await else {
        return;
    };
    let answer = Reply::read(response).await.json();
    let n = body["n"].as_u64().unwrap_or(1);
    assert_eq!(answer["choices"].as_array().unwrap().len() as u64, n);
    let generated = answer["usage"]["completion_tokens"].as_u64().unwrap();
    assert!(
        generated <= n * body["max_tokens"].as_u64().unwrap(),
        "{answer}"
    );
    assert_eq!(
        answer["usage"]["prompt_tokens"].as_u64().unwrap() as usize,
        body["prompt"].as_array().unwrap().len()
    );
    tally.tokens.fetch_add(generated, Ordering::Relaxed);
    Tally::count(&tally.answered);
}

/// Reads a stream to its end, or leaves it after some events.
async fn stream(worker: &Worker, tally: &Tally, body: &Value, leave_after: Option<u64>) {
    let Some(response) = send(worker, tally, body).await else {
        return;
    };
    let mut events = Events::of(response);
    let mut seen = 0;
    while leave_after.is_none_or(|limit| seen < limit) {
        let event = events.next().await.expect("a stream ends with [DONE]");
        assert!(!event.contains("\"error\""), "{event}");
        if event == "[DONE]" {
            Tally::count(&tally.streamed);
            return;
        }
        seen += 1;
    }
    Tally::count(&tally.left_stream);
}

/// Goes away while the worker computes.
async fn leave_before_answer(worker: &Worker, tally: &Tally, body: &Value, patience: Duration) {
    if tokio::time::timeout(patience, send(worker, tally, body))
        .await
        .is_err()
    {
        Tally::count(&tally.left_before_answer);
    }
}

/// Goes away in the middle of its own body.
async fn leave_own_request(worker: &Worker, tally: &Tally, body: &Value) {
    let body = body.to_string();
    let (half, _) = body.split_at(body.len() / 2);
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{half}",
        body.len()
    );
    let mut connection = TcpStream::connect(&worker.address).await.unwrap();
    connection.write_all(head.as_bytes()).await.unwrap();
    Tally::count(&tally.left_own_request);
}

async fn client(worker: Arc<Worker>, tally: Arc<Tally>, seed: u64, end: Instant) {
    let mut dice = Dice(seed);
    while Instant::now() < end {
        let kind = dice.roll(10);
        let body = request(&mut dice, (3..8).contains(&kind));
        match kind {
            0..3 => whole(&worker, &tally, &body).await,
            3..6 => stream(&worker, &tally, &body, None).await,
            6..8 => stream(&worker, &tally, &body, Some(dice.roll(8))).await,
            8 => {
                let patience = Duration::from_millis(1 + dice.roll(40));
                leave_before_answer(&worker, &tally, &body, patience).await;
            }
            _ => leave_own_request(&worker, &tally, &body).await,
        }
    }
}

/// Resident memory of this process in KiB.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let digits = line.unwrap().trim().trim_end_matches(" kB");
    digits.parse().unwrap()
}

/// Runs all clients until `end`.
async fn run(worker: &Arc<Worker>, tally: &Arc<Tally>, seed: u64, end: Instant) {
    let clients = (0..CLIENTS).map(|number| {
        let client = client(Arc::clone(worker), Arc::clone(tally), seed + number, end);
        tokio::spawn(client)
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    worker
        .until_engine("nothing is alive", EngineHandle::is_idle)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saturated_worker_ends_clean() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(10, |text| text.parse().unwrap());
    let (whole, started) = (Duration::from_secs(seconds), Instant::now());
    let few_blocks = ["--num-gpu-blocks-override", "48", "--max-model-len", "400"];
    let little_room = ["--max-num-seqs", "8", "--max-num-queued-reqs", "16"];
    let small_steps = ["--max-num-batched-tokens", "64"];
    let flags = [&few_blocks[..], &little_room, &small_steps].concat();
    let worker = Arc::new(Worker::start(&flags).await);
    let tally = Arc::new(Tally::default());

    run(&worker, &tally, 1, started + whole / 4).await;
    let early = resident_kib();
    run(&worker, &tally, 1000, started + whole).await;
    let late = resident_kib();

    let stats = worker.engine.stats();
    println!(
        "soak of {whole:?}: {tally:?}, {stats:?}, resident {early} KiB at a quarter, {late} KiB at the end"
    );
    assert_eq!(
        (stats.running, stats.waiting, stats.blocks_used),
        (0, 0, 0),
        "something is held"
    );
    assert!(
        stats.preemptions > 0,
        "a soak without preemptions shows little"
    );
    for (what, cell) in [
        ("answers", &tally.answered),
        ("streams", &tally.streamed),
        ("streams that were left", &tally.left_stream),
        ("requests that were left", &tally.left_before_answer),
        ("half requests", &tally.left_own_request),
        ("refusals", &tally.refused),
    ] {
        assert!(
            cell.load(Ordering::Relaxed) > 0,
            "a soak without {what} shows little"
        );
    }
    let growth = late as f64 / early as f64;
    let limit = if whole < SHORT { 1.25 } else { 1.05 };
    assert!(growth <= limit, "{early} KiB grew to {late} KiB");

    let short = json!({"prompt": "x", "max_tokens": 1});
    worker.ask("/v1/completions", &short).await;
    let worker = Arc::into_inner(worker).expect("the clients are gone");
    tokio::time::timeout(DEADLINE, worker.stop())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}
