//! The connections of a secured port, once their handshakes are done.
//!
//! Handshakes run beside one another, so that a peer that stalls in its own keeps nobody waiting.
//! Their number and their time are bounded: past the bound no connection is accepted until one
//! ends, and one that takes too long is closed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tracing::debug;

use super::stream::TlsStream;

/// Handshakes at a time.
const HANDSHAKES_MAX: usize = 512;

/// How long one may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections that wait to be served. They are taken at once, so this is never full for long.
const WAITING_MAX: usize = 64;

/// How long accepting rests after an error, such as too many open files.
const REST: Duration = Duration::from_millis(50);

/// Accepts connections until the stream is dropped. Handshakes that fail are not in it.
pub fn incoming(
    listener: TcpListener,
    config: Arc<ServerConfig>,
) -> ReceiverStream<io::Result<TlsStream>> {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    tokio::spawn(accept(listener, config, sender));
    ReceiverStream::new(receiver)
}

async fn accept(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    sender: mpsc::Sender<io::Result<TlsStream>>,
) {
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            () = sender.closed() => return,
            Some(done) = handshakes.join_next() => {
                if let Ok(Some(stream)) = done
                    && sender.send(Ok(stream)).await.is_err()
                {
                    return;
                }
            }
            accepted = listener.accept(), if handshakes.len() < HANDSHAKES_MAX => match accepted {
                Ok((tcp, _)) => {
                    handshakes.spawn(handshake(tcp, Arc::clone(&config)));
                }
                Err(error) => {
                    debug!(%error, "a connection could not be accepted");
                    tokio::time::sleep(REST).await;
                }
            },
        }
    }
}

async fn handshake(tcp: TcpStream, config: Arc<ServerConfig>) -> Option<TlsStream> {
    // Without it small answers wait for the acknowledgement of the one before.
    let _ = tcp.set_nodelay(true);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsStream::accept(tcp, config)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            debug!(%error, "a TLS handshake failed");
            None
        }
        Err(_) => {
            debug!("a TLS handshake took too long");
            None
        }
    }
}
