//! Spans, against a collector of the tests' own that takes them over gRPC.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Response};
use axum::routing::post;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use prost::Message;

use super::*;
use crate::export::metrics::Counter;
use crate::export::requests::RequestRecords;
use crate::worker::RequestReport;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Everything that was sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

impl Collector {
    async fn start() -> (Self, String) {
        let this = Self::default();
        let collector = this.clone();
        let take = move |body: Bytes| {
            // One byte of flags and four of length stand before a gRPC message.
            let export = ExportTraceServiceRequest::decode(&body[5..]).unwrap();
            collector.0.lock().push(export);
            std::future::ready(grpc_answer())
        };
        let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
        let router = Router::new().route(path, post(take));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (this, format!("http://{address}"))
    }

    fn spans(&self) -> Vec<Span> {
        let exports = self.0.lock();
        let resources = exports.iter().flat_map(|export| &export.resource_spans);
        let scopes = resources.flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }
}

/// An empty message, and a status in the trailers.
fn grpc_answer() -> Response<Body> {
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
    let frames = [
        Frame::data(Bytes::from_static(&[0; 5])),
        Frame::trailers(trailers),
    ];
    let frames = stream::iter(frames.map(Ok::<_, Infallible>));
    Response::builder()
        .header("content-type", "application/grpc")
        .body(Body::new(StreamBody::new(frames)))
        .unwrap()
}

fn settings(endpoint: String, ratio: f64) -> TraceSettings {
    TraceSettings {
        endpoint,
        service_name: "worker".to_owned(),
        ratio,
        follows_parent: true,
    }
}

fn about(sampled: Option<bool>) -> About {
    let flags = |sampled| if sampled { "01" } else { "00" };
    About {
        id: "cmpl-7".into(),
        model: "demo".to_owned(),
        session: Some("s-1".to_owned()),
        traceparent: sampled.map(|sampled| format!("00-{TRACE}-{PARENT}-{}", flags(sampled))),
        tracestate: None,
        rank: 1,
        choices: 2,
        temperature: 0.5,
        top_p: 1.0,
    }
}

fn report(finish: Finish) -> RequestReport {
    RequestReport {
        number: 0,
        prompt_tokens: 100,
        cached_tokens: 64,
        generated_tokens: 11,
        max_tokens: 16,
        preemptions: 1,
        finish,
        arrived_at: Duration::from_secs(1),
        scheduled_at: Some(Duration::from_secs(2)),
        first_token_at: Some(Duration::from_secs(4)),
        last_token_at: Some(Duration::from_secs(9)),
        finished_at: Duration::from_secs(9),
    }
}

fn ended(about: About, report: RequestReport) -> Ended {
    Ended {
        about: Arc::new(about),
        report,
        at: UNIX_EPOCH + Duration::from_secs(1009),
    }
}

async fn flush(spans: Spans) {
    let stop = move || spans.shutdown(Duration::from_secs(20));
    tokio::task::spawn_blocking(stop).await.unwrap();
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Every attribute as text.
fn attributes(span: &Span) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::DoubleValue(number) => format!("{number:?}"),
        other => format!("{other:?}"),
    };
    let attributes = span.attributes.iter().map(|attribute| {
        let value = attribute.value.as_ref().unwrap().value.as_ref().unwrap();
        (attribute.key.clone(), text(value))
    });
    attributes.collect()
}

#[tokio::test]
async fn a_request_is_a_span_below_the_one_that_caused_it() {
    let (collector, endpoint) = Collector::start().await;
    let spans = Spans::start(&settings(endpoint, 0.0)).unwrap();
    spans.record(&ended(about(Some(true)), report(Finish::Length)));
    flush(spans).await;
    let sent = collector.spans();
    let [span] = sent.as_slice() else {
        panic!("one span, got {sent:?}")
    };
    assert_eq!(span.name, "llm_request");
    assert_eq!(hex(&span.trace_id), TRACE);
    assert_eq!(hex(&span.parent_span_id), PARENT);
    assert_eq!(span.start_time_unix_nano, 1_001_000_000_000);
    assert_eq!(span.end_time_unix_nano, 1_009_000_000_000);
    let expected = [
        ("gen_ai.latency.e2e", "8.0"),
        ("gen_ai.latency.time_in_model_decode", "5.0"),
        ("gen_ai.latency.time_in_model_inference", "7.0"),
        ("gen_ai.latency.time_in_model_prefill", "2.0"),
        ("gen_ai.latency.time_in_queue", "1.0"),
        ("gen_ai.latency.time_to_first_token", "3.0"),
        ("gen_ai.request.id", "cmpl-7"),
        ("gen_ai.request.max_tokens", "16"),
        ("gen_ai.request.n", "2"),
        ("gen_ai.request.temperature", "0.5"),
        ("gen_ai.request.top_p", "1.0"),
        ("gen_ai.response.finish_reason", "length"),
        ("gen_ai.response.model", "demo"),
        ("gen_ai.usage.cached_tokens", "64"),
        ("gen_ai.usage.completion_tokens", "11"),
        ("gen_ai.usage.prompt_tokens", "100"),
        ("pointsman.data_parallel_rank", "1"),
        ("pointsman.preemptions", "1"),
        ("session.id", "s-1"),
    ];
    let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(attributes(span), BTreeMap::from(expected));
}

#[tokio::test]
async fn a_request_that_never_ran_has_no_times_of_the_model_and_an_error_is_one() {
    let (collector, endpoint) = Collector::start().await;
    let spans = Spans::start(&settings(endpoint, 1.0)).unwrap();
    let failed = RequestReport {
        scheduled_at: None,
        first_token_at: None,
        last_token_at: None,
        generated_tokens: 0,
        ..report(Finish::Error("the device fell off".to_owned()))
    };
    spans.record(&ended(about(None), failed));
    flush(spans).await;
    let sent = collector.spans();
    let attributes = attributes(&sent[0]);
    let latencies: Vec<&str> = attributes
        .keys()
        .filter(|key| key.starts_with("gen_ai.latency."))
        .map(String::as_str)
        .collect();
    assert_eq!(latencies, ["gen_ai.latency.e2e"]);
    assert!(sent[0].parent_span_id.is_empty(), "the trace begins here");
    let status = sent[0].status.as_ref().unwrap();
    assert_eq!(status.message, "the device fell off");
}

#[tokio::test]
async fn the_callers_decision_comes_before_the_share() {
    let (collector, endpoint) = Collector::start().await;
    let spans = Spans::start(&settings(endpoint.clone(), 1.0)).unwrap();
    spans.record(&ended(about(Some(false)), report(Finish::Abort)));
    flush(spans).await;
    assert_eq!(collector.spans(), []);
    let spans = Spans::start(&settings(endpoint, 0.0)).unwrap();
    spans.record(&ended(about(None), report(Finish::Abort)));
    flush(spans).await;
    assert_eq!(collector.spans(), []);
}

#[tokio::test]
async fn what_the_engine_thread_hands_over_becomes_a_span() {
    let (collector, endpoint) = Collector::start().await;
    let spans = Spans::start(&settings(endpoint, 1.0)).unwrap();
    let lost = Counter::default();
    let (records, task) = RequestRecords::start(true, Some(spans.clone()), lost.clone());
    let watch = records.watch(about(None));
    watch.ended(&report(Finish::Stop { token: None }));
    drop((watch, records));
    task.await.unwrap();
    flush(spans).await;
    assert_eq!(collector.spans().len(), 1);
    assert_eq!(lost.get(), 0);
}

#[test]
fn the_collector_is_named_by_the_flag_or_the_environment() {
    let read = |flag: Option<&str>, set: &[(&str, &str)]| {
        let variable = |name: &str| {
            let found = set.iter().find(|(known, _)| *known == name)?;
            Some(found.1.to_owned())
        };
        TraceSettings::read(flag, variable)
    };
    let endpoint = |flag, set: &[_]| read(flag, set).unwrap().map(|read| read.endpoint);
    let all = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4317"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces:4317"),
    ];
    assert_eq!(endpoint(None, &[]), None);
    assert_eq!(
        endpoint(None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]),
        None
    );
    assert_eq!(
        endpoint(None, &all[..1]).as_deref(),
        Some("http://all:4317")
    );
    assert_eq!(endpoint(None, &all).as_deref(), Some("http://traces:4317"));
    let flag = Some("http://flag:4317");
    assert_eq!(endpoint(flag, &all).as_deref(), flag);
    let sampled = |sampler, share| {
        let set = [
            ("OTEL_TRACES_SAMPLER", sampler),
            ("OTEL_TRACES_SAMPLER_ARG", share),
        ];
        let read = read(flag, &set)
            .map_err(|error| error.to_string())?
            .unwrap();
        Ok::<_, String>((read.ratio.to_string(), read.follows_parent))
    };
    assert_eq!(
        sampled("traceidratio", "0.25"),
        Ok(("0.25".to_owned(), false))
    );
    assert_eq!(
        sampled("parentbased_always_off", ""),
        Ok(("0".to_owned(), true))
    );
    assert!(
        sampled("traceidratio", "2")
            .unwrap_err()
            .contains("SAMPLER_ARG=2")
    );
    assert!(sampled("sometimes", "").unwrap_err().contains("sometimes"));
}
