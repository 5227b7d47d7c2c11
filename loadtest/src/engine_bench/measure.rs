//! The rounds: who does what when.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::sync::watch;

use super::bandwidth::Bandwidth;
use super::load::{Stream, common_rate, prompt, stream};
use super::model::BenchModel;
use super::peers::{self, Peer};
use super::report::{Engine, Report, Round};
use super::stream_rate::{StreamRate, stream_rate};
use super::worker::{BENCH_MODEL, BenchWorker};
use super::{EngineBenchOptions, folder, median, percentile};
use crate::stack::{Binaries, Progress, workspace_root};

/// Prompt of each sequence before its decoding is timed.
const DECODE_CONTEXT: usize = 16;
/// Tokens of a decode turn.
const DECODE_TOKENS: usize = 64;
const LARGE_BATCH: usize = 8;
const PREFILL_TOKENS: usize = 512;
/// The prompt that is sent twice.
const CACHED_PROMPT: usize = 2_000;
const CACHED_ROUNDS: usize = 5;
/// Chats that run while a long prompt comes in.
const CHATS: usize = 4;
/// Tokens of an answer; a chat whose answer is over asks again. A chat that went on for as long as the long prompt takes
/// would have thousands of tokens of its own by then, and its gaps would be those of a longer context.
const CHAT_TOKENS: usize = 512;
const LONG_PROMPT: usize = 16_000;
/// Streams of the simulated backend, and their tokens.
const STREAMS: usize = 256;
const STREAM_TOKENS: u32 = 2_000;
const STREAM_ROUNDS: usize = 3;
/// How long the chats are watched without it.
const CALM: Duration = Duration::from_secs(20);
/// Looks at the page of metrics while chats run, and the time from one to the next.
const SCRAPES: usize = 200;
const SCRAPE_INTERVAL: Duration = Duration::from_millis(25);
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(5);
/// By then the chats' own prompts are over.
const SETTLE: Duration = Duration::from_secs(2);

/// Everything, in the order of the report.
pub(super) async fn all(options: &EngineBenchOptions, progress: &dyn Progress) -> Result<Report> {
    let home = folder()?;
    progress.begin("the model");
    let model = BenchModel::make(&home)?;
    progress.ready();
    progress.begin("building the worker");
    let engine = &Binaries::build(options.profile).await?.engine;
    progress.ready();
    progress.begin("the peers");
    let mut peers = if options.no_peers {
        Vec::new()
    } else {
        let python = peers::python(options.python.as_deref(), &home).await?;
        Peer::start_all(&python, &model, &home, options.threads).await?
    };
    progress.ready();
    progress.begin("the worker");
    let logs = tempfile::tempdir()?;
    let start = async |name: &str, more: &[&str]| {
        let flags = flags(&model, options.threads, more);
        BenchWorker::start(name, engine, &flags, logs.path()).await
    };
    let bf16 = start("bf16", &[]).await?;
    let int8 = start("int8", &["--quantization=int8"]).await?;
    progress.ready();
    progress.begin("decode and prefill");
    let bandwidth = Bandwidth::new(options.threads, model.bytes as usize)?;
    let mut report = Report::new(&model, options, &peers);
    for _ in 0..options.rounds {
        let mut round = Round {
            bandwidth: bandwidth.measure(),
            engines: vec![worker_turn(&bf16).await?, worker_turn(&int8).await?],
        };
        for peer in &mut peers {
            round.engines.push(peer_turn(peer).await?);
        }
        report.rounds.push(round);
    }
    drop((peers, bandwidth));
    int8.stop().await?;
    progress.ready();
    progress.begin("a cached prompt");
    report.cached = cached_prompt(&bf16).await?;
    progress.ready();
    progress.begin("a long prompt beside running chats");
    report.long_prompt = long_prompt(&bf16).await?;
    progress.ready();
    progress.begin("scrapes beside running chats");
    report.scrapes = scrapes(&bf16).await?;
    bf16.stop().await?;
    progress.ready();
    progress.begin("streams of the simulated backend");
    report.sim_tokens = Some(simulated(engine, logs.path()).await?);
    progress.ready();
    Ok(report)
}

/// Tokens a second that one worker streams when computing costs nothing: the median of a few rounds.
async fn simulated(engine: &Path, logs: &Path) -> Result<f64> {
    let model = workspace_root().join("engine/demo-model");
    let flags = [
        format!("--model={}", model.display()),
        "--backend=sim".to_owned(),
        "--sim-speedup=1000".to_owned(),
        format!("--max-num-seqs={STREAMS}"),
    ];
    let worker = BenchWorker::start("sim", engine, &flags, logs).await?;
    let load = StreamRate {
        address: worker.address,
        model: BENCH_MODEL.to_owned(),
        streams: STREAMS,
        max_tokens: STREAM_TOKENS,
    };
    let mut rates = Vec::new();
    for _ in 0..STREAM_ROUNDS {
        let load = load.clone();
        // One thread of its own, so that the client takes no more of the two cores than it must.
        let round = tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(stream_rate(&load))
        });
        rates.push(round.await??.rate());
    }
    worker.stop().await?;
    median(&rates).context("no rounds")
}

fn flags(model: &BenchModel, threads: u32, more: &[&str]) -> Vec<String> {
    let mut flags = vec![
        format!("--model={}", model.folder.display()),
        format!("--threads={threads}"),
        "--backend=cpu".to_owned(),
        // Room for the long prompt and the chats beside it.
        "--kv-cache-memory-bytes=3GiB".to_owned(),
    ];
    flags.extend(more.iter().map(ToString::to_string));
    flags
}

async fn worker_turn(worker: &BenchWorker) -> Result<Engine> {
    let prefill = stream(worker, &prompt(PREFILL_TOKENS), 1, None).await?;
    let prefill = prefill.first().context("a prefill without a token")?;
    Ok(Engine {
        decode_1: decode(worker, 1).await?,
        decode_8: decode(worker, LARGE_BATCH).await?,
        prefill: PREFILL_TOKENS as f64 / prefill,
    })
}

/// Tokens a second.
async fn decode(worker: &BenchWorker, batch: usize) -> Result<f64> {
    let prompts: Vec<_> = (0..batch).map(|_| prompt(DECODE_CONTEXT)).collect();
    // The first token ends the prefill and is not decoding.
    let streams = prompts
        .iter()
        .map(|prompt| stream(worker, prompt, DECODE_TOKENS + 1, None));
    let streams = futures_util::future::try_join_all(streams).await?;
    common_rate(&streams).context("streams that never ran together")
}

async fn peer_turn(peer: &mut Peer) -> Result<Engine> {
    let prefill = peer.prefill(PREFILL_TOKENS).await?;
    let alone = peer.decode(1, DECODE_CONTEXT, DECODE_TOKENS).await?;
    let together = peer
        .decode(LARGE_BATCH, DECODE_CONTEXT, DECODE_TOKENS)
        .await?;
    Ok(Engine {
        decode_1: DECODE_TOKENS as f64 / alone,
        decode_8: (LARGE_BATCH * DECODE_TOKENS) as f64 / together,
        prefill: PREFILL_TOKENS as f64 / prefill,
    })
}

/// Seconds to the first token of a prompt, new and again; medians.
async fn cached_prompt(worker: &BenchWorker) -> Result<(f64, f64)> {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for _ in 0..CACHED_ROUNDS {
        let prompt = prompt(CACHED_PROMPT);
        first.extend(stream(worker, &prompt, 1, None).await?.first());
        second.extend(stream(worker, &prompt, 1, None).await?.first());
    }
    let both = median(&first).zip(median(&second));
    both.context("no first token")
}

/// The 99th percentile of the chats' gaps without and with the long prompt beside them, and its own time to the first
/// token.
async fn long_prompt(worker: &BenchWorker) -> Result<LongPrompt> {
    let mut watched = Chats::default();
    let streams = beside_chats(worker, async || {
        watched.calm.0 = Some(Instant::now());
        tokio::time::sleep(CALM).await;
        watched.calm.1 = Some(Instant::now());
        let long = stream(worker, &prompt(LONG_PROMPT), 1, None).await;
        watched.busy = Some((Instant::now(), long));
        Ok(())
    });
    let streams = streams.await?;
    watched.result(&streams)
}

/// Runs chats, and `work` beside them once their first prompts are over. Returns all answers, the last of each chat
/// cut short.
async fn beside_chats(
    worker: &BenchWorker,
    work: impl AsyncFnOnce() -> Result<()>,
) -> Result<Vec<Stream>> {
    let (stop, stopped) = watch::channel(false);
    let chats = (0..CHATS).map(|number| chat(worker, number, stopped.clone()));
    let chats = futures_util::future::try_join_all(chats);
    let work = async {
        tokio::time::sleep(SETTLE).await;
        let done = work().await;
        // Nobody listens when the chats have failed.
        let _ = stop.send(true);
        done
    };
    let (streams, ()) = tokio::try_join!(chats, work)?;
    Ok(streams.into_iter().flatten().collect())
}

/// One answer after another until `stopped`. The first answers are of different lengths, so that the chats do not ask
/// all at once.
async fn chat(
    worker: &BenchWorker,
    number: usize,
    stopped: watch::Receiver<bool>,
) -> Result<Vec<Stream>> {
    let mut streams = Vec::new();
    let mut tokens = CHAT_TOKENS * (number + 1) / CHATS;
    while !*stopped.borrow() {
        let prompt = prompt(DECODE_CONTEXT);
        streams.push(stream(worker, &prompt, tokens, Some(stopped.clone())).await?);
        tokens = CHAT_TOKENS;
    }
    Ok(streams)
}

/// Seconds that a look at the page of metrics takes while chats run, as whoever looks sees it: each.
async fn scrapes(worker: &BenchWorker) -> Result<Vec<f64>> {
    let page = format!("{}/metrics", worker.url);
    let mut seconds = Vec::with_capacity(SCRAPES);
    beside_chats(worker, async || {
        for _ in 0..SCRAPES {
            tokio::time::sleep(SCRAPE_INTERVAL).await;
            let started = Instant::now();
            let reply = worker.http.get(&page, SCRAPE_TIMEOUT).await?;
            seconds.push(started.elapsed().as_secs_f64());
            ensure!(reply.status.is_success(), "{}: {page}", reply.status);
        }
        Ok(())
    })
    .await?;
    Ok(seconds)
}

/// What the chats were watched through.
#[derive(Default)]
struct Chats {
    calm: (Option<Instant>, Option<Instant>),
    busy: Option<(Instant, Result<Stream>)>,
}

/// See [`long_prompt`]; all in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LongPrompt {
    pub(super) gap_without: f64,
    pub(super) gap_with: f64,
    pub(super) first_token: f64,
}

impl Chats {
    fn result(self, streams: &[Stream]) -> Result<LongPrompt> {
        let (from, to) = (self.calm.0.zip(self.calm.1)).context("the chats were not watched")?;
        let (end, long) = self.busy.context("the long prompt was not sent")?;
        let long = long?;
        let gaps = |window| {
            let all: Vec<f64> = streams
                .iter()
                .flat_map(|stream| stream.gaps(window))
                .collect();
            percentile(&all, 0.99)
        };
        Ok(LongPrompt {
            gap_without: gaps((from, to)).context("no gaps without the long prompt")?,
            gap_with: gaps((to, end)).context("no gaps beside the long prompt")?,
            first_token: long.first().context("no first token")?,
        })
    }
}
