//! The mapping in both directions, and the bytes of the commonest answer.

use envoy_types::pb::envoy::service::ext_proc::v3::HttpBody;
use envoy_types::pb::google::protobuf::ListValue;
use prost::Message;

use super::*;

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

fn subset(value: Value) -> Option<Vec<String>> {
    let metadata = metadata(
        headers::SUBSET_METADATA_NAMESPACE,
        headers::DESTINATION_ENDPOINT_SUBSET,
        value,
    );
    context(metadata).subset
}

#[test]
fn subset_hint_is_a_list_or_a_comma_string() {
    let expected = Some(vec!["10.0.0.1:8000".to_owned(), "10.0.0.2".to_owned()]);
    assert_eq!(subset(text("10.0.0.1:8000, 10.0.0.2")), expected);
    let list = ListValue {
        values: vec![text("10.0.0.1:8000"), text("10.0.0.2")],
    };
    assert_eq!(subset(kind(Kind::ListValue(list))), expected);
}

#[test]
fn subset_hint_without_entries_is_not_an_absent_hint() {
    assert_eq!(subset(text("")), Some(vec![]));
    assert_eq!(subset(kind(Kind::NumberValue(1.0))), Some(vec![]));
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
        }),
        remove: vec![headers::PREFILLER_HOST_PORT],
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
    let bytes = write(Answer::ResponseBody(chunk)).encode_to_vec();
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
