//! What is asked of a fleet: requests with arrival times, prompts that share prefixes on purpose, and answer lengths.
//!
//! One description serves both ways to run it. The driver turns prompts into text or token ids and sends them to a real
//! endpoint; the simulator turns them into token ids and adds up times. So a workload means the same in both, and their
//! results can be held against each other.
//!
//! A prompt is a list of [`Segment`]s: a system prompt, a document, a turn of a conversation, a block of a trace. Equal
//! segments are equal tokens, so two prompts share a prefix exactly as far as their segments agree. An answer is a
//! segment as well, which the next turn of its conversation contains.

pub mod arrivals;
pub mod generate;
mod sharing;
pub mod tokens;
pub mod trace;

pub use sharing::{Sharing, Totals};

use std::time::Duration;

/// A stretch of a prompt: `tokens` tokens that are wholly determined by `id`. Of two segments with the same `id`, the
/// shorter one is the beginning of the longer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Segment {
    pub id: u64,
    pub tokens: u32,
}

/// A request that has to wait for another one's end, because its prompt contains that one's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct After {
    /// Its place in the workload; always an earlier one.
    pub request: usize,
    /// What the user, or the tool that an agent calls, takes.
    pub pause: Duration,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedRequest {
    /// When it is due, since the start. One with [`after`](Self::after) is due then or when its predecessor's answer
    /// and the pause are over, whichever is later.
    pub at: Duration,
    pub prompt: Vec<Segment>,
    /// What it is answered with, exactly so many tokens. The id is its own.
    pub answer: Segment,
    /// Requests of one conversation share it.
    pub session: u64,
    /// Whose request it is.
    pub tenant: u32,
    pub after: Option<After>,
}

impl PlannedRequest {
    /// Length of the prompt in tokens.
    pub fn prompt_tokens(&self) -> u64 {
        self.prompt
            .iter()
            .map(|segment| u64::from(segment.tokens))
            .sum()
    }
}

/// Requests in order of their times.
#[derive(Clone, Debug, Default)]
pub struct Workload {
    /// Where it comes from, for reports.
    pub name: String,
    pub requests: Vec<PlannedRequest>,
}
