//! How an exchange went, whichever way it was watched.
//!
//! In stream mode the machine saw the response itself: events, chunk times and the usage block. In
//! access-log mode the gateway reports it afterwards with times of its own. An [`Outcome`] holds
//! both; what the way of watching cannot know is `None` or 0.

use super::refusal::Refusal;
use super::usage::TokenUsage;

/// How an exchange went.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub end: End,
    /// Why it ended so, as far as it is known.
    pub reason: EndReason,
    /// The response status, where a response was seen.
    pub status: Option<u16>,
    /// The `ip:port` that served, where the gateway reports it.
    pub served: Option<String>,
    pub usage: Option<TokenUsage>,
    /// Bytes of the response body that went by.
    pub response_bytes: u64,
    /// What the gateway measured. Access-log mode only.
    pub measured: Measured,
    /// What was seen of the response body. Stream mode only.
    pub seen: Seen,
}

impl Outcome {
    /// An exchange of which nothing but its end is known.
    pub fn new(end: End) -> Self {
        Self {
            reason: EndReason::of(&end),
            end,
            status: None,
            served: None,
            usage: None,
            response_bytes: 0,
            measured: Measured::default(),
            seen: Seen::default(),
        }
    }
}

/// Times that the gateway took, each from the first byte of the request as it saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// To the first byte from the endpoint, queueing in the picker included, in microseconds.
    pub ttft_us: Option<u64>,
    /// From the first byte sent to the endpoint to the first one back, in microseconds: the
    /// endpoint's own time to its first byte.
    pub engine_ttft_us: Option<u64>,
    /// To the end of the request, however it ended, in microseconds.
    pub duration_us: Option<u64>,
    /// Endpoints tried, retries included.
    pub attempts: Option<u32>,
    /// The gateway's own word for what happened, such as `via_upstream`.
    pub details: Option<String>,
}

/// What went by on the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Server-sent `data:` events, without the closing `[DONE]`. 0 for a response that is no stream
    /// of events.
    pub events: u64,
    /// When the first chunk with bytes came, in microseconds of the picker's clock.
    pub first_chunk_us: Option<u64>,
    /// When the last one came.
    pub last_chunk_us: Option<u64>,
}

/// How far the picker followed an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The end of the response was seen or reported.
    Completed,
    /// The picker answered in place of an endpoint.
    Refused(Refusal),
    /// It ended before its response did: the client went away, or the response was cut.
    Aborted,
    /// The request was routed and the gateway is not configured to show the response.
    Unseen,
    /// Its lease ran out: the gateway's report was lost, or the gateway with it.
    Expired,
}

/// Why an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// The endpoint answered to the end, whatever its status.
    Completed,
    /// The picker refused or evicted it.
    Refused,
    /// The client went away first.
    ClientLeft,
    /// The endpoint died, could not be reached, or broke off.
    UpstreamDied,
    /// The gateway answered by itself after the pick: a rate limit, a timeout, no healthy endpoint.
    LocalReply,
    /// Nobody said.
    Unknown,
}

impl EndReason {
    /// The reason as a label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Refused => "refused",
            Self::ClientLeft => "client_left",
            Self::UpstreamDied => "upstream_died",
            Self::LocalReply => "local_reply",
            Self::Unknown => "unknown",
        }
    }

    /// What the end alone says. A stream that was cut does not tell who cut it.
    fn of(end: &End) -> Self {
        match end {
            End::Completed => Self::Completed,
            End::Refused(_) => Self::Refused,
            End::Aborted | End::Unseen | End::Expired => Self::Unknown,
        }
    }
}

/// News of an exchange that still runs, from a periodic access-log entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// As [`Measured::ttft_us`]; `None` while the first byte is awaited.
    pub ttft_us: Option<u64>,
    /// As [`Measured::engine_ttft_us`].
    pub engine_ttft_us: Option<u64>,
    /// How long it runs so far, in microseconds.
    pub duration_us: Option<u64>,
    /// Response bytes so far.
    pub response_bytes: u64,
}
