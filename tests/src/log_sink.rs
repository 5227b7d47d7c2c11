//! A receiver of Envoy's gRPC access log inside the test process: what the templates make Envoy say about a response.
//!
//! epp reads the same entries. This one keeps them as they came, so that a test of a template does not depend on what
//! epp makes of them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use envoy_types::pb::envoy::config::core::v3::address::Address;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::data::accesslog::v3::{
    AccessLogCommon, AccessLogType, HttpAccessLogEntry,
};
use envoy_types::pb::envoy::data::ai::v3::TokenUsage;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::{
    AccessLogService, AccessLogServiceServer,
};
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use envoy_types::pb::envoy::service::accesslog::v3::{
    StreamAccessLogsMessage, StreamAccessLogsResponse,
};
use envoy_types::pb::google::protobuf::UInt64Value;
use envoy_types::pb::google::protobuf::value::Kind;
use prost::Message;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::eventually::eventually;
use crate::task::Task;

/// Entries that one sink remembers; later ones are not kept.
const ENTRIES_MAX: usize = 4096;
/// Where `ai_protocol_manager` puts what it counted.
const AI_USAGE: &str = "envoy.ai.token_usage";
/// Where `sse_to_metadata` puts what it found.
const SSE_USAGE: &str = "dev.pointsman.usage";

/// A running receiver. It ends when dropped.
#[derive(Debug)]
pub struct LogSink {
    address: SocketAddr,
    entries: Arc<Mutex<Vec<HttpAccessLogEntry>>>,
    _server: Task,
}

/// One entry, cut to what epp needs.
#[derive(Clone, Debug, PartialEq)]
pub struct LogEntry {
    pub kind: AccessLogType,
    pub code: Option<u32>,
    /// Who answered, or why nobody did.
    pub details: String,
    /// `ip:port` of the endpoint that served at last.
    pub upstream: Option<String>,
    pub attempts: u32,
    pub body_bytes: u64,
    pub has_first_byte_time: bool,
    pub has_duration: bool,
    /// `x-gateway-destination-endpoint` of the metadata `envoy.lb`: what epp picked.
    pub picked: Option<String>,
    /// `x-gateway-destination-endpoint-served` of the same.
    pub served: Option<String>,
    pub tokens: Option<Tokens>,
}

/// Token counts that some filter of Envoy found in the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tokens {
    pub prompt: Option<u64>,
    pub completion: Option<u64>,
    pub cached: Option<u64>,
}

impl LogSink {
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let entries = Arc::new(Mutex::new(Vec::new()));
        let service = AccessLogServiceServer::new(Receiver {
            entries: Arc::clone(&entries),
        });
        let server = Task::spawn(async move {
            let incoming = TcpIncoming::from(listener);
            let server = Server::builder().add_service(service);
            drop(server.serve_with_incoming(incoming).await);
        });
        Ok(Self {
            address,
            entries,
            _server: server,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The entries so far, in the order in which they came.
    pub fn entries(&self) -> Result<Vec<LogEntry>> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().map(LogEntry::of).collect()
    }

    /// The entries about the ends of so many requests, waited for. More of them are an error.
    pub async fn ends(&self, requests: usize) -> Vec<LogEntry> {
        eventually("entries about the ends of requests", async || {
            let mut entries = self.entries()?;
            entries.retain(|entry| entry.kind == AccessLogType::DownstreamEnd);
            ensure!(entries.len() == requests, "{entries:?}");
            Ok(entries)
        })
        .await
    }

    /// Waits until so many entries have come that say that a request still runs, and returns the last of them.
    pub async fn periodic(&self, at_least: usize) -> LogEntry {
        eventually("entries about a request that runs", async || {
            let mut entries = self.entries()?;
            entries.retain(|entry| entry.kind == AccessLogType::DownstreamPeriodic);
            ensure!(entries.len() >= at_least, "{entries:?}");
            entries.pop().context("none")
        })
        .await
    }
}

struct Receiver {
    entries: Arc<Mutex<Vec<HttpAccessLogEntry>>>,
}

#[tonic::async_trait]
impl AccessLogService for Receiver {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let mut messages = request.into_inner();
        while let Some(message) = messages.message().await? {
            if let Some(LogEntries::HttpLogs(logs)) = message.log_entries {
                let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
                let room = ENTRIES_MAX.saturating_sub(entries.len());
                entries.extend(logs.log_entry.into_iter().take(room));
            }
        }
        Ok(Response::new(StreamAccessLogsResponse::default()))
    }
}

impl LogEntry {
    fn of(entry: &HttpAccessLogEntry) -> Result<Self> {
        let common = entry.common_properties.clone().unwrap_or_default();
        let response = entry.response.clone().unwrap_or_default();
        let text = |key| match value(&common, "envoy.lb", key) {
            Some(Kind::StringValue(text)) => Some(text),
            _ => None,
        };
        Ok(Self {
            kind: AccessLogType::try_from(common.access_log_type)?,
            code: response.response_code.map(|code| code.value),
            details: response.response_code_details,
            upstream: upstream(&common),
            attempts: common.upstream_request_attempt_count,
            body_bytes: response.response_body_bytes,
            has_first_byte_time: common.time_to_first_upstream_rx_byte.is_some(),
            has_duration: common.duration.is_some(),
            picked: text("x-gateway-destination-endpoint"),
            served: text("x-gateway-destination-endpoint-served"),
            tokens: tokens(&common)?,
        })
    }
}

fn value(common: &AccessLogCommon, namespace: &str, key: &str) -> Option<Kind> {
    let metadata = common.metadata.as_ref()?;
    let values = metadata.filter_metadata.get(namespace)?;
    values.fields.get(key)?.kind.clone()
}

fn upstream(common: &AccessLogCommon) -> Option<String> {
    match common.upstream_remote_address.clone()?.address? {
        Address::SocketAddress(socket) => match socket.port_specifier? {
            PortSpecifier::PortValue(port) => Some(format!("{}:{port}", socket.address)),
            PortSpecifier::NamedPort(_) => None,
        },
        _ => None,
    }
}

fn tokens(common: &AccessLogCommon) -> Result<Option<Tokens>> {
    let Some(metadata) = &common.metadata else {
        return Ok(None);
    };
    if let Some(usage) = metadata.typed_filter_metadata.get(AI_USAGE) {
        let usage = TokenUsage::decode(usage.value.as_slice())?;
        let count = |value: Option<UInt64Value>| value.map(|value| value.value);
        let details = usage.input_token_details.unwrap_or_default();
        return Ok(Some(Tokens {
            prompt: count(usage.input_tokens),
            completion: count(usage.output_tokens),
            cached: count(details.cached_tokens),
        }));
    }
    if !metadata.filter_metadata.contains_key(SSE_USAGE) {
        return Ok(None);
    }
    let count = |key| match value(common, SSE_USAGE, key) {
        Some(Kind::NumberValue(number)) => Some(number as u64),
        _ => None,
    };
    Ok(Some(Tokens {
        prompt: count("prompt_tokens"),
        completion: count("completion_tokens"),
        cached: count("cached_tokens"),
    }))
}
