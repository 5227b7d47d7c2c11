//! The simulator held against the real stack: the same requests through Envoy, epp and eight worker processes, over
//! HTTP, gRPC and ZMQ, and in virtual time.
//!
//! It is short: a minute of load on slow simulated GPUs, whose seconds are long beside what a busy machine
//! adds to them. `loadtest validate` runs longer ones; loadtest/README.md has their figures.

use std::process::Stdio;

use serde_json::Value;

/// What the shares of cached tokens may differ by, in percent.
const WITHIN: &str = "--within=10";
/// What the times may. The goal is 10; the rest is for a machine that does other things as well, which makes the
/// real side slower and never the simulated one.
const TTFT_WITHIN: &str = "--ttft-within=20";

/// System prompts of 3,000 tokens in front of short questions, at half of what the fleet carries.
const PARAMETERS: &str = r#"{"prompts": {"count": 64, "exponent": 0.5}, "system": {"mean": 3000, "sigma": 0.4, "most": 8000},
    "question": {"mean": 300, "sigma": 0.5, "most": 1500}, "answer": {"mean": 40, "sigma": 0.5, "most": 120}}"#;

#[tokio::test]
async fn virtual_time_agrees_with_the_real_stack() {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(["validate", "--policies=round-robin,expected-ttft"])
        .args([
            "--sim-model=llama-3.1-70b",
            "--sim-gpu=l40s",
            "--sim-gpus=4",
        ])
        .args(["--sim-speedup=2", "--workload=shared-prompts"])
        .args(["--parameters", PARAMETERS])
        .args(["--requests=240", "--rate=4", "--seed=11"])
        .args([WITHIN, TTFT_WITHIN, "--json"])
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let report: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let policies = report["policies"]
        .as_array()
        .unwrap_or_else(|| panic!("{report}"));
    for policy in policies {
        let percent = |of: &str| policy[format!("{of}_percent")].as_f64().unwrap();
        println!(
            "{}: mean TTFT {:+.1} %, p90 {:+.1} %, cached {:+.1} %",
            policy["policy"],
            percent("ttft_mean"),
            percent("ttft_p90"),
            percent("cached")
        );
    }
    assert_eq!(policies.len(), 2);
    assert!(output.status.success(), "{report:#}");
}
