//! Tests of traces, against a collector of their own that speaks gRPC.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::Router;
use axum::routing::any;
use parking_lot::Mutex;
use prost::Message;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, Context as TaskContext, Poll, Service};

use super::*;

#[derive(Clone, PartialEq, Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<OfResource>,
}

#[derive(Clone, PartialEq, Message)]
struct OfResource {
    #[prost(message, optional, tag = "1")]
    resource: Option<SentResource>,
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<OfScope>,
}

#[derive(Clone, PartialEq, Message)]
struct SentResource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct OfScope {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Sent>,
}

#[derive(Clone, PartialEq, Message)]
struct Sent {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(string, tag = "3")]
    state: String,
    #[prost(bytes = "vec", tag = "4")]
    parent_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(fixed64, tag = "7")]
    start: u64,
    #[prost(fixed64, tag = "8")]
    end: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "Kind", tags = "1, 3")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Number(i64),
}

#[derive(Clone, PartialEq, Message)]
struct Answer {}

#[derive(Default)]
struct Messages;

impl Codec for Messages {
    type Encode = Answer;
    type Decode = Export;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Messages {
    type Item = Answer;
    type Error = tonic::Status;

    fn encode(&mut self, answer: Answer, buffer: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        answer.encode(buffer).unwrap();
        Ok(())
    }
}

impl Decoder for Messages {
    type Item = Export;
    type Error = tonic::Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Export>, tonic::Status> {
        Ok(Some(Export::decode(buffer).unwrap()))
    }
}

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Export>>>);

impl Service<tonic::Request<Export>> for Collector {
    type Response = tonic::Response<Answer>;
    type Error = tonic::Status;
    type Future = BoxFuture<Self::Response, tonic::Status>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), tonic::Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<Export>) -> Self::Future {
        self.0.lock().push(request.into_inner());
        Box::pin(async { Ok(tonic::Response::new(Answer {})) })
    }
}

impl Collector {
    async fn start() -> (Self, String) {
        let collector = Self::default();
        let service = collector.clone();
        let export = any(move |request: axum::extract::Request| {
            let service = service.clone();
            async move {
                let request = request.map(tonic::body::Body::new);
                tonic::server::Grpc::new(Messages)
                    .unary(service, request)
                    .await
            }
        });
        let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
        let router = Router::new().route(path, export);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (collector, format!("http://{address}"))
    }

    fn spans(&self) -> Vec<Sent> {
        let exports = self.0.lock();
        let resources = exports.iter().flat_map(|export| &export.resources);
        let scopes = resources.flat_map(|resource| &resource.scopes);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }
}

fn settings(endpoint: String, ratio: f64) -> TraceSettings {
    TraceSettings {
        endpoint,
        service_name: "epp-test".to_owned(),
        sampling: Sampling {
            ratio,
            follows_parent: true,
        },
    }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn value(attributes: &[Attribute], key: &str) -> Option<Kind> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    found.value.clone()?.kind
}

async fn flushed(spans: Spans) {
    let stop = move || spans.shutdown(Duration::from_secs(10));
    tokio::task::spawn_blocking(stop).await.unwrap();
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_spans_arrive_under_the_requests_parent() {
    let (collector, endpoint) = Collector::start().await;
    let spans = Spans::start(&settings(endpoint, 0.0)).unwrap();
    let parent = format!("00-{TRACE}-{PARENT}-01");
    let span = spans
        .begin(Some(&parent), Some("vendor=1"), at(10))
        .unwrap();
    let sent_on = span.traceparent();
    assert_eq!(span.tracestate(), "vendor=1");
    let pick = PickAttributes {
        model: "m",
        endpoint: "pod-1",
        prompt_tokens: 90,
        candidates: 2,
        reason: "highest score",
        ..PickAttributes::default()
    };
    span.orchestration(at(11), at(12), &pick);
    let end = EndAttributes {
        status: 200,
        cached_tokens: Some(48),
        ..EndAttributes::default()
    };
    span.end(at(20), &end);
    flushed(spans).await;

    let sent = collector.spans();
    let named = |name: &str| sent.iter().find(|span| span.name == name).unwrap();
    let (request, pick) = (
        named("gateway.request"),
        named("gateway.request_orchestration"),
    );
    assert_eq!(sent.len(), 2);
    assert_eq!(
        (hex(&request.trace_id), hex(&request.parent_id)),
        (TRACE.to_owned(), PARENT.to_owned())
    );
    assert_eq!(request.state, "vendor=1");
    assert_eq!(sent_on, format!("00-{TRACE}-{}-01", hex(&request.span_id)));
    assert_eq!(
        (&pick.trace_id, &pick.parent_id),
        (&request.trace_id, &request.span_id)
    );
    assert_eq!(
        (request.start, request.end),
        (10_000_000_000, 20_000_000_000)
    );
    assert_eq!((pick.start, pick.end), (11_000_000_000, 12_000_000_000));
    assert_eq!(
        value(&pick.attributes, "llm_d.endpoint"),
        Some(Kind::Text("pod-1".to_owned()))
    );
    assert_eq!(
        value(&pick.attributes, "llm_d.prompt_tokens"),
        Some(Kind::Number(90))
    );
    assert_eq!(
        value(&request.attributes, "http.response.status_code"),
        Some(Kind::Number(200))
    );
    assert_eq!(
        value(&request.attributes, "llm_d.cached_tokens"),
        Some(Kind::Number(48))
    );
    let exports = collector.0.lock();
    let resource = exports[0].resources[0].resource.as_ref().unwrap();
    assert_eq!(
        value(&resource.attributes, "service.name"),
        Some(Kind::Text("epp-test".to_owned()))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_parents_decision_holds_and_the_trace_goes_on_unsampled() {
    let (collector, endpoint) = Collector::start().await;
    let spans = Spans::start(&settings(endpoint, 1.0)).unwrap();
    let unsampled = format!("00-{TRACE}-{PARENT}-00");
    let span = spans.begin(Some(&unsampled), None, at(1)).unwrap();
    let sent_on = span.traceparent();
    assert!(
        sent_on.starts_with(&format!("00-{TRACE}-")) && sent_on.ends_with("-00"),
        "{sent_on}"
    );
    span.orchestration(at(1), at(2), &PickAttributes::default());
    span.end(at(2), &EndAttributes::default());
    // What is no traceparent begins a trace of its own.
    for wrong in ["", "00-xyz", &format!("00-{TRACE}-0000000000000000-01")] {
        let span = spans.begin(Some(wrong), None, at(1)).unwrap();
        assert!(!span.traceparent().contains(TRACE), "{wrong}");
        span.end(at(2), &EndAttributes::default());
    }
    flushed(spans).await;
    let sent = collector.spans();
    assert_eq!(sent.len(), 3);
    assert!(sent.iter().all(|span| span.parent_id.is_empty()));
}

#[tokio::test]
async fn what_nobody_samples_has_no_span() {
    let spans = Spans::start(&settings("http://127.0.0.1:9".to_owned(), 0.0)).unwrap();
    assert!(spans.begin(None, None, at(1)).is_none());
}

#[test]
fn the_environment_decides() {
    let read = |variables: &'static [(&str, &str)]| {
        TraceSettings::read(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    };
    assert_eq!(read(&[]), Ok(None));
    assert_eq!(read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]), Ok(None));
    let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4317");
    let expected = TraceSettings {
        endpoint: "http://a:4317".to_owned(),
        service_name: "epp".to_owned(),
        sampling: Sampling {
            ratio: 1.0,
            follows_parent: true,
        },
    };
    let only_endpoint: &[_] = &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4317")];
    assert_eq!(read(only_endpoint), Ok(Some(expected)));
    let all: &[_] = &[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4317"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b:4317"),
        ("OTEL_SERVICE_NAME", "picker"),
        ("OTEL_TRACES_SAMPLER", "traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
    ];
    let found = read(all).unwrap().unwrap();
    assert_eq!(
        (found.endpoint.as_str(), found.service_name.as_str()),
        ("http://b:4317", "picker")
    );
    assert_eq!(
        found.sampling,
        Sampling {
            ratio: 0.25,
            follows_parent: false
        }
    );
    let with = |name: &'static str, value: &'static str| {
        TraceSettings::read(move |asked| {
            let found = [general, (name, value)]
                .into_iter()
                .find(|(known, _)| *known == asked);
            found.map(|(_, value)| value.to_owned())
        })
    };
    assert_eq!(
        with("OTEL_TRACES_SAMPLER", "sometimes"),
        Err(TraceSettingsError::Sampler("sometimes".to_owned()))
    );
    assert_eq!(
        with("OTEL_TRACES_SAMPLER_ARG", "2"),
        Err(TraceSettingsError::Share("2".to_owned()))
    );
}
