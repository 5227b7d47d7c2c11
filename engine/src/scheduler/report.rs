//! Numbers about the scheduler's work: gauges, steps, finished requests.

use std::time::Duration;

use super::{Finish, SequenceNumber};

/// The engine's state between two steps, and its totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests that hold KV blocks.
    pub running: u32,
    /// Requests that wait for admission, preempted ones included.
    pub waiting: u32,
    /// KV blocks held by running requests.
    pub blocks_used: u32,
    /// KV blocks that requests can hold; the null block is not counted.
    pub blocks_total: u32,
    /// Prompt tokens looked up in the prefix cache; counted when a request is first admitted.
    pub prefix_queries: u64,
    /// Prompt tokens found there.
    pub prefix_hits: u64,
    /// Times a running request lost its blocks and went back to waiting.
    pub preemptions: u64,
    /// Prompt tokens of the requests whose prompt was wholly processed, cached ones included.
    pub prompt_tokens: u64,
    /// The part of `prompt_tokens` that came from the prefix cache.
    pub prompt_tokens_cached: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// The part of `waiting` that does not wait for blocks or a place but for the end of a pause.
    pub waiting_deferred: u32,
    /// Tokens of the waiting requests, all of them yet to be computed (or found in the prefix cache).
    pub queued_tokens: u64,
    /// How fast prompts were computed of late; 0 before the first.
    pub prefill_tokens_per_second: u64,
    /// vLLM's number of the level at which the backend sleeps, 0 awake. The scheduler leaves it at 0; the engine
    /// thread knows.
    pub sleep_level: u32,
    /// The part of `prompt_tokens_cached` that was in host memory; the rest was on the device.
    pub prompt_tokens_cached_host: u64,
}

impl Stats {
    /// Used fraction of the KV pool, 0 to 1.
    pub fn kv_usage(&self) -> f64 {
        if self.blocks_total == 0 {
            return 0.0;
        }
        f64::from(self.blocks_used) / f64::from(self.blocks_total)
    }

    /// Adds another rank's numbers to these.
    pub fn add(&mut self, other: &Self) {
        self.running += other.running;
        self.waiting += other.waiting;
        self.blocks_used += other.blocks_used;
        self.blocks_total += other.blocks_total;
        self.prefix_queries += other.prefix_queries;
        self.prefix_hits += other.prefix_hits;
        self.preemptions += other.preemptions;
        self.prompt_tokens += other.prompt_tokens;
        self.prompt_tokens_cached += other.prompt_tokens_cached;
        self.generated_tokens += other.generated_tokens;
        self.prompt_tokens_cached_host += other.prompt_tokens_cached_host;
        self.waiting_deferred += other.waiting_deferred;
        self.queued_tokens += other.queued_tokens;
        self.prefill_tokens_per_second += other.prefill_tokens_per_second;
        self.sleep_level = self.sleep_level.max(other.sleep_level);
    }
}

/// One computed step. Times are since the engine's start.
#[derive(Clone, Debug, Default)]
pub struct StepReport {
    /// When the step was formed; one that was formed ahead begins when the one before it is done.
    pub started_at: Duration,
    /// When its tokens were known.
    pub finished_at: Duration,
    /// Tokens computed, of prompts and of outputs, for requests that were still there when the step was done. With a
    /// step that was formed ahead it may be none.
    pub batched_tokens: u32,
    /// Requests in the batch.
    pub batched_requests: u32,
    /// The part of `batched_tokens` that belongs to prompts, or to what is computed again after a preemption.
    pub prefill_tokens: u32,
    /// Requests that lost their blocks when the step was formed.
    pub preempted: u32,
    /// What the step was expected to take beside its prompts; zero while that is not known. The step's own time over
    /// this one is how much longer running requests waited because of prompts.
    pub expected_without_prefill: Duration,
    /// From arrival to first token, of each request whose first token this step brought.
    pub first_token_waits: Vec<Duration>,
    /// From the token before to this step's token, of each other request that got one.
    pub inter_token_gaps: Vec<Duration>,
    /// Gauges and totals after the step.
    pub stats: Stats,
}

/// The life of one request. Times are since the engine's start.
#[derive(Clone, Debug)]
pub struct RequestReport {
    /// The scheduler's name for it.
    pub number: SequenceNumber,
    /// Tokens in the prompt.
    pub prompt_tokens: u32,
    /// Prompt tokens found in the prefix cache at admission.
    pub cached_tokens: u32,
    /// Tokens generated.
    pub generated_tokens: u32,
    /// The limit on generated tokens that was in force.
    pub max_tokens: u32,
    /// Times it was preempted.
    pub preemptions: u32,
    /// How it ended.
    pub finish: Finish,
    /// When the engine thread took it.
    pub arrived_at: Duration,
    /// When it was first admitted.
    pub scheduled_at: Option<Duration>,
    /// When its first token was known.
    pub first_token_at: Option<Duration>,
    /// When its latest token was known.
    pub last_token_at: Option<Duration>,
    /// When it ended.
    pub finished_at: Duration,
}

/// How long each phase of a request took; none for a phase that it did not complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// Arrival to first scheduled.
    pub queue: Option<Duration>,
    /// First scheduled to first token.
    pub prefill: Option<Duration>,
    /// First token to last token.
    pub decode: Option<Duration>,
}

impl RequestReport {
    /// The request's phases; a preemption lies inside of the one that it interrupts.
    pub fn phases(&self) -> Phases {
        let between =
            |from: Option<Duration>, to: Option<Duration>| Some(to?.saturating_sub(from?));
        Phases {
            queue: between(Some(self.arrived_at), self.scheduled_at),
            prefill: between(self.scheduled_at, self.first_token_at),
            decode: between(self.first_token_at, self.last_token_at),
        }
    }
}
