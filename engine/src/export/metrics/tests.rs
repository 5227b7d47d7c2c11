//! The page as Prometheus and endpoint pickers see it.

use std::collections::BTreeMap;

use super::*;
use crate::scheduler::Finish;
use crate::worker::{Observer, RequestReport, StepReport};

fn identity() -> Identity {
    Identity {
        model: "demo".to_owned(),
        ranks: 1,
        block_size: 16,
        blocks: 65,
        prefix_caching: true,
        hash_algorithm: "sha256_cbor".to_owned(),
        context_tokens: 2048,
        ..Identity::default()
    }
}

fn request(finish: Finish) -> RequestReport {
    RequestReport {
        number: 0,
        prompt_tokens: 100,
        cached_tokens: 64,
        generated_tokens: 11,
        max_tokens: 16,
        preemptions: 0,
        finish,
        arrived_at: Duration::from_secs(1),
        scheduled_at: Some(Duration::from_secs(2)),
        first_token_at: Some(Duration::from_secs(4)),
        last_token_at: Some(Duration::from_secs(9)),
        finished_at: Duration::from_secs(9),
    }
}

/// A page of one rank, and its observer.
fn one() -> (MetricsPage, MetricsObserver) {
    let (page, mut observers) = build(&identity());
    (page, observers.remove(0))
}

fn text(page: &MetricsPage, stats: &Stats) -> String {
    page.render([(*stats, 0)])
}

/// Name to type, from the TYPE lines.
fn types(page: &str) -> BTreeMap<&str, &str> {
    page.lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split_once(' '))
        .collect()
}

/// The value of the one sample whose line begins with `series`, as it is written.
fn value<'a>(page: &'a str, series: &str) -> &'a str {
    let mut values = page
        .lines()
        .filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let value = values
        .next()
        .unwrap_or_else(|| panic!("{series} is not on the page:\n{page}"));
    assert_eq!(values.next(), None, "{series} is on the page twice");
    value
}

#[test]
fn the_page_before_the_first_request_is_the_golden_one() {
    let (page, _observer) = one();
    let page = text(&page, &Stats::default());
    let lora = page
        .lines()
        .find(|line| line.starts_with("vllm:lora_requests_info{"));
    let time = lora.unwrap().rsplit_once(' ').unwrap().1;
    let page = page.replace(time, "NOW");
    let golden = include_str!("tests/page.txt");
    if page != golden {
        let to = std::env::temp_dir().join("pointsman-metrics-page.txt");
        std::fs::write(&to, &page).unwrap();
        panic!("the page is not the golden one; it is in {}", to.display());
    }
}

#[test]
fn every_series_has_a_help_line_and_vllms_type() {
    let (page, _observer) = one();
    let text = text(&page, &Stats::default());
    let types = types(&text);
    for (name, kind) in &types {
        assert!(text.contains(&format!("# HELP {name} ")), "{name}");
        let counts = name.ends_with("_total") && *name != series::ITERATION_TOKENS_TOTAL;
        assert_eq!(counts, *kind == "counter", "{name} is a {kind}");
    }
    assert_eq!(types["vllm:iteration_tokens_total"], "histogram");
    assert_eq!(types["vllm:kv_cache_usage_perc"], "gauge");
}

#[test]
fn what_pickers_read_is_written_as_they_read_it() {
    let (page, mut observer) = one();
    let stats = Stats {
        running: 3,
        waiting: 2,
        blocks_used: 16,
        blocks_total: 64,
        ..Stats::default()
    };
    observer.gauges(&stats);
    let text = text(&page, &stats);
    let labels = "{model_name=\"demo\",engine=\"0\"}";
    assert_eq!(
        value(&text, &format!("vllm:num_requests_running{labels}")),
        "3"
    );
    assert_eq!(
        value(&text, &format!("vllm:num_requests_waiting{labels}")),
        "2"
    );
    assert_eq!(
        value(&text, &format!("vllm:kv_cache_usage_perc{labels}")),
        "0.25"
    );
    let cache = text
        .lines()
        .find(|line| line.starts_with("vllm:cache_config_info{"))
        .unwrap();
    for label in [
        "block_size=\"16\"",
        "num_gpu_blocks=\"65\"",
        "enable_prefix_caching=\"True\"",
    ] {
        assert!(cache.contains(label), "{cache}");
    }
    assert!(cache.ends_with(" 1"), "{cache}");
    let lora = "vllm:lora_requests_info{max_lora=\"0\",running_lora_adapters=\"\",waiting_lora_adapters=\"\"}";
    assert!(
        value(&text, lora).parse::<f64>().unwrap() > 1.6e9,
        "the value is a Unix time"
    );
}

#[test]
fn requests_that_the_engine_has_not_seen_count_as_waiting() {
    let (page, mut observer) = one();
    let stats = Stats {
        waiting: 1,
        ..Stats::default()
    };
    observer.gauges(&stats);
    let waiting = "vllm:num_requests_waiting{model_name=\"demo\",engine=\"0\"}";
    assert_eq!(value(&page.render([(stats, 4)]), waiting), "5");
    observer.gauges(&stats);
    assert_eq!(value(&text(&page, &stats), waiting), "1");
}

#[test]
fn a_step_is_on_the_page_before_its_clients_hear_of_it() {
    let (page, mut observer) = one();
    let stats = Stats {
        generated_tokens: 7,
        ..Stats::default()
    };
    observer.step(&StepReport {
        stats,
        ..StepReport::default()
    });
    let generated = "vllm:generation_tokens_total{model_name=\"demo\",engine=\"0\"}";
    assert_eq!(value(&text(&page, &stats), generated), "7");
}

#[test]
fn buckets_are_vllms() {
    let (page, mut observer) = one();
    observer.step(&StepReport {
        batched_tokens: 40,
        first_token_waits: vec![Duration::from_millis(30)],
        inter_token_gaps: vec![Duration::from_millis(20), Duration::from_millis(30)],
        ..StepReport::default()
    });
    let text = text(&page, &Stats::default());
    let bounds = |name: &str| -> Vec<&str> {
        let start = format!("{name}_bucket{{");
        text.lines()
            .filter(|line| line.starts_with(&start))
            .map(|line| {
                line.split("le=\"")
                    .nth(1)
                    .unwrap()
                    .split('"')
                    .next()
                    .unwrap()
            })
            .collect()
    };
    assert_eq!(bounds("vllm:time_to_first_token_seconds").len(), 23);
    assert_eq!(
        bounds("vllm:inter_token_latency_seconds")[..4],
        ["0.01", "0.025", "0.05", "0.075"]
    );
    assert_eq!(
        bounds("vllm:request_prompt_tokens"),
        [
            "1.0", "2.0", "5.0", "10.0", "20.0", "50.0", "100.0", "200.0", "500.0", "1000.0",
            "2000.0", "+Inf"
        ]
    );
    assert_eq!(bounds("vllm:iteration_tokens_total").last(), Some(&"+Inf"));
    let bucket = |name: &str, le: &str| {
        value(
            &text,
            &format!("{name}_bucket{{model_name=\"demo\",engine=\"0\",le=\"{le}\"}}"),
        )
    };
    assert_eq!(bucket("vllm:time_to_first_token_seconds", "0.02"), "0");
    assert_eq!(bucket("vllm:time_to_first_token_seconds", "0.04"), "1");
    assert_eq!(bucket("vllm:inter_token_latency_seconds", "0.025"), "1");
    assert_eq!(bucket("vllm:inter_token_latency_seconds", "+Inf"), "2");
    assert_eq!(bucket("vllm:iteration_tokens_total", "64.0"), "1");
}

#[test]
fn a_finished_request_is_counted_and_timed() {
    let (page, mut observer) = one();
    observer.request_finished(&request(Finish::Length));
    observer.request_finished(&request(Finish::Stop { token: None }));
    observer.request_finished(&RequestReport {
        scheduled_at: None,
        first_token_at: None,
        last_token_at: None,
        ..request(Finish::Abort)
    });
    let text = text(&page, &Stats::default());
    let labels = "{model_name=\"demo\",engine=\"0\"";
    for (reason, count) in [
        ("length", "1"),
        ("stop", "1"),
        ("abort", "1"),
        ("error", "0"),
    ] {
        let series = format!("vllm:request_success_total{labels},finished_reason=\"{reason}\"}}");
        assert_eq!(value(&text, &series), count, "{reason}");
    }
    let sum = |name: &str| value(&text, &format!("vllm:{name}_sum{labels}}}"));
    assert_eq!(sum("request_queue_time_seconds"), "2");
    assert_eq!(sum("request_prefill_time_seconds"), "4");
    assert_eq!(sum("request_decode_time_seconds"), "10");
    assert_eq!(sum("request_inference_time_seconds"), "14");
    assert_eq!(sum("request_time_per_output_token_seconds"), "1");
    assert_eq!(sum("e2e_request_latency_seconds"), "24");
    assert_eq!(sum("request_prefill_kv_computed_tokens"), "72");
}

#[test]
fn counters_are_the_engines_own() {
    let (page, mut observer) = one();
    let stats = Stats {
        prefix_queries: 100,
        prefix_hits: 64,
        prompt_tokens: 100,
        prompt_tokens_cached: 64,
        prompt_tokens_cached_host: 16,
        generated_tokens: 7,
        preemptions: 1,
        ..Stats::default()
    };
    observer.gauges(&stats);
    observer.gauges(&stats);
    let text = text(&page, &stats);
    let labels = "{model_name=\"demo\",engine=\"0\"";
    for (series, count) in [
        ("prefix_cache_queries_total", "100"),
        ("prefix_cache_hits_total", "64"),
        ("prompt_tokens_total", "100"),
        ("prompt_tokens_cached_total", "64"),
        ("generation_tokens_total", "7"),
        ("num_preemptions_total", "1"),
    ] {
        assert_eq!(
            value(&text, &format!("vllm:{series}{labels}}}")),
            count,
            "{series}"
        );
    }
    let computed = format!("vllm:prompt_tokens_by_source_total{labels},source=\"local_compute\"}}");
    assert_eq!(value(&text, &computed), "36");
    for (source, count) in [("device", "48"), ("host", "16")] {
        let series = "vllm:prompt_tokens_cached_by_source_total";
        let series = format!("{series}{labels},source=\"{source}\"}}");
        assert_eq!(value(&text, &series), count, "{source}");
    }
}

#[test]
fn each_rank_has_its_own_series() {
    let (page, mut observers) = build(&Identity {
        ranks: 2,
        ..identity()
    });
    let running = |running| Stats {
        running,
        ..Stats::default()
    };
    for (observer, stats) in observers.iter_mut().zip([running(1), running(2)]) {
        observer.gauges(&stats);
    }
    let text = page.render([(running(1), 3), (running(2), 0)]);
    for (rank, running, waiting) in [("0", "1", "3"), ("1", "2", "0")] {
        let labels = format!("{{model_name=\"demo\",engine=\"{rank}\"}}");
        let gauge = |name: &str| value(&text, &format!("vllm:{name}{labels}"));
        assert_eq!(gauge("num_requests_running"), running);
        assert_eq!(gauge("num_requests_waiting"), waiting);
    }
    let head = text
        .lines()
        .filter(|line| *line == "# TYPE vllm:num_requests_running gauge");
    assert_eq!(head.count(), 1, "a family has one head");
}

#[test]
fn old_names_show_the_same_numbers_where_they_are_asked_for() {
    let (page, mut observers) = build(&Identity {
        legacy_names: true,
        ..identity()
    });
    let stats = Stats {
        blocks_used: 16,
        blocks_total: 64,
        prefix_queries: 100,
        prefix_hits: 64,
        ..Stats::default()
    };
    observers[0].step(&StepReport {
        stats,
        inter_token_gaps: vec![Duration::from_millis(20)],
        ..StepReport::default()
    });
    let with = text(&page, &stats);
    let labels = "{model_name=\"demo\",engine=\"0\"}";
    for (name, number) in [
        ("gpu_cache_usage_perc", "0.25"),
        ("gpu_prefix_cache_queries_total", "100"),
        ("gpu_prefix_cache_hits_total", "64"),
        ("time_per_output_token_seconds_count", "1"),
    ] {
        assert_eq!(value(&with, &format!("vllm:{name}{labels}")), number);
    }
    let (page, _observer) = one();
    let without = text(&page, &stats);
    assert!(!without.contains("vllm:gpu_"));
    assert!(!without.contains("\nvllm:time_per_output_token_seconds"));
}

#[test]
fn one_sleep_state_is_1() {
    let (page, _observer) = one();
    for (level, states) in [
        (0, ["1", "0", "0"]),
        (1, ["0", "1", "0"]),
        (2, ["0", "0", "1"]),
    ] {
        page.sleep_level(level);
        let text = text(&page, &Stats::default());
        let names = ["awake", "weights_offloaded", "discard_all"];
        let shown = names.map(|state| {
            let labels = "model_name=\"demo\",engine=\"0\"";
            let series = format!("vllm:engine_sleep_state{{{labels},sleep_state=\"{state}\"}}");
            value(&text, &series).to_owned()
        });
        assert_eq!(shown, states, "level {level}");
    }
}

#[test]
fn http_requests_are_counted_by_handler_method_and_class_of_status() {
    let (page, _observer) = one();
    let served = |handler, method, status| {
        page.served(&Served {
            handler,
            method,
            status,
            duration: Duration::from_millis(300),
            request_bytes: 10,
            response_bytes: 100,
        });
    };
    served("/v1/completions", "POST", 200);
    served("/v1/completions", "POST", 201);
    served("/v1/completions", "POST", 404);
    served("none", "BREW", 404);
    let text = text(&page, &Stats::default());
    let completions = "{handler=\"/v1/completions\"";
    for (series, number) in [
        (
            format!("http_requests_total{completions},method=\"POST\",status=\"2xx\"}}"),
            "2",
        ),
        (
            format!("http_requests_total{completions},method=\"POST\",status=\"4xx\"}}"),
            "1",
        ),
        (
            "http_requests_total{handler=\"none\",method=\"OTHER\",status=\"4xx\"}".to_owned(),
            "1",
        ),
        (
            format!(
                "http_request_duration_seconds_bucket{completions},method=\"POST\",le=\"0.5\"}}"
            ),
            "3",
        ),
        (format!("http_request_size_bytes_sum{completions}}}"), "30"),
        (
            format!("http_response_size_bytes_count{completions}}}"),
            "3",
        ),
        ("http_request_duration_highr_seconds_count".to_owned(), "4"),
    ] {
        assert_eq!(value(&text, &series), number, "{series}");
    }
}

#[test]
fn choices_and_the_longest_of_them_are_sampled_by_prompt() {
    let (page, _observer) = one();
    page.answered(0, 3, 40);
    page.answered(7, 1, 1);
    let text = text(&page, &Stats::default());
    let labels = "{model_name=\"demo\",engine=\"0\"}";
    let sum = |name: &str| value(&text, &format!("vllm:{name}_sum{labels}"));
    assert_eq!(sum("request_params_n"), "3");
    assert_eq!(sum("request_max_num_generation_tokens"), "40");
}

#[test]
fn the_parts_of_the_start_stand_on_the_page() {
    let (page, _observer) = one();
    page.start_took("model", Duration::from_millis(1500));
    let text = text(&page, &Stats::default());
    assert_eq!(
        value(&text, "pointsman:start_seconds{part=\"model\"}"),
        "1.5"
    );
}

/// A picker scrapes each worker several times a second, so the page must be cheap even without optimisation and with
/// everything else running; the least of many runs is what it costs.
#[test]
fn a_scrape_of_eight_ranks_takes_less_than_two_milliseconds_each() {
    let (page, _observers) = build(&Identity {
        ranks: 8,
        ..identity()
    });
    let runs = (0..50).map(|_| {
        let started = std::time::Instant::now();
        let text = page.render([(Stats::default(), 0); 8]);
        assert!(text.len() > 100_000);
        started.elapsed()
    });
    let least = runs.min().unwrap();
    assert!(least < Duration::from_millis(2 * 8), "{least:?}");
}
