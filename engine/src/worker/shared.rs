//! What handles and the engine thread share: atomics only, so neither side ever waits for the other.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::SubmitError;
use super::progress::Progress;
use crate::backend::SleepLevel;
use crate::scheduler::{Intake, QueueBound, QueueLimits, Stats};

/// A refused client is never told to wait longer than this: by then another worker, or a restart, has made the
/// estimate worthless.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(1);
/// Nor to come back sooner than this.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);

/// See the module's description.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) intake: Intake,
    pub(super) limits: QueueLimits,
    /// Requests submitted and not ended.
    pub(super) live: AtomicUsize,
    /// Prompt tokens of the requests that are submitted and not yet counted in `stats`.
    pub(super) arriving_tokens: AtomicU64,
    pub(super) draining: AtomicBool,
    /// Tickets handed out so far: the number of the next submission.
    pub(super) tickets: AtomicU64,
    /// Requests with a ticket below this are to be aborted.
    pub(super) abort_below: AtomicU64,
    pub(super) healthy: AtomicBool,
    paused: AtomicBool,
    /// vLLM's number of the level at which the backend sleeps; 0 is awake.
    sleep_level: AtomicU32,
    pub(super) stats: SharedStats,
    /// Tells waiters that `live` may have become 0.
    pub(super) idle: watch::Sender<()>,
    pub(super) progress: Progress,
}

impl Shared {
    pub(super) fn new(intake: Intake, limits: QueueLimits) -> Self {
        Self {
            intake,
            limits,
            live: AtomicUsize::new(0),
            arriving_tokens: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            tickets: AtomicU64::new(0),
            abort_below: AtomicU64::new(0),
            healthy: AtomicBool::new(true),
            paused: AtomicBool::new(false),
            sleep_level: AtomicU32::new(0),
            stats: SharedStats::default(),
            idle: watch::Sender::new(()),
            progress: Progress::new(),
        }
    }

    /// One live request less.
    pub(super) fn release_live(&self) {
        if self.live.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.idle.send_replace(());
        }
    }

    /// A submission is in `stats` from here on, or was withdrawn.
    pub(super) fn release_arriving(&self, tokens: u64) {
        self.arriving_tokens.fetch_sub(tokens, Ordering::AcqRel);
    }

    pub(super) fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Release);
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    pub(super) fn set_asleep(&self, level: Option<SleepLevel>) {
        let level = level.map_or(0, SleepLevel::number);
        self.sleep_level.store(level, Ordering::Release);
    }

    pub(super) fn sleep_level(&self) -> u32 {
        self.sleep_level.load(Ordering::Acquire)
    }

    /// The refusal at `bound`.
    pub(super) fn full(&self, bound: QueueBound) -> SubmitError {
        let limit = match bound {
            QueueBound::Requests => self.limits.waiting as u64,
            QueueBound::Tokens => self.limits.waiting_tokens.unwrap_or(0),
        };
        SubmitError::QueueFull {
            bound,
            limit,
            retry_after: self.retry_after(),
        }
    }

    /// How long the tokens that wait now take at the rate of the latest prompts.
    fn retry_after(&self) -> Duration {
        let stats = self.stats.load();
        let tokens = stats.queued_tokens + self.arriving_tokens.load(Ordering::Acquire);
        let seconds = tokens
            .checked_div(stats.prefill_tokens_per_second)
            .unwrap_or(0)
            .saturating_add(1);
        Duration::from_secs(seconds).clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)
    }
}

/// One place among the live requests, and its prompt's tokens among the arriving ones; both are given back on drop
/// unless kept.
pub(super) struct Ticket<'a> {
    shared: &'a Shared,
    tokens: u64,
    kept: bool,
}

impl<'a> Ticket<'a> {
    pub(super) fn take(shared: &'a Shared, tokens: u64) -> Result<Self, SubmitError> {
        let limits = shared.limits;
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
            .map_err(|_| shared.full(QueueBound::Requests))?;
        // The engine thread counts a request in `stats` before it takes it from `arriving`, and `arriving` is read
        // first here: a request in between is seen twice, never not at all.
        let arrived =
            shared
                .arriving_tokens
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |arriving| {
                    let queued = shared.stats.queued_tokens().saturating_add(arriving);
                    limits.admit_tokens(queued).then_some(arriving + tokens)
                });
        if arrived.is_err() {
            shared.release_live();
            return Err(shared.full(QueueBound::Tokens));
        }
        let ticket = Self {
            shared,
            tokens,
            kept: false,
        };
        // Read after `live` was raised: a drain that sees no live request and a submit that sees no drain cannot
        // both happen.
        if shared.draining.load(Ordering::SeqCst) {
            return Err(SubmitError::Draining);
        }
        Ok(ticket)
    }

    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.shared.release_arriving(self.tokens);
            self.shared.release_live();
        }
    }
}

/// [`Stats`] as atomics: written by the engine thread after each step, read by anyone.
#[derive(Debug, Default)]
pub(super) struct SharedStats {
    gauges: [AtomicU32; 6],
    totals: [AtomicU64; 9],
}

impl SharedStats {
    pub(super) fn store(&self, stats: &Stats) {
        let gauges = [
            stats.running,
            stats.waiting,
            stats.blocks_used,
            stats.blocks_total,
            stats.waiting_deferred,
            stats.sleep_level,
        ];
        let totals = [
            stats.prefix_queries,
            stats.prefix_hits,
            stats.preemptions,
            stats.prompt_tokens,
            stats.prompt_tokens_cached,
            stats.generated_tokens,
            stats.queued_tokens,
            stats.prefill_tokens_per_second,
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

    fn queued_tokens(&self) -> u64 {
        self.totals[6].load(Ordering::Acquire)
    }

    pub(super) fn load(&self) -> Stats {
        let [
            running,
            waiting,
            blocks_used,
            blocks_total,
            waiting_deferred,
            sleep_level,
        ] = std::array::from_fn(|i| self.gauges[i].load(Ordering::Acquire));
        let [
            prefix_queries,
            prefix_hits,
            preemptions,
            prompt_tokens,
            prompt_tokens_cached,
            generated_tokens,
            queued_tokens,
            prefill_tokens_per_second,
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
            waiting_deferred,
            queued_tokens,
            prefill_tokens_per_second,
            sleep_level,
            prompt_tokens_cached_host,
        }
    }
}
