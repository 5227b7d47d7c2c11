//! Flow control as a gateway sees it: who waits, who goes first, and how the others are answered.
//!
//! The pool has room for one request (`concurrency-detector`), which a first request takes; what
//! comes after it waits.

use std::time::{Duration, Instant};

use envoy_types::pb::envoy::service::ext_proc::v3::ImmediateResponse;
use pointsman_epp::clock::Clock;
use pointsman_epp::ext_proc::StreamLimits;
use pointsman_epp::fleet::EndpointSpec;

use super::support::{
    EnvoyStream, LIMITS, Made, P, Picker, fleet_of, made, picker_with, picker_within,
    refusal_header,
};

const BODY: &[u8] = br#"{"model":"m","prompt":"hello"}"#;

const OBJECTIVES: &str = "
{apiVersion: llm-d.ai/v1alpha2, kind: InferenceObjective, metadata: {name: urgent}, spec: {priority: 10, poolRef: {name: default}}}
---
{apiVersion: llm-d.ai/v1alpha2, kind: InferenceObjective, metadata: {name: batch}, spec: {priority: -10, poolRef: {name: default}}}
---
{apiVersion: llm-d.ai/v1alpha2, kind: InferenceObjective, metadata: {name: elsewhere}, spec: {priority: 99, poolRef: {name: another}}}
";

/// One request at a time and this section `flowControl`.
fn config(gate: &str, section: &str) -> String {
    format!(
        "
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
featureGates: [{gate}]
plugins:
- type: queue-scorer
- type: concurrency-detector
  parameters: {{maxConcurrency: 1}}
schedulingProfiles:
- name: default
  plugins: [{{pluginRef: queue-scorer}}]
flowControl:
  saturationDetector: {{pluginRef: concurrency-detector}}
{section}"
    )
}

fn adjusted(gate: &str, section: &str) -> impl FnOnce(&mut Made) {
    let config = config(gate, section);
    move |parts| {
        parts.configure(&config);
        parts.resources(OBJECTIVES);
    }
}

async fn picker(section: &str) -> Picker {
    picker_with(&[P(0, 0.1)], adjusted("flowControl", section)).await
}

/// Sends a request of this objective.
async fn send(picker: &Picker, objective: Option<&str>) -> EnvoyStream {
    let mut stream = picker.stream().await;
    let objective = objective.map(|name| ("x-llm-d-inference-objective", name));
    let headers: Vec<_> = objective.into_iter().collect();
    stream
        .post_in_pieces("/v1/completions", &headers, &[BODY])
        .await;
    stream
}

async fn routed(stream: &mut EnvoyStream) {
    assert_eq!(stream.picked().await.destination, "192.168.1.1:8000");
    assert_eq!(stream.forwarded_body().await, BODY);
}

/// A request that takes all the room there is.
async fn occupied(picker: &Picker, objective: Option<&str>) -> EnvoyStream {
    let mut stream = send(picker, objective).await;
    routed(&mut stream).await;
    picker.until_in_flight(&[1]).await;
    stream
}

/// A request that waits, of `waiting` in all.
async fn waiting(picker: &Picker, objective: Option<&str>, waiting: u64) -> EnvoyStream {
    let stream = send(picker, objective).await;
    picker.until_waiting(waiting).await;
    stream
}

async fn answered(stream: &mut EnvoyStream) {
    stream.served_with(b"{}").await;
}

fn told(refusal: &ImmediateResponse) -> (i32, Option<&str>) {
    let status = refusal.status.as_ref().unwrap().code;
    let reason = refusal_header(refusal, "x-llm-d-request-dropped-reason");
    (status, reason)
}

async fn outcome(picker: &Picker, outcome: &str, priority: i32, count: u32) {
    let line = format!(
        "llm_d_epp_flow_control_requests_total{{outcome=\"{outcome}\",priority=\"{priority}\",inference_pool=\"default\"}} {count}"
    );
    picker.until_metric(&line).await;
}

#[tokio::test]
async fn request_waits_until_there_is_room() {
    let picker = picker("").await;
    let mut first = occupied(&picker, None).await;
    let mut second = waiting(&picker, None, 1).await;
    picker
        .until_metric(
            r#"llm_d_epp_flow_control_queue_size{fairness_id="default-flow",priority="0",inference_pool="default",model_name="",target_model_name=""} 1"#,
        )
        .await;
    answered(&mut first).await;
    routed(&mut second).await;
    picker.until_in_flight(&[1]).await;
    answered(&mut second).await;
    picker.until_in_flight(&[0]).await;
    outcome(&picker, "Dispatched", 0, 2).await;
}

#[tokio::test]
async fn higher_priority_goes_first_and_objectives_of_another_pool_say_nothing() {
    let picker = picker("").await;
    let mut first = occupied(&picker, None).await;
    let mut elsewhere = waiting(&picker, Some("elsewhere"), 1).await;
    let mut batch = waiting(&picker, Some("batch"), 2).await;
    let mut urgent = waiting(&picker, Some("urgent"), 3).await;
    answered(&mut first).await;
    routed(&mut urgent).await;
    picker.until_waiting(2).await;
    answered(&mut urgent).await;
    routed(&mut elsewhere).await;
    picker.until_waiting(1).await;
    answered(&mut elsewhere).await;
    routed(&mut batch).await;
    answered(&mut batch).await;
    for (priority, count) in [(10, 1), (0, 2), (-10, 1)] {
        outcome(&picker, "Dispatched", priority, count).await;
    }
}

#[tokio::test]
async fn request_that_waited_for_its_ttl_gets_429() {
    let picker = picker("  defaultRequestTTL: 30ms\n").await;
    let _first = occupied(&picker, None).await;
    let mut second = send(&picker, None).await;
    let refusal = second.refused().await;
    assert_eq!(told(&refusal), (429, Some("rejected-ttl-expired")));
    let text = String::from_utf8(refusal.body).unwrap();
    assert!(
        text.starts_with("inference error: ResourceExhausted - "),
        "{text}"
    );
    assert!(second.is_closed().await);
    outcome(&picker, "EvictedTTL", 0, 1).await;
    assert_eq!(picker.in_flight(), [1], "the first one goes on");
}

#[tokio::test]
async fn full_queue_gets_429_at_once() {
    let picker = picker("  priorityBands: [{priority: 0, maxRequests: 1}]\n").await;
    let _first = occupied(&picker, None).await;
    let _second = waiting(&picker, None, 1).await;
    let mut third = send(&picker, None).await;
    assert_eq!(
        told(&third.refused().await),
        (429, Some("rejected-saturated"))
    );
    outcome(&picker, "RejectedCapacity", 0, 1).await;
    // Another band has room of its own.
    let _urgent = waiting(&picker, Some("urgent"), 2).await;
}

#[tokio::test]
async fn client_that_leaves_while_it_waits_frees_its_place() {
    let picker = picker("  priorityBands: [{priority: 0, maxRequests: 1}]\n").await;
    let mut first = occupied(&picker, None).await;
    let second = waiting(&picker, None, 1).await;
    drop(second.half_close());
    picker.until_waiting(0).await;
    outcome(&picker, "EvictedContextCancelled", 0, 1).await;
    let mut third = waiting(&picker, None, 1).await;
    answered(&mut first).await;
    routed(&mut third).await;
    picker.until_in_flight(&[1]).await;
}

#[tokio::test]
async fn pool_without_endpoints_gets_503_after_its_ttl() {
    let section = "  noEndpointRequestTTL: 30ms\n";
    let picker = picker_with(&[], adjusted("flowControl", section)).await;
    let mut stream = send(&picker, None).await;
    let refusal = stream.refused().await;
    assert_eq!(told(&refusal), (503, Some("rejected-no-endpoints")));
    outcome(&picker, "EvictedNoEndpoints", 0, 1).await;
}

#[tokio::test]
async fn request_outwaits_an_empty_pool() {
    let picker = picker_with(&[], adjusted("flowControl", "")).await;
    let mut stream = waiting(&picker, None, 1).await;
    let spec = EndpointSpec::new("late", ([192, 168, 1, 1], 8000).into());
    picker.fleet.apply(vec![spec]).unwrap();
    picker.pool().gate.wake();
    routed(&mut stream).await;
}

#[tokio::test]
async fn shutting_down_refuses_those_that_wait_and_leaves_those_in_flight_alone() {
    let picker = picker("").await;
    let mut first = occupied(&picker, None).await;
    let mut second = waiting(&picker, None, 1).await;
    picker.pool().gate.shut_down();
    let mut third = send(&picker, None).await;
    for stream in [&mut second, &mut third] {
        let refusal = stream.refused().await;
        assert_eq!(told(&refusal), (503, Some("rejected-shutting-down")));
    }
    answered(&mut first).await;
    picker.until_in_flight(&[0]).await;
}

#[tokio::test]
async fn sheddable_request_in_flight_is_evicted_for_a_more_urgent_one() {
    let picker = picker("  enableEviction: true\n").await;
    let mut batch = occupied(&picker, Some("batch")).await;
    let mut urgent = send(&picker, Some("urgent")).await;
    let refusal = batch.refused().await;
    assert_eq!(told(&refusal), (429, Some("evicted-priority")));
    assert_eq!(refusal.body, b"request evicted by flow control");
    assert!(batch.is_closed().await);
    routed(&mut urgent).await;
    picker.until_in_flight(&[1]).await;
    answered(&mut urgent).await;
    picker.until_in_flight(&[0]).await;
}

#[tokio::test]
async fn request_whose_response_began_is_not_evicted() {
    let picker = picker("  enableEviction: true\n").await;
    let mut batch = occupied(&picker, Some("batch")).await;
    batch.response("200", false).await;
    batch.told_the_client().await;
    let mut urgent = waiting(&picker, Some("urgent"), 1).await;
    batch.response_body(b"{}", true).await;
    assert_eq!(
        batch.forwarded_response_chunk().await,
        (b"{}".to_vec(), true)
    );
    routed(&mut urgent).await;
}

#[tokio::test]
async fn without_the_gate_only_sheddable_requests_are_refused_and_nothing_waits() {
    let adjust = adjusted("flowControl=false", "");
    let picker = picker_with(&[P(0, 0.1)], adjust).await;
    let mut batch = send(&picker, Some("batch")).await;
    routed(&mut batch).await;
    picker.until_in_flight(&[1]).await;
    let mut second = send(&picker, Some("batch")).await;
    let refusal = second.refused().await;
    assert_eq!(told(&refusal), (429, Some("rejected-saturated")));
    assert_eq!(
        refusal.body,
        b"inference error: ResourceExhausted - system saturated, sheddable request dropped"
    );
    let mut urgent = send(&picker, Some("urgent")).await;
    let mut ordinary = send(&picker, None).await;
    routed(&mut urgent).await;
    routed(&mut ordinary).await;
    picker.until_in_flight(&[3]).await;
}

/// Waiting is bounded by the request's TTL, not by the time that a decision may take.
#[tokio::test]
async fn request_may_wait_longer_than_a_decision_may_take() {
    let mut parts = made(fleet_of(&[P(0, 0.1)]), Clock::monotonic());
    adjusted("flowControl", "")(&mut parts);
    let limits = StreamLimits {
        decision_timeout: Duration::from_millis(20),
        ..LIMITS
    };
    let picker = picker_within(parts.pipeline(), limits).await;
    let mut first = occupied(&picker, None).await;
    let mut second = waiting(&picker, None, 1).await;
    let begun = Instant::now();
    picker
        .until(|_| begun.elapsed() > 3 * limits.decision_timeout)
        .await;
    answered(&mut first).await;
    routed(&mut second).await;
}
