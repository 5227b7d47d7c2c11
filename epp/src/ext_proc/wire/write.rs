//! Answers as messages.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::core::v3::{
    HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction,
};
use envoy_types::pb::envoy::service::ext_proc::v3::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, ImmediateResponse,
    ProcessingResponse, StreamedBodyResponse, TrailersResponse, body_mutation::Mutation,
    processing_response::Response,
};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use pointsman_proto::headers;

use crate::ext_proc::lease::LeaseToken;
use crate::ext_proc::machine::{Answer, BodyAnswer, Destination, HeaderChange, RouteChange};
use crate::ext_proc::refusal::Refusal;
use crate::ext_proc::usage::TokenUsage;

/// Builds the message for an answer.
pub fn write(answer: Answer) -> ProcessingResponse {
    let (response, metadata) = match answer {
        Answer::RequestHeaders(change) => {
            let (common, metadata) = route(None, change);
            (Response::RequestHeaders(headers_response(common)), metadata)
        }
        Answer::RequestBody(body, change) => {
            let (common, metadata) = route(Some(body), change);
            (Response::RequestBody(body_response(common)), metadata)
        }
        // A mutation here would change the trailers, so the route can only travel as metadata.
        Answer::RequestTrailers(change) => (
            Response::RequestTrailers(TrailersResponse::default()),
            change.destination.map(destination_metadata),
        ),
        Answer::ResponseHeaders(change) => {
            let common = common(None, Vec::new(), change);
            let is_untouched = common.header_mutation.is_none();
            let response = (!is_untouched).then_some(common);
            (
                Response::ResponseHeaders(HeadersResponse { response }),
                None,
            )
        }
        Answer::ResponseBody(body, usage) => {
            let common = common(Some(body), Vec::new(), HeaderChange::default());
            let metadata = usage.map(usage_metadata);
            (Response::ResponseBody(body_response(common)), metadata)
        }
        Answer::ResponseTrailers(usage) => (
            Response::ResponseTrailers(TrailersResponse::default()),
            usage.map(usage_metadata),
        ),
        Answer::Immediate(refusal) => (Response::ImmediateResponse(immediate(refusal)), None),
    };
    ProcessingResponse {
        dynamic_metadata: metadata,
        response: Some(response),
        ..ProcessingResponse::default()
    }
}

fn headers_response(common: CommonResponse) -> HeadersResponse {
    HeadersResponse {
        response: Some(common),
    }
}

fn body_response(common: CommonResponse) -> BodyResponse {
    BodyResponse {
        response: Some(common),
    }
}

/// The destination's header comes first.
fn route(body: Option<BodyAnswer>, change: RouteChange) -> (CommonResponse, Option<Struct>) {
    let destination = change.destination.iter();
    let own = destination.map(|destination| {
        set_header(
            headers::DESTINATION_ENDPOINT,
            destination.endpoints.as_bytes().to_vec(),
        )
    });
    let common = common(body, own.collect(), change.headers);
    (common, change.destination.map(destination_metadata))
}

fn common(
    body: Option<BodyAnswer>,
    mut set_headers: Vec<HeaderValueOption>,
    change: HeaderChange,
) -> CommonResponse {
    let further = change.set.into_iter();
    set_headers.extend(further.map(|(name, value)| set_header(&name, value.into_bytes())));
    let removed = change.remove.into_iter();
    let mutation = HeaderMutation {
        set_headers,
        remove_headers: removed.map(String::from).collect(),
    };
    let changes_headers = !(mutation.set_headers.is_empty() && mutation.remove_headers.is_empty());
    let body_mutation = match body {
        Some(BodyAnswer::Chunk {
            bytes,
            end_of_stream,
        }) => Some(Mutation::StreamedResponse(StreamedBodyResponse {
            body: bytes,
            end_of_stream,
            ..StreamedBodyResponse::default()
        })),
        Some(BodyAnswer::Replace(bytes)) => Some(Mutation::Body(bytes)),
        Some(BodyAnswer::Continue) | None => None,
    };
    CommonResponse {
        header_mutation: changes_headers.then_some(mutation),
        body_mutation: body_mutation.map(|mutation| BodyMutation {
            mutation: Some(mutation),
        }),
        ..CommonResponse::default()
    }
}

fn set_header(name: &str, raw_value: Vec<u8>) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: name.to_owned(),
            value: String::new(),
            raw_value,
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    }
}

fn destination_metadata(destination: Destination) -> Struct {
    let lease = destination
        .token
        .map(|token| lease_namespace(token, &destination.endpoints));
    let mut fields = HashMap::with_capacity(2);
    if !destination.scores.is_empty() {
        let scores = destination.scores.into_iter();
        let scores = scores.map(|(endpoint, score)| (endpoint, kind(Kind::NumberValue(score))));
        let scores = Struct {
            fields: scores.collect(),
        };
        fields.insert(
            headers::DESTINATION_ENDPOINT_SCORES.to_owned(),
            kind(Kind::StructValue(scores)),
        );
    }
    fields.insert(
        headers::DESTINATION_ENDPOINT.to_owned(),
        kind(Kind::StringValue(destination.endpoints)),
    );
    let mut namespaces = namespace(headers::METADATA_NAMESPACE, fields);
    if let Some(fields) = lease {
        namespaces
            .fields
            .extend(namespace(headers::PICKER_METADATA_NAMESPACE, fields).fields);
    }
    namespaces
}

/// What the access log brings back: the lease, and the endpoint that was to serve.
fn lease_namespace(token: LeaseToken, endpoints: &str) -> HashMap<String, Value> {
    let picked = endpoints.split(',').next().unwrap_or_default();
    HashMap::from([
        (
            headers::LEASE_TOKEN.to_owned(),
            kind(Kind::StringValue(token.to_string())),
        ),
        (
            headers::PICKED_ENDPOINT.to_owned(),
            kind(Kind::StringValue(picked.to_owned())),
        ),
    ])
}

/// What a rate limit of the gateway may charge.
fn usage_metadata(usage: TokenUsage) -> Struct {
    let number = |tokens: u64| kind(Kind::NumberValue(tokens as f64));
    let mut fields = HashMap::from([
        ("input_tokens".to_owned(), number(usage.prompt_tokens)),
        ("output_tokens".to_owned(), number(usage.completion_tokens)),
        ("total_tokens".to_owned(), number(usage.total_tokens())),
    ]);
    if let Some(cached) = usage.cached_tokens {
        fields.insert("cached_tokens".to_owned(), number(cached));
    }
    namespace(headers::USAGE_METADATA_NAMESPACE, fields)
}

fn namespace(name: &str, fields: HashMap<String, Value>) -> Struct {
    let fields = kind(Kind::StructValue(Struct { fields }));
    Struct {
        fields: HashMap::from([(name.to_owned(), fields)]),
    }
}

fn kind(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

fn immediate(refusal: Refusal) -> ImmediateResponse {
    let body = refusal.body().into_bytes();
    let mut set_headers = vec![set_header("content-type", b"text/plain".to_vec())];
    if let Some(reason) = refusal.dropped_reason {
        set_headers.push(set_header(
            headers::REQUEST_DROPPED_REASON,
            reason.value().as_bytes().to_vec(),
        ));
    }
    let further = refusal.headers.into_iter();
    set_headers.extend(further.map(|(name, value)| set_header(name, value.into_bytes())));
    ImmediateResponse {
        status: Some(HttpStatus {
            code: i32::from(refusal.code.http_status()),
        }),
        headers: Some(HeaderMutation {
            set_headers,
            remove_headers: Vec::new(),
        }),
        body,
        grpc_status: None,
        details: format!("epp_refused_{}", refusal.code.name()),
    }
}

/// Adds numbers to a message's metadata, each with its namespace and key.
pub fn add_numbers(message: &mut ProcessingResponse, numbers: Vec<(String, String, f64)>) {
    for (namespace, key, number) in numbers {
        let metadata = message.dynamic_metadata.get_or_insert_default();
        let namespace = metadata
            .fields
            .entry(namespace)
            .or_insert_with(|| kind(Kind::StructValue(Struct::default())));
        if let Some(Kind::StructValue(fields)) = &mut namespace.kind {
            fields.fields.insert(key, kind(Kind::NumberValue(number)));
        }
    }
}
