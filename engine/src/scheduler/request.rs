//! What goes into the scheduler and what comes out of it, one request at a time.

use std::sync::Arc;
use std::time::Duration;

use crate::sample::{SamplingParams, TokenLogprob};

/// A request as the API hands it to the engine.
#[derive(Clone, Debug)]
pub struct NewRequest {
    /// The name under which logs mention the request; the engine does not ask that it be unique.
    pub id: Arc<str>,
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// How to sample.
    pub sampling: SamplingParams,
    /// Separates this request's prefix cache from that of requests with another salt.
    pub cache_salt: Option<Arc<str>>,
    /// Lower runs earlier; ties run in order of arrival.
    pub priority: i32,
    /// What is to come out of it.
    pub task: Task,
    /// Since its arrival: a request that has not ended by then ends with an error.
    pub deadline: Option<Duration>,
    /// Announce the blocks that it finds in the prefix cache as well as those it computes; vLLM's
    /// `kv_cache_report_mode` of `full`.
    pub report_reused_blocks: bool,
    /// The data-parallel rank that must run it; none leaves the choice to [`crate::worker::Ranks`].
    pub data_parallel_rank: Option<u32>,
}

/// What a request wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Task {
    /// Tokens.
    #[default]
    Generate,
    /// The prompt's embedding: the last hidden state after the final norm, and no token.
    Embed,
}

impl NewRequest {
    /// A request for tokens with nothing out of the ordinary.
    pub fn new(id: impl Into<Arc<str>>, prompt: Vec<u32>, sampling: SamplingParams) -> Self {
        Self {
            id: id.into(),
            prompt,
            sampling,
            cache_salt: None,
            priority: 0,
            task: Task::Generate,
            deadline: None,
            report_reused_blocks: false,
            data_parallel_rank: None,
        }
    }
}

/// One generated token, or the end of a request that ends without one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenUpdate {
    /// The token; none when the request ends without generating one (abort, error).
    pub token: Option<u32>,
    /// Present when the request asked for log probabilities.
    pub logprob: Option<TokenLogprob>,
    /// Tokens of the prompt that were found in the prefix cache; fixed when the request is first admitted.
    pub cached_tokens: u32,
    /// On the first update of a request that asked for them: of each prompt token but the first, in order.
    pub prompt_logprobs: Vec<TokenLogprob>,
    /// On the last update of a request whose task is [`Task::Embed`]: `[hidden_size]`, not normalised.
    pub embedding: Option<Vec<f32>>,
    /// Present on the last update of a request.
    pub finish: Option<Finish>,
}

/// Why a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token (`Some`: one of the request's own `stop_token_ids`), an end-of-sequence token or a stop string
    /// (`None`).
    Stop {
        /// The request's own stop token that was generated.
        token: Option<u32>,
    },
    /// `max_tokens`, the context length or the whole KV pool is used up.
    Length,
    /// The client went away, or the engine was told to end everything.
    Abort,
    /// Its deadline passed.
    Deadline,
    /// The engine could not go on with it; the text says why.
    Error(String),
}
