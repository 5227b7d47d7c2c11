//! The two things the rest of the program holds of the engine: a handle to submit requests, a stream for each of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::observer::RequestWatch;
use super::progress::Progress;
use crate::scheduler::{
    Finish, Intake, NewRequest, Prepared, QueueLimits, Refused, Stats, TokenUpdate,
};

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
    #[error("{limit} requests are waiting already")]
    QueueFull {
        /// The bound on waiting requests.
        limit: usize,
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

/// What the engine thread is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    Submit {
        request: Box<Prepared>,
        updates: mpsc::Sender<TokenUpdate>,
        closed: Arc<ClosedBy>,
        ticket: u64,
        watch: Option<Arc<dyn RequestWatch>>,
    },
    ResetPrefixCache(oneshot::Sender<bool>),
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

/// What handles and the engine thread share; atomics only, so neither side ever waits for the other.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) intake: Intake,
    pub(super) limits: QueueLimits,
    /// Requests submitted and not ended.
    pub(super) live: AtomicUsize,
    pub(super) draining: AtomicBool,
    /// Tickets handed out so far: the number of the next submission.
    pub(super) tickets: AtomicU64,
    /// Requests with a ticket below this are to be aborted.
    pub(super) abort_below: AtomicU64,
    pub(super) healthy: AtomicBool,
    pub(super) stats: SharedStats,
    /// Tells waiters that `live` may have become 0.
    pub(super) idle: watch::Sender<()>,
    pub(super) progress: Progress,
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
        let ticket = Ticket::take(shared)?;
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
            Err(mpsc::error::TrySendError::Full(_)) => Err(SubmitError::QueueFull {
                limit: shared.limits.waiting,
            }),
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
        let (reply, answer) = oneshot::channel();
        let command = Command::ResetPrefixCache(reply);
        if self.commands.send(command).await.is_err() {
            return false;
        }
        answer.await.unwrap_or(false)
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

/// One place among the live requests; given back on drop unless kept.
struct Ticket<'a> {
    shared: &'a Shared,
    kept: bool,
}

impl<'a> Ticket<'a> {
    fn take(shared: &'a Shared) -> Result<Self, SubmitError> {
        let limits = shared.limits;
        let full = || SubmitError::QueueFull {
            limit: limits.waiting,
        };
        let waiting = shared.stats.waiting() as usize;
        // A thread that had nothing to do was silent for that long; its silence counts from here.
        if shared.live.load(Ordering::SeqCst) == 0 {
            shared.progress.note();
        }
        shared
            .live
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |live| {
                limits.admit(live, waiting).then_some(live + 1)
            })
            .map_err(|_| full())?;
        let ticket = Self {
            shared,
            kept: false,
        };
        // Read after `live` was raised: a drain that sees no live request and a submit that sees no drain cannot
        // both happen.
        if shared.draining.load(Ordering::SeqCst) {
            return Err(SubmitError::Draining);
        }
        Ok(ticket)
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.shared.release_live();
        }
    }
}

impl Shared {
    /// One live request less.
    pub(super) fn release_live(&self) {
        if self.live.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.idle.send_replace(());
        }
    }
}

/// [`Stats`] as atomics: written by the engine thread after each step, read by anyone.
#[derive(Debug, Default)]
pub(super) struct SharedStats {
    gauges: [AtomicU32; 4],
    totals: [AtomicU64; 7],
}

impl SharedStats {
    pub(super) fn store(&self, stats: &Stats) {
        let gauges = [
            stats.running,
            stats.waiting,
            stats.blocks_used,
            stats.blocks_total,
        ];
        let totals = [
            stats.prefix_queries,
            stats.prefix_hits,
            stats.preemptions,
            stats.prompt_tokens,
            stats.prompt_tokens_cached,
            stats.generated_tokens,
            stats.prompt_tokens_cached_host,
        ];
        for (cell, value) in self.gauges.iter().zip(gauges) {
            cell.store(value, Ordering::Release);
        }
        for (cell, value) in self.totals.iter().zip(totals) {
            cell.store(value, Ordering::Release);
        }
    }

    fn waiting(&self) -> u32 {
        self.gauges[1].load(Ordering::Acquire)
    }

    fn load(&self) -> Stats {
        let [running, waiting, blocks_used, blocks_total] =
            std::array::from_fn(|i| self.gauges[i].load(Ordering::Acquire));
        let [
            prefix_queries,
            prefix_hits,
            preemptions,
            prompt_tokens,
            prompt_tokens_cached,
            generated_tokens,
            prompt_tokens_cached_host,
        ] = std::array::from_fn(|i| self.totals[i].load(Ordering::Acquire));
        Stats {
            running,
            waiting,
            blocks_used,
            blocks_total,
            prefix_queries,
            prefix_hits,
            preemptions,
            prompt_tokens,
            prompt_tokens_cached,
            generated_tokens,
            prompt_tokens_cached_host,
        }
    }
}
