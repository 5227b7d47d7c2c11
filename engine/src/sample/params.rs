//! What a request asks of sampling, and what it gets to know about each token.

/// Sampling parameters of one request, with vLLM's names and meanings.
///
/// The values are checked where requests are parsed; the sampler stays defined for any value (see each field), so
/// a careless caller gets odd text, never a panic.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Tokens to generate at most; the engine lowers it to what the context length and the pool leave room for.
    /// 0 counts as 1.
    pub max_tokens: u32,
    /// End-of-sequence and stop tokens cannot be sampled before this many tokens were generated.
    pub min_tokens: u32,
    /// Below 1e-5 (or not a number) sampling is greedy.
    pub temperature: f32,
    /// Smallest set of most likely tokens whose probability reaches this; 1 or more is off.
    pub top_p: f32,
    /// The most likely tokens to choose among; 0 is off.
    pub top_k: u32,
    /// Tokens below this fraction of the most likely token's probability are dropped; 0 is off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logit of each token seen in the output; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted once for each time the token occurs in the output; 0 is off.
    pub frequency_penalty: f32,
    /// Makes the request's tokens reproducible; without it the engine derives one from its own seed.
    pub seed: Option<u64>,
    /// Generation stops after any of these, like after an end-of-sequence token.
    pub stop_token_ids: Vec<u32>,
    /// Goes on past end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Report the log probability of each token, and of this many most likely ones beside it.
    pub logprobs: Option<u32>,
    /// Tokens whose log probability to report in place of the most likely ones'; needs `logprobs`.
    pub logprob_token_ids: Vec<u32>,
    /// Report the log probability of each prompt token but the first, and of this many most likely ones beside it.
    /// Such a request reads nothing from the prefix cache.
    pub prompt_logprobs: Option<u32>,
    /// Added to the logits of these tokens, before penalties.
    pub logit_bias: Vec<(u32, f32)>,
    /// The only tokens that may come; empty is all.
    pub allowed_token_ids: Vec<u32>,
    /// Sequences of tokens whose last one must not come after the others.
    pub bad_words: Vec<Vec<u32>>,
}

impl SamplingParams {
    /// Greedy decoding of `max_tokens` tokens with every other knob off.
    pub fn greedy(max_tokens: u32) -> Self {
        Self {
            max_tokens,
            min_tokens: 0,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            logprob_token_ids: Vec::new(),
            prompt_logprobs: None,
            logit_bias: Vec::new(),
            allowed_token_ids: Vec::new(),
            bad_words: Vec::new(),
        }
    }

    /// Whether sampling looks back on the tokens so far.
    #[expect(clippy::float_cmp, reason = "exactly the neutral value means off")]
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }
}

/// The log probability of a sampled token, taken before penalties and temperature (vLLM's `raw_logprobs`).
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Natural logarithm of the token's probability.
    pub logprob: f32,
    /// How many tokens are at least as likely; 1 is the most likely one.
    pub rank: u32,
    /// The most likely tokens, best first, ties by token id; or the tokens of
    /// [`SamplingParams::logprob_token_ids`], in their order, where there are any.
    pub top: Vec<(u32, f32)>,
}
