//! A picker in this process and a client that plays Envoy, so that a case is a few lines.

#![allow(dead_code, reason = "each test program uses a part of it")]
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_client::ExternalProcessorClient;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    BodyResponse, HeadersResponse, HttpBody, HttpHeaders, HttpTrailers, ImmediateResponse,
    ProcessingRequest, ProcessingResponse, ProtocolConfiguration, StreamedBodyResponse,
    body_mutation::Mutation, processing_request::Request, processing_response::Response,
};
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value, value::Kind};
use pointsman_epp::clock::Clock;
use pointsman_epp::config::epc::{self, LoadOptions};
use pointsman_epp::ext_proc::health::Health;
use pointsman_epp::ext_proc::listen::{self, PortLimits};
use pointsman_epp::ext_proc::wire::header_map;
use pointsman_epp::ext_proc::{
    Decider, LeaseLimits, Leases, Processor, StreamLimits, Watch, server,
};
use pointsman_epp::fleet::{EndpointSpec, Fleet, Scraped, Snapshot};
use pointsman_epp::observe::Metrics;
use pointsman_epp::pipeline::catalogue::catalogue;
use pointsman_epp::pipeline::{Options, Pipeline, Policy, Pool, Pools, Rooms, Shared};
use pointsman_epp::schedule::latency::LatencyOptions;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Streaming;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};

/// How long any one answer may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a worker reports: waiting requests and KV usage.
#[derive(Clone, Copy)]
pub(crate) struct P(pub(crate) u32, pub(crate) f32);

/// A running picker.
pub(crate) struct Picker {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: Health,
    channel: Channel,
    _stop: DropGuard,
}

pub(crate) const LIMITS: StreamLimits = StreamLimits {
    max_request_body_bytes: 64 * 1024,
    max_held_bytes: 1 << 20,
    decision_timeout: Duration::from_secs(5),
};

/// A picker over workers `192.168.1.1:8000`, `192.168.1.2:8000`, ... that report these signals.
pub(crate) async fn picker(workers: &[P]) -> Picker {
    picker_with(workers, |_| {}).await
}

pub(crate) async fn picker_with(workers: &[P], adjust: impl FnOnce(&mut Made)) -> Picker {
    let mut parts = made(fleet_of(workers), Clock::monotonic());
    adjust(&mut parts);
    let (fleet, metrics) = (
        Arc::clone(&parts.pool.fleet),
        Arc::clone(&parts.shared.metrics),
    );
    serve(parts.pipeline(), LIMITS, (fleet, metrics), None).await
}

/// A picker behind this certificate, and a client that trusts it.
pub(crate) async fn picker_over_tls(
    workers: &[P],
    certificate: Arc<rustls::ServerConfig>,
    trusted_pem: &str,
) -> Picker {
    let parts = made(fleet_of(workers), Clock::monotonic());
    let (fleet, metrics) = (
        Arc::clone(&parts.pool.fleet),
        Arc::clone(&parts.shared.metrics),
    );
    let trusted = Certificate::from_pem(trusted_pem);
    let client = ClientTlsConfig::new()
        .domain_name("localhost")
        .ca_certificate(trusted);
    serve(
        parts.pipeline(),
        LIMITS,
        (fleet, metrics),
        Some((certificate, client)),
    )
    .await
}

/// A picker with any decider behind the stream.
pub(crate) async fn picker_of(decider: impl Decider, limits: StreamLimits) -> Picker {
    serve(
        decider,
        limits,
        (Fleet::new(), Arc::new(Metrics::new())),
        None,
    )
    .await
}

/// What a picker is made of, for a test to change.
pub(crate) struct Made {
    pub(crate) shared: Shared,
    pub(crate) pool: Pool,
}

/// The parts of a picker over a fleet, under the configuration that runs without one.
pub(crate) fn made(fleet: Arc<Fleet>, clock: Clock) -> Made {
    let metrics = Arc::new(Metrics::new());
    let policy = Policy::field_default(0).unwrap();
    let latency = LatencyOptions::default();
    let pool = Pool::connect(
        "default",
        Rooms::over(fleet),
        policy,
        latency,
        &metrics,
        &clock,
    );
    let shared = Shared {
        metrics,
        decisions: Arc::default(),
        spans: None,
        clock,
        options: Options {
            use_subset_hint: true,
            emit_scores: false,
            debug_header: None,
            seed: 7,
        },
    };
    Made { shared, pool }
}

impl Made {
    pub(crate) fn pipeline(self) -> Pipeline {
        Pipeline::new(self.shared, Pools::one(self.pool))
    }

    /// Puts another configuration in force.
    pub(crate) fn configure(&mut self, text: &str) {
        let options = LoadOptions {
            allow_experimental: true,
        };
        let config = epc::load("test", text, &catalogue(), &options).unwrap();
        let policy = Policy::build(config, 0).unwrap();
        self.pool.gate.set_settings(policy.flow.clone());
        self.pool.policy.store(Arc::new(policy));
    }
}

async fn serve(
    decider: impl Decider,
    limits: StreamLimits,
    (fleet, metrics): (Arc<Fleet>, Arc<Metrics>),
    tls: Option<(Arc<rustls::ServerConfig>, ClientTlsConfig)>,
) -> Picker {
    let (listener, address) = listen::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let stop = CancellationToken::new();
    let health = Health::new().await;
    let clock = Clock::monotonic();
    let processor = Processor::new(server::Parts {
        decider: Arc::new(decider),
        limits,
        watch: Watch::Stream,
        leases: Leases::new(1, LeaseLimits::default(), clock.clone()),
        clock,
        streams_in_flight: metrics.process.streams_in_flight.clone(),
        stream_ended: None,
    });
    let port_limits = PortLimits {
        concurrent_streams: 100,
        receive_message_bytes: 1 << 20,
        send_message_bytes: usize::MAX,
    };
    let (server_tls, client_tls) = tls.unzip();
    tokio::spawn({
        let (stopped, health) = (stop.clone().cancelled_owned(), health.clone());
        async move {
            listen::serve_ext_proc(
                listener,
                server_tls,
                port_limits,
                processor,
                &health,
                stopped,
            )
            .await
        }
    });
    let scheme = if client_tls.is_some() {
        "https"
    } else {
        "http"
    };
    let mut endpoint = Channel::from_shared(format!("{scheme}://{address}")).unwrap();
    if let Some(client_tls) = client_tls {
        endpoint = endpoint.tls_config(client_tls).unwrap();
    }
    let channel = endpoint.connect().await.unwrap();
    Picker {
        fleet,
        metrics,
        health,
        channel,
        _stop: stop.drop_guard(),
    }
}

fn fleet_of(workers: &[P]) -> Arc<Fleet> {
    let fleet = Fleet::new();
    let specs = (1..).zip(workers).map(|(number, _)| {
        EndpointSpec::new(
            format!("worker-{number}"),
            ([192, 168, 1, number], 8000).into(),
        )
    });
    fleet.apply(specs.collect()).unwrap();
    let mut snapshot = Snapshot::default();
    fleet.snapshot_into(&mut snapshot);
    for (member, worker) in snapshot.members.iter().zip(workers) {
        let page = Scraped {
            waiting: worker.0,
            running: 1,
            kv_usage: worker.1,
            block_size: 16,
            blocks: 1000,
        };
        fleet
            .cell(member.id, member.generation)
            .unwrap()
            .record(&page, 1);
    }
    fleet
}

impl Picker {
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A stream whose gateway is configured for full duplex both ways.
    pub(crate) async fn stream(&self) -> EnvoyStream {
        self.stream_in(
            BodySendMode::FullDuplexStreamed,
            BodySendMode::FullDuplexStreamed,
        )
        .await
    }

    pub(crate) async fn stream_in(
        &self,
        request: BodySendMode,
        response: BodySendMode,
    ) -> EnvoyStream {
        let (sender, receiver) = mpsc::channel(1024);
        let mut client = ExternalProcessorClient::new(self.channel.clone());
        let call = client.process(ReceiverStream::new(receiver));
        let inbound = tokio::time::timeout(PATIENCE, call)
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

    /// Requests of ours in flight at each worker.
    pub(crate) fn in_flight(&self) -> Vec<u32> {
        let mut snapshot = Snapshot::default();
        self.fleet.snapshot_into(&mut snapshot);
        snapshot
            .live
            .iter()
            .map(|live| live.in_flight_requests)
            .collect()
    }

    /// Waits until the workers have this many requests of ours in flight.
    pub(crate) async fn until_in_flight(&self, expected: &[u32]) {
        self.until(|picker| picker.in_flight() == expected).await;
    }

    /// Waits until the metrics page has this line.
    pub(crate) async fn until_metric(&self, line: &str) {
        self.until(|picker| {
            picker
                .metrics
                .render()
                .lines()
                .any(|written| written == line)
        })
        .await;
    }

    async fn until(&self, reached: impl Fn(&Self) -> bool) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !reached(self) {
                tokio::task::yield_now().await;
            }
        });
        assert!(
            waited.await.is_ok(),
            "{:?}\n{}",
            self.in_flight(),
            self.metrics.render()
        );
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
        let header = mutation.set_headers[0].header.clone().expect("a header");
        assert_eq!(header.key, "x-gateway-destination-endpoint");
        let destination = String::from_utf8(header.raw_value).unwrap();
        assert_eq!(
            metadata.as_deref(),
            Some(destination.as_str()),
            "header and metadata differ"
        );
        Picked {
            destination,
            removed: mutation.remove_headers,
        }
    }

    /// The chunks sent on to the worker, up to the one that carries the end mark.
    pub(crate) async fn forwarded_body(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let answer = self.answer().await;
            let Some(Response::RequestBody(BodyResponse {
                response: Some(common),
            })) = answer.response
            else {
                panic!("not a body answer: {answer:?}");
            };
            let chunk = streamed(common.body_mutation);
            body.extend_from_slice(&chunk.body);
            if chunk.end_of_stream {
                return body;
            }
        }
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

fn streamed(
    mutation: Option<envoy_types::pb::envoy::service::ext_proc::v3::BodyMutation>,
) -> StreamedBodyResponse {
    match mutation.and_then(|mutation| mutation.mutation) {
        Some(Mutation::StreamedResponse(chunk)) => chunk,
        other => panic!("not a streamed chunk: {other:?}"),
    }
}

fn destination_metadata(answer: &ProcessingResponse) -> Option<String> {
    let namespace = answer.dynamic_metadata.as_ref()?.fields.get("envoy.lb")?;
    let Some(Kind::StructValue(namespace)) = &namespace.kind else {
        return None;
    };
    match &namespace.fields.get("x-gateway-destination-endpoint")?.kind {
        Some(Kind::StringValue(destination)) => Some(destination.clone()),
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
