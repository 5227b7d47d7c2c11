//! The mapping in both directions, and the bytes of the commonest answer.

use std::borrow::Cow;
use std::collections::HashMap;

use envoy_types::pb::envoy::service::ext_proc::v3::{
    BodyResponse, CommonResponse, HeadersResponse, HttpBody, body_mutation::Mutation,
    processing_response::Response,
};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::{ListValue, Struct};
use prost::Message;

use super::*;
use crate::ext_proc::lease::LeaseToken;
use crate::ext_proc::machine::{Answer, BodyAnswer, Destination, HeaderChange, RouteChange};
use crate::ext_proc::refusal::{DroppedReason, Refusal, RefusalCode};
use crate::ext_proc::usage::TokenUsage;

fn kind(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

fn text(value: &str) -> Value {
    kind(Kind::StringValue(value.to_owned()))
}

fn metadata(namespace: &str, key: &str, value: Value) -> Metadata {
    let fields = HashMap::from([(key.to_owned(), value)]);
    Metadata {
        filter_metadata: HashMap::from([(namespace.to_owned(), Struct { fields })]),
        ..Metadata::default()
    }
}

fn subset(value: Value) -> Option<Arc<[String]>> {
    let metadata = metadata(
        headers::SUBSET_METADATA_NAMESPACE,
        headers::DESTINATION_ENDPOINT_SUBSET,
        value,
    );
    context(metadata).subset
}

#[test]
fn subset_hint_is_a_list_or_a_comma_string() {
    let expected = Some(Arc::from([
        "10.0.0.1:8000".to_owned(),
        "10.0.0.2".to_owned(),
    ]));
    assert_eq!(subset(text("10.0.0.1:8000, 10.0.0.2")), expected);
    let list = ListValue {
        values: vec![text("10.0.0.1:8000"), text("10.0.0.2")],
    };
    assert_eq!(subset(kind(Kind::ListValue(list))), expected);
}

#[test]
fn subset_hint_without_entries_is_not_an_absent_hint() {
    assert_eq!(subset(text("")), Some(Arc::from([])));
    assert_eq!(subset(kind(Kind::NumberValue(1.0))), Some(Arc::from([])));
    assert_eq!(context(Metadata::default()).subset, None);
}

#[test]
fn reads_modes_served_endpoint_and_headers() {
    let message = ProcessingRequest {
        protocol_config: Some(ProtocolConfiguration {
            request_body_mode: BodySendMode::Buffered.into(),
            response_body_mode: BodySendMode::FullDuplexStreamed.into(),
            ..ProtocolConfiguration::default()
        }),
        metadata_context: Some(metadata(
            headers::METADATA_NAMESPACE,
            headers::DESTINATION_ENDPOINT_SERVED,
            text("10.0.0.1:8000"),
        )),
        request: Some(Request::ResponseHeaders(HttpHeaders {
            headers: Some(header_map([(":status", "503")])),
            end_of_stream: true,
            ..HttpHeaders::default()
        })),
        ..ProcessingRequest::default()
    };
    let incoming = read(message);
    let modes = Modes {
        request: BodyMode::Buffered,
        response: BodyMode::FullDuplex,
    };
    assert_eq!(incoming.modes, Some(modes));
    assert_eq!(incoming.context.served.as_deref(), Some("10.0.0.1:8000"));
    assert!(matches!(
        incoming.event,
        Some(Event::ResponseHeaders {
            status: Some(503),
            has_content_length: false,
            end_of_stream: true
        })
    ));
}

#[test]
fn body_bytes_are_moved() {
    let body = vec![1, 2, 3];
    let address = body.as_ptr();
    let message = ProcessingRequest {
        request: Some(Request::RequestBody(HttpBody {
            body,
            ..HttpBody::default()
        })),
        ..ProcessingRequest::default()
    };
    let Some(Event::RequestBody {
        bytes,
        end_of_stream: false,
    }) = read(message).event
    else {
        panic!("a body message is a body event");
    };
    assert_eq!(bytes.as_ptr(), address);
}

#[test]
fn destination_goes_out_as_header_and_as_wrapped_metadata() {
    let change = RouteChange {
        destination: Some(Destination {
            endpoints: "10.0.0.1:8000".to_owned(),
            scores: vec![("10.0.0.1:8000".to_owned(), 0.5)],
            ..Destination::default()
        }),
        headers: HeaderChange {
            set: vec![(Cow::Borrowed("x-encoder-hosts-ports"), "[::1]:1".to_owned())],
            remove: vec![Cow::Borrowed(headers::PREFILLER_HOST_PORT)],
        },
    };
    let message = write(Answer::RequestHeaders(change));
    let Some(Response::RequestHeaders(HeadersResponse {
        response: Some(common),
    })) = message.response
    else {
        panic!("a headers answer");
    };
    let mutation = common.header_mutation.expect("the route changes headers");
    let header = mutation.set_headers[0].header.as_ref().expect("one header");
    assert_eq!(header.key, "x-gateway-destination-endpoint");
    assert_eq!(header.raw_value, b"10.0.0.1:8000");
    let further = mutation.set_headers[1].header.as_ref().expect("another");
    assert_eq!(
        (further.key.as_str(), &further.raw_value[..]),
        ("x-encoder-hosts-ports", &b"[::1]:1"[..])
    );
    assert_eq!(mutation.remove_headers, ["x-prefiller-host-port"]);
    assert!(!common.clear_route_cache);

    let metadata = message.dynamic_metadata.expect("metadata");
    let Some(Kind::StructValue(namespace)) = &metadata.fields["envoy.lb"].kind else {
        panic!("wrapped in its namespace");
    };
    assert_eq!(
        namespace.fields["x-gateway-destination-endpoint"],
        text("10.0.0.1:8000")
    );
    assert!(
        namespace
            .fields
            .contains_key("x-gateway-destination-endpoint-scores")
    );
}

/// The bytes of the commonest answer, by the field numbers of Envoy's protos: `response_body`
/// (4) of `BodyResponse.response` (1) of `CommonResponse.body_mutation` (3) of
/// `BodyMutation.streamed_response` (3) of body (1) and end mark (2).
#[test]
fn streamed_chunk_has_these_bytes() {
    let chunk = BodyAnswer::Chunk {
        bytes: b"ab".to_vec(),
        end_of_stream: true,
    };
    let bytes = write(Answer::ResponseBody(chunk, None)).encode_to_vec();
    let golden = [
        0x22, 0x0c, 0x0a, 0x0a, 0x1a, 0x08, 0x1a, 0x06, 0x0a, 0x02, b'a', b'b', 0x10, 0x01,
    ];
    assert_eq!(bytes, golden);
}

#[test]
fn untouched_answers_carry_no_mutation() {
    let message = write(Answer::RequestBody(
        BodyAnswer::Continue,
        RouteChange::default(),
    ));
    let Some(Response::RequestBody(BodyResponse {
        response: Some(common),
    })) = message.response
    else {
        panic!("a body answer");
    };
    assert_eq!(common, CommonResponse::default());
    assert_eq!(message.dynamic_metadata, None);
}

#[test]
fn refusal_is_text_with_status_and_reason() {
    let message = write(Answer::Immediate(Refusal::no_endpoints()));
    let Some(Response::ImmediateResponse(immediate)) = message.response else {
        panic!("an immediate response");
    };
    assert_eq!(immediate.status, Some(HttpStatus { code: 503 }));
    assert!(
        immediate
            .body
            .starts_with(b"inference error: ServiceUnavailable - ")
    );
    let headers = immediate.headers.expect("headers").set_headers;
    let reason = headers.iter().filter_map(|option| option.header.as_ref());
    let reason = reason.filter(|header| header.key == "x-llm-d-request-dropped-reason");
    assert_eq!(
        reason
            .map(|header| &header.raw_value[..])
            .collect::<Vec<_>>(),
        [b"rejected-no-endpoints"]
    );
}

fn namespace<'a>(metadata: &'a Struct, name: &str) -> &'a HashMap<String, Value> {
    match &metadata.fields[name].kind {
        Some(Kind::StructValue(namespace)) => &namespace.fields,
        other => panic!("{name} is not wrapped: {other:?}"),
    }
}

#[test]
fn lease_goes_out_in_a_namespace_of_its_own() {
    let token = LeaseToken {
        boot: 0xabc,
        counter: 7,
    };
    let destination = Destination {
        endpoints: "[::1]:8000,10.0.0.2:8000".to_owned(),
        token: Some(token),
        ..Destination::default()
    };
    let message = write(Answer::RequestHeaders(RouteChange {
        destination: Some(destination),
        ..RouteChange::default()
    }));
    let metadata = message.dynamic_metadata.expect("metadata");
    let ours = namespace(&metadata, "dev.pointsman.epp");
    assert_eq!(ours["token"], text("0000000000000abc-7"));
    assert_eq!(ours["picked"], text("[::1]:8000"));
    let lb = namespace(&metadata, "envoy.lb");
    assert_eq!(
        lb["x-gateway-destination-endpoint"],
        text("[::1]:8000,10.0.0.2:8000")
    );
}

#[test]
fn usage_rides_on_the_last_answer_as_numbers() {
    let usage = TokenUsage {
        prompt_tokens: 7,
        completion_tokens: 10,
        cached_tokens: Some(4),
    };
    let chunk = BodyAnswer::Chunk {
        bytes: Vec::new(),
        end_of_stream: true,
    };
    for answer in [
        Answer::ResponseBody(chunk, Some(usage)),
        Answer::ResponseTrailers(Some(usage)),
    ] {
        let metadata = write(answer).dynamic_metadata.expect("metadata");
        let fields = namespace(&metadata, "dev.pointsman.usage");
        for (key, tokens) in [
            ("input_tokens", 7.0),
            ("output_tokens", 10.0),
            ("total_tokens", 17.0),
            ("cached_tokens", 4.0),
        ] {
            assert_eq!(fields[key], kind(Kind::NumberValue(tokens)), "{key}");
        }
    }
}

#[test]
fn whole_body_and_response_headers_are_mutations() {
    let replaced =
        Answer::RequestBody(BodyAnswer::Replace(b"new".to_vec()), RouteChange::default());
    let Some(Response::RequestBody(BodyResponse {
        response: Some(common),
    })) = write(replaced).response
    else {
        panic!("a body answer");
    };
    let mutation = common.body_mutation.and_then(|body| body.mutation);
    assert_eq!(mutation, Some(Mutation::Body(b"new".to_vec())));

    let change = HeaderChange {
        set: vec![(Cow::Borrowed("x-session-token"), "t".to_owned())],
        remove: vec![Cow::Borrowed("content-length")],
    };
    let Some(Response::ResponseHeaders(HeadersResponse {
        response: Some(common),
    })) = write(Answer::ResponseHeaders(change)).response
    else {
        panic!("a headers answer");
    };
    let mutation = common.header_mutation.expect("headers change");
    assert_eq!(mutation.set_headers.len(), 1);
    assert_eq!(mutation.remove_headers, ["content-length"]);
    let untouched = write(Answer::ResponseHeaders(HeaderChange::default()));
    assert_eq!(
        untouched.response,
        Some(Response::ResponseHeaders(HeadersResponse::default()))
    );
}

#[test]
fn eviction_is_a_bare_message_and_a_quota_says_when_to_come_back() {
    let Some(Response::ImmediateResponse(evicted)) =
        write(Answer::Immediate(Refusal::evicted(DroppedReason::Evicted))).response
    else {
        panic!("an immediate response");
    };
    assert_eq!(evicted.body, b"request evicted by flow control");
    let quota = Refusal::new(RefusalCode::ResourceExhausted, "no tokens left")
        .with_header("retry-after", "3");
    let Some(Response::ImmediateResponse(quota)) = write(Answer::Immediate(quota)).response else {
        panic!("an immediate response");
    };
    let headers = quota.headers.expect("headers").set_headers;
    let last = headers.last().and_then(|option| option.header.as_ref());
    assert_eq!(last.map(|header| header.key.as_str()), Some("retry-after"));
}
