//! The scheduler's limits, checked once.

use crate::kv::HashRecipe;

/// What the scheduler may use.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Tokens per KV block.
    pub block_size: u32,
    /// KV blocks, the null block (number 0) included.
    pub blocks: u32,
    /// Requests in a step at most.
    pub max_num_seqs: u32,
    /// Tokens in a step at most.
    pub max_num_batched_tokens: u32,
    /// Requests that may wait when `max_num_seqs` others are alive.
    pub max_num_queued: u32,
    /// Longest context in tokens.
    pub max_model_len: u32,
    /// Token ids are below this.
    pub vocab_size: u32,
    /// How blocks are hashed; none turns prefix caching off.
    pub prefix_cache: Option<HashRecipe>,
    /// Collect KV events. Whoever sets it must take them after each step.
    pub kv_events: bool,
    /// Tokens that end a request unless it ignores them.
    pub eos_token_ids: Vec<u32>,
    /// Root of the seeds of requests that bring none.
    pub seed: u64,
    /// Whether requests bring priorities.
    pub policy: Policy,
    /// Prompt tokens that may wait to be computed: no further request comes in while so many do.
    pub max_num_queued_tokens: Option<u64>,
    /// Tokens of one prompt in a step at most, while other requests are alive; none is no such limit.
    pub long_prefill_token_threshold: Option<u32>,
    /// While requests generate, a step may take this many times what it would take without prompts; none is no limit.
    pub max_decode_slowdown: Option<f64>,
    /// KV blocks of the second tier, in host memory; 0 is no such tier. It needs a prefix cache.
    pub host_blocks: u32,
    /// Layers that the backend can compute one by one, so that a part of a prompt can be spread over several steps; 1 is
    /// none.
    pub layers: u32,
}

/// Who comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Order of arrival; a request with a priority other than 0 is refused.
    #[default]
    Fcfs,
    /// Lower priority values first, then order of arrival.
    Priority,
}

impl Default for SchedulerConfig {
    /// vLLM's defaults where it has them; sizes that a model decides are as small as they can be.
    fn default() -> Self {
        Self {
            block_size: 16,
            blocks: 2,
            max_num_seqs: 128,
            max_num_batched_tokens: 2048,
            max_num_queued: 1024,
            max_model_len: 2,
            vocab_size: 1,
            prefix_cache: None,
            kv_events: false,
            eos_token_ids: Vec::new(),
            seed: 0,
            policy: Policy::Fcfs,
            max_num_queued_tokens: None,
            long_prefill_token_threshold: None,
            max_decode_slowdown: None,
            host_blocks: 0,
            layers: 1,
        }
    }
}

/// A limit that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A limit is below its smallest useful value.
    #[error("{name} is {value}; it must be at least {min}")]
    TooSmall {
        /// The flag's name.
        name: &'static str,
        /// Its value.
        value: u32,
        /// The least it may be.
        min: u32,
    },
    /// A slowdown that leaves prompts no time at all.
    #[error("max-decode-slowdown is {value}; it must be more than 1, or 0 for none")]
    Slowdown {
        /// Its value.
        value: String,
    },
}

/// How many requests the engine holds at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Requests that can run in one step.
    pub running: usize,
    /// Requests that may wait besides.
    pub waiting: usize,
    /// Prompt tokens that may wait to be computed; none is no such bound.
    pub waiting_tokens: Option<u64>,
}

/// Which bound on the queue refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueBound {
    /// The number of requests.
    Requests,
    /// The number of their tokens.
    Tokens,
}

impl QueueBound {
    /// vLLM's value of the label `reason` in the count of refused requests: the flag that set the bound.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Requests => "max_num_queued_reqs",
            Self::Tokens => "max_num_queued_tokens",
        }
    }

    /// What is counted, for messages.
    pub fn of(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "prompt tokens",
        }
    }
}

impl QueueLimits {
    /// Whether one more request may come when `live` are alive and `waiting` of them wait.
    ///
    /// The first bound lets a burst fill an idle engine although none of it has been admitted yet; the second holds
    /// when blocks, not places, are what running requests lack.
    pub fn admit(&self, live: usize, waiting: usize) -> bool {
        live < self.live_max() && waiting < self.waiting.max(1)
    }

    /// Whether a prompt may come while `tokens` others wait. It may then go beyond the bound itself, so that no prompt
    /// is too long for an empty queue; the queue holds less than the bound and one prompt.
    pub fn admit_tokens(&self, tokens: u64) -> bool {
        self.waiting_tokens.is_none_or(|max| tokens < max)
    }

    /// Requests alive at most.
    pub fn live_max(&self) -> usize {
        self.running + self.waiting
    }
}

impl SchedulerConfig {
    /// Checks the limits.
    ///
    /// # Errors
    /// Names the limit that is too small.
    pub fn check(&self) -> Result<(), ConfigError> {
        let limits = [
            ("block-size", self.block_size, 1),
            ("num-gpu-blocks", self.blocks, 2),
            ("max-num-seqs", self.max_num_seqs, 1),
            (
                "max-num-batched-tokens",
                self.max_num_batched_tokens,
                self.max_num_seqs,
            ),
            ("max-model-len", self.max_model_len, 2),
            ("vocab_size", self.vocab_size, 1),
            ("layers", self.layers, 1),
        ];
        for (name, value, min) in limits {
            if value < min {
                return Err(ConfigError::TooSmall { name, value, min });
            }
        }
        match self.max_decode_slowdown {
            Some(value) if !value.is_finite() || value <= 1.0 => Err(ConfigError::Slowdown {
                value: value.to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// The bound on live requests.
    pub fn queue_limits(&self) -> QueueLimits {
        QueueLimits {
            running: self.max_num_seqs as usize,
            waiting: self.max_num_queued as usize,
            waiting_tokens: self.max_num_queued_tokens,
        }
    }
}
