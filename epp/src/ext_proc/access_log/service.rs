//! Envoy's access-log service, as far as a picker is one.
//!
//! Each Envoy worker keeps one stream open for each logger and never waits for an answer, so none is
//! given before the stream ends. Every entry is read, released and forgotten on the stream's own
//! task: nothing queues here, and a reader that lags slows the gateway's log, not its traffic.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::AccessLogService;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use envoy_types::pb::envoy::service::accesslog::v3::{
    StreamAccessLogsMessage, StreamAccessLogsResponse,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::read;
use crate::ext_proc::decider::Exchange;
use crate::ext_proc::leases::Leases;

/// Largest message taken in; a larger one breaks its stream, which Envoy opens anew. An entry is a
/// few kilobytes, and what a gateway sends at once is bounded by its buffer of 16 KiB by default.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// The access-log service.
#[derive(Debug)]
pub struct AccessLogs<X> {
    leases: Arc<Leases<X>>,
    stop: CancellationToken,
}

impl<X: Exchange> AccessLogs<X> {
    /// Releases `leases`, until `stop`: the streams have no end of their own.
    pub fn new(leases: Arc<Leases<X>>, stop: CancellationToken) -> Self {
        Self { leases, stop }
    }

    fn take(&self, message: &StreamAccessLogsMessage) {
        if let Some(LogEntries::HttpLogs(entries)) = &message.log_entries {
            for entry in &entries.log_entry {
                self.leases.report(read(entry));
            }
        }
    }
}

#[tonic::async_trait]
impl<X: Exchange> AccessLogService for AccessLogs<X> {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let mut inbound = request.into_inner();
        loop {
            let message = tokio::select! {
                message = inbound.message() => message,
                () = self.stop.cancelled() => break,
            };
            match message {
                Ok(Some(message)) => self.take(&message),
                Ok(None) => break,
                Err(status) => {
                    let broken = &self.leases.counters().broken_streams;
                    broken.fetch_add(1, Relaxed);
                    return Err(status);
                }
            }
        }
        Ok(Response::new(StreamAccessLogsResponse {}))
    }
}
