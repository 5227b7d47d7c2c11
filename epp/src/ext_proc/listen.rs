//! The gRPC listeners: the ext_proc port, which also takes the gateway's access log, and the health
//! port beside it.
//!
//! HTTP/2 is set up for one peer that multiplexes thousands of short streams: wide windows, so that
//! large bodies do not wait for window updates; many concurrent streams, because each request in
//! flight holds one; and a generous allowance of resets, because Envoy resets the stream of every
//! request that went well and the default allowance of the HTTP/2 library takes that for an attack.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::AccessLogServiceServer;
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_server::ExternalProcessorServer;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::access_log::service::{AccessLogs, MESSAGE_BYTES_MAX};
use super::authority::WithAuthority;
use super::decider::Decider;
use super::health::Health;
use super::server::Processor;
use super::tls;

/// Unread bytes of one stream.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// Unread bytes of one connection, all streams together.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// Streams that the peer may open and reset before they are looked at.
const PENDING_RESETS: usize = 4096;

/// Limits of the ext_proc port.
#[derive(Clone, Copy, Debug)]
pub struct PortLimits {
    /// Streams at a time on one connection; the peer waits or opens another connection past it.
    pub concurrent_streams: u32,
    /// Largest gRPC message taken in; a larger one fails its stream.
    pub receive_message_bytes: usize,
    /// Largest gRPC message sent out.
    pub send_message_bytes: usize,
}

/// A listener, and the address it really has when the port was left to the system.
pub async fn bind(address: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Serves ext_proc, the access log and health until `shutdown`, and then until the last stream has
/// ended and the last exchange without a stream was reported or has run out of time.
pub async fn serve_ext_proc<D: Decider>(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    limits: PortLimits,
    processor: Processor<D>,
    health: &Health,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let no_more_entries = CancellationToken::new();
    let access_logs = AccessLogs::new(
        std::sync::Arc::clone(processor.leases()),
        no_more_entries.clone(),
    );
    let access_logs =
        AccessLogServiceServer::new(access_logs).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let service = ExternalProcessorServer::new(processor.clone())
        .max_decoding_message_size(limits.receive_message_bytes)
        .max_encoding_message_size(limits.send_message_bytes);
    let mut server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits.concurrent_streams)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS));
    let router = server
        .add_service(WithAuthority(service))
        .add_service(access_logs)
        .add_service(health.service());
    let draining = CancellationToken::new();
    let shutdown = async {
        shutdown.await;
        draining.cancel();
    };
    // The streams of the access log have no end of their own, and until the last exchange is
    // reported they are needed.
    let drained = async {
        draining.cancelled().await;
        processor.idle().await;
        processor.leases().emptied().await;
        no_more_entries.cancel();
    };
    let served = async {
        if let Some(tls) = tls {
            let secured = tls::incoming(listener, tls);
            router.serve_with_incoming_shutdown(secured, shutdown).await
        } else {
            let plain = incoming(listener);
            router.serve_with_incoming_shutdown(plain, shutdown).await
        }
    };
    let mut served = std::pin::pin!(served);
    tokio::select! {
        ended = &mut served => return ended,
        () = drained => {}
    }
    served.await
}

/// Serves health alone, in clear text as kubelets expect it.
pub async fn serve_health(
    listener: TcpListener,
    health: &Health,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    Server::builder()
        .add_service(health.service())
        .serve_with_incoming_shutdown(incoming(listener), shutdown)
        .await
}

fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}
