//! What is left of a step while it is being formed: tokens of the budget, and time.
//!
//! The time is what "a long prompt never stalls others" comes down to. While requests generate, the prompts of a step
//! may take only so long that the step is `max_decode_slowdown` times as long as it would be without them. And never,
//! beside decodes or alone, do they take more than [`PROMPT_SECONDS_MAX`], so that arrivals and departures are seen in
//! time.
//!
//! With a slowdown of 2.5, prompts get 1.5 of 2.5 parts of the time while others generate: a long prompt then takes
//! about 1.7 times as long as alone.

use super::cost::{CostModel, Load, PromptCost};

/// What the prompts of a step may take at most, on whatever machine.
const PROMPT_SECONDS_MAX: f64 = 1.0;

/// Tokens of prompts in a step as long as nothing is known of what they take.
const FIRST_TOKENS: usize = 32;

/// Tokens that always fit, or a prompt would never end on a machine where one token is too many. More than one would
/// break the bound behind a long context, where a token takes far longer than at the start.
const LEAST_TOKENS: usize = 1;

/// A part that has room for fewer tokens is spread over several steps instead, where the backend can do that.
const LEAST_PART: usize = 8;

/// Tokens of such a part at most: by then, reading the context is little beside computing with it.
const MOST_PART: usize = 128;

/// Tokens and time that are left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Of the budget; decodes are counted in it.
    pub(super) tokens: usize,
    /// How many of those may be tokens of prompts.
    prompt_tokens: usize,
    /// Seconds that the prompts may take; infinite without a bound on time.
    seconds: f64,
    cost: PromptCost,
    /// Whether requests generate beside the prompts, in a time that is bounded.
    beside: bool,
    /// Whether nothing may be computed of prompts after all.
    closed: bool,
    /// Tokens of prompts so far.
    taken: usize,
}

impl Room {
    /// All of the budget, and no bound on time.
    pub(super) fn new(tokens: usize) -> Self {
        Self {
            tokens,
            prompt_tokens: usize::MAX,
            seconds: f64::INFINITY,
            cost: PromptCost::default(),
            beside: false,
            closed: false,
            taken: 0,
        }
    }

    /// Bounds the prompts' time beside the decodes of `decodes`. `before` is how many tokens of prompts the latest
    /// step with prompts had: the next has at most twice as many, so that a cost which was learned from small
    /// chunks is not believed for a chunk of quite another size.
    pub(super) fn bound_time(
        &mut self,
        model: &CostModel,
        decodes: Load,
        slowdown: f64,
        before: usize,
    ) {
        let alone = decodes.decode_rows == 0;
        if !alone && model.wants_decodes_alone() {
            self.prompt_tokens = 0;
            return;
        }
        let Some(cost) = model.prompt_cost() else {
            if !alone {
                self.prompt_tokens = FIRST_TOKENS;
            }
            return;
        };
        self.cost = cost;
        self.seconds = Self::seconds_for_prompts(model, decodes, slowdown);
        if !alone {
            self.beside = true;
            self.prompt_tokens = before.saturating_mul(2).max(FIRST_TOKENS);
        }
    }

    /// Seconds that prompts may take beside the decodes of `decodes`.
    pub(super) fn seconds_for_prompts(model: &CostModel, decodes: Load, slowdown: f64) -> f64 {
        if decodes.decode_rows == 0 {
            return PROMPT_SECONDS_MAX;
        }
        let beside = model.decode_seconds(decodes) * (slowdown - 1.0);
        beside.min(PROMPT_SECONDS_MAX)
    }

    /// No tokens of prompts fit any more.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// How many of the `lag` tokens after the first `start` of a prompt make a part whose `layers` are better spread
    /// over several steps: as many as leave room for two layers in a step. None where enough of them fit into this one.
    pub(super) fn part(&self, start: usize, lag: usize, layers: u32) -> Option<usize> {
        if !self.beside || self.taken > 0 || layers < 2 {
            return None;
        }
        let whole = self.cost.tokens_within(self.seconds, start);
        if whole >= LEAST_PART.min(lag) {
            return None;
        }
        let seconds = self.seconds * f64::from(layers) / 2.0;
        let tokens = self.cost.tokens_within(seconds, start).min(MOST_PART);
        let tokens = tokens.min(lag).min(self.tokens).min(self.prompt_tokens);
        (tokens > whole).then_some(tokens)
    }

    /// Half of it, for the first in order when shorter prompts want the other half.
    pub(super) fn half(&self) -> Self {
        Self {
            tokens: self.tokens.div_ceil(2),
            prompt_tokens: self.prompt_tokens.saturating_sub(self.taken).div_ceil(2),
            seconds: self.seconds / 2.0,
            taken: 0,
            ..*self
        }
    }

    /// How many of the `lag` tokens after the first `start` of a prompt fit.
    pub(super) fn fit(&self, start: usize, lag: usize) -> usize {
        if self.closed {
            return 0;
        }
        let within = if self.seconds.is_finite() {
            let within = self.cost.tokens_within(self.seconds, start);
            if self.taken == 0 {
                within.max(LEAST_TOKENS)
            } else {
                within
            }
        } else {
            usize::MAX
        };
        let prompts = self.prompt_tokens.saturating_sub(self.taken);
        lag.min(self.tokens).min(prompts).min(within)
    }

    /// Takes `count` tokens of a prompt, after its first `start`.
    pub(super) fn take(&mut self, start: usize, count: usize) {
        self.tokens -= count.min(self.tokens);
        self.taken += count;
        self.seconds -= self.cost.seconds(start, count);
    }
}
