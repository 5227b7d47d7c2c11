//! Tests of the page as a scrape reads it: all rooms together.

use std::sync::Arc;

use super::*;
use crate::fleet::{Endpoint, EndpointId, EndpointSpec, Generation, Live, Snapshot};
use crate::observe::flow::{self, BandView, FlowView, PoolFlow, ProgramsView, QueueView};
use crate::observe::metrics::{DisaggDecision, FlowOutcome};
use crate::observe::request_series::{Latest, Slo};
use crate::observe::{Metrics, RequestLabels, pool};

#[test]
fn every_series_has_help_type_and_value_under_a_name_of_its_own() {
    let mut page = Page::new();
    render_index(
        &IndexStats {
            blocks: 3,
            ..IndexStats::default()
        },
        &mut page,
    );
    render_approximate(&PickStats::default(), &Counters::default(), &mut page);
    render_kv_events(&KvEventCounters::default(), &mut page);
    render_scrapes(&ScrapeCounters::default(), &mut page);
    render_tokens(&TokensStats::default(), &mut page);
    let page = page.text();
    for name in [
        "llm_d_epp_prefix_indexer_size",
        "inference_extension_prefix_indexer_size",
    ] {
        assert!(page.contains(&format!("\n{name} 3\n")), "{page}");
    }
    let mut names = Vec::new();
    for family in page.split("# HELP ").skip(1) {
        let (name, _) = family.split_once(' ').unwrap();
        let mut lines = family.lines().skip(1);
        let kind = lines.next().unwrap();
        assert!(kind.starts_with(&format!("# TYPE {name} ")), "{kind}");
        let mut count = 0;
        for line in lines {
            assert_eq!(line.split(['{', ' ']).next(), Some(name));
            count += 1;
        }
        assert!(count > 0, "{name} has no series");
        assert!(!names.contains(&name), "{name} twice");
        names.push(name);
    }
}

/// The four labels of a request.
const M: &str = "model_name target_model_name fairness_id priority";
const OF_PLUGIN: &str = "plugin_type plugin_name";
const OF_QUEUE: &str = "fairness_id priority inference_pool model_name target_model_name";
const OF_OUTCOME: &str = "fairness_id priority outcome inference_pool model_name target_model_name";
const OF_LOAD: &str = "endpoint_name namespace producer_name fairness_id priority";
const OF_DECISION: &str = "plugin_name plugin_type model_name decision_type";
const MODELS: &str = "model_name target_model_name";

/// The field's catalogue: kind, name behind `llm_d_epp_`, labels.
const FIELD: &[(&str, &str, &str)] = &[
    ("counter", "request_total", M),
    ("counter", "request_error_total", "M error_code"),
    ("histogram", "request_duration_seconds", M),
    ("histogram", "request_size_bytes", M),
    ("histogram", "response_size_bytes", M),
    ("histogram", "request_input_tokens", M),
    ("histogram", "request_output_tokens", M),
    ("histogram", "request_cached_tokens", M),
    ("gauge", "request_running", M),
    ("histogram", "request_ntpot_seconds", M),
    ("histogram", "request_ttft_seconds", "M streaming"),
    ("histogram", "request_streaming_tpot_seconds", M),
    ("histogram", "request_streaming_itl_seconds", M),
    ("gauge", "average_kv_cache_utilization", "name"),
    ("gauge", "average_queue_size", "name"),
    ("gauge", "average_running_requests", "name"),
    ("gauge", "std_dev_kv_cache_utilization", "name"),
    ("gauge", "std_dev_queue_size", "name"),
    ("gauge", "std_dev_running_requests", "name"),
    ("gauge", "ready_endpoints", "name"),
    (
        "gauge",
        "per_endpoint_queue_size",
        "name model_server_endpoint",
    ),
    ("histogram", "scheduler_e2e_duration_seconds", ""),
    (
        "counter",
        "scheduler_attempts_total",
        "status target_model_name endpoint_name namespace port",
    ),
    ("histogram", "request_processing_duration_seconds", ""),
    ("histogram", "response_processing_duration_seconds", ""),
    (
        "histogram",
        "plugin_duration_seconds",
        "extension_point plugin_type plugin_name",
    ),
    ("gauge", "info", "commit build_ref"),
    (
        "counter",
        "model_rewrite_decisions_total",
        "model_rewrite_name model_name target_model",
    ),
    ("counter", "datalayer_poll_errors_total", "source_type"),
    (
        "counter",
        "datalayer_extract_errors_total",
        "source_type extractor_type",
    ),
    ("gauge", "prefix_indexer_size", ""),
    ("histogram", "prefix_indexer_hit_ratio", ""),
    ("histogram", "prefix_indexer_hit_bytes", ""),
    (
        "counter",
        "encoder_cache_queries_total",
        "plugin_type plugin_name modality",
    ),
    (
        "counter",
        "encoder_cache_hits_total",
        "plugin_type plugin_name pod modality",
    ),
    ("histogram", "encoder_cache_hit_ratio", OF_PLUGIN),
    ("gauge", "program_aware_jains_fairness_index", ""),
    (
        "gauge",
        "program_aware_avg_wait_time_milliseconds",
        "program_id",
    ),
    (
        "gauge",
        "program_aware_attained_service_tokens",
        "program_id",
    ),
    ("gauge", "inference_request_metric", "M type"),
    ("histogram", "request_predicted_ttft_seconds", M),
    ("histogram", "request_predicted_tpot_seconds", M),
    ("histogram", "request_ttft_prediction_duration_seconds", M),
    ("histogram", "request_tpot_prediction_duration_seconds", M),
    ("counter", "request_slo_violation_total", "M type"),
    ("counter", "disagg_decision_total", OF_DECISION),
    ("counter", "pd_decision_total", OF_DECISION),
    (
        "histogram",
        "flow_control_request_queue_duration_seconds",
        OF_OUTCOME,
    ),
    (
        "histogram",
        "flow_control_dispatch_cycle_duration_seconds",
        "",
    ),
    (
        "histogram",
        "flow_control_request_enqueue_duration_seconds",
        "fairness_id priority outcome",
    ),
    ("gauge", "flow_control_queue_size", OF_QUEUE),
    ("gauge", "flow_control_queue_bytes", OF_QUEUE),
    (
        "gauge",
        "flow_control_pool_saturation",
        "inference_pool stage",
    ),
    ("gauge", "flow_control_stale_endpoints", "detector"),
    (
        "gauge",
        "flow_control_capacity_utilization_requests",
        "priority inference_pool",
    ),
    (
        "gauge",
        "flow_control_capacity_utilization_bytes",
        "priority inference_pool",
    ),
    (
        "gauge",
        "flow_control_global_capacity_utilization_requests",
        "inference_pool",
    ),
    (
        "gauge",
        "flow_control_global_capacity_utilization_bytes",
        "inference_pool",
    ),
    (
        "counter",
        "flow_control_requests_total",
        "outcome priority inference_pool",
    ),
    ("gauge", "extproc_streams_inflight", ""),
    ("histogram", "extproc_stream_duration_seconds", ""),
    ("counter", "extproc_streams_total", "code"),
    ("gauge", "inflight_requests", OF_LOAD),
    ("gauge", "inflight_tokens", OF_LOAD),
    ("counter", "kv_cache_index_admissions_total", ""),
    ("counter", "kv_cache_index_evictions_total", ""),
    ("counter", "kv_cache_index_lookup_requests_total", ""),
    ("counter", "kv_cache_index_lookup_hits_total", ""),
    ("counter", "kv_cache_index_max_pod_hit_count_total", ""),
    ("histogram", "kv_cache_index_lookup_latency_seconds", ""),
    (
        "counter",
        "kv_cache_events_subscriber_reconnections_total",
        "",
    ),
    ("counter", "kv_cache_events_messages_received_total", ""),
    (
        "counter",
        "kv_cache_events_zmq_errors_total",
        "pod_identifier operation",
    ),
];

/// What the releases up to v1.5 called the same: kind, whole name, labels.
const LEGACY: &[(&str, &str, &str)] = &[
    (
        "counter",
        "inference_objective_request_total",
        "model_name target_model_name priority",
    ),
    (
        "counter",
        "inference_objective_request_error_total",
        "model_name target_model_name error_code",
    ),
    (
        "gauge",
        "inference_objective_inference_request_metric",
        "model_name target_model_name type",
    ),
    (
        "histogram",
        "inference_objective_request_ttft_seconds",
        MODELS,
    ),
    (
        "histogram",
        "inference_objective_request_predicted_ttft_seconds",
        MODELS,
    ),
    (
        "histogram",
        "inference_objective_request_tpot_seconds",
        MODELS,
    ),
    (
        "histogram",
        "inference_objective_request_predicted_tpot_seconds",
        MODELS,
    ),
    (
        "counter",
        "inference_objective_request_slo_violation_total",
        "model_name target_model_name type",
    ),
    (
        "histogram",
        "inference_objective_request_duration_seconds",
        MODELS,
    ),
    ("histogram", "inference_objective_request_sizes", MODELS),
    ("histogram", "inference_objective_response_sizes", MODELS),
    ("histogram", "inference_objective_input_tokens", MODELS),
    ("histogram", "inference_objective_output_tokens", MODELS),
    (
        "histogram",
        "inference_objective_prompt_cached_tokens",
        MODELS,
    ),
    (
        "gauge",
        "inference_objective_running_requests",
        "model_name",
    ),
    (
        "histogram",
        "inference_objective_normalized_time_per_output_token_seconds",
        MODELS,
    ),
    (
        "gauge",
        "inference_pool_average_kv_cache_utilization",
        "name",
    ),
    ("gauge", "inference_pool_average_queue_size", "name"),
    ("gauge", "inference_pool_average_running_requests", "name"),
    ("gauge", "inference_pool_ready_pods", "name"),
    (
        "gauge",
        "inference_pool_per_pod_queue_size",
        "name model_server_pod",
    ),
    (
        "histogram",
        "inference_extension_scheduler_e2e_duration_seconds",
        "",
    ),
    (
        "counter",
        "inference_extension_scheduler_attempts_total",
        "status target_model_name pod_name namespace port",
    ),
    (
        "histogram",
        "inference_extension_plugin_duration_seconds",
        "extension_point plugin_type plugin_name",
    ),
    ("gauge", "inference_extension_prefix_indexer_size", ""),
    (
        "histogram",
        "inference_extension_prefix_indexer_hit_ratio",
        "",
    ),
    (
        "histogram",
        "inference_extension_prefix_indexer_hit_bytes",
        "",
    ),
    ("gauge", "inference_extension_info", "commit build_ref"),
    (
        "histogram",
        "inference_extension_flow_control_request_queue_duration_seconds",
        OF_OUTCOME,
    ),
    (
        "histogram",
        "inference_extension_flow_control_dispatch_cycle_duration_seconds",
        "",
    ),
    (
        "histogram",
        "inference_extension_flow_control_request_enqueue_duration_seconds",
        "fairness_id priority outcome",
    ),
    (
        "gauge",
        "inference_extension_flow_control_queue_size",
        OF_QUEUE,
    ),
    (
        "gauge",
        "inference_extension_flow_control_queue_bytes",
        OF_QUEUE,
    ),
    (
        "gauge",
        "inference_extension_flow_control_pool_saturation",
        "inference_pool",
    ),
    (
        "counter",
        "inference_extension_model_rewrite_decisions_total",
        "model_rewrite_name model_name target_model",
    ),
    (
        "counter",
        "llm_d_inference_scheduler_disagg_decision_total",
        "model_name decision_type",
    ),
    (
        "counter",
        "llm_d_inference_scheduler_pd_decision_total",
        "model_name decision_type",
    ),
    (
        "counter",
        "llm_d_inference_scheduler_datalayer_poll_errors_total",
        "source_type",
    ),
    (
        "counter",
        "llm_d_inference_scheduler_datalayer_extract_errors_total",
        "source_type extractor_type",
    ),
    ("counter", "kvcache_index_admissions_total", ""),
    ("counter", "kvcache_index_evictions_total", ""),
    ("counter", "kvcache_index_lookup_requests_total", ""),
    ("counter", "kvcache_index_lookup_hits_total", ""),
    ("counter", "kvcache_index_max_pod_hit_count_total", ""),
    ("histogram", "kvcache_index_lookup_latency_seconds", ""),
];

/// What each room adds to a page after one request.
fn whole_page(metrics: &Metrics, snapshot: &Snapshot, flow: &FlowView) -> String {
    let mut page = Page::new();
    metrics.write(&mut page);
    pool::render(&[("p", snapshot)], &mut page);
    flow::render(flow, &mut page);
    render_index(&IndexStats::default(), &mut page);
    render_approximate(&PickStats::default(), &Counters::default(), &mut page);
    render_kv_events(&KvEventCounters::default(), &mut page);
    render_scrapes(&ScrapeCounters::default(), &mut page);
    render_tokens(&TokensStats::default(), &mut page);
    page.into_text()
}

fn one_of_everything() -> String {
    let metrics = Metrics::new();
    let labels = RequestLabels::of_model("m");
    let request = metrics.request(&labels);
    request.error("BadRequest");
    request.first_token(0.1, false);
    request.finished(1.0, Some(9));
    request.slo_violated(Slo::Ttft);
    request.latest(Latest::Tpot, 0.1);
    for histogram in [
        &request.request_size,
        &request.response_size,
        &request.input_tokens,
        &request.output_tokens,
        &request.cached_tokens,
        &request.tpot,
        &request.itl,
        &request.predicted_ttft,
        &request.predicted_tpot,
        &request.ttft_prediction,
        &request.tpot_prediction,
    ] {
        histogram.record(1.0);
    }
    metrics.picked("m", "e", "", 8000);
    metrics.plugin("Scorer", "queue-scorer", "q").record(0.1);
    metrics.model_rewritten("r", "m", "n");
    metrics.disaggregated(&DisaggDecision {
        plugin_name: "d",
        plugin_type: "t",
        model: "m",
        decision: "decode-only",
    });
    metrics.encoder_lookup(("t", "n"), "image", 1);
    metrics.encoder_hits(("t", "n"), "e", "image", 1);
    metrics.encoder_hit_ratio(("t", "n"), 1.0);
    metrics.flow_outcome(&FlowOutcome {
        outcome: "Dispatched",
        pool: "p",
        labels,
        queue_seconds: Some(0.1),
    });
    metrics.flow_enqueued("t", 0, "Dispatched", 0.1);
    metrics.stream_ended("OK", 1.0);
    let flow = FlowView {
        pools: vec![PoolFlow {
            pool: "p".to_owned(),
            queues: vec![QueueView::default()],
            bands: vec![BandView::default()],
            requests_utilization: Some(0.0),
            bytes_utilization: Some(0.0),
            saturation: vec![("effective", 0.5)],
        }],
        stale_endpoints: vec![("utilization-detector".to_owned(), 0)],
        programs: Some(ProgramsView {
            jains_index: 1.0,
            programs: vec![("p".to_owned(), 1.0, 1.0)],
        }),
    };
    let snapshot = Snapshot {
        members: Arc::from([Arc::new(Endpoint {
            id: EndpointId(0),
            generation: Generation(1),
            spec: EndpointSpec::new("e", ([10, 0, 0, 1], 8000).into()),
        })]),
        live: vec![Live::default()],
        ..Snapshot::default()
    };
    whole_page(&metrics, &snapshot, &flow)
}

/// The label names of the first line of a family.
fn labels_on(page: &str, name: &str, kind: &str) -> Option<String> {
    let suffix = if kind == "histogram" { "_count" } else { "" };
    let line = page.lines().find(|line| {
        let rest = line
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix(suffix));
        rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
    })?;
    let labels = line.split_once('{').map_or("", |(_, rest)| rest);
    let names = labels.split("=\"").filter_map(|part| {
        let name = part.rsplit([',', '{']).next()?;
        (!name.contains(['"', '}', ' '])).then_some(name)
    });
    Some(
        names
            .filter(|name| !name.is_empty())
            .collect::<Vec<_>>()
            .join(" "),
    )
}

#[test]
fn every_name_of_the_field_stands_on_a_fresh_page_with_its_kind() {
    let page = whole_page(&Metrics::new(), &Snapshot::default(), &FlowView::default());
    let present = FIELD
        .iter()
        .map(|(kind, name, _)| (*kind, format!("llm_d_epp_{name}")));
    let legacy = LEGACY
        .iter()
        .map(|(kind, name, _)| (*kind, (*name).to_owned()));
    for (kind, name) in present.chain(legacy) {
        let line = format!("# TYPE {name} {kind}");
        let found = page.lines().filter(|written| *written == line).count();
        assert_eq!(found, 1, "{line}");
    }
}

#[test]
fn every_name_of_the_field_has_its_labels_after_one_request() {
    let page = one_of_everything();
    let present = FIELD.iter().map(|(kind, name, labels)| {
        (
            *kind,
            format!("llm_d_epp_{name}"),
            labels.replace("M ", &format!("{M} ")),
        )
    });
    let legacy = LEGACY
        .iter()
        .map(|(kind, name, labels)| (*kind, (*name).to_owned(), (*labels).to_owned()));
    for (kind, name, labels) in present.chain(legacy) {
        assert_eq!(labels_on(&page, &name, kind), Some(labels), "{name}");
    }
}
