//! The two things the rest of the program holds of the engine: a handle to submit requests, a stream for each of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::command::{Command, PauseMode, Quiet, SleepError};
use super::observer::RequestWatch;
use super::shared::{Shared, Ticket};
use crate::backend::SleepLevel;
use crate::scheduler::{Finish, NewRequest, QueueBound, Refused, Stats, TokenUpdate};

/// Gives work to the engine thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
}

/// Why a request was not taken. Nothing was queued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The waiting queue is full; try again later, or elsewhere.
    #[error("{limit} {} are waiting already", bound.of())]
    QueueFull {
        /// Which bound on the queue holds.
        bound: QueueBound,
        /// Its value.
        limit: u64,
        /// When the queue is likely to have moved on; whole seconds, 1 to 60.
        retry_after: Duration,
    },
    /// The engine is shutting down.
    #[error("the engine is draining")]
    Draining,
    /// The backend failed; only a restart helps.
    #[error("the engine is unhealthy")]
    Unhealthy,
    /// The request can never run here.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The request names a data-parallel rank that this worker does not have.
    #[error("data-parallel rank {rank} is not one of this worker's {ranks}")]
    NoSuchRank {
        /// The rank that was asked for.
        rank: u32,
        /// How many there are, from 0.
        ranks: u32,
    },
}

/// How a stream's reader left: set before the channel closes, read by the engine thread after it has.
#[derive(Debug, Default)]
pub(super) struct ClosedBy {
    stop_string: AtomicBool,
}

impl ClosedBy {
    pub(super) fn finish(&self) -> Finish {
        if self.stop_string.load(Ordering::Acquire) {
            Finish::Stop { token: None }
        } else {
            Finish::Abort
        }
    }
}

impl EngineHandle {
    pub(super) fn new(commands: mpsc::Sender<Command>, shared: Arc<Shared>) -> Self {
        Self { commands, shared }
    }

    /// Queues a request. Its tokens arrive on the returned stream.
    ///
    /// The checks and the hashing of the prompt's blocks happen on the calling thread, so that the engine thread
    /// does not pay for them.
    ///
    /// # Errors
    /// See [`SubmitError`]. The queue counts as full when as many requests wait as may wait, or when so many are
    /// alive that this one would have to wait beyond that bound.
    pub fn submit(&self, request: NewRequest) -> Result<RequestStream, SubmitError> {
        self.submit_watched(request, None)
    }

    /// As [`EngineHandle::submit`]; `watch` hears of the request's end.
    ///
    /// # Errors
    /// See [`EngineHandle::submit`].
    pub fn submit_watched(
        &self,
        request: NewRequest,
        watch: Option<Arc<dyn RequestWatch>>,
    ) -> Result<RequestStream, SubmitError> {
        let shared = &self.shared;
        if !shared.healthy.load(Ordering::Acquire) {
            return Err(SubmitError::Unhealthy);
        }
        let prompt_tokens = request.prompt.len();
        let request = shared.intake.prepare(request)?;
        let ticket = Ticket::take(shared, prompt_tokens as u64)?;
        let (sender, updates) = mpsc::channel(request.max_tokens() as usize + 1);
        let closed = Arc::new(ClosedBy::default());
        let command = Command::Submit {
            request: Box::new(request),
            updates: sender,
            closed: Arc::clone(&closed),
            ticket: shared.tickets.fetch_add(1, Ordering::AcqRel),
            watch,
        };
        match self.commands.try_send(command) {
            Ok(()) => {
                ticket.keep();
                Ok(RequestStream {
                    updates,
                    closed,
                    prompt_tokens,
                })
            }
            Err(mpsc::error::TrySendError::Full(_)) => Err(shared.full(QueueBound::Requests)),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(SubmitError::Unhealthy),
        }
    }

    /// The engine's gauges and totals as of the latest step. Never waits; each number is exact, but two of them may
    /// come from neighbouring steps.
    pub fn stats(&self) -> Stats {
        self.shared.stats.load()
    }

    /// Requests submitted and not ended.
    pub fn live_requests(&self) -> usize {
        self.shared.live.load(Ordering::SeqCst)
    }

    /// False once the backend failed.
    pub fn is_healthy(&self) -> bool {
        self.shared.healthy.load(Ordering::Acquire)
    }

    /// How long the engine thread has not been heard of while requests are alive; nothing while none is. A step that
    /// takes long counts, too, so what is too long depends on the device.
    pub fn silence(&self) -> Duration {
        if self.live_requests() == 0 {
            return Duration::ZERO;
        }
        self.shared.progress.silence()
    }

    /// The longest context in tokens, prompt and output together.
    pub fn max_model_len(&self) -> u32 {
        self.shared.intake.max_model_len()
    }

    /// Empties the prefix cache; false when a request still holds blocks, and then nothing changes.
    pub async fn reset_prefix_cache(&self) -> bool {
        self.reset(false).await
    }

    /// Empties the prefix cache even while requests run: they lose their blocks, and compute their tokens again.
    pub async fn reset_prefix_cache_preempting(&self) -> bool {
        self.reset(true).await
    }

    async fn reset(&self, preempt_running: bool) -> bool {
        let command = |reply| Command::ResetPrefixCache {
            preempt_running,
            reply,
        };
        self.ask(command).await.unwrap_or(false)
    }

    /// Holds the engine still until [`EngineHandle::resume`] and returns once it does; requests may be submitted
    /// all the while, within the bounds of the queue. With `clear_cache` the prefix cache is emptied then.
    ///
    /// False when somebody resumed the engine before it held still, or when it has stopped.
    pub async fn pause(&self, mode: PauseMode, clear_cache: bool) -> bool {
        let command = |reply| Command::Pause {
            mode,
            then: Quiet::Pause { clear_cache, reply },
        };
        self.ask(command).await.is_some()
    }

    /// Goes on after a pause. False while the backend sleeps: wake it instead.
    pub async fn resume(&self) -> bool {
        self.ask(Command::Resume).await.unwrap_or(false)
    }

    /// Whether the engine holds still, or is about to.
    pub fn is_paused(&self) -> bool {
        self.shared.is_paused()
    }

    /// Pauses the engine and puts the backend to sleep; without a level it is a pause alone (vLLM's level 0). The
    /// prefix cache is emptied, because the KV memory is given back.
    ///
    /// # Errors
    /// See [`SleepError`].
    pub async fn sleep(
        &self,
        level: Option<SleepLevel>,
        mode: PauseMode,
    ) -> Result<(), SleepError> {
        let command = |reply| Command::Pause {
            mode,
            then: Quiet::Sleep { level, reply },
        };
        match self.ask(command).await {
            Some(slept) => slept,
            None if self.commands.is_closed() => Err(SleepError::Gone),
            None => Err(SleepError::Resumed),
        }
    }

    /// Wakes the backend if it sleeps, and goes on.
    ///
    /// # Errors
    /// See [`SleepError`].
    pub async fn wake(&self) -> Result<(), SleepError> {
        self.ask(Command::Wake)
            .await
            .unwrap_or(Err(SleepError::Gone))
    }

    /// vLLM's number of the level at which the backend sleeps; 0 is awake.
    pub fn sleep_level(&self) -> u32 {
        self.shared.sleep_level()
    }

    /// Sends a command with a way to answer it; none when nobody answers.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }

    /// Refuses requests from here on; those taken already run to their end. Await [`EngineHandle::idle`] for that.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::SeqCst);
    }

    /// Whether [`EngineHandle::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::Acquire)
    }

    /// Ends every request submitted so far with [`Finish::Abort`], before the next step. Later ones are not touched.
    pub fn abort_all(&self) {
        let tickets = self.shared.tickets.load(Ordering::Acquire);
        self.shared.abort_below.fetch_max(tickets, Ordering::AcqRel);
    }

    /// Whether no request is alive.
    pub fn is_idle(&self) -> bool {
        self.live_requests() == 0
    }

    /// Returns once no request is alive.
    pub async fn idle(&self) {
        let mut changed = self.shared.idle.subscribe();
        while !self.is_idle() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

/// The tokens of one request. Dropping it before its end aborts the request and frees its blocks before the next
/// step.
#[derive(Debug)]
pub struct RequestStream {
    updates: mpsc::Receiver<TokenUpdate>,
    closed: Arc<ClosedBy>,
    prompt_tokens: usize,
}

impl RequestStream {
    /// The next token; none after the update that carries a [`Finish`].
    pub async fn next(&mut self) -> Option<TokenUpdate> {
        self.updates.recv().await
    }

    /// Adds all updates that are there to `updates`, `limit` at most, and returns their number; waits for the first.
    /// 0 when none will come any more.
    pub fn poll_many(
        &mut self,
        context: &mut Context<'_>,
        updates: &mut Vec<TokenUpdate>,
        limit: usize,
    ) -> Poll<usize> {
        self.updates.poll_recv_many(context, updates, limit)
    }

    /// Like [`RequestStream::next`] for callers outside the async runtime: blocks the thread.
    pub fn blocking_next(&mut self) -> Option<TokenUpdate> {
        self.updates.blocking_recv()
    }

    /// Tokens in the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Ends the request because a stop string was found in its text; it counts as stopped, not as aborted.
    pub fn stop(self) {
        self.closed.stop_string.store(true, Ordering::Release);
    }
}
