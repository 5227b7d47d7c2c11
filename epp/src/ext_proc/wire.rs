//! Between Envoy's protobuf messages and the machine's plain values.
//!
//! Bodies and header values are moved, never copied. Two facts of the wire are easy to get wrong:
//! header values travel in `raw_value` in both directions, and metadata counts only when it is
//! wrapped in its namespace (`{"envoy.lb": {key: value}}`); Envoy ignores anything else without a
//! word.

#[cfg(test)]
mod tests;
mod write;

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{HeaderMap, HeaderValue, Metadata};
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    HttpHeaders, ProcessingRequest, ProtocolConfiguration, processing_request::Request,
};
use envoy_types::pb::google::protobuf::{Value, value::Kind};
use pointsman_proto::headers;

use super::head::RequestHead;
use super::machine::{BodyMode, Context, Event, Modes};
pub use write::{add_numbers, write};

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
        subset: subset.map(|value| Arc::from(subset_entries(value))),
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
            has_content_length: has_header(&message, "content-length"),
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

fn has_header(message: &HttpHeaders, name: &str) -> bool {
    let headers = message.headers.as_ref();
    headers.is_some_and(|list| list.headers.iter().any(|header| header.key == name))
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
