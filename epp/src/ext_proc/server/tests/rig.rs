//! A server in this process, its decider, and Envoy's side of both services.

use std::sync::Arc;
use std::time::Duration;

use crate::observe::Gauge;
use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::data::accesslog::v3::{
    AccessLogCommon, AccessLogType, HttpAccessLogEntry,
};
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_client::AccessLogServiceClient;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
    HttpAccessLogEntries, LogEntries,
};
use envoy_types::pb::envoy::service::accesslog::v3::{
    StreamAccessLogsMessage, StreamAccessLogsResponse,
};
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_client::ExternalProcessorClient;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request as Phase;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response as Answered;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    HttpBody, HttpHeaders, ImmediateResponse, ProcessingRequest, ProcessingResponse,
    ProtocolConfiguration, StreamedBodyResponse, body_mutation::Mutation,
};
use envoy_types::pb::google::protobuf::{self, Struct, Value, value::Kind};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::clock::{Clock, ManualClock};
use crate::ext_proc::health::Health;
use crate::ext_proc::listen::{self, PortLimits};
use crate::ext_proc::server::{Parts, StreamLimits};
use crate::ext_proc::{
    Decider, Destination, DroppedReason, Exchange, Intake, LeaseLimits, Leases, Outcome, PoolHint,
    Processor, Progress, Refusal, Watch, wire,
};

/// How long any one thing may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) const BOOT: u64 = 0xb007;

pub(super) const LEASE_MS: u64 = 1_000;

/// What the decider and its exchanges were told.
#[derive(Debug, PartialEq)]
pub(super) enum Told {
    Begun { pool: PoolHint, body: Vec<u8> },
    FirstByte,
    Progress(Progress),
    Finished(Outcome),
    Refused(Refusal),
}

#[derive(Clone)]
pub(super) struct Scripted {
    destination: Destination,
    told: mpsc::Sender<Told>,
    evict: Arc<Notify>,
}

impl Decider for Scripted {
    type Exchange = Self;

    async fn begin(&self, intake: Intake) -> Result<Self, Refusal> {
        let told = Told::Begun {
            pool: (*intake.pool).clone(),
            body: intake.body.concat(),
        };
        self.told.try_send(told).expect("room");
        Ok(self.clone())
    }

    fn refused(&self, refusal: &Refusal) {
        let told = Told::Refused(refusal.clone());
        self.told.try_send(told).expect("room");
    }
}

impl Exchange for Scripted {
    async fn pick(&mut self) -> Result<Destination, Refusal> {
        Ok(self.destination.clone())
    }

    async fn interrupted(&mut self) -> Refusal {
        self.evict.notified().await;
        Refusal::evicted(DroppedReason::Evicted)
    }

    fn first_byte(&mut self) {
        self.told.try_send(Told::FirstByte).expect("room");
    }

    fn progress(&mut self, progress: &Progress) {
        self.told.try_send(Told::Progress(*progress)).expect("room");
    }

    fn finish(self, outcome: &Outcome) {
        self.told
            .try_send(Told::Finished(outcome.clone()))
            .expect("room");
    }
}

/// A running server.
pub(super) struct Rig {
    pub(super) processor: Processor<Scripted>,
    pub(super) hand: ManualClock,
    pub(super) evict: Arc<Notify>,
    pub(super) channel: Channel,
    pub(super) stop: CancellationToken,
    pub(super) served: JoinHandle<()>,
    told: mpsc::Receiver<Told>,
}

impl Rig {
    pub(super) async fn start(watch: Watch, destination: Destination) -> Self {
        let (clock, hand) = Clock::manual();
        let (sender, told) = mpsc::channel(64);
        let evict = Arc::new(Notify::new());
        let decider = Scripted {
            destination,
            told: sender,
            evict: Arc::clone(&evict),
        };
        let limits = LeaseLimits {
            length_ms: LEASE_MS,
            entries: 100,
        };
        let processor = Processor::new(Parts {
            decider: Arc::new(decider),
            limits: StreamLimits {
                max_request_body_bytes: 1_000,
                max_held_bytes: 1_500,
                decision_timeout: PATIENCE,
            },
            watch,
            leases: Leases::new(BOOT, limits, clock.clone()),
            clock,
            streams_in_flight: Gauge::default(),
            stream_ended: None,
        });
        let any_port = "127.0.0.1:0".parse().expect("an address");
        let (listener, address) = listen::bind(any_port).await.expect("a port");
        let stop = CancellationToken::new();
        let served = tokio::spawn({
            let (processor, stopped) = (processor.clone(), stop.clone().cancelled_owned());
            async move {
                let ports = PortLimits {
                    concurrent_streams: 100,
                    receive_message_bytes: 1 << 20,
                    send_message_bytes: usize::MAX,
                };
                let health = Health::new().await;
                listen::serve_ext_proc(listener, None, ports, processor, &health, stopped)
                    .await
                    .expect("served");
            }
        });
        let endpoint = Channel::from_shared(format!("http://{address}")).expect("a target");
        Self {
            channel: endpoint.connect().await.expect("a connection"),
            processor,
            hand,
            evict,
            stop,
            served,
            told,
        }
    }

    pub(super) fn leases(&self) -> &Arc<Leases<Scripted>> {
        self.processor.leases()
    }

    /// The next thing that the decider was told.
    pub(super) async fn told(&mut self) -> Told {
        in_time(self.told.recv()).await.expect("something is told")
    }

    /// The outcome of the next exchange that finishes, with whatever came before it.
    pub(super) async fn finished(&mut self) -> Outcome {
        loop {
            if let Told::Finished(outcome) = self.told().await {
                return outcome;
            }
        }
    }

    pub(super) fn was_told_nothing(&mut self) -> bool {
        self.told.try_recv().is_err()
    }

    pub(super) async fn stream(&self, response: BodySendMode) -> Envoy {
        self.stream_with(response, None).await
    }

    /// A stream that asks for a full-duplex request body, and maybe for a pool.
    pub(super) async fn stream_with(&self, response: BodySendMode, pool: Option<&str>) -> Envoy {
        let (sender, receiver) = mpsc::channel(64);
        let mut call = tonic::Request::new(ReceiverStream::new(receiver));
        if let Some(pool) = pool {
            let pool = pool.parse().expect("a metadata value");
            call.metadata_mut().insert("x-pointsman-pool", pool);
        }
        let mut client = ExternalProcessorClient::new(self.channel.clone());
        let inbound = in_time(client.process(call)).await.expect("a stream");
        Envoy {
            sender,
            inbound: inbound.into_inner(),
            modes: Some(ProtocolConfiguration {
                request_body_mode: BodySendMode::FullDuplexStreamed.into(),
                response_body_mode: response.into(),
                ..ProtocolConfiguration::default()
            }),
        }
    }

    /// A request in access-log mode up to the end of its stream; returns its token.
    pub(super) async fn parked(&mut self) -> String {
        let mut envoy = self.stream(BodySendMode::None).await;
        envoy.post(b"{}").await;
        let token = token(&envoy.answer().await);
        assert_eq!(envoy.chunk().await, (b"{}".to_vec(), true));
        assert!(envoy.is_closed().await, "closed with status OK");
        let Told::Begun { .. } = self.told().await else {
            panic!("begun")
        };
        until(|| self.leases().parked() > 0).await;
        token
    }

    /// A log stream, as each Envoy worker keeps one.
    pub(super) fn log(&self) -> Log {
        let (sender, receiver) = mpsc::channel(64);
        let mut client = AccessLogServiceClient::new(self.channel.clone());
        let call = tokio::spawn(async move {
            client
                .stream_access_logs(ReceiverStream::new(receiver))
                .await
                .map(tonic::Response::into_inner)
        });
        Log { sender, call }
    }
}

pub(super) struct Log {
    sender: mpsc::Sender<StreamAccessLogsMessage>,
    call: JoinHandle<Result<StreamAccessLogsResponse, tonic::Status>>,
}

impl Log {
    pub(super) async fn entry(&self, kind: AccessLogType, token: &str) {
        let value = Value {
            kind: Some(Kind::StringValue(token.to_owned())),
        };
        let namespace = Struct {
            fields: [("token".to_owned(), value)].into(),
        };
        let ms = |millis: i32| protobuf::Duration {
            seconds: 0,
            nanos: millis * 1_000_000,
        };
        let common = AccessLogCommon {
            access_log_type: kind.into(),
            metadata: Some(Metadata {
                filter_metadata: [("dev.pointsman.epp".to_owned(), namespace)].into(),
                ..Metadata::default()
            }),
            time_to_first_upstream_rx_byte: Some(ms(120)),
            duration: Some(ms(500)),
            ..AccessLogCommon::default()
        };
        let entries = HttpAccessLogEntries {
            log_entry: vec![HttpAccessLogEntry {
                common_properties: Some(common),
                ..HttpAccessLogEntry::default()
            }],
        };
        let message = StreamAccessLogsMessage {
            log_entries: Some(LogEntries::HttpLogs(entries)),
            ..StreamAccessLogsMessage::default()
        };
        self.sender.send(message).await.expect("the log is read");
    }

    /// The status with which the server ends the log.
    pub(super) async fn ended(self) -> Result<StreamAccessLogsResponse, tonic::Status> {
        in_time(self.call).await.expect("the call's task")
    }
}

/// One ext_proc stream, seen from Envoy.
pub(super) struct Envoy {
    sender: mpsc::Sender<ProcessingRequest>,
    inbound: Streaming<ProcessingResponse>,
    modes: Option<ProtocolConfiguration>,
}

impl Envoy {
    async fn send(&mut self, phase: Phase) {
        let message = ProcessingRequest {
            protocol_config: self.modes.take(),
            request: Some(phase),
            ..ProcessingRequest::default()
        };
        self.sender.send(message).await.expect("the stream is read");
    }

    pub(super) async fn request(&mut self, headers: &[(&str, &str)]) {
        self.send(Phase::RequestHeaders(HttpHeaders {
            headers: Some(wire::header_map(headers.iter().copied())),
            ..HttpHeaders::default()
        }))
        .await;
    }

    pub(super) async fn body(&mut self, bytes: &[u8], end_of_stream: bool) {
        self.send(Phase::RequestBody(HttpBody {
            body: bytes.to_vec(),
            end_of_stream,
            ..HttpBody::default()
        }))
        .await;
    }

    pub(super) async fn post(&mut self, body: &[u8]) {
        let length = body.len().to_string();
        self.request(&[
            (":method", "POST"),
            (":path", "/"),
            ("content-length", &length),
        ])
        .await;
        self.body(body, true).await;
    }

    pub(super) async fn response(&mut self) {
        self.send(Phase::ResponseHeaders(HttpHeaders {
            headers: Some(wire::header_map([
                (":status", "200"),
                ("content-length", "9"),
            ])),
            ..HttpHeaders::default()
        }))
        .await;
    }

    pub(super) async fn response_body(&mut self, bytes: &[u8], end_of_stream: bool) {
        self.send(Phase::ResponseBody(HttpBody {
            body: bytes.to_vec(),
            end_of_stream,
            ..HttpBody::default()
        }))
        .await;
    }

    pub(super) async fn answer(&mut self) -> ProcessingResponse {
        let answer = in_time(self.inbound.message()).await;
        answer.expect("no error").expect("an answer")
    }

    pub(super) async fn immediate(&mut self) -> ImmediateResponse {
        match self.answer().await.response {
            Some(Answered::ImmediateResponse(immediate)) => immediate,
            other => panic!("not an immediate response: {other:?}"),
        }
    }

    /// The next body chunk, of either direction.
    pub(super) async fn chunk(&mut self) -> (Vec<u8>, bool) {
        let answer = self.answer().await;
        let Some(Answered::RequestBody(body) | Answered::ResponseBody(body)) = answer.response
        else {
            panic!("not a body answer");
        };
        let mutation = body.response.and_then(|common| common.body_mutation);
        match mutation.and_then(|mutation| mutation.mutation) {
            Some(Mutation::StreamedResponse(StreamedBodyResponse {
                body,
                end_of_stream,
                ..
            })) => (body, end_of_stream),
            other => panic!("not a streamed chunk: {other:?}"),
        }
    }

    pub(super) async fn is_closed(&mut self) -> bool {
        matches!(in_time(self.inbound.message()).await, Ok(None))
    }
}

/// The lease token that an answer hands to the gateway.
fn token(answer: &ProcessingResponse) -> String {
    let metadata = answer.dynamic_metadata.as_ref().expect("metadata");
    let namespace = metadata.fields["dev.pointsman.epp"].kind.as_ref();
    let Some(Kind::StructValue(namespace)) = namespace else {
        panic!("wrapped in its namespace");
    };
    match &namespace.fields["token"].kind {
        Some(Kind::StringValue(token)) => token.clone(),
        other => panic!("not a token: {other:?}"),
    }
}

pub(super) async fn in_time<T>(future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, future).await;
    waited.expect("in time")
}

/// Waits until something is so that another task makes so.
pub(super) async fn until(reached: impl Fn() -> bool) {
    in_time(async {
        while !reached() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
