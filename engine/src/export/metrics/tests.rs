//! The page as Prometheus and endpoint pickers see it.

use std::collections::BTreeMap;

use super::*;
use crate::scheduler::Finish;
use crate::worker::{Observer, RequestReport, StepReport};

fn identity() -> Identity {
    Identity {
        model: "demo".to_owned(),
        block_size: 16,
        blocks: 65,
        prefix_caching: true,
        context_tokens: 2048,
    }
}

fn request(finish: Finish) -> RequestReport {
    RequestReport {
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
fn the_page_has_vllms_names_and_types_before_the_first_request() {
    let (page, _observer) = build(&identity()).unwrap();
    let text = page.render(&Stats::default(), 0);
    let expected = [
        ("pointsman:kv_event_batches_lost_total", "counter"),
        ("vllm:admission_rejections_total", "counter"),
        ("vllm:cache_config_info", "gauge"),
        ("vllm:e2e_request_latency_seconds", "histogram"),
        ("vllm:generation_tokens_total", "counter"),
        ("vllm:inter_token_latency_seconds", "histogram"),
        ("vllm:iteration_tokens_total", "histogram"),
        ("vllm:kv_cache_usage_perc", "gauge"),
        ("vllm:lora_requests_info", "gauge"),
        ("vllm:num_preemptions_total", "counter"),
        ("vllm:num_requests_running", "gauge"),
        ("vllm:num_requests_waiting", "gauge"),
        ("vllm:num_requests_waiting_by_reason", "gauge"),
        ("vllm:prefix_cache_hits_total", "counter"),
        ("vllm:prefix_cache_queries_total", "counter"),
        ("vllm:prompt_tokens_by_source_total", "counter"),
        ("vllm:prompt_tokens_cached_total", "counter"),
        ("vllm:prompt_tokens_total", "counter"),
        ("vllm:request_decode_time_seconds", "histogram"),
        ("vllm:request_generation_tokens", "histogram"),
        ("vllm:request_inference_time_seconds", "histogram"),
        ("vllm:request_num_preemptions", "histogram"),
        ("vllm:request_params_max_tokens", "histogram"),
        ("vllm:request_prefill_kv_computed_tokens", "histogram"),
        ("vllm:request_prefill_time_seconds", "histogram"),
        ("vllm:request_prompt_tokens", "histogram"),
        ("vllm:request_queue_time_seconds", "histogram"),
        ("vllm:request_success_total", "counter"),
        ("vllm:request_time_per_output_token_seconds", "histogram"),
        ("vllm:time_to_first_token_seconds", "histogram"),
    ];
    assert_eq!(types(&text), BTreeMap::from(expected));
    let helped: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# HELP "))
        .collect();
    assert_eq!(helped.len(), expected.len(), "every series has a help line");
}

#[test]
fn what_pickers_read_is_written_as_they_read_it() {
    let (page, mut observer) = build(&identity()).unwrap();
    let stats = Stats {
        running: 3,
        waiting: 2,
        blocks_used: 16,
        blocks_total: 64,
        ..Stats::default()
    };
    observer.gauges(&stats);
    let text = page.render(&stats, 0);
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
    let (page, mut observer) = build(&identity()).unwrap();
    let stats = Stats {
        waiting: 1,
        ..Stats::default()
    };
    observer.gauges(&stats);
    let waiting = "vllm:num_requests_waiting{model_name=\"demo\",engine=\"0\"}";
    assert_eq!(value(&page.render(&stats, 4), waiting), "5");
    observer.gauges(&stats);
    assert_eq!(value(&page.render(&stats, 0), waiting), "1");
}

#[test]
fn a_step_is_on_the_page_before_its_clients_hear_of_it() {
    let (page, mut observer) = build(&identity()).unwrap();
    let stats = Stats {
        generated_tokens: 7,
        ..Stats::default()
    };
    observer.step(&StepReport {
        stats,
        ..StepReport::default()
    });
    let generated = "vllm:generation_tokens_total{model_name=\"demo\",engine=\"0\"}";
    assert_eq!(value(&page.render(&stats, 0), generated), "7");
}

#[test]
fn buckets_are_vllms() {
    let (page, mut observer) = build(&identity()).unwrap();
    observer.step(&StepReport {
        batched_tokens: 40,
        first_token_waits: vec![Duration::from_millis(30)],
        inter_token_gaps: vec![Duration::from_millis(20), Duration::from_millis(30)],
        ..StepReport::default()
    });
    let text = page.render(&Stats::default(), 0);
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
            "1", "2", "5", "10", "20", "50", "100", "200", "500", "1000", "2000", "+Inf"
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
    assert_eq!(bucket("vllm:iteration_tokens_total", "64"), "1");
}

#[test]
fn a_finished_request_is_counted_and_timed() {
    let (page, mut observer) = build(&identity()).unwrap();
    observer.request_finished(&request(Finish::Length));
    observer.request_finished(&request(Finish::Stop { token: None }));
    observer.request_finished(&RequestReport {
        scheduled_at: None,
        first_token_at: None,
        last_token_at: None,
        ..request(Finish::Abort)
    });
    let text = page.render(&Stats::default(), 0);
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
    let (page, mut observer) = build(&identity()).unwrap();
    let stats = Stats {
        prefix_queries: 100,
        prefix_hits: 64,
        prompt_tokens: 100,
        prompt_tokens_cached: 64,
        generated_tokens: 7,
        preemptions: 1,
        ..Stats::default()
    };
    observer.gauges(&stats);
    observer.gauges(&stats);
    let text = page.render(&stats, 0);
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
}
