//! Workloads made from a seed: kind and parameters → sessions → requests in the order of their times.
//!
//! A [`Shape`] writes sessions: what is asked in each, with which pauses. Sessions start as a Poisson process, at the
//! rate of requests divided by the mean number of turns. A session's content depends on the seed and its number only,
//! never on the rate, so that another rate asks the same questions at other times.
//!
//! A run begins in the middle: conversations that started before are under way, and their later turns are there from
//! the first second. Otherwise the rate would climb for minutes and no short run would have the one it names.
//!
//! The random numbers are PCG XSL RR 128/64 ([`rand_pcg::Pcg64`]), an algorithm with a name and a reference, and not
//! whatever a library takes to be its best. With the distributions of `rand_distr` at the version of the lock file, a
//! seed means the same workload on every machine; a test holds one to its digest, so a change shows.

mod draw;
mod kinds;
mod sessions;
mod shape;

use std::time::Duration;

use thiserror::Error;

pub(super) use self::draw::random;
pub use self::draw::{Lengths, Popularity};
pub use self::kinds::{
    Agents, LongDocuments, MultiTurn, Rag, SharedPrompts, SkewedTenants, Unique,
};
pub use self::shape::{Kind, Shape};
use super::{Segment, Workload};

/// The most requests of one workload.
pub const REQUESTS_MAX: usize = 1_000_000;
/// The highest rate, in requests a second.
pub const RATE_MAX: f64 = 100_000.0;

/// How much of a shape is made, and how fast it comes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GenerateOptions {
    pub seed: u64,
    /// Requests a second on average.
    pub rate: f64,
    /// The end, by whichever comes first; at least one must be given.
    pub requests: Option<usize>,
    pub duration: Option<Duration>,
}

/// Why no workload can be made.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum GenerateError {
    #[error("a rate of {0} requests a second; it has to be above 0 and at most {RATE_MAX}")]
    Rate(f64),
    #[error("neither a number of requests nor a duration says where the workload ends")]
    NoEnd,
    #[error("more than {REQUESTS_MAX} requests")]
    TooMany,
    #[error("parameters of {kind}: {problem}")]
    Parameters { kind: &'static str, problem: String },
}

/// One question of a session.
#[derive(Clone, Debug)]
struct Turn {
    /// After the turn before, or its answer; unused in the first.
    pause: Duration,
    /// The prompt is the one before, its answer, and `prompt`. Otherwise it is `prompt` alone, and nobody waits.
    continues: bool,
    prompt: Vec<Segment>,
    answer_tokens: u32,
}

/// One user's conversation, one agent's task, one document's readers.
#[derive(Clone, Debug, Default)]
struct Session {
    tenant: u32,
    turns: Vec<Turn>,
}

/// Makes a workload.
pub fn generate(shape: &Shape, options: GenerateOptions) -> Result<Workload, GenerateError> {
    if !(options.rate > 0.0 && options.rate <= RATE_MAX) {
        return Err(GenerateError::Rate(options.rate));
    }
    if options.requests.is_none() && options.duration.is_none() {
        return Err(GenerateError::NoEnd);
    }
    if options.requests.is_some_and(|count| count > REQUESTS_MAX) {
        return Err(GenerateError::TooMany);
    }
    let requests = sessions::requests(shape, options)?;
    Ok(Workload {
        name: shape.kind().name().to_owned(),
        requests,
    })
}

#[cfg(test)]
mod tests;
