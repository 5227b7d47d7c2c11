//! The demo model's greedy tokens, against those of the reference implementation.
//!
//! The expected tokens were made by `transformers` in f32. Here every case runs alone, all of them together, in small
//! chunks and out of the prefix cache; the tokens must be the same each time.

#![expect(clippy::unwrap_used, reason = "every function here is part of a test")]

use std::path::{Path, PathBuf};

use pointsman_engine::backend::{BackendChoice, select};
use pointsman_engine::kv::HashRecipe;
use pointsman_engine::model::Model;
use pointsman_engine::worker::{
    EngineHandle, EventSink, Finish, NewRequest, Observer, RequestReport, RequestStream,
    SamplingParams, SchedulerConfig, Stats, StepReport, start,
};
use serde::Deserialize;

/// What the reference was asked for.
const MAX_TOKENS: u32 = 48;

/// Below this distance between the two best logits, rounding may decide, and the cases would prove nothing.
const MARGIN_MIN: f64 = 1e-3;

#[derive(Deserialize)]
struct Golden {
    model_sha256: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    prompt_token_ids: Vec<u32>,
    output_token_ids: Vec<u32>,
    finish_reason: String,
    top2_margin_min: f64,
}

struct Ignore;

impl EventSink for Ignore {
    fn publish(&mut self, _: Vec<pointsman_proto::kv_events::Event<[u8; 32]>>) {}
}

impl Observer for Ignore {
    fn gauges(&mut self, _: &Stats) {}
    fn step(&mut self, _: &StepReport) {}
    fn request_finished(&mut self, _: &RequestReport) {}
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-model")
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/demo_model_greedy.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn engine(threads: usize, max_num_batched_tokens: u32, prefix_caching: bool) -> EngineHandle {
    let model = Model::open(&folder()).unwrap();
    let backend = select(BackendChoice::Cpu, &model, threads).unwrap();
    let recipe = HashRecipe::sha256_cbor("vllm-none-hash");
    let config = SchedulerConfig {
        block_size: 16,
        blocks: 1025,
        max_num_seqs: 16,
        max_num_batched_tokens,
        max_num_queued: 1000,
        max_model_len: model.config.max_position_embeddings as u32,
        vocab_size: model.config.vocab_size as u32,
        prefix_cache: prefix_caching.then_some(recipe),
        kv_events: false,
        eos_token_ids: model.generation.eos_token_ids.clone(),
        seed: 0,
        ..SchedulerConfig::default()
    };
    start(config, backend, Box::new(Ignore), Box::new(Ignore))
        .unwrap()
        .0
}

fn submit(engine: &EngineHandle, case: &Case) -> RequestStream {
    engine
        .submit(NewRequest::new(
            case.name.as_str(),
            case.prompt_token_ids.clone(),
            SamplingParams::greedy(MAX_TOKENS),
        ))
        .unwrap()
}

/// Checks a case's tokens and end; its cached tokens.
fn check(case: &Case, mut stream: RequestStream) -> u32 {
    let (mut tokens, mut cached, mut finish) = (Vec::new(), 0, None);
    while let Some(update) = stream.blocking_next() {
        tokens.extend(update.token);
        cached = update.cached_tokens;
        finish = update.finish;
    }
    assert_eq!(tokens, case.output_token_ids, "{}", case.name);
    let expected = match case.finish_reason.as_str() {
        "stop" => Finish::Stop { token: None },
        _ => Finish::Length,
    };
    assert_eq!(finish, Some(expected), "{}", case.name);
    cached
}

fn check_all(engine: &EngineHandle, golden: &Golden) {
    let streams: Vec<_> = golden
        .cases
        .iter()
        .map(|case| submit(engine, case))
        .collect();
    for (case, stream) in golden.cases.iter().zip(streams) {
        check(case, stream);
    }
}

#[test]
fn the_expected_tokens_belong_to_these_weights() {
    use sha2::Digest;
    let golden = golden();
    let weights = std::fs::read(folder().join("model.safetensors")).unwrap();
    let digest = sha2::Sha256::digest(weights);
    let hex = &golden.model_sha256;
    let bytes = (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16));
    let expected: Vec<u8> = bytes.collect::<Result<_, _>>().unwrap();
    assert_eq!(digest.as_slice(), expected);
    assert!(golden.cases.len() >= 4);
    for case in &golden.cases {
        assert!(
            case.top2_margin_min > MARGIN_MIN,
            "{} hangs on rounding",
            case.name
        );
    }
}

#[test]
fn alone() {
    let (engine, golden) = (engine(1, 2048, false), golden());
    for case in &golden.cases {
        check(case, submit(&engine, case));
    }
}

#[test]
fn all_together() {
    for threads in [1, 2] {
        check_all(&engine(threads, 2048, false), &golden());
    }
}

#[test]
fn in_small_chunks() {
    check_all(&engine(1, 32, true), &golden());
}

#[test]
fn out_of_the_prefix_cache() {
    let (engine, golden) = (engine(1, 2048, true), golden());
    check_all(&engine, &golden);
    let mut hits = 0;
    for case in &golden.cases {
        let cached = check(case, submit(&engine, case));
        assert_eq!(
            cached,
            (case.prompt_token_ids.len() as u32 - 1) / 16 * 16,
            "{}",
            case.name
        );
        hits += cached;
    }
    assert!(hits > 0, "no case is long enough for a hit");
}
