//! Between Envoy's protobuf messages and the machine's plain values.
//!
//! Bodies and header values are moved, never copied. Two facts of the wire are easy to get wrong:
//! header values travel in `raw_value` in both directions, and metadata counts only when it is
//! wrapped in its namespace (`{"envoy.lb": {key: value}}`); Envoy ignores anything else without a
//! word.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use envoy_types::pb::envoy::config::core::v3::{
    HeaderMap, HeaderValue, HeaderValueOption, Metadata, header_value_option::HeaderAppendAction,
};
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, HttpHeaders,
    ImmediateResponse, ProcessingRequest, ProcessingResponse, ProtocolConfiguration,
    StreamedBodyResponse, TrailersResponse, body_mutation::Mutation, processing_request::Request,
    processing_response::Response,
};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use pointsman_proto::headers;

use super::head::RequestHead;
use super::machine::{
    Answer, BodyAnswer, BodyMode, Context, Destination, Event, Modes, RouteChange,
};
use super::refusal::Refusal;

/// One message from Envoy, taken apart.
#[derive(Debug)]
pub struct Incoming {
    pub modes: Option<Modes>,
    pub context: Context,
    /// `None` for a message without a phase, such as a flow-control update.
    pub event: Option<Event>,
}

/// Takes a message apart.
pub fn read(message: ProcessingRequest) -> Incoming {
    Incoming {
        modes: message.protocol_config.as_ref().map(modes),
        context: message.metadata_context.map(context).unwrap_or_default(),
        event: message.request.map(event),
    }
}

/// Builds the message for an answer.
pub fn write(answer: Answer) -> ProcessingResponse {
    let (response, destination) = match answer {
        Answer::RequestHeaders(change) => {
            let (common, destination) = common(None, change);
            let headers = HeadersResponse {
                response: Some(common),
            };
            (Response::RequestHeaders(headers), destination)
        }
        Answer::RequestBody(body, change) => {
            let (common, destination) = common(Some(body), change);
            (
                Response::RequestBody(BodyResponse {
                    response: Some(common),
                }),
                destination,
            )
        }
        // A mutation here would change the trailers, so the route can only travel as metadata.
        Answer::RequestTrailers(change) => (
            Response::RequestTrailers(TrailersResponse::default()),
            change.destination,
        ),
        Answer::ResponseHeaders => (Response::ResponseHeaders(HeadersResponse::default()), None),
        Answer::ResponseBody(body) => {
            let (common, _) = common(Some(body), RouteChange::default());
            (
                Response::ResponseBody(BodyResponse {
                    response: Some(common),
                }),
                None,
            )
        }
        Answer::ResponseTrailers => (
            Response::ResponseTrailers(TrailersResponse::default()),
            None,
        ),
        Answer::Immediate(refusal) => (Response::ImmediateResponse(immediate(&refusal)), None),
    };
    ProcessingResponse {
        dynamic_metadata: destination.map(destination_metadata),
        response: Some(response),
        ..ProcessingResponse::default()
    }
}

fn modes(config: &ProtocolConfiguration) -> Modes {
    Modes {
        request: body_mode(config.request_body_mode()),
        response: body_mode(config.response_body_mode()),
    }
}

fn body_mode(mode: BodySendMode) -> BodyMode {
    match mode {
        BodySendMode::None => BodyMode::None,
        BodySendMode::Streamed => BodyMode::Streamed,
        BodySendMode::Buffered | BodySendMode::BufferedPartial => BodyMode::Buffered,
        BodySendMode::FullDuplexStreamed | BodySendMode::Grpc => BodyMode::FullDuplex,
    }
}

fn context(mut metadata: Metadata) -> Context {
    let mut take = |namespace: &str, key: &str| -> Option<Value> {
        metadata
            .filter_metadata
            .get_mut(namespace)?
            .fields
            .remove(key)
    };
    let served = take(
        headers::METADATA_NAMESPACE,
        headers::DESTINATION_ENDPOINT_SERVED,
    );
    let subset = take(
        headers::SUBSET_METADATA_NAMESPACE,
        headers::DESTINATION_ENDPOINT_SUBSET,
    );
    Context {
        served: served.and_then(|value| match value.kind {
            Some(Kind::StringValue(endpoint)) => Some(endpoint),
            _ => None,
        }),
        subset: subset.map(subset_entries),
    }
}

/// The hint is a list of strings by the protocol, and a comma-separated string with some gateways.
/// Anything else names no endpoint, which is not the same as no hint.
fn subset_entries(value: Value) -> Vec<String> {
    match value.kind {
        Some(Kind::StringValue(list)) => split_list(&list).collect(),
        Some(Kind::ListValue(list)) => list
            .values
            .iter()
            .filter_map(|value| match &value.kind {
                Some(Kind::StringValue(entry)) => Some(entry.as_str()),
                _ => None,
            })
            .flat_map(split_list)
            .collect(),
        _ => Vec::new(),
    }
}

fn split_list(list: &str) -> impl Iterator<Item = String> {
    list.split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .map(str::to_owned)
}

fn event(request: Request) -> Event {
    match request {
        Request::RequestHeaders(message) => Event::RequestHeaders {
            end_of_stream: message.end_of_stream,
            head: request_head(message),
        },
        Request::RequestBody(message) => Event::RequestBody {
            end_of_stream: message.end_of_stream || message.end_of_stream_without_message,
            bytes: message.body,
        },
        Request::RequestTrailers(_) => Event::RequestTrailers,
        Request::ResponseHeaders(message) => Event::ResponseHeaders {
            end_of_stream: message.end_of_stream,
            status: status(&message),
        },
        Request::ResponseBody(message) => Event::ResponseBody {
            end_of_stream: message.end_of_stream || message.end_of_stream_without_message,
            bytes: message.body,
        },
        Request::ResponseTrailers(_) => Event::ResponseTrailers,
    }
}

fn request_head(message: HttpHeaders) -> RequestHead {
    let headers = message.headers.unwrap_or_default().headers;
    RequestHead::new(
        headers
            .into_iter()
            .map(|header| (header.key, value(header.value, header.raw_value)))
            .collect(),
    )
}

/// Gateways that predate `raw_value` fill `value` instead.
fn value(text: String, raw: Vec<u8>) -> Vec<u8> {
    if raw.is_empty() {
        text.into_bytes()
    } else {
        raw
    }
}

fn status(message: &HttpHeaders) -> Option<u16> {
    let headers = &message.headers.as_ref()?.headers;
    let header = headers.iter().find(|header| header.key == ":status")?;
    let bytes = if header.raw_value.is_empty() {
        header.value.as_bytes()
    } else {
        &header.raw_value
    };
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

fn common(body: Option<BodyAnswer>, change: RouteChange) -> (CommonResponse, Option<Destination>) {
    let set_headers = change.destination.iter().map(|destination| {
        set_header(
            headers::DESTINATION_ENDPOINT,
            destination.endpoints.as_bytes().to_vec(),
        )
    });
    let mutation = HeaderMutation {
        set_headers: set_headers.collect(),
        remove_headers: change
            .remove
            .iter()
            .map(|name| (*name).to_owned())
            .collect(),
    };
    let changes_headers = !(mutation.set_headers.is_empty() && mutation.remove_headers.is_empty());
    let body_mutation = match body {
        Some(BodyAnswer::Chunk {
            bytes,
            end_of_stream,
        }) => {
            let chunk = StreamedBodyResponse {
                body: bytes,
                end_of_stream,
                ..StreamedBodyResponse::default()
            };
            Some(BodyMutation {
                mutation: Some(Mutation::StreamedResponse(chunk)),
            })
        }
        Some(BodyAnswer::Continue) | None => None,
    };
    let common = CommonResponse {
        header_mutation: changes_headers.then_some(mutation),
        body_mutation,
        ..CommonResponse::default()
    };
    (common, change.destination)
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
    let namespace = (
        headers::METADATA_NAMESPACE.to_owned(),
        kind(Kind::StructValue(Struct { fields })),
    );
    Struct {
        fields: HashMap::from([namespace]),
    }
}

fn kind(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

fn immediate(refusal: &Refusal) -> ImmediateResponse {
    let mut set_headers = vec![set_header("content-type", b"text/plain".to_vec())];
    if let Some(reason) = refusal.dropped_reason {
        set_headers.push(set_header(
            headers::REQUEST_DROPPED_REASON,
            reason.as_bytes().to_vec(),
        ));
    }
    ImmediateResponse {
        status: Some(HttpStatus {
            code: i32::from(refusal.code.http_status()),
        }),
        headers: Some(HeaderMutation {
            set_headers,
            remove_headers: Vec::new(),
        }),
        body: refusal.to_string().into_bytes(),
        grpc_status: None,
        details: format!("epp_refused_{}", refusal.code.name()),
    }
}

/// Builds a header list as Envoy sends it, for callers that play Envoy.
pub fn header_map<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> HeaderMap {
    let headers = headers.into_iter().map(|(name, value)| HeaderValue {
        key: name.to_owned(),
        value: String::new(),
        raw_value: value.as_bytes().to_vec(),
    });
    HeaderMap {
        headers: headers.collect(),
    }
}
