//! Other people's clients against the worker alone: the `openai` package, and the load driver that comes with vLLM.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use pointsman_loadtest::stack::{MODEL_NAME, Stack, StackOptions, Worker, workspace_root};
use pointsman_tests::exposition::Exposition;
use serde_json::Value;
use tokio::process::Command;

use crate::packages::{openai, run, vllm_rs};

const CLIENT_DEADLINE: Duration = Duration::from_mins(3);
/// The key that the worker asks for.
const KEY: &str = "a-key-of-this-test";

#[tokio::test]
async fn the_openai_client_finds_a_worker_as_it_expects_one() -> Result<()> {
    let packages = openai().await?;
    let options = StackOptions::new()
        .worker_flag(format!("--api-key={KEY}"))
        .worker_flag("--max-num-seqs=8")
        .worker_flag("--max-num-queued-reqs=8");
    let stack = Stack::start(options).await?;
    let url = format!("{}/v1", stack.workers()[0].url());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/worker_openai.py");
    let mut python = Command::new("python3");
    python
        .arg(script)
        .args([&url, MODEL_NAME, KEY])
        .env("PYTHONPATH", packages)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    run(&mut python, CLIENT_DEADLINE).await?;
    Ok(())
}

/// One run of `vllm-rs bench serve`; returns the report that it saved.
async fn bench(worker: &Worker, backend: &str, flags: &[&str]) -> Result<Value> {
    let folder = tempfile::tempdir()?;
    let mut bench = Command::new(vllm_rs().await?);
    bench
        .args([
            "bench",
            "serve",
            "--disable-tqdm",
            "--save-result",
            "--result-filename",
            "report.json",
        ])
        .arg("--result-dir")
        .arg(folder.path())
        .args([
            "--backend",
            backend,
            "--base-url",
            &worker.url(),
            "--model",
            MODEL_NAME,
        ])
        .arg("--tokenizer")
        .arg(workspace_root().join("engine/demo-model"))
        .args([
            "--dataset-name",
            "random",
            "--num-prompts",
            "24",
            "--max-concurrency",
            "4",
        ])
        .args(flags);
    println!("{}", run(&mut bench, CLIENT_DEADLINE).await?);
    let report = std::fs::read(folder.path().join("report.json"));
    Ok(serde_json::from_slice(&report.context("no report")?)?)
}

/// (prompt tokens, generated tokens) that the worker counted so far.
async fn counted(worker: &Worker) -> Result<(u64, u64)> {
    let page = Exposition::scrape(worker.address()).await?;
    let total = |name: &str| page.count(name, &[]).with_context(|| format!("no {name}"));
    Ok((
        total("vllm:prompt_tokens_total")?,
        total("vllm:generation_tokens_total")?,
    ))
}

#[tokio::test]
async fn vllms_load_driver_counts_what_the_worker_counts() -> Result<()> {
    const INPUT: u64 = 24 * 64;
    const OUTPUT: u64 = 24 * 16;
    let stack = Stack::start(StackOptions::new()).await?;
    let worker = &stack.workers()[0];
    let lengths = [
        "--random-input-len",
        "64",
        "--random-output-len",
        "16",
        "--ignore-eos",
    ];
    let with_ids = [&lengths[..], &["--prompt-token-ids"]].concat();
    for (backend, flags) in [("openai", &with_ids[..]), ("openai-chat", &lengths)] {
        let before = counted(worker).await?;
        let report = bench(worker, backend, flags).await?;
        let after = counted(worker).await?;
        assert_eq!(report["completed"], 24, "{backend}: {report}");
        assert_eq!(report["failed"], 0, "{backend}: {report}");
        assert_eq!(report["total_output_tokens"], OUTPUT, "{backend}");
        assert_eq!(after.1 - before.1, OUTPUT, "{backend}");
        if backend == "openai" {
            assert_eq!(report["total_input_tokens"], INPUT);
            assert_eq!(after.0 - before.0, INPUT);
        }
    }
    let report = bench(worker, "openai-embeddings", &["--random-input-len", "64"]).await?;
    assert_eq!(
        (&report["completed"], &report["failed"]),
        (&24.into(), &0.into()),
        "{report}"
    );
    Ok(())
}
