//! The rows of the field's hermetic suite for vLLM's gRPC service (`grpc_test.go`).
//!
//! Messages are written as bytes: a frame of five bytes, then protobuf.

use super::field::RESOURCES;
use super::support::{EnvoyStream, P, Picker, picker_with, refusal_header};

const CONFIG: &str = "
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
  - type: queue-scorer
  - type: kv-cache-utilization-scorer
  - type: prefix-cache-scorer
  - type: lora-affinity-scorer
  - type: vllmgrpc-parser
schedulingProfiles:
  - name: default
    plugins:
      - pluginRef: queue-scorer
      - pluginRef: kv-cache-utilization-scorer
      - pluginRef: prefix-cache-scorer
      - pluginRef: lora-affinity-scorer
requestHandler:
  parsers:
  - pluginRef: vllmgrpc-parser
";

const GENERATE: &str = "/vllm.grpc.engine.VllmEngine/Generate";
const EMBED: &str = "/vllm.grpc.engine.VllmEngine/Embed";

const HEADERS: [(&str, &str); 4] = [
    ("content-type", "application/grpc"),
    ("hi", "mom"),
    ("x-request-id", "test-request-id"),
    (
        "x-llm-d-inference-objective",
        "inference-objective-with-priority-4",
    ),
];

const IDLEST_IS_SECOND: [P; 3] = [P(3, 0.2), P(0, 0.1), P(10, 0.2)];

fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&[0][..], &length.to_be_bytes(), message].concat()
}

/// A field of type text or message. `tag` is its number and kind in one byte.
fn field(tag: u8, content: &[u8]) -> Vec<u8> {
    [&[tag, u8::try_from(content.len()).unwrap()], content].concat()
}

/// A GenerateRequest with a text.
fn generate(prompt: &str, stream: bool) -> Vec<u8> {
    let mut message = field(0x1a, prompt.as_bytes());
    if stream {
        message.extend([0x28, 1]);
    }
    framed(&message)
}

/// An EmbedRequest whose tokenized input has the text only.
fn embed(prompt: &str) -> Vec<u8> {
    framed(&field(0x12, &field(0x0a, prompt.as_bytes())))
}

/// A GenerateResponse with some token ids.
fn chunk() -> Vec<u8> {
    framed(&field(0x0a, &field(0x0a, &[1, 2, 3, 4, 5, 6, 7])))
}

/// A GenerateResponse that is complete: 7 prompt tokens, 10 generated ones.
fn complete() -> Vec<u8> {
    framed(&field(0x12, &[0x18, 7, 0x20, 10]))
}

async fn picker(pods: &[P]) -> Picker {
    picker_with(pods, |parts| {
        parts.configure(CONFIG);
        parts.resources(RESOURCES);
    })
    .await
}

/// Sends a request; it is routed there and forwarded as it is.
async fn expect_route(picker: &Picker, path: &str, body: &[u8], destination: &str) -> EnvoyStream {
    let mut stream = picker.stream().await;
    stream.post_in_pieces(path, &HEADERS, &[body]).await;
    assert_eq!(stream.picked().await.destination, destination);
    assert_eq!(stream.forwarded_body().await, body);
    stream
}

/// The service names no model, so neither do the labels.
async fn expect_counted(picker: &Picker, priority: i32) {
    for line in [
        format!(
            r#"llm_d_epp_request_total{{model_name="",target_model_name="",fairness_id="default-flow",priority="{priority}"}} 1"#
        ),
        format!(
            r#"inference_objective_request_total{{model_name="",target_model_name="",priority="{priority}"}} 1"#
        ),
    ] {
        picker.until_metric(&line).await;
    }
}

#[tokio::test]
async fn select_lower_queue_and_kv_cache() {
    for (path, body) in [
        (GENERATE, generate("test1", false)),
        (EMBED, embed("test1")),
        (GENERATE, generate("test-stream", true)),
    ] {
        let picker = picker(&IDLEST_IS_SECOND).await;
        expect_route(&picker, path, &body, "192.168.1.2:8000").await;
        expect_counted(&picker, 4).await;
        picker
            .until_metric(r#"inference_pool_ready_pods{name="default"} 3"#)
            .await;
    }
}

#[tokio::test]
async fn do_not_shed_requests_by_default() {
    let picker = picker(&[P(6, 0.2), P(0, 0.85), P(10, 0.9)]).await;
    let mut stream = picker.stream().await;
    let body = generate("test2", false);
    stream.post_in_pieces(GENERATE, &[], &[&body]).await;
    // 0.4 + 0.8 against 1.0 + 0.15; the prefix and the adapters say nothing.
    assert_eq!(stream.picked().await.destination, "192.168.1.1:8000");
    expect_counted(&picker, 0).await;
}

#[tokio::test]
async fn split_body_across_chunks() {
    let picker = picker(&[P(4, 0.2), P(4, 0.85)]).await;
    let mut stream = picker.stream().await;
    let body = generate("test3", false);
    let (first, second) = body.split_at(body.len() / 2);
    stream.post_in_pieces(GENERATE, &[], &[first, second]).await;
    assert_eq!(stream.picked().await.destination, "192.168.1.1:8000");
    assert_eq!(stream.forwarded_body().await, body);
    expect_counted(&picker, 0).await;
}

/// The suite leaves these two out; what its parser does is what is asked here.
#[tokio::test]
async fn invalid_payload_is_refused_and_an_unknown_method_is_routed_unread() {
    let picker = picker(&IDLEST_IS_SECOND).await;
    let mut stream = picker.stream().await;
    stream
        .post_in_pieces(GENERATE, &HEADERS, &[b"no frame"])
        .await;
    let refusal = stream.refused().await;
    assert_eq!(refusal.status.unwrap().code, 400);
    let text = String::from_utf8(refusal.body).unwrap();
    assert!(
        text.starts_with("inference error: BadRequest - invalid or unsupported gRPC payload"),
        "{text}"
    );
    let path = "/vllm.grpc.engine.VllmEngine/Abort";
    expect_route(&picker, path, b"unread", "192.168.1.2:8000").await;
}

#[tokio::test]
async fn no_backend_pods_available_is_503_where_the_field_says_500() {
    let picker = picker(&[]).await;
    let mut stream = picker.stream().await;
    stream
        .request(&[("content-type", "application/json")], true)
        .await;
    assert_eq!(stream.refused().await.status.unwrap().code, 503);
}

#[tokio::test]
async fn subsetting() {
    let cases: [(&[&str], Option<&str>); 3] = [
        (
            &["192.168.1.1:8000", "192.168.1.2:8000", "192.168.1.3:8000"],
            Some("192.168.1.2:8000"),
        ),
        (&["192.168.1.3:8000"], Some("192.168.1.3:8000")),
        (&["192.168.1.99:8000"], None),
    ];
    let picker = picker(&[P(0, 0.2), P(0, 0.1), P(10, 0.2)]).await;
    for (subset, expected) in cases {
        let mut stream = picker.stream().await;
        stream.subset(subset);
        let body = generate("test2", false);
        stream.post_in_pieces(GENERATE, &HEADERS, &[&body]).await;
        if let Some(destination) = expected {
            assert_eq!(stream.picked().await.destination, destination, "{subset:?}");
        } else {
            let refusal = stream.refused().await;
            assert_eq!(refusal.status.as_ref().unwrap().code, 503);
            assert_eq!(
                refusal_header(&refusal, "x-llm-d-request-dropped-reason"),
                Some("rejected-no-endpoints")
            );
        }
    }
}

/// A response as a gRPC worker sends it: chunks without an end mark, then trailers.
async fn expect_unchanged(stream: &mut EnvoyStream, chunks: &[&[u8]]) {
    stream.response("200", false).await;
    stream.told_the_client().await;
    for chunk in chunks {
        stream.response_body(chunk, false).await;
        let forwarded = stream.forwarded_response_chunk().await;
        assert_eq!(forwarded, (chunk.to_vec(), false));
    }
    stream.response_trailers().await;
    stream.answer().await;
}

#[tokio::test]
async fn responses_go_by_unchanged_valid_or_not() {
    let whole = chunk();
    let (first, second) = whole.split_at(whole.len() / 2);
    let rows: [&[&[u8]]; 2] = [&[first, second], &[b"no healthy upstream"]];
    for chunks in rows {
        let picker = picker(&[P(4, 0.2)]).await;
        let body = generate("test", false);
        let mut stream = expect_route(&picker, GENERATE, &body, "192.168.1.1:8000").await;
        expect_unchanged(&mut stream, chunks).await;
        picker.until_in_flight(&[0]).await;
    }
}

/// The field reads the tokens of such a response; ours looks for JSON only, and counts none.
#[tokio::test]
async fn tokens_of_a_response_are_not_counted_where_the_field_counts_them() {
    let whole = complete();
    let (first, second) = whole.split_at(whole.len() / 2);
    let one = chunk();
    let rows: [(bool, &[&[u8]]); 2] = [(false, &[first, second]), (true, &[&one, &whole])];
    for (streams, chunks) in rows {
        let picker = picker(&[P(4, 0.2)]).await;
        let body = generate("test-stream", streams);
        let mut stream = expect_route(&picker, GENERATE, &body, "192.168.1.1:8000").await;
        expect_unchanged(&mut stream, chunks).await;
        picker
            .until_metric(
                r#"llm_d_epp_request_duration_seconds_count{model_name="",target_model_name="",fairness_id="default-flow",priority="4"} 1"#,
            )
            .await;
        let page = picker.page();
        assert!(!page.contains("llm_d_epp_request_input_tokens_count{"));
    }
}
