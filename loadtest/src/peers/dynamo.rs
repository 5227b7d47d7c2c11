//! Dynamo's offline replay: the same requests, as a trace in the format that it reads.
//!
//! It installs without what the packages call their dependencies. The replay needs three small ones of them; others are
//! large, and one is a pointer to another index.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustc_hash::FxHashMap;
use serde::Deserialize;
use serde_json::json;
use tokio::process::Command;

use super::PeersOptions;
use super::table::Measured;
use crate::drive::Slo;
use crate::pypi::{self, succeed};
use crate::stack::workspace_root;
use crate::workload::Workload;
use crate::workload::tokens::{Vocabulary, mix, write_ids};

/// Its two ways to pick.
pub(super) const MODES: [&str; 2] = ["round_robin", "kv_router"];
/// What the replay imports.
const NEEDED: [&str; 3] = ["typing-extensions", "msgspec", "pyzmq"];
/// Tokens that an id of the trace stands for.
const BLOCK_TOKENS: usize = 64;
const VOCABULARY: Vocabulary = Vocabulary {
    first: 0,
    count: u32::MAX,
};

/// One that is installed.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) version: String,
    python: PathBuf,
}

impl Replay {
    pub(super) async fn install(version: &str, target: &Path) -> Result<Replay> {
        let name = format!("ai-dynamo=={version}");
        let runtime = format!("ai-dynamo-runtime=={version}");
        let wanted = ["--no-deps", &name, &runtime].into_iter().chain(NEEDED);
        let folder = target.join("peers").join(&name);
        let python = pypi::environment(&folder, wanted).await;
        Ok(Replay {
            version: version.to_owned(),
            python: python.with_context(|| name.clone())?,
        })
    }

    pub(super) async fn run(
        &self,
        mode: &str,
        workload: &Workload,
        options: &PeersOptions,
        slo: Slo,
    ) -> Result<Measured> {
        let mut trace = tempfile::Builder::new().suffix(".jsonl").tempfile()?;
        trace.write_all(lines(workload, BLOCK_TOKENS).as_bytes())?;
        let asked = json!({
            "trace": trace.path(),
            "workers": options.fleet.workers,
            "mode": mode,
            "block_tokens": BLOCK_TOKENS,
            "slo_ttft_ms": slo.ttft.map(|seconds| seconds * 1e3),
            "slo_itl_ms": slo.itl.map(|seconds| seconds * 1e3),
        });
        let script = workspace_root().join("loadtest/peers/dynamo/replay.py");
        let mut command = Command::new(&self.python);
        command.arg(script).arg(asked.to_string());
        let output = succeed(&mut command, "the replay").await?;
        measured(&output)
    }
}

/// What its summary calls things.
#[derive(Debug, Deserialize)]
struct Summary {
    num_ttft_samples: usize,
    mean_ttft_ms: f64,
    median_ttft_ms: f64,
    p90_ttft_ms: f64,
    p99_ttft_ms: f64,
    prefix_cache_reused_ratio: f64,
    goodput_request_throughput_rps: Option<f64>,
}

fn measured(output: &[u8]) -> Result<Measured> {
    let text = String::from_utf8_lossy(output);
    let Some(line) = text.lines().next_back() else {
        bail!("the replay printed nothing");
    };
    let summary: Summary =
        serde_json::from_str(line).with_context(|| format!("the replay printed {line}"))?;
    Ok(Measured {
        requests: summary.num_ttft_samples,
        ttft_mean_ms: Some(summary.mean_ttft_ms),
        ttft_p50_ms: Some(summary.median_ttft_ms),
        ttft_p90_ms: Some(summary.p90_ttft_ms),
        ttft_p99_ms: Some(summary.p99_ttft_ms),
        cached_share: Some(summary.prefix_cache_reused_ratio),
        goodput_per_s: summary.goodput_request_throughput_rps,
        ..Measured::default()
    })
}

/// The requests as lines of a trace, an id for each block of a prompt and all that is before it. What waits for an
/// answer comes at its planned time.
fn lines(workload: &Workload, block_tokens: usize) -> String {
    let mut ids: FxHashMap<u64, usize> = FxHashMap::default();
    let (mut text, mut tokens) = (String::new(), Vec::new());
    for request in &workload.requests {
        write_ids(&request.prompt, VOCABULARY, &mut tokens);
        let mut chain = 0;
        let blocks = tokens.chunks(block_tokens).map(|block| {
            chain = block
                .iter()
                .fold(mix(chain), |chain, token| mix(chain ^ u64::from(*token)));
            let next = ids.len();
            *ids.entry(chain).or_insert(next)
        });
        let blocks: Vec<usize> = blocks.collect();
        let line = json!({
            "timestamp": request.at.as_millis(),
            "input_length": tokens.len(),
            "output_length": request.answer.tokens,
            "hash_ids": blocks,
        });
        let _written = writeln!(text, "{line}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::workload::{PlannedRequest, Segment};

    #[test]
    fn equal_prefixes_have_equal_ids() {
        let request = |at: u64, prompt: &[(u64, u32)]| PlannedRequest {
            at: Duration::from_millis(at),
            prompt: prompt
                .iter()
                .map(|&(id, tokens)| Segment { id, tokens })
                .collect(),
            answer: Segment { id: 9, tokens: 7 },
            session: 0,
            tenant: 0,
            after: None,
        };
        let workload = Workload {
            name: String::new(),
            requests: vec![
                request(0, &[(1, 20), (2, 5)]),
                request(1500, &[(1, 20), (3, 15)]),
                request(1500, &[(4, 20), (1, 20)]),
            ],
        };
        let text = lines(&workload, 10);
        let read: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(read[0]["hash_ids"], json!([0, 1, 2]));
        assert_eq!(read[1]["hash_ids"], json!([0, 1, 3, 4]));
        assert_eq!(read[2]["hash_ids"], json!([5, 6, 7, 8]));
        assert_eq!(
            (&read[1]["timestamp"], &read[1]["input_length"]),
            (&json!(1500), &json!(35))
        );
        assert_eq!(read[0]["output_length"], json!(7));
    }

    #[test]
    fn the_last_line_is_the_summary() {
        let summary = json!({
            "num_ttft_samples": 3, "mean_ttft_ms": 2.0, "median_ttft_ms": 1.5, "p90_ttft_ms": 3.0,
            "p99_ttft_ms": 4.0, "prefix_cache_reused_ratio": 0.25, "other": "x",
        });
        let read = measured(format!("a warning\n{summary}\n").as_bytes()).unwrap();
        assert_eq!((read.requests, read.cached_share), (3, Some(0.25)));
        assert_eq!(read.router_cpu_s, None);
        assert!(measured(b"").is_err() && measured(b"{}").is_err());
    }
}
