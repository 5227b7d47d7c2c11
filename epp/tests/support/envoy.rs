//! A client that plays Envoy: a connection to a picker, and one request on it.

#![allow(dead_code, reason = "each test program uses a part of it")]

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_client::ExternalProcessorClient;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    BodyMutation, BodyResponse, HeaderMutation, HeadersResponse, HttpBody, HttpHeaders,
    HttpTrailers, ImmediateResponse, ProcessingRequest, ProcessingResponse, ProtocolConfiguration,
    StreamedBodyResponse, body_mutation::Mutation, processing_request::Request,
    processing_response::Response,
};
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value, value::Kind};
use pointsman_epp::ext_proc::wire::header_map;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::PATIENCE;

/// A connection to a picker.
#[derive(Clone)]
pub(crate) struct Gateway {
    channel: Channel,
    /// Said in the metadata of each call.
    pool: Option<String>,
}

impl Gateway {
    /// Over a connection that stands.
    pub(crate) fn over(channel: Channel) -> Self {
        Self {
            channel,
            pool: None,
        }
    }

    /// Connects; `authority` is the name that the picker is called by, where it is not its address.
    pub(crate) async fn connect(uri: &str, authority: Option<&str>) -> Self {
        let mut endpoint = Channel::from_shared(uri.to_owned()).unwrap();
        if let Some(authority) = authority {
            endpoint = endpoint.origin(format!("http://{authority}").parse().unwrap());
        }
        Self::over(endpoint.connect().await.unwrap())
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The same connection, whose calls name this pool.
    pub(crate) fn of_pool(&self, name: &str) -> Self {
        Self {
            pool: Some(name.to_owned()),
            ..self.clone()
        }
    }

    /// A stream whose gateway is configured for full duplex both ways.
    pub(crate) async fn stream(&self) -> EnvoyStream {
        let mode = BodySendMode::FullDuplexStreamed;
        self.stream_in(mode, mode).await
    }

    pub(crate) async fn stream_in(
        &self,
        request: BodySendMode,
        response: BodySendMode,
    ) -> EnvoyStream {
        let (sender, receiver) = mpsc::channel(1024);
        let mut client = ExternalProcessorClient::new(self.channel.clone());
        let mut call = tonic::Request::new(ReceiverStream::new(receiver));
        if let Some(pool) = &self.pool {
            let name = pool.parse().unwrap();
            call.metadata_mut().insert("x-pointsman-pool", name);
        }
        let inbound = tokio::time::timeout(PATIENCE, client.process(call))
            .await
            .unwrap()
            .unwrap()
            .into_inner();
        let protocol_config = ProtocolConfiguration {
            request_body_mode: request.into(),
            response_body_mode: response.into(),
            ..ProtocolConfiguration::default()
        };
        EnvoyStream {
            sender,
            inbound,
            protocol_config: Some(protocol_config),
            metadata: None,
        }
    }
}

/// One ext_proc stream, seen from Envoy.
pub(crate) struct EnvoyStream {
    sender: mpsc::Sender<ProcessingRequest>,
    inbound: Streaming<ProcessingResponse>,
    /// Sent with the first message.
    protocol_config: Option<ProtocolConfiguration>,
    /// Sent with the next message.
    metadata: Option<Metadata>,
}

/// The picker's decision as the gateway sees it.
#[derive(Debug, PartialEq)]
pub(crate) struct Picked {
    pub(crate) destination: String,
    pub(crate) removed: Vec<String>,
    /// The headers that are set beside the destination.
    pub(crate) set: Vec<(String, String)>,
}

impl EnvoyStream {
    pub(crate) async fn send(&mut self, request: Request) {
        let message = ProcessingRequest {
            protocol_config: self.protocol_config.take(),
            metadata_context: self.metadata.take(),
            request: Some(request),
            ..ProcessingRequest::default()
        };
        self.sender.send(message).await.unwrap();
    }

    pub(crate) async fn request(&mut self, headers: &[(&str, &str)], end_of_stream: bool) {
        let headers = Some(header_map(headers.iter().copied()));
        self.send(Request::RequestHeaders(HttpHeaders {
            headers,
            end_of_stream,
            ..HttpHeaders::default()
        }))
        .await;
    }

    pub(crate) async fn body(&mut self, bytes: &[u8], end_of_stream: bool) {
        self.send(Request::RequestBody(HttpBody {
            body: bytes.to_vec(),
            end_of_stream,
            ..HttpBody::default()
        }))
        .await;
    }

    /// A POST whose body comes as HTTP/1.1 brings it: the bytes, then the end mark in a message of
    /// its own.
    pub(crate) async fn post(&mut self, path: &str, body: &str) {
        self.request(&[(":method", "POST"), (":path", path)], false)
            .await;
        self.body(body.as_bytes(), false).await;
        self.body(b"", true).await;
    }

    /// A POST with further headers, whose body comes in these pieces, the last one with the end mark.
    pub(crate) async fn post_in_pieces(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        pieces: &[&[u8]],
    ) {
        let line = [(":method", "POST"), (":path", path)];
        self.request(&[&line, headers].concat(), false).await;
        for (place, piece) in pieces.iter().enumerate() {
            self.body(piece, place + 1 == pieces.len()).await;
        }
    }

    pub(crate) async fn get(&mut self, path: &str) {
        self.request(&[(":method", "GET"), (":path", path)], true)
            .await;
    }

    pub(crate) async fn request_trailers(&mut self) {
        self.send(Request::RequestTrailers(HttpTrailers::default()))
            .await;
    }

    pub(crate) async fn response(&mut self, status: &str, end_of_stream: bool) {
        let headers = Some(header_map([(":status", status)]));
        self.send(Request::ResponseHeaders(HttpHeaders {
            headers,
            end_of_stream,
            ..HttpHeaders::default()
        }))
        .await;
    }

    pub(crate) async fn response_trailers(&mut self) {
        self.send(Request::ResponseTrailers(HttpTrailers::default()))
            .await;
    }

    pub(crate) async fn response_body(&mut self, bytes: &[u8], end_of_stream: bool) {
        let body = HttpBody {
            body: bytes.to_vec(),
            end_of_stream,
            ..HttpBody::default()
        };
        self.send(Request::ResponseBody(body)).await;
    }

    /// Confines the next request to these endpoints.
    pub(crate) fn subset(&mut self, entries: &[&str]) {
        let values = entries.iter().map(|entry| string(entry)).collect();
        let hint = Value {
            kind: Some(Kind::ListValue(ListValue { values })),
        };
        self.metadata = Some(metadata(
            "envoy.lb.subset_hint",
            "x-gateway-destination-endpoint-subset",
            hint,
        ));
    }

    /// Reports the endpoint that served with the next message.
    pub(crate) fn served(&mut self, endpoint: &str) {
        self.metadata = Some(metadata(
            "envoy.lb",
            "x-gateway-destination-endpoint-served",
            string(endpoint),
        ));
    }

    /// The next answer; fails the test where there is none.
    pub(crate) async fn answer(&mut self) -> ProcessingResponse {
        let answer = tokio::time::timeout(PATIENCE, self.inbound.message()).await;
        answer
            .expect("an answer in time")
            .expect("no error")
            .expect("an answer")
    }

    /// Whether the picker ended the stream.
    pub(crate) async fn is_closed(&mut self) -> bool {
        let end = tokio::time::timeout(PATIENCE, self.inbound.message()).await;
        matches!(end, Ok(Ok(None)))
    }

    /// The answer to the request headers, which carries the pick in its header and in its metadata.
    pub(crate) async fn picked(&mut self) -> Picked {
        let answer = self.answer().await;
        let metadata = destination_metadata(&answer);
        let Some(Response::RequestHeaders(HeadersResponse {
            response: Some(common),
        })) = answer.response
        else {
            panic!("not a headers answer: {answer:?}");
        };
        let mutation = common.header_mutation.expect("the pick sets a header");
        let mut set = set_headers(&mutation);
        let (name, destination) = set.remove(0);
        assert_eq!(name, "x-gateway-destination-endpoint");
        assert_eq!(
            metadata.as_deref(),
            Some(destination.as_str()),
            "header and metadata differ"
        );
        Picked {
            destination,
            removed: mutation.remove_headers,
            set,
        }
    }

    /// What the answer to the response headers sets.
    pub(crate) async fn told_the_client(&mut self) -> Vec<(String, String)> {
        let answer = self.answer().await;
        let Some(Response::ResponseHeaders(HeadersResponse { response })) = answer.response else {
            panic!("not an answer to the response headers: {answer:?}");
        };
        let mutation = response.and_then(|common| common.header_mutation);
        mutation.as_ref().map(set_headers).unwrap_or_default()
    }

    /// A whole response of one chunk. Returns the headers that were set on it.
    pub(crate) async fn served_with(&mut self, body: &[u8]) -> Vec<(String, String)> {
        self.response("200", false).await;
        self.response_body(body, true).await;
        let told = self.told_the_client().await;
        assert_eq!(
            self.forwarded_response_chunk().await,
            (body.to_vec(), true),
            "the response goes by unchanged"
        );
        told
    }

    /// The chunks sent on to the worker, up to the one that carries the end mark.
    pub(crate) async fn forwarded_body(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let (bytes, end_of_stream) = self.forwarded_request_chunk().await;
            body.extend(bytes);
            if end_of_stream {
                return body;
            }
        }
    }

    /// The next chunk sent on to the worker.
    pub(crate) async fn forwarded_request_chunk(&mut self) -> (Vec<u8>, bool) {
        let answer = self.answer().await;
        let Some(Response::RequestBody(BodyResponse {
            response: Some(common),
        })) = answer.response
        else {
            panic!("not a body answer: {answer:?}");
        };
        let chunk = streamed(common.body_mutation);
        (chunk.body, chunk.end_of_stream)
    }

    /// The next chunk sent on to the client.
    pub(crate) async fn forwarded_response_chunk(&mut self) -> (Vec<u8>, bool) {
        let answer = self.answer().await;
        let Some(Response::ResponseBody(BodyResponse {
            response: Some(common),
        })) = answer.response
        else {
            panic!("not a response body answer: {answer:?}");
        };
        let chunk = streamed(common.body_mutation);
        (chunk.body, chunk.end_of_stream)
    }

    pub(crate) async fn refused(&mut self) -> ImmediateResponse {
        let answer = self.answer().await;
        let Some(Response::ImmediateResponse(immediate)) = answer.response else {
            panic!("not refused: {answer:?}");
        };
        immediate
    }

    /// Ends the stream as Envoy does when the client goes away: a half-close.
    pub(crate) fn half_close(self) -> Streaming<ProcessingResponse> {
        self.inbound
    }
}

pub(crate) fn refusal_header<'a>(refusal: &'a ImmediateResponse, name: &str) -> Option<&'a str> {
    let headers = &refusal.headers.as_ref()?.set_headers;
    let header = headers.iter().filter_map(|option| option.header.as_ref());
    let header = header.into_iter().find(|header| header.key == name)?;
    std::str::from_utf8(&header.raw_value).ok()
}

fn streamed(mutation: Option<BodyMutation>) -> StreamedBodyResponse {
    match mutation.and_then(|mutation| mutation.mutation) {
        Some(Mutation::StreamedResponse(chunk)) => chunk,
        other => panic!("not a streamed chunk: {other:?}"),
    }
}

fn set_headers(mutation: &HeaderMutation) -> Vec<(String, String)> {
    let headers = mutation.set_headers.iter();
    let headers = headers.filter_map(|option| option.header.clone());
    headers
        .map(|header| (header.key, String::from_utf8(header.raw_value).unwrap()))
        .collect()
}

/// One value of an answer's dynamic metadata.
pub(crate) fn metadata_value<'a>(
    answer: &'a ProcessingResponse,
    namespace: &str,
    key: &str,
) -> Option<&'a Kind> {
    let namespace = answer.dynamic_metadata.as_ref()?.fields.get(namespace)?;
    let Some(Kind::StructValue(namespace)) = &namespace.kind else {
        return None;
    };
    namespace.fields.get(key)?.kind.as_ref()
}

fn destination_metadata(answer: &ProcessingResponse) -> Option<String> {
    match metadata_value(answer, "envoy.lb", "x-gateway-destination-endpoint")? {
        Kind::StringValue(destination) => Some(destination.clone()),
        _ => None,
    }
}

fn metadata(namespace: &str, key: &str, value: Value) -> Metadata {
    let namespace = (
        namespace.to_owned(),
        Struct {
            fields: [(key.to_owned(), value)].into(),
        },
    );
    Metadata {
        filter_metadata: [namespace].into(),
        ..Metadata::default()
    }
}

fn string(text: &str) -> Value {
    Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    }
}
