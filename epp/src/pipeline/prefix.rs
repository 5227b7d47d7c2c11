//! Who holds the prompt: which index answers for which endpoint, and what becomes of its answer.
//!
//! Where the token ids are known, the KV events answer for every endpoint whose events are followed,
//! and the picks answer for the others and for what the events cannot know yet. Where they are not,
//! the picks answer for all. Every pick is recorded by its text either way, so that the next request
//! finds it whichever of the two it is.

use std::sync::Arc;

use pointsman_proto::block_hash::KeyScope;

use super::{Pool, Shared};
use crate::ext_proc::{End, Outcome};
use crate::fleet::{Endpoint, Live, Matches};
use crate::index::IndexScratch;
use crate::index::approximate::{Belief, Reported, TextKeys};
use crate::request::{InferenceRequest, text};

/// Tokens of a block, for counting hits as the field does.
const FIELD_BLOCK_TOKENS: u64 = 16;

/// Buffers of a lookup, and its answer.
#[derive(Default)]
pub(super) struct PrefixScratch {
    text: TextKeys,
    index: IndexScratch,
    pub(super) matches: Matches,
}

/// What was believed of the picked endpoint. It waits for the response to say whether it was so.
#[derive(Debug)]
pub(super) struct Expectation {
    belief: Belief,
    /// Whether KV events, not picks, say what the endpoint holds.
    pub(super) is_followed: bool,
    /// Tokens of the prompt that the endpoint was expected to have cached.
    pub(super) cached_tokens: u32,
    block_size: u32,
}

impl Expectation {
    /// Leading blocks of the prompt's text that earlier picks brought to the endpoint.
    pub(super) fn believed_blocks(&self) -> u32 {
        self.belief.blocks()
    }

    /// Which index the expected tokens come from.
    pub(super) fn source(&self) -> &'static str {
        if self.is_followed { "events" } else { "picks" }
    }
}

impl Pool {
    /// Fills the scratch with who holds how much of the prompt, and says how many tokens it has:
    /// counted, or estimated from its text; none where there is no prompt to speak of.
    pub(super) fn look_up(
        &self,
        shared: &Shared,
        (request, model): (&InferenceRequest, &str),
        tokens: Option<&[u32]>,
        now_ms: u64,
        scratch: &mut PrefixScratch,
    ) -> u32 {
        let from_us = shared.clock.now_us();
        let scope = KeyScope {
            model,
            adapter: None,
            cache_salt: request.cache_salt.as_deref(),
        };
        let PrefixScratch {
            text: keys,
            index,
            matches,
        } = scratch;
        keys.clear();
        matches.clear();
        let Some(prompt) = &request.prompt else {
            return 0;
        };
        text::write_settings(prompt, &mut |piece| keys.push_setting(piece));
        keys.begin_text(&scope);
        text::write_text(prompt, &mut |piece| keys.push_text(piece));
        let prompt_tokens = if let Some(tokens) = tokens {
            self.index.matches(&scope, tokens, index, matches);
            let is_followed = |id, generation| self.index.is_followed(id, generation);
            let prompt_tokens = tokens.len() as u32;
            self.approximate
                .matches(keys, prompt_tokens, now_ms, is_followed, matches);
            prompt_tokens
        } else {
            let prompt_tokens = keys.estimated_tokens();
            self.approximate
                .matches(keys, prompt_tokens, now_ms, |_, _| false, matches);
            prompt_tokens
        };
        let seconds = shared.seconds_since(from_us);
        shared.metrics.process.lookup_seconds.record(seconds);
        let best_blocks = u64::from(matches.longest()) / FIELD_BLOCK_TOKENS;
        shared.metrics.index_lookup(best_blocks, seconds);
        prompt_tokens
    }

    /// Records that the prompt of the last lookup goes to this endpoint.
    pub(super) fn expect(
        &self,
        winner: &Arc<Endpoint>,
        live: &Live,
        is_by_tokens: bool,
        now_ms: u64,
        scratch: &PrefixScratch,
    ) -> Expectation {
        let is_followed = is_by_tokens && self.index.is_followed(winner.id, winner.generation);
        Expectation {
            belief: self.approximate.record(winner, live, &scratch.text, now_ms),
            is_followed,
            cached_tokens: scratch.matches.tokens(winner.id, winner.generation),
            block_size: live.block_size,
        }
    }

    /// Tells the picks what became of one of them. `is_served_here` is whether the gateway sent the
    /// request where it was told to.
    pub(super) fn settle(
        &self,
        shared: &Shared,
        expectation: &Expectation,
        outcome: &Outcome,
        is_served_here: bool,
    ) {
        let belief = &expectation.belief;
        let is_refused = outcome.status.is_some_and(|status| status >= 400);
        match &outcome.end {
            _ if is_refused || !is_served_here => self.approximate.failed(belief),
            End::Refused(_) => self.approximate.failed(belief),
            // The client went away before its answer began: the worker may have dropped it unread.
            End::Aborted if outcome.response_bytes == 0 => self.approximate.failed(belief),
            End::Aborted | End::Completed | End::Unseen | End::Expired => {
                self.approximate.started(belief, shared.clock.now_ms());
                self.learn(expectation, outcome);
            }
        }
    }

    /// The response to a request started.
    pub(super) fn begin_response(&self, shared: &Shared, expectation: &Expectation) {
        self.approximate
            .started(&expectation.belief, shared.clock.now_ms());
    }

    /// Of an endpoint whose events are followed the events say more than any count.
    fn learn(&self, expectation: &Expectation, outcome: &Outcome) {
        let Some(usage) = outcome.usage else { return };
        let Some(cached_tokens) = usage.cached_tokens else {
            return;
        };
        if expectation.is_followed {
            return;
        }
        let reported = Reported {
            prompt_tokens: usage.prompt_tokens,
            cached_tokens,
            block_size: expectation.block_size,
        };
        self.approximate.reported(&expectation.belief, &reported);
    }
}
