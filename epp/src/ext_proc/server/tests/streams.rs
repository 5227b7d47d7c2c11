//! Stream mode: what a decision changes, what is bounded, and what interrupts.

use std::borrow::Cow;

use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode::FullDuplexStreamed;
use envoy_types::pb::envoy::service::ext_proc::v3::HeaderMutation;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response as Answered;

use super::rig::{Rig, Told};
use crate::ext_proc::{Destination, DroppedReason, End, Refusal, Watch, WriteBack};

fn to(endpoints: &str) -> Destination {
    Destination {
        endpoints: endpoints.to_owned(),
        ..Destination::default()
    }
}

fn headers_set(mutation: &HeaderMutation) -> Vec<(&str, &[u8])> {
    let set = mutation.set_headers.iter();
    set.filter_map(|option| option.header.as_ref())
        .map(|header| (header.key.as_str(), &header.raw_value[..]))
        .collect()
}

#[tokio::test]
async fn rewritten_request_and_written_back_response() {
    let destination = Destination {
        set_headers: vec![(Cow::Borrowed("x-prefiller-host-port"), "[::1]:1".to_owned())],
        rewritten_body: Some(vec![b"{\"model\":\"served\"}".to_vec()]),
        response_headers: vec![(Cow::Borrowed("x-session-token"), "t".to_owned())],
        model_write_back: WriteBack::new("served", "asked"),
        ..to("[::1]:8000")
    };
    let mut rig = Rig::start(Watch::Auto, destination).await;
    let mut envoy = rig.stream(FullDuplexStreamed).await;
    envoy.post(b"{\"model\":\"asked\"}").await;
    let Some(Answered::RequestHeaders(answer)) = envoy.answer().await.response else {
        panic!("a headers answer");
    };
    let mutation = answer.response.and_then(|common| common.header_mutation);
    let expected: [(&str, &[u8]); 3] = [
        ("x-gateway-destination-endpoint", b"[::1]:8000"),
        ("x-prefiller-host-port", b"[::1]:1"),
        ("content-length", b"18"),
    ];
    assert_eq!(headers_set(&mutation.expect("changes")), expected);
    assert_eq!(
        envoy.chunk().await,
        (b"{\"model\":\"served\"}".to_vec(), true)
    );

    envoy.response().await;
    let Some(Answered::ResponseHeaders(answer)) = envoy.answer().await.response else {
        panic!("a headers answer");
    };
    let mutation = answer.response.and_then(|common| common.header_mutation);
    let mutation = mutation.expect("changes");
    assert_eq!(headers_set(&mutation), [("x-session-token", &b"t"[..])]);
    assert_eq!(mutation.remove_headers, ["content-length"]);
    envoy.response_body(b"data: {\"model\":\"ser", false).await;
    assert_eq!(envoy.chunk().await, (b"data: {".to_vec(), false));
    let rest = b"ved\",\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\n";
    envoy.response_body(rest, true).await;
    let written =
        b"\"model\":\"asked\",\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\n";
    assert_eq!(envoy.chunk().await, (written.to_vec(), true));
    let outcome = rig.finished().await;
    assert_eq!(outcome.end, End::Completed);
    assert_eq!(outcome.usage.map(|usage| usage.total_tokens()), Some(9));
    assert_eq!(outcome.seen.events, 1);
    assert_eq!(rig.processor.held_bytes().held(), 0);
}

#[tokio::test]
async fn body_past_its_limit_is_413() {
    let mut rig = Rig::start(Watch::Auto, to("[::1]:8000")).await;
    let mut envoy = rig.stream(FullDuplexStreamed).await;
    envoy.request(&[(":method", "POST")]).await;
    envoy.body(&[b'x'; 1_001], false).await;
    let refused = envoy.immediate().await;
    assert_eq!(refused.status.map(|status| status.code), Some(413));
    let text = String::from_utf8(refused.body).expect("text");
    assert_eq!(
        text,
        "inference error: PayloadTooLarge - request body is larger than the limit of 1000 bytes"
    );
    assert_eq!(rig.told().await, Told::Refused(Refusal::too_large(1_000)));
    assert!(envoy.is_closed().await);
}

#[tokio::test]
async fn bodies_past_the_allowance_of_the_process_are_503() {
    let mut rig = Rig::start(Watch::Auto, to("[::1]:8000")).await;
    let mut holds = rig.stream(FullDuplexStreamed).await;
    holds.request(&[(":method", "POST")]).await;
    holds.body(&[b'x'; 900], false).await;
    super::rig::until(|| rig.processor.held_bytes().held() == 900).await;
    let mut refused = rig.stream(FullDuplexStreamed).await;
    refused.request(&[(":method", "POST")]).await;
    refused.body(&[b'x'; 900], false).await;
    let immediate = refused.immediate().await;
    assert_eq!(immediate.status.map(|status| status.code), Some(503));
    let headers = immediate.headers.expect("headers");
    let reason: (&str, &[u8]) = ("x-llm-d-request-dropped-reason", b"rejected-saturated");
    assert!(headers_set(&headers).contains(&reason));
    assert_eq!(rig.told().await, Told::Refused(Refusal::no_memory()));
    drop(holds);
    super::rig::until(|| rig.processor.held_bytes().held() == 0).await;
}

#[tokio::test]
async fn eviction_takes_the_place_of_a_response_that_has_not_begun() {
    let mut rig = Rig::start(Watch::Auto, to("[::1]:8000")).await;
    let mut envoy = rig.stream(FullDuplexStreamed).await;
    envoy.post(b"{}").await;
    envoy.answer().await;
    envoy.chunk().await;
    rig.evict.notify_one();
    let immediate = envoy.immediate().await;
    assert_eq!(immediate.status.map(|status| status.code), Some(429));
    assert_eq!(immediate.body, b"request evicted by flow control");
    let evicted = Refusal::evicted(DroppedReason::Evicted);
    assert_eq!(rig.finished().await.end, End::Refused(evicted));
}

#[tokio::test]
async fn response_that_has_begun_is_not_interrupted() {
    let mut rig = Rig::start(Watch::Auto, to("[::1]:8000")).await;
    let mut envoy = rig.stream(FullDuplexStreamed).await;
    envoy.post(b"{}").await;
    envoy.answer().await;
    envoy.chunk().await;
    envoy.response().await;
    envoy.answer().await;
    rig.evict.notify_one();
    envoy.response_body(b"all", true).await;
    assert_eq!(envoy.chunk().await, (b"all".to_vec(), true));
    assert_eq!(rig.finished().await.end, End::Completed);
}

#[tokio::test]
async fn pool_and_authority_reach_the_decider() {
    let mut rig = Rig::start(Watch::Auto, to("[::1]:8000")).await;
    let mut envoy = rig.stream_with(FullDuplexStreamed, Some("ns/chat")).await;
    envoy.post(b"{}").await;
    let Told::Begun { pool, body } = rig.told().await else {
        panic!("begun")
    };
    assert_eq!(pool.pool.as_deref(), Some("ns/chat"));
    let authority = pool.authority.expect("an authority");
    assert!(authority.starts_with("127.0.0.1:"), "{authority}");
    assert_eq!(body, b"{}");
    assert_eq!(
        envoy
            .answer()
            .await
            .dynamic_metadata
            .expect("metadata")
            .fields
            .len(),
        1,
        "no lease where the stream watches"
    );
}
