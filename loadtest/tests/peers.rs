//! `loadtest peers` as a program: a router of PyPI beside Envoy alone, before two simulated workers.

#![expect(clippy::unwrap_used, reason = "every function here is part of a test")]

use serde_json::Value;

const REQUESTS: u64 = 24;

/// A few short prompts, so that a machine that is busy with other tests answers them as well.
const FLAGS: [&str; 11] = [
    "--workers=2",
    "--sim-model=llama-3.1-8b",
    "--sim-gpus=1",
    "--sim-speedup=10",
    "--workload=shared-prompts",
    "--parameters={\"system\": {\"mean\": 200, \"sigma\": 0, \"most\": 200}, \"prompts\": {\"count\": 2, \"exponent\": 1.0}, \
     \"answer\": {\"mean\": 5, \"sigma\": 0, \"most\": 5}}",
    "--requests=24",
    "--rate=30",
    "--seed=5",
    "--slo-ttft=60s",
    "--json",
];

async fn peers(names: &str) -> (bool, Value) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_loadtest"));
    let output = command
        .args(["peers", "--peers", names])
        .args(FLAGS)
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let last = text.lines().last().unwrap();
    (
        output.status.success(),
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {text}")),
    )
}

#[tokio::test]
async fn every_peer_has_a_row_and_one_that_cannot_be_had_is_empty() {
    let (is_ok, report) = peers("round-robin,smg==0.0.0,smg").await;
    assert!(is_ok, "{report}");
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().filter_map(|row| row["peer"].as_str()).collect();
    assert_eq!(names, ["round-robin", "smg", "smg"]);
    let gone = &rows[1];
    assert!(
        gone["error"].as_str().unwrap().contains("smg==0.0.0"),
        "{gone}"
    );
    assert!(gone.get("ttft_mean_ms").is_none(), "{gone}");
    for row in [&rows[0], &rows[2]] {
        assert_eq!(row["error"], Value::Null, "{row}");
        assert_eq!(row["requests"], REQUESTS, "{row}");
        assert_eq!(row["failed"], 0, "{row}");
        let by_worker = row["requests_by_worker"].as_array().unwrap();
        let counts: Vec<u64> = by_worker.iter().filter_map(Value::as_u64).collect();
        assert_eq!((counts.len(), counts.iter().sum()), (2, REQUESTS), "{row}");
        // Two system prompts of 12 full blocks: what every prompt but each worker's first ones finds.
        let cached = row["cached_share"].as_f64().unwrap();
        assert!((0.4..0.8).contains(&cached), "{row}");
        assert!(row["router_cpu_s"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["router_peak_mib"].as_f64().unwrap() > 5.0, "{row}");
        let (mean, p99) = (&row["ttft_mean_ms"], &row["ttft_p99_ms"]);
        assert!(mean.as_f64().unwrap() <= p99.as_f64().unwrap(), "{row}");
    }
    // Envoy alone takes turns, to the request.
    assert_eq!(rows[0]["requests_by_worker"], serde_json::json!([12, 12]));
    assert_eq!(rows[2]["version"], "1.13.0");
}

#[tokio::test]
async fn what_is_no_peer_is_refused_before_anything_starts() {
    let (is_ok, report) = peers("nginx").await;
    assert!(!is_ok);
    assert!(
        report["error"]
            .as_str()
            .unwrap()
            .contains("no peer \"nginx\"")
    );
}
