//! An index under test, driven the way a router drives it.
//!
//! What a subject is handed in a timed call is what its own gateway hands it: hashes that are
//! computed already, in the types of its own interface. Building those is never timed.

mod chain;
mod crtc;
mod nothing;
mod pointsman;

pub use chain::Chain;
pub use crtc::Crtc;
pub use nothing::Nothing;
pub use pointsman::Pointsman;

use crate::workload::{BlockId, Event, Workload};

/// See the module.
pub trait Subject: Sync + Sized {
    /// An event, ready to be applied once.
    type Payload: Send;
    /// What one event thread keeps: the maps of the workers that are its own.
    type Lane: Send;
    /// A prompt's hashes as the lookup takes them, and the lookup's buffers.
    type Prompt: Default + Send;

    /// An empty index that `lanes` threads will write.
    fn new(workers: u32, lanes: usize) -> Self;

    /// The state of one event thread.
    fn lane(&self) -> Self::Lane;

    fn payload(workload: &Workload, event: &Event) -> Self::Payload;

    /// Applies an event, or hands it to the subject's own threads. A payload is spent by this.
    fn apply(&self, lane: &mut Self::Lane, payload: &mut Self::Payload);

    /// Returns when every event handed over is applied.
    fn drain(&self) {}

    /// What the subject's product does every few minutes in the background. Never timed.
    fn maintain(&self) {}

    fn ask(workload: &Workload, path: &[BlockId], prompt: &mut Self::Prompt);

    /// Writes each holder's leading blocks to `scores`, which is all zero, by worker.
    fn find(&self, prompt: &mut Self::Prompt, scores: &mut [u32]);

    /// What a lookup's hashes of a prompt cost: hashes the tokens by 16 and returns the last hash.
    fn hash(tokens: &[u32], prompt: &mut Self::Prompt) -> u64;
}

/// Which subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum SubjectName {
    /// Our index.
    Pointsman,
    /// dynamo-kv-router's `ConcurrentRadixTreeCompressed` behind its `ThreadPoolIndexer`.
    Crtc,
    /// kv-index's `ChainIndex`, called directly.
    Chain,
    /// No index at all: what the harness itself costs.
    Nothing,
}

impl SubjectName {
    pub fn word(self) -> &'static str {
        match self {
            Self::Pointsman => "pointsman",
            Self::Crtc => "crtc",
            Self::Chain => "chain",
            Self::Nothing => "nothing",
        }
    }
}

/// Runs one generic function with the subject of a name.
#[macro_export]
macro_rules! with_subject {
    ($name:expr, $function:ident ( $($argument:expr),* $(,)? )) => {
        match $name {
            $crate::subject::SubjectName::Crtc => $function::<$crate::subject::Crtc>($($argument),*),
            $crate::subject::SubjectName::Chain => $function::<$crate::subject::Chain>($($argument),*),
            $crate::subject::SubjectName::Nothing => {
                $function::<$crate::subject::Nothing>($($argument),*)
            }
            $crate::subject::SubjectName::Pointsman => {
                $function::<$crate::subject::Pointsman>($($argument),*)
            }
        }
    };
}
