//! What users of other pickers ran into, asked of this one.

use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response;
use pointsman_epp::clock::Clock;
use pointsman_epp::ext_proc::StreamLimits;
use pointsman_epp::fleet::EndpointSpec;

use super::support::{LIMITS, P, fleet_of, made, picker, picker_within};

const BODY: &str = r#"{"model":"m","prompt":"hello"}"#;

/// In-flight counts that went below zero, or stayed, when an endpoint came and went.
#[tokio::test]
async fn endpoint_that_flaps_during_a_request_starts_from_zero_and_stays_there() {
    let picker = picker(&[P(0, 0.1)]).await;
    let mut stream = picker.stream().await;
    stream.post("/v1/completions", BODY).await;
    stream.picked().await;
    stream.forwarded_body().await;
    picker.until_in_flight(&[1]).await;
    let spec = EndpointSpec::new("worker-1", ([192, 168, 1, 1], 8000).into());
    picker.fleet.apply(Vec::new()).unwrap();
    assert_eq!(picker.in_flight(), [0; 0]);
    picker.fleet.apply(vec![spec]).unwrap();
    assert_eq!(picker.in_flight(), [0]);
    stream.served_with(b"{}").await;
    picker
        .until_metric(
            r#"llm_d_epp_request_running{model_name="m",target_model_name="m",fairness_id="default-flow",priority="0"} 0"#,
        )
        .await;
    assert_eq!(picker.in_flight(), [0]);
    let mut next = picker.stream().await;
    next.post("/v1/completions", BODY).await;
    assert_eq!(next.picked().await.destination, "192.168.1.1:8000");
    picker.until_in_flight(&[1]).await;
}

/// A gateway that sends the end of a large body twice.
#[tokio::test]
async fn second_end_of_a_body_is_overheard() {
    let picker = picker(&[P(0, 0.1)]).await;
    let mut stream = picker.stream().await;
    stream
        .post_in_pieces("/v1/completions", &[], &[BODY.as_bytes()])
        .await;
    stream.body(b"", true).await;
    stream.picked().await;
    assert_eq!(stream.forwarded_body().await, BODY.as_bytes());
    stream.response("200", false).await;
    stream.told_the_client().await;
    stream.response_body(b"{}", true).await;
    stream.response_body(b"", true).await;
    assert_eq!(
        stream.forwarded_response_chunk().await,
        (b"{}".to_vec(), true)
    );
    picker.until_in_flight(&[0]).await;
}

/// Long prompts: they arrive in chunks, and go on in chunks that a gateway takes.
#[tokio::test]
async fn long_prompt_goes_on_byte_for_byte_in_chunks_that_a_gateway_takes() {
    let mut parts = made(fleet_of(&[P(3, 0.2), P(0, 0.1)]), Clock::monotonic());
    parts.resources(super::field::RESOURCES);
    let limits = StreamLimits {
        max_request_body_bytes: 4 << 20,
        max_held_bytes: 8 << 20,
        ..LIMITS
    };
    let picker = picker_within(parts.pipeline(), limits).await;
    for model in ["m", "model-to-be-rewritten"] {
        let prompt = "a prompt ".repeat(110_000);
        let body = format!(r#"{{"prompt":"{prompt}","model":"{model}"}}"#);
        let expected = body.replace("model-to-be-rewritten", "rewritten-model");
        let pieces: Vec<&[u8]> = body.as_bytes().chunks(65_000).collect();
        let mut stream = picker.stream().await;
        stream.post_in_pieces("/v1/completions", &[], &pieces).await;
        assert_eq!(stream.picked().await.destination, "192.168.1.2:8000");
        let (mut forwarded, mut longest) = (Vec::new(), 0);
        loop {
            let (chunk, end_of_stream) = stream.forwarded_request_chunk().await;
            longest = longest.max(chunk.len());
            forwarded.extend(chunk);
            if end_of_stream {
                break;
            }
        }
        assert!(
            forwarded == expected.as_bytes(),
            "{} bytes",
            forwarded.len()
        );
        assert!(longest <= 65_536, "{longest} bytes in one chunk");
        stream.served_with(b"{}").await;
        picker.until_in_flight(&[0, 0]).await;
    }
}

/// A response that ends in an error releases its endpoint like any other.
#[tokio::test]
async fn error_of_a_worker_is_counted_and_releases_its_endpoint() {
    let picker = picker(&[P(0, 0.1)]).await;
    let mut stream = picker.stream().await;
    stream.post("/v1/completions", BODY).await;
    stream.picked().await;
    stream.forwarded_body().await;
    stream.response("503", true).await;
    let answer = stream.answer().await;
    assert!(matches!(
        answer.response,
        Some(Response::ResponseHeaders(_))
    ));
    picker.until_in_flight(&[0]).await;
    picker
        .until_metric(
            r#"llm_d_epp_request_error_total{model_name="m",target_model_name="m",fairness_id="default-flow",priority="0",error_code="ModelServerError"} 1"#,
        )
        .await;
}
