//! How many tokens a second a worker streams: many completions at once, and a client that only counts.
//!
//! The client shares its cores with the worker, so it does as little as a client can: it speaks HTTP/1.1 by hand over
//! plain sockets on one thread, and of each answer it checks the status and counts the events.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// What is sent.
#[derive(Debug, Clone)]
pub(super) struct StreamRate {
    /// The worker.
    pub(super) address: SocketAddr,
    /// The served model's name.
    pub(super) model: String,
    /// Streams at once.
    pub(super) streams: usize,
    /// Tokens of each stream.
    pub(super) max_tokens: u32,
}

/// What came back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Streamed {
    /// Events that carried a token.
    pub(super) tokens: u64,
    /// Bytes of all answers, heads included.
    pub(super) bytes: u64,
    /// Reads that brought them.
    pub(super) reads: u64,
    /// From the first request to the last event.
    pub(super) elapsed: Duration,
}

impl Streamed {
    /// Tokens per second over all streams.
    pub(super) fn rate(&self) -> f64 {
        self.tokens as f64 / self.elapsed.as_secs_f64()
    }
}

/// Sends all streams at once and reads them to their ends. Takes a few microseconds of one core per read.
///
/// # Errors
/// When a connection fails, an answer is not 200, or a stream ends early or with another number of tokens.
pub(super) async fn stream_rate(load: &StreamRate) -> io::Result<Streamed> {
    let mut sockets = Vec::with_capacity(load.streams);
    for _ in 0..load.streams {
        let socket = TcpStream::connect(load.address).await?;
        socket.set_nodelay(true)?;
        sockets.push(socket);
    }
    let started = Instant::now();
    let mut streams = JoinSet::new();
    for (number, socket) in sockets.into_iter().enumerate() {
        streams.spawn(one(socket, request(load, number), load.max_tokens));
    }
    let mut total = Streamed {
        tokens: 0,
        bytes: 0,
        reads: 0,
        elapsed: Duration::ZERO,
    };
    while let Some(one) = streams.join_next().await {
        let one = one.map_err(io::Error::other)??;
        total.tokens += one.tokens;
        total.bytes += one.bytes;
        total.reads += one.reads;
    }
    total.elapsed = started.elapsed();
    Ok(total)
}

/// Each stream has a prompt of its own, so that no two are alike.
fn request(load: &StreamRate, number: usize) -> Vec<u8> {
    let body = format!(
        r#"{{"model":"{}","prompt":[{},{},7,8,9],"max_tokens":{},"temperature":0,"ignore_eos":true,"stream":true}}"#,
        load.model,
        number % 90 + 10,
        number / 90 + 10,
        load.max_tokens
    );
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        load.address,
        body.len()
    );
    (head + &body).into_bytes()
}

async fn one(mut socket: TcpStream, request: Vec<u8>, tokens: u32) -> io::Result<Streamed> {
    socket.write_all(&request).await?;
    let mut counter = Counter::default();
    let mut buffer = vec![0; 32 << 10];
    let mut reads = 0;
    while !counter.done {
        let length = socket.read(&mut buffer).await?;
        if length == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "a stream ended early",
            ));
        }
        reads += 1;
        counter.take(&buffer[..length])?;
    }
    if counter.events != u64::from(tokens) {
        let problem = format!("{} events of {tokens}", counter.events);
        return Err(io::Error::other(problem));
    }
    Ok(Streamed {
        tokens: counter.events,
        bytes: counter.bytes,
        reads,
        elapsed: Duration::ZERO,
    })
}

/// Counts events in a body as it stands on the wire. An event ends with an empty line, and the frames of a chunked
/// body have none of their own.
#[derive(Debug, Default)]
struct Counter {
    events: u64,
    bytes: u64,
    /// The byte before was a line feed.
    line_ended: bool,
    /// The last bytes, for a mark that two reads share.
    tail: Vec<u8>,
    done: bool,
}

/// What stands behind the last event.
const DONE: &[u8] = b"data: [DONE]\n\n";

impl Counter {
    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.bytes == 0 && !bytes.starts_with(b"HTTP/1.1 200 ") {
            let answer = String::from_utf8_lossy(bytes).into_owned();
            return Err(io::Error::other(answer));
        }
        self.bytes += bytes.len() as u64;
        for &byte in bytes {
            let line_ended = byte == b'\n';
            self.events += u64::from(line_ended && self.line_ended);
            self.line_ended = line_ended;
        }
        let keep = DONE.len() + 16;
        self.tail
            .extend_from_slice(&bytes[bytes.len().saturating_sub(keep)..]);
        self.done = self.tail.windows(DONE.len()).any(|window| window == DONE);
        self.events -= u64::from(self.done);
        let old = self.tail.len().saturating_sub(keep);
        self.tail.drain(..old);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
        20\r\ndata: {\"a\":1}\n\ndata: {\"a\":2}\n\n\r\n10\r\ndata: {\"a\":3}\n\n\r\n\
        e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";

    #[test]
    fn events_are_counted_wherever_reads_cut_them() {
        for size in 13..ANSWER.len() {
            let mut counter = Counter::default();
            for part in ANSWER.chunks(size) {
                if !counter.done {
                    counter.take(part).unwrap();
                }
            }
            assert!(counter.done, "{size}");
            assert_eq!(counter.events, 3, "{size}");
        }
    }

    #[test]
    fn an_answer_that_is_no_200_is_an_error() {
        assert!(Counter::default().take(b"HTTP/1.1 503 Service").is_err());
    }
}
