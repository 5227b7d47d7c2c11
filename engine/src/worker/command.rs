//! What handles ask of the engine thread, and what it answers.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::handle::ClosedBy;
use super::observer::RequestWatch;
use crate::backend::SleepLevel;
use crate::scheduler::{Prepared, TokenUpdate};

/// One message to the engine thread.
#[derive(Debug)]
pub(super) enum Command {
    /// A new request.
    Submit {
        request: Box<Prepared>,
        updates: mpsc::Sender<TokenUpdate>,
        closed: Arc<ClosedBy>,
        ticket: u64,
        watch: Option<Arc<dyn RequestWatch>>,
    },
    /// Empty the prefix cache; with `preempt_running`, running requests give up their blocks for it.
    ResetPrefixCache {
        preempt_running: bool,
        reply: oneshot::Sender<bool>,
    },
    /// Hold still, and then do what is to be done.
    Pause { mode: PauseMode, then: Quiet },
    /// Go on after a pause; false while the backend sleeps.
    Resume(oneshot::Sender<bool>),
    /// Wake the backend if it sleeps, and go on.
    Wake(oneshot::Sender<Result<(), SleepError>>),
}

/// What to do once the engine holds still.
#[derive(Debug)]
pub(super) enum Quiet {
    /// Nothing but, if so asked, empty the prefix cache.
    Pause {
        clear_cache: bool,
        reply: oneshot::Sender<()>,
    },
    /// Put the backend to sleep; without a level it stays awake.
    Sleep {
        level: Option<SleepLevel>,
        reply: oneshot::Sender<Result<(), SleepError>>,
    },
}

/// What becomes of the requests that are alive when the engine pauses; vLLM's modes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PauseMode {
    /// They end with [`Finish::Abort`](crate::scheduler::Finish::Abort).
    #[default]
    Abort,
    /// Those that run go on to their end first; those that wait stay where they are.
    Wait,
    /// They stop where they are, and go on when the engine resumes.
    Keep,
}

impl PauseMode {
    /// The mode of this name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "abort" => Some(Self::Abort),
            "wait" => Some(Self::Wait),
            "keep" => Some(Self::Keep),
            _ => None,
        }
    }
}

/// Why the engine does not sleep, or does not wake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SleepError {
    /// What the backend says. After a failed sleep the engine goes on; after a failed wake it is unhealthy.
    #[error("{0}")]
    Backend(String),
    /// It sleeps already.
    #[error("the engine sleeps already")]
    Asleep,
    /// Somebody resumed the engine while requests were still running.
    #[error("the engine was resumed before it could sleep")]
    Resumed,
    /// The engine thread has ended.
    #[error("the engine has stopped")]
    Gone,
}
