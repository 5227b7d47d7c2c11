//! A server that accepts and then neither reads nor says a word: what a process looks like that hangs.

use std::net::SocketAddr;

use anyhow::Result;
use tokio::net::TcpListener;

use crate::task::Task;

/// Connections that it holds; later ones wait in the queue of the kernel.
const CONNECTIONS_MAX: usize = 64;

/// It ends, with its connections, when dropped.
#[derive(Debug)]
pub struct SilentServer {
    address: SocketAddr,
    _server: Task,
}

impl SilentServer {
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let server = Task::spawn(async move {
            let mut held = Vec::new();
            while held.len() < CONNECTIONS_MAX {
                match listener.accept().await {
                    Ok((socket, _)) => held.push(socket),
                    Err(_) => return,
                }
            }
            std::future::pending::<()>().await;
        });
        Ok(Self {
            address,
            _server: server,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
