//! Tests of recording and of the page as a whole.

use super::*;
use crate::observe::request_series::{Latest, Slo};

/// A fixed sequence of calls that touches every family once.
fn touch_all(metrics: &Metrics) {
    let labels = RequestLabels {
        model: "m",
        target_model: "m-v2",
        fairness_id: "tenant",
        priority: 5,
    };
    let request = metrics.request(&labels);
    request.total.increment(2);
    request.running.increment();
    request.aborted_total.increment(1);
    request.error("BadRequest");
    request.first_token(0.3, true);
    request.finished(2.0, Some(100));
    request.slo_violated(Slo::Tpot);
    request.latest(Latest::PredictedTtft, 0.25);
    let tokens_and_bytes = [
        (&request.request_size, 700.0),
        (&request.response_size, 90.0),
        (&request.input_tokens, 48.0),
        (&request.output_tokens, 100.0),
        (&request.cached_tokens, 32.0),
        (&request.predicted_cached_tokens, 16.0),
    ];
    let seconds = [
        (&request.tpot, 0.015),
        (&request.itl, 0.014),
        (&request.predicted_ttft, 0.25),
        (&request.predicted_tpot, 0.02),
        (&request.ttft_prediction, 2e-6),
        (&request.tpot_prediction, 1e-6),
    ];
    for (histogram, value) in tokens_and_bytes.into_iter().chain(seconds) {
        histogram.record(value);
    }
    touch_scheduling(metrics);
    metrics.flow_outcome(&FlowOutcome {
        outcome: "Dispatched",
        pool: "p",
        labels,
        queue_seconds: Some(0.02),
    });
    metrics.flow_enqueued("tenant", 5, "Dispatched", 0.000_15);
    metrics.stream_ended("OK", 3.5);
    metrics.config_reloaded("applied");
    metrics.access_log_entries_are("end", 1);
    metrics.without_tokens("no tokenizer");
}

fn touch_scheduling(metrics: &Metrics) {
    metrics.picked("m-v2", "pod-1", "ns", 8000);
    metrics.attempt_failed("m-v2");
    metrics
        .plugin("Scorer", "queue-scorer", "queue")
        .record(0.000_15);
    metrics.model_rewritten("canary", "m", "m-v2");
    metrics.disaggregated(&DisaggDecision {
        plugin_name: "disagg",
        plugin_type: "disagg-profile-handler",
        model: "m",
        decision: "prefill-decode",
    });
    metrics.index_lookup(7, 0.000_02);
    metrics.prefix_match(0.5, 300.0);
    let plugin = ("mm-embeddings-cache-producer", "mm");
    metrics.encoder_lookup(plugin, "image", 2);
    metrics.encoder_hits(plugin, "pod-1", "image", 1);
    metrics.encoder_hit_ratio(plugin, 0.5);
    metrics.process.streams_in_flight.increment();
    metrics.process.scheduler_seconds.record(0.000_15);
    metrics.process.pick_seconds.record(0.000_03);
    metrics.process.expired_leases_total.increment(1);
}

/// The page is compared byte for byte. Where a change is meant, `GOLDEN=write` renews the file.
#[test]
fn the_page_is_the_golden_one() {
    let metrics = Metrics::new();
    touch_all(&metrics);
    let page = metrics.render();
    // The build's own version would change the file with each release.
    let lines = page.lines().filter(|line| !line.contains("_info{"));
    let page: String = lines.flat_map(|line| [line, "\n"]).collect();
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/observe/metrics/golden.txt"
    );
    if std::env::var("GOLDEN").is_ok_and(|mode| mode == "write") {
        std::fs::write(path, &page).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    for (number, (line, expected)) in page.lines().zip(golden.lines()).enumerate() {
        assert_eq!(line, expected, "line {}", number + 1);
    }
    assert_eq!(page.lines().count(), golden.lines().count());
}

#[test]
fn models_and_fairness_ids_are_bounded() {
    let metrics = Metrics::new();
    for number in 0..MODELS_MAX + 10 {
        let name = format!("m{number}");
        metrics
            .request(&RequestLabels::of_model(&name))
            .total
            .increment(1);
    }
    for number in 0..FAIRNESS_IDS_MAX + 10 {
        let fairness_id = format!("t{number}");
        let labels = RequestLabels {
            fairness_id: &fairness_id,
            ..RequestLabels::of_model("m0")
        };
        metrics.request(&labels).total.increment(1);
    }
    let page = metrics.render();
    let count = |part: &str| {
        let total = |line: &&str| line.starts_with("llm_d_epp_request_total{");
        page.lines()
            .filter(total)
            .filter(|line| line.contains(part))
            .count()
    };
    // The default fairness id of the first loop is one of the thousand.
    assert_eq!(count(""), MODELS_MAX + 1 + FAIRNESS_IDS_MAX);
    assert_eq!(count(r#"model_name="other",target"#), 1);
    assert_eq!(count(r#"fairness_id="other""#), 1);
    assert!(page.contains(r#"inference_objective_request_total{model_name="other",target_model_name="other",priority="0"} 10"#));
}

/// Threads that meet a new label set at once must share its series, or counts are lost.
#[test]
fn concurrent_requests_of_new_models_lose_no_count() {
    let metrics = Metrics::new();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for number in 0..500 {
                    let name = format!("m{}", number % 50);
                    let series = metrics.request(&RequestLabels::of_model(&name));
                    series.total.increment(1);
                    series.error("Internal");
                }
            });
        }
    });
    let page = metrics.render();
    let values = |name: &str| -> Vec<u64> {
        page.lines()
            .filter(|line| line.starts_with(name))
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect()
    };
    for name in ["llm_d_epp_request_total{", "llm_d_epp_request_error_total{"] {
        assert_eq!(values(name), vec![80; 50], "{name}");
    }
}

#[test]
fn two_pickers_in_one_process_do_not_mix() {
    let (one, other) = (Metrics::new(), Metrics::new());
    one.request(&RequestLabels::of_model("m"))
        .total
        .increment(1);
    assert!(one.render().contains("llm_d_epp_request_total{"));
    assert!(!other.render().contains("llm_d_epp_request_total{"));
}

#[test]
fn one_pick_in_64_measures_its_plugins() {
    let metrics = Metrics::new();
    let measured = (0..6_400).filter(|_| metrics.measures_plugins()).count();
    assert_eq!(measured, 100);
}

/// Two lines of one series, or a family in two places, spoil the whole page for Prometheus.
#[test]
fn no_series_and_no_family_is_written_twice() {
    let metrics = Metrics::new();
    touch_all(&metrics);
    let page = metrics.render();
    let mut seen = std::collections::HashSet::new();
    for line in page.lines().filter(|line| !line.starts_with("# HELP")) {
        let series = if line.starts_with('#') {
            line
        } else {
            line.rsplit_once(' ').unwrap().0
        };
        assert!(seen.insert(series), "{series} twice");
    }
}
