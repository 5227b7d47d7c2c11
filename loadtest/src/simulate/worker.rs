//! An engine worker without clock and thread: the engine's own scheduler and KV pool, and the simulated backend's time
//! model, which says when each step would be over.
//!
//! ```text
//! add ─▶ arriving ─▶ step formed at `clock` ─▶ under way until `end` ─▶ completed: tokens, ends, KV events ─▶ Seen
//!           joins the next step                                 long runs of decodes are made at once
//! ```
//!
//! It does what a worker with `--backend sim` does, and at the same times but for the microseconds that the host takes
//! between two steps. It works only when it is asked to: a caller that has nothing to do with a worker before
//! [`SimWorker::next_at`] need not call it before then.

mod drive;
mod foresee;
mod options;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use pointsman_engine::backend::StepOutput;
use pointsman_engine::sample::SamplingParams;
use pointsman_engine::scheduler::{
    ConfigError, Finish, Intake, NewRequest, Outcome, Prepared, QueueBound, QueueLimits, Refused,
    Scheduler, SequenceNumber, Stats,
};
use pointsman_proto::block_hash::BlockDigest;
use pointsman_proto::kv_events::{EngineHash, Event};
use rustc_hash::FxHashMap;

use crate::workload::Segment;

pub use foresee::Weight;
pub use options::WorkerOptions;

/// What a worker is asked.
#[derive(Clone, Debug)]
pub struct WorkerRequest {
    /// The caller's name for it.
    pub key: u32,
    /// Token ids. Spare capacity for the answer saves a copy.
    pub prompt: Vec<u32>,
    /// Of the prompt's first full blocks, as far as [`WorkerOptions::digests`] was asked for them; none is right, too.
    pub digests: Vec<BlockDigest>,
    /// What it is answered with.
    pub answer: Segment,
}

/// Something that the outside sees of a worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub at: Duration,
    pub what: What,
}

/// See [`Seen`].
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// A request's first token.
    FirstToken {
        key: u32,
        /// Prompt tokens that came out of the prefix cache.
        cached_tokens: u32,
        prompt_tokens: u32,
    },
    /// A request has ended.
    Ended {
        key: u32,
        generated_tokens: u32,
        finish: Finish,
    },
    /// The prefix cache has changed, in this order.
    Kv(Vec<Event<EngineHash>>),
}

/// Why a worker takes no request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// It can never run here.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The queue is full; a real worker answers 503.
    #[error("the queue is full: no more {}", .0.of())]
    QueueFull(QueueBound),
}

/// See the module.
#[derive(Debug)]
pub struct SimWorker {
    options: WorkerOptions,
    scheduler: Scheduler,
    intake: Intake,
    limits: QueueLimits,
    id: Arc<str>,
    /// In order of their times; bounded by the queue's limits.
    arriving: VecDeque<Arriving>,
    arriving_tokens: u64,
    clients: FxHashMap<SequenceNumber, Client>,
    /// When the step under way ends; none between two steps.
    under_way: Option<Duration>,
    /// Between two steps: when the next one may start.
    clock: Duration,
    output: StepOutput,
    outcome: Outcome,
    /// Seen of it before anything was computed.
    told_first: Option<Seen>,
    steps: Steps,
}

/// Steps that a worker has made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// All of them.
    pub made: u64,
    /// Those of them that were not made by themselves.
    pub skipped: u64,
}

/// A request on its way into the scheduler, which takes it between two steps.
#[derive(Debug)]
struct Arriving {
    at: Duration,
    prepared: Prepared,
    client: Client,
}

/// Who asked for a request.
#[derive(Clone, Copy, Debug)]
struct Client {
    key: u32,
    answer: u64,
    prompt_tokens: u32,
    has_first_token: bool,
}

impl SimWorker {
    /// A worker that has just started, at the time 0.
    ///
    /// # Errors
    /// When the scheduler's limits make no sense.
    pub fn new(options: WorkerOptions) -> Result<Self, ConfigError> {
        let scheduler = Scheduler::new(options.scheduler.clone())?;
        let mut worker = Self {
            intake: scheduler.intake(),
            limits: scheduler.queue_limits(),
            scheduler,
            options,
            id: Arc::from("simulated"),
            arriving: VecDeque::new(),
            arriving_tokens: 0,
            clients: FxHashMap::default(),
            under_way: None,
            clock: Duration::ZERO,
            output: StepOutput::default(),
            outcome: Outcome::default(),
            told_first: None,
            steps: Steps::default(),
        };
        worker.tell_first(Duration::ZERO);
        Ok(worker)
    }

    /// Takes a request at `now`, which is not before the last [`SimWorker::advance`]. It is part of the first step that
    /// is formed from then on.
    ///
    /// # Errors
    /// When it can never run here, or too many wait already.
    pub fn add(&mut self, request: WorkerRequest, now: Duration) -> Result<(), NotTaken> {
        let stats = self.scheduler.stats();
        let live = self.clients.len() + self.arriving.len();
        if !self.limits.admit(live, stats.waiting as usize) {
            return Err(NotTaken::QueueFull(QueueBound::Requests));
        }
        if !self
            .limits
            .admit_tokens(stats.queued_tokens + self.arriving_tokens)
        {
            return Err(NotTaken::QueueFull(QueueBound::Tokens));
        }
        let sampling = SamplingParams {
            ignore_eos: true,
            ..SamplingParams::greedy(request.answer.tokens)
        };
        let asked = NewRequest::new(Arc::clone(&self.id), request.prompt, sampling);
        let prepared = self.intake.prepare_hashed(asked, request.digests)?;
        let client = Client {
            key: request.key,
            answer: request.answer.id,
            prompt_tokens: prepared.prompt_tokens() as u32,
            has_first_token: false,
        };
        self.arriving_tokens += prepared.prompt_tokens();
        self.arriving.push_back(Arriving {
            at: now,
            prepared,
            client,
        });
        Ok(())
    }

    /// The earliest time at which the outside may see something of it or a step may be formed with new requests, if
    /// nothing is added; none when it is idle. It may be too early, never too late; advancing to it always brings it
    /// on. Without `is_cache_watched`, what decoding does to the cache counts for nothing.
    pub fn next_at(&self, is_cache_watched: bool) -> Option<Duration> {
        if let Some(told) = &self.told_first {
            return Some(told.at);
        }
        let Some(end) = self.under_way else {
            let first = self.arriving.front()?;
            return Some(first.at.max(self.clock));
        };
        if !self.arriving.is_empty() {
            return Some(end);
        }
        let (steps, mut shape) = self.scheduler.quiet_steps(is_cache_watched);
        let mut end = end;
        for _ in 0..steps {
            shape = shape.next_decode();
            end += self.options.step_time(&shape);
        }
        Some(end)
    }

    /// Gauges and totals as its metrics page would show them: requests that no step could take yet count as waiting.
    pub fn stats(&self) -> Stats {
        let stats = self.scheduler.stats();
        Stats {
            waiting: stats.waiting + self.arriving.len() as u32,
            queued_tokens: stats.queued_tokens + self.arriving_tokens,
            ..stats
        }
    }

    /// How many tokens of a prompt with these digests it holds now, looked up without any trace.
    pub fn cached_tokens(&self, digests: &[BlockDigest]) -> usize {
        self.scheduler.cached_tokens(digests)
    }

    /// Takes the prompt's blocks with these digests into its cache, as if another worker had handed them over in no time.
    pub fn adopt(&mut self, digests: &[BlockDigest], prompt: &[u32]) {
        self.scheduler.adopt(digests, prompt);
    }

    /// Requests that it has taken and not ended.
    pub fn live(&self) -> usize {
        self.clients.len() + self.arriving.len()
    }

    /// Steps that it has made since it was made itself.
    pub fn steps(&self) -> Steps {
        self.steps
    }

    /// The options it runs with.
    pub fn options(&self) -> &WorkerOptions {
        &self.options
    }

    /// Makes steps take `slowdown` times as long as the time model says, from the next one on.
    pub fn set_slowdown(&mut self, slowdown: f64) {
        self.options.slowdown = slowdown;
    }

    /// The process dies at `now`, with its cache and everything in flight; another one starts in its place. Returns the
    /// keys of the requests that are lost, in no order.
    ///
    /// # Errors
    /// None that [`SimWorker::new`] did not have.
    pub fn abort_all(&mut self, now: Duration) -> Result<Vec<u32>, ConfigError> {
        self.scheduler = Scheduler::new(self.options.scheduler.clone())?;
        let arriving = self.arriving.drain(..).map(|arriving| arriving.client);
        let running = self.clients.drain().map(|(_, client)| client);
        let lost = arriving.chain(running).map(|client| client.key).collect();
        self.arriving_tokens = 0;
        self.under_way = None;
        self.clock = now;
        self.tell_first(now);
        Ok(lost)
    }

    /// A process tells first of all that its cache is empty.
    fn tell_first(&mut self, at: Duration) {
        self.told_first = kv(at, self.scheduler.take_events());
    }
}

/// What readers of the events see of a change of the cache, if there is one.
fn kv(at: Duration, events: Vec<Event<BlockDigest>>) -> Option<Seen> {
    if events.is_empty() {
        return None;
    }
    let named = events
        .into_iter()
        .map(|event| event.map_hashes(|digest| EngineHash::from(&digest)));
    Some(Seen {
        at,
        what: What::Kv(named.collect()),
    })
}
