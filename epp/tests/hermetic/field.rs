//! The rows of the field's hermetic suite (`test/integration/epp` of llm-d-router), with its pods,
//! requests and expectations.
//!
//! Its requests carry no path, which no gateway sends; here they have one. Its response rows send a
//! response without a request before it, which no gateway does either; here the request comes first.
//! Its picker sends every request header anew; ours leaves alone what it does not change.

use serde_json::{Value, json};

use super::support::{EnvoyStream, P, Picker, adapters, picker_with, refusal_header};

/// The suite's `default-config.yaml`.
const CONFIG: &str = "
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
  - type: queue-scorer
  - type: kv-cache-utilization-scorer
  - type: prefix-cache-scorer
  - type: lora-affinity-scorer
  - type: openai-parser
schedulingProfiles:
  - name: default
    plugins:
      - pluginRef: queue-scorer
      - pluginRef: kv-cache-utilization-scorer
      - pluginRef: prefix-cache-scorer
      - pluginRef: lora-affinity-scorer
requestHandler:
  parsers:
  - pluginRef: openai-parser
";

/// The suite's objectives and rewrite, without the field that InferenceObjective has not.
pub(crate) const RESOURCES: &str = "
{apiVersion: llm-d.ai/v1alpha2, kind: InferenceObjective, metadata: {name: sql-lora}, spec: {priority: 2, poolRef: {name: default}}}
---
{apiVersion: llm-d.ai/v1alpha2, kind: InferenceObjective, metadata: {name: sql-lora-sheddable}, spec: {poolRef: {name: default}}}
---
{apiVersion: inference.networking.x-k8s.io/v1alpha2, kind: InferenceObjective, metadata: {name: sql-lora-sheddable-legacy}, spec: {poolRef: {name: default}}}
---
{apiVersion: llm-d.ai/v1alpha2, kind: InferenceObjective, metadata: {name: my-model}, spec: {priority: 2, poolRef: {name: default}}}
---
{apiVersion: llm-d.ai/v1alpha2, kind: InferenceObjective, metadata: {name: direct-model}, spec: {priority: 2, poolRef: {name: default}}}
---
{apiVersion: llm-d.ai/v1alpha2, kind: InferenceObjective, metadata: {name: inference-objective-with-priority-4}, spec: {priority: 4, poolRef: {name: default}}}
---
apiVersion: llm-d.ai/v1alpha2
kind: InferenceModelRewrite
metadata: {name: rewrite-test}
spec:
  poolRef: {name: default}
  rules:
  - matches: [{model: {value: model-to-be-rewritten}}]
    targets: [{modelRewrite: rewritten-model}]
";

const MODEL: &str = "my-model";
const TARGET: &str = "my-model-12345";
const LORA: &str = "sql-lora";
const LORA_TARGET: &str = "sql-lora-1fdg2";
const SHEDDABLE: &str = "sql-lora-sheddable";
const SHEDDABLE_TARGET: &str = "sql-lora-1fdg3";

const OBJECTIVE: &str = "x-llm-d-inference-objective";
const REWRITE: &str = "x-llm-d-model-name-rewrite";

type Pod<'a> = (P, &'a [&'a str]);

/// Three pods of which the second is the idlest, without adapters.
const PLAIN: [Pod<'_>; 3] = [(P(3, 0.2), &[]), (P(0, 0.1), &[]), (P(10, 0.2), &[])];

/// A picker over pods with these adapters running.
async fn picker(pods: &[Pod<'_>]) -> Picker {
    let (signals, running): (Vec<P>, Vec<&[&str]>) = pods.iter().copied().unzip();
    picker_with(&signals, |parts| {
        parts.configure(CONFIG);
        parts.resources(RESOURCES);
        adapters(&parts.pool.fleet, &running);
    })
    .await
}

fn body(prompt: &str, model: &str) -> String {
    json!({"max_tokens": 100, "model": model, "prompt": prompt, "temperature": 0}).to_string()
}

/// Sends a request for `model`, which is to be served as `target`.
async fn ask(stream: &mut EnvoyStream, prompt: &str, model: &str, target: &str) {
    let headers = [
        ("hi", "mom"),
        ("x-request-id", "test-request-id"),
        (OBJECTIVE, model),
        (REWRITE, target),
    ];
    let body = body(prompt, model);
    stream
        .post_in_pieces("/v1/completions", &headers, &[body.as_bytes()])
        .await;
}

/// The request is routed there, and the worker reads `target` in it.
async fn expect_route(stream: &mut EnvoyStream, destination: &str, target: &str, prompt: &str) {
    assert_eq!(stream.picked().await.destination, destination);
    let forwarded: Value = serde_json::from_slice(&stream.forwarded_body().await).unwrap();
    let expected: Value = serde_json::from_str(&body(prompt, target)).unwrap();
    assert_eq!(forwarded, expected);
}

/// The request was counted once, under the present name and the one before.
async fn expect_counted(picker: &Picker, model: &str, target: &str, priority: i32) {
    let labels = format!(
        r#"model_name="{model}",target_model_name="{target}",fairness_id="default-flow",priority="{priority}""#
    );
    picker
        .until_metric(&format!("llm_d_epp_request_total{{{labels}}} 1"))
        .await;
    let labels =
        format!(r#"model_name="{model}",target_model_name="{target}",priority="{priority}""#);
    picker
        .until_metric(&format!("inference_objective_request_total{{{labels}}} 1"))
        .await;
}

/// One whole row: where the request of `model` for `target` goes.
async fn row(pods: &[Pod<'_>], model: &str, target: &str, destination: &str) -> Picker {
    let picker = picker(pods).await;
    let mut stream = picker.stream().await;
    ask(&mut stream, "test", model, target).await;
    expect_route(&mut stream, destination, target, "test").await;
    picker
}

#[tokio::test]
async fn select_lower_queue_and_kv_cache() {
    let picker = row(&PLAIN, MODEL, TARGET, "192.168.1.2:8000").await;
    expect_counted(&picker, MODEL, TARGET, 2).await;
    for line in [
        r#"llm_d_epp_ready_endpoints{name="default"} 3"#,
        r#"inference_pool_ready_pods{name="default"} 3"#,
        r#"llm_d_epp_scheduler_attempts_total{status="success",target_model_name="my-model-12345",endpoint_name="worker-2",namespace="",port="8000"} 1"#,
    ] {
        picker.until_metric(line).await;
    }
}

#[tokio::test]
async fn select_active_lora_low_queue() {
    let pods: [Pod<'_>; 3] = [
        (P(0, 0.2), &["foo", "bar"]),
        (P(0, 0.1), &["foo", LORA_TARGET]),
        (P(10, 0.2), &["foo", "bar"]),
    ];
    let picker = row(&pods, LORA, LORA_TARGET, "192.168.1.2:8000").await;
    expect_counted(&picker, LORA, LORA_TARGET, 2).await;
}

#[tokio::test]
async fn select_lora_despite_higher_kv_cache() {
    let pods: [Pod<'_>; 3] = [
        (P(10, 0.2), &["foo", "bar"]),
        (P(10, 0.4), &["foo", LORA_TARGET]),
        (P(10, 0.3), &["foo"]),
    ];
    let picker = row(&pods, LORA, LORA_TARGET, "192.168.1.2:8000").await;
    expect_counted(&picker, LORA, LORA_TARGET, 2).await;
}

#[tokio::test]
async fn do_not_shed_requests_by_default() {
    let pods: [Pod<'_>; 3] = [
        (P(6, 0.2), &["foo", "bar", LORA_TARGET]),
        (P(0, 0.85), &["foo"]),
        (P(10, 0.9), &["foo"]),
    ];
    let picker = row(&pods, LORA, LORA_TARGET, "192.168.1.1:8000").await;
    expect_counted(&picker, LORA, LORA_TARGET, 2).await;
}

#[tokio::test]
async fn passthrough_parser_forwards_what_is_no_json() {
    let config = CONFIG.replace("openai-parser", "passthrough-parser");
    let picker = picker_with(&PLAIN.map(|(signals, _)| signals), |parts| {
        parts.configure(&config);
        parts.resources(RESOURCES);
    })
    .await;
    let mut stream = picker.stream().await;
    let headers = [("x-request-id", "test-request-id"), (OBJECTIVE, MODEL)];
    let body: &[u8] = b"passthrough-parser";
    stream.post_in_pieces("/anything", &headers, &[body]).await;
    assert_eq!(stream.picked().await.destination, "192.168.1.2:8000");
    assert_eq!(stream.forwarded_body().await, body);
    expect_counted(&picker, "", "", 2).await;
}

#[tokio::test]
async fn invalid_json_body_is_refused_in_words_of_our_own() {
    let picker = picker(&[(P(0, 0.2), &["foo", "bar"])]).await;
    let mut stream = picker.stream().await;
    stream
        .post("/v1/chat/completions", "no healthy upstream")
        .await;
    let refusal = stream.refused().await;
    assert_eq!(refusal.status.unwrap().code, 400);
    let text = String::from_utf8(refusal.body).unwrap();
    // Behind the field's words stands its JSON library's complaint, here that of ours.
    assert!(
        text.starts_with("inference error: BadRequest - error unmarshaling request bodyMap: "),
        "{text}"
    );
    assert!(text.contains("line 1"), "{text}");
    assert!(stream.is_closed().await);
    assert_eq!(picker.in_flight(), [0]);
}

#[tokio::test]
async fn split_body_across_chunks() {
    let pods: [Pod<'_>; 2] = [
        (P(4, 0.2), &["foo", "bar", SHEDDABLE_TARGET]),
        (P(4, 0.85), &["foo", SHEDDABLE_TARGET]),
    ];
    let picker = picker(&pods).await;
    let mut stream = picker.stream().await;
    let headers = [
        ("content-length", "82"),
        ("x-request-id", "test-request-id"),
        (OBJECTIVE, SHEDDABLE),
        (REWRITE, SHEDDABLE_TARGET),
    ];
    let pieces: [&[u8]; 2] = [
        br#"{"max_tokens":100,"model":"sql-lo"#,
        br#"ra-sheddable","prompt":"test6","temperature":0}"#,
    ];
    stream
        .post_in_pieces("/v1/completions", &headers, &pieces)
        .await;
    let picked = stream.picked().await;
    assert_eq!(picked.destination, "192.168.1.1:8000");
    let forwarded = stream.forwarded_body().await;
    let expected =
        br#"{"max_tokens":100,"model":"sql-lora-1fdg3","prompt":"test6","temperature":0}"#;
    assert_eq!(forwarded, expected, "nothing but the name is another");
    let length = ("content-length".to_owned(), expected.len().to_string());
    assert!(picked.set.contains(&length), "{:?}", picked.set);
    expect_counted(&picker, SHEDDABLE, SHEDDABLE_TARGET, 0).await;
}

#[tokio::test]
async fn no_backend_pods_available_is_503_where_the_field_says_500() {
    let picker = picker(&[]).await;
    let mut without_body = picker.stream().await;
    let headers = [(":method", "GET"), ("content-type", "application/json")];
    without_body.request(&headers, true).await;
    let mut with_body = picker.stream().await;
    ask(&mut with_body, "test", MODEL, MODEL).await;
    for stream in [&mut without_body, &mut with_body] {
        let refusal = stream.refused().await;
        assert_eq!(refusal.status.as_ref().unwrap().code, 503);
        assert_eq!(
            refusal_header(&refusal, "x-llm-d-request-dropped-reason"),
            Some("rejected-no-endpoints")
        );
    }
    picker
        .until_metric(
            r#"llm_d_epp_request_error_total{model_name="my-model",target_model_name="my-model",fairness_id="default-flow",priority="2",error_code="ServiceUnavailable"} 1"#,
        )
        .await;
}

#[tokio::test]
async fn request_missing_model_field() {
    let picker = picker(&[]).await;
    let mut stream = picker.stream().await;
    let headers = [("content-type", "application/json")];
    stream
        .post_in_pieces(
            "/v1/completions",
            &headers,
            &[br#"{"prompt":"hello world"}"#],
        )
        .await;
    let refusal = stream.refused().await;
    assert_eq!(refusal.status.unwrap().code, 400);
    assert_eq!(
        refusal.body,
        b"inference error: BadRequest - model not found in request body"
    );
    picker
        .until_metric(
            r#"llm_d_epp_request_error_total{model_name="",target_model_name="",fairness_id="default-flow",priority="0",error_code="BadRequest"} 1"#,
        )
        .await;
}

/// The rows `subsetting: ...`, and below them two of our own that say how a hint without a port and
/// one with another port are read.
#[tokio::test]
async fn subsetting() {
    let pods: [Pod<'_>; 3] = [
        (P(0, 0.2), &["foo"]),
        (P(0, 0.1), &["foo", LORA_TARGET]),
        (P(10, 0.2), &["foo"]),
    ];
    let cases: [(&[&str], Option<&str>); 6] = [
        (
            &["192.168.1.1:8000", "192.168.1.2:8000", "192.168.1.3:8000"],
            Some("192.168.1.2:8000"),
        ),
        (&["192.168.1.3:8000"], Some("192.168.1.3:8000")),
        (&["192.168.1.99:8000"], None),
        (&["192.168.1.3"], Some("192.168.1.3:8000")),
        (&["192.168.1.3:9999"], None),
        (&[], None),
    ];
    let picker = picker(&pods).await;
    for (subset, expected) in cases {
        let mut stream = picker.stream().await;
        stream.subset(subset);
        ask(&mut stream, "test2", LORA, LORA_TARGET).await;
        if let Some(destination) = expected {
            expect_route(&mut stream, destination, LORA_TARGET, "test2").await;
        } else {
            let refusal = stream.refused().await;
            assert_eq!(refusal.status.as_ref().unwrap().code, 503, "{subset:?}");
            assert_eq!(
                refusal.body,
                b"inference error: ServiceUnavailable - failed to find endpoint candidates for serving the request"
            );
            assert_eq!(
                refusal_header(&refusal, "x-llm-d-request-dropped-reason"),
                Some("rejected-no-endpoints")
            );
        }
    }
}

#[tokio::test]
async fn passthrough_of_a_model_that_is_not_in_objectives() {
    let picker = picker(&[(P(4, 0.2), &["foo", "bar", SHEDDABLE_TARGET])]).await;
    let mut stream = picker.stream().await;
    let headers = [(OBJECTIVE, "direct-model"), (REWRITE, "direct-model")];
    let pieces: [&[u8]; 2] = [
        br#"{"max_tokens":100,"model":"direct-"#,
        br#"model","prompt":"test6","temperature":0}"#,
    ];
    stream
        .post_in_pieces("/v1/completions", &headers, &pieces)
        .await;
    assert_eq!(stream.picked().await.destination, "192.168.1.1:8000");
    assert_eq!(stream.forwarded_body().await, pieces.concat());
    expect_counted(&picker, "direct-model", "direct-model", 2).await;
}

/// The request's header names the model itself, as the suite's does: a rule for the model wins over
/// the header.
#[tokio::test]
async fn rewrite_request_model() {
    let picker = picker(&[(P(0, 0.1), &["foo", "rewritten-model"])]).await;
    let mut stream = picker.stream().await;
    let model = "model-to-be-rewritten";
    ask(&mut stream, "test", model, model).await;
    expect_route(&mut stream, "192.168.1.1:8000", "rewritten-model", "test").await;
    expect_counted(&picker, "model-to-be-rewritten", "rewritten-model", 0).await;
    picker
        .until_metric(
            r#"llm_d_epp_model_rewrite_decisions_total{model_rewrite_name="rewrite-test",model_name="model-to-be-rewritten",target_model="rewritten-model"} 1"#,
        )
        .await;
    stream.response("200", false).await;
    stream
        .response_body(br#"{"model":"rewritten-model","choices":[]}"#, true)
        .await;
    stream.told_the_client().await;
    let mut answer = Vec::new();
    loop {
        let (bytes, end_of_stream) = stream.forwarded_response_chunk().await;
        answer.extend(bytes);
        if end_of_stream {
            break;
        }
    }
    let answer = String::from_utf8(answer).unwrap();
    assert_eq!(
        answer, r#"{"model":"model-to-be-rewritten","choices":[]}"#,
        "the client reads the name that it asked for"
    );
}

#[tokio::test]
async fn simple_get() {
    let picker = picker(&[(P(0, 0.0), &["foo"])]).await;
    let mut stream = picker.stream().await;
    let headers = [("content-type", "text/event-stream"), ("status", "200")];
    stream.request(&headers, true).await;
    assert_eq!(stream.picked().await.destination, "192.168.1.1:8000");
    stream.response("200", true).await;
    stream.told_the_client().await;
    picker.until_in_flight(&[0]).await;
}

/// The rows `response buffering: ...`. The field collects such a response and sends it on as one
/// chunk; ours sends each chunk on as it comes.
#[tokio::test]
async fn responses_go_by_unchanged_and_chunk_by_chunk_where_the_field_buffers() {
    let rows: [&[&[u8]]; 3] = [
        &[
            br#"{"max_tokens":100,"model":"sql-lo"#,
            br#"ra-sheddable","prompt":"test6","temperature":0}"#,
        ],
        &[b"no healthy upstream"],
        &[
            br#"{"max_tokens":100,"model":"sql-lora-sheddable","prompt":"test6","temperature":0}"#,
            b"",
        ],
    ];
    for chunks in rows {
        let picker = picker(&[(P(4, 0.2), &[SHEDDABLE_TARGET])]).await;
        let mut stream = picker.stream().await;
        stream.post("/v1/completions", &body("test", "m")).await;
        stream.picked().await;
        stream.forwarded_body().await;
        stream.response("200", false).await;
        let told = stream.told_the_client().await;
        let marked = ("x-went-into-resp-headers".to_owned(), "true".to_owned());
        assert_eq!(told, [marked]);
        for (place, chunk) in chunks.iter().enumerate() {
            let is_last = place + 1 == chunks.len();
            stream.response_body(chunk, is_last).await;
            let forwarded = stream.forwarded_response_chunk().await;
            assert_eq!(forwarded, (chunk.to_vec(), is_last));
        }
        picker.until_in_flight(&[0]).await;
    }
}

#[tokio::test]
async fn sse_token_counting() {
    let picker = picker(&[(P(4, 0.2), &[SHEDDABLE_TARGET])]).await;
    let mut stream = picker.stream().await;
    stream.post("/v1/completions", &body("test", "m")).await;
    stream.picked().await;
    stream.forwarded_body().await;
    picker.until_in_flight(&[1]).await;
    stream.response("200", false).await;
    stream.told_the_client().await;
    let chunks: [&[u8]; 3] = [
        b"data: {}",
        b"data: {\"usage\":{\"prompt_tokens\":7,\"total_tokens\":17,\"completion_tokens\":10}}\ndata: [DONE]",
        b"",
    ];
    for (place, chunk) in chunks.into_iter().enumerate() {
        stream.served("192.168.1.1:8000");
        stream.response_body(chunk, place == 2).await;
        let forwarded = stream.forwarded_response_chunk().await;
        assert_eq!(forwarded, (chunk.to_vec(), place == 2));
    }
    let labels = r#"model_name="m",target_model_name="m",fairness_id="default-flow",priority="0""#;
    let older = r#"model_name="m",target_model_name="m""#;
    for line in [
        format!("llm_d_epp_request_input_tokens_sum{{{labels}}} 7"),
        format!("llm_d_epp_request_output_tokens_sum{{{labels}}} 10"),
        format!("llm_d_epp_request_duration_seconds_count{{{labels}}} 1"),
        format!("llm_d_epp_request_running{{{labels}}} 0"),
        format!("llm_d_epp_request_ttft_seconds_count{{{labels},streaming=\"false\"}} 1"),
        format!("inference_objective_input_tokens_bucket{{{older},le=\"1\"}} 0"),
        format!("inference_objective_input_tokens_bucket{{{older},le=\"8\"}} 1"),
        format!("inference_objective_input_tokens_bucket{{{older},le=\"32778\"}} 1"),
        format!("inference_objective_input_tokens_bucket{{{older},le=\"+Inf\"}} 1"),
        format!("inference_objective_input_tokens_sum{{{older}}} 7"),
        format!("inference_objective_input_tokens_count{{{older}}} 1"),
        format!("inference_objective_output_tokens_sum{{{older}}} 10"),
        "pointsman_served_elsewhere_total 0".to_owned(),
    ] {
        picker.until_metric(&line).await;
    }
    picker.until_in_flight(&[0]).await;
}
