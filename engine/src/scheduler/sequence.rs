//! One request on its way through the engine.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use pointsman_proto::block_hash::BlockDigest;

use super::{Finish, Prepared, RequestReport};
use crate::backend::{SampleSpec, Step, StepSequence};
use crate::kv::{BlockId, BlockPool, HashRecipe, Hit, Run};
use crate::sample::SamplingParams;

/// Order among requests: lower priority value first, then arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) priority: i32,
    pub(super) number: u64,
}

/// A request's tokens, how many of them are computed, and the blocks that hold those.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: Arc<str>,
    pub(super) key: Key,
    /// Prompt, then output. The KV of the latest token is computed one step after it was sampled.
    pub(super) tokens: Vec<u32>,
    pub(super) prompt_len: usize,
    /// Tokens whose KV is in `table`.
    pub(super) computed: usize,
    pub(super) table: Vec<BlockId>,
    /// Of the full blocks hashed so far; at least as many as are committed.
    pub(super) digests: Vec<BlockDigest>,
    /// Leading blocks of `table` that the pool knows as cached.
    committed: usize,
    sampling: SamplingParams,
    max_tokens: u32,
    seed: u64,
    cache_salt: Option<Arc<str>>,
    /// Prompt tokens found in the cache at the first admission; none before it.
    pub(super) cached_tokens: Option<u32>,
    /// Those of them that were in host memory.
    pub(super) cached_tokens_host: u32,
    /// Reused blocks are announced like computed ones.
    report_reused_blocks: bool,
    preemptions: u32,
    arrived_at: Duration,
    scheduled_at: Option<Duration>,
    first_token_at: Option<Duration>,
    last_token_at: Option<Duration>,
}

impl Sequence {
    pub(super) fn new(request: Prepared, number: u64, seed: u64, now: Duration) -> Self {
        Self {
            id: request.id,
            key: Key {
                priority: request.priority,
                number,
            },
            prompt_len: request.tokens.len(),
            tokens: request.tokens,
            computed: 0,
            table: request.table,
            digests: request.digests,
            committed: 0,
            seed: request.sampling.seed.unwrap_or(seed),
            sampling: request.sampling,
            max_tokens: request.max_tokens,
            cache_salt: request.cache_salt,
            cached_tokens: None,
            cached_tokens_host: 0,
            report_reused_blocks: request.report_reused_blocks,
            preemptions: 0,
            arrived_at: now,
            scheduled_at: None,
            first_token_at: None,
            last_token_at: None,
        }
    }

    /// Tokens that are known and not computed.
    pub(super) fn lag(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Digests that an admission may look up. The last token is always computed anew, because its logits are what
    /// the step is for.
    pub(super) fn reusable_digests(&self, block_size: usize) -> &[BlockDigest] {
        let blocks_max = (self.tokens.len() - 1) / block_size;
        &self.digests[..self.digests.len().min(blocks_max)]
    }

    /// Starts, or starts again after a preemption, with `table` beginning with the cached blocks `hits`. Those that
    /// are only being loaded are cached on the device once they are committed with the first ones computed.
    pub(super) fn admit(
        &mut self,
        hits: &[Hit],
        block_size: usize,
        now: Duration,
        pool: &mut BlockPool,
    ) {
        let on_device = |hit: &&Hit| matches!(hit, Hit::Device(_));
        self.committed = hits.iter().take_while(on_device).count();
        self.computed = hits.len() * block_size;
        self.scheduled_at.get_or_insert(now);
        if self.report_reused_blocks {
            let run = Run {
                digests: &self.digests[..hits.len()],
                tokens: &self.tokens,
                first: 0,
                cache_salt: self.cache_salt.as_ref(),
            };
            pool.announce_again(&run, hits);
        }
    }

    /// Loses its blocks; its tokens stay.
    pub(super) fn preempt(&mut self, pool: &mut BlockPool) {
        pool.release(&mut self.table);
        self.computed = 0;
        self.committed = 0;
        self.preemptions += 1;
    }

    /// Appends the next `count` tokens to compute to `step`; the index of its sample, if they are the last known ones.
    pub(super) fn fill(
        &self,
        count: usize,
        block_size: usize,
        eos: &[u32],
        step: &mut Step,
    ) -> Option<u32> {
        let first = step.tokens.len();
        let positions = self.computed..self.computed + count;
        step.tokens
            .extend_from_slice(&self.tokens[positions.clone()]);
        step.positions
            .extend(positions.clone().map(|position| position as u32));
        step.slots.extend(positions.clone().map(|position| {
            let block = self.table[position / block_size].0;
            block * block_size as u32 + (position % block_size) as u32
        }));
        let tables = step.block_tables.len();
        let blocks = positions.end.div_ceil(block_size);
        step.block_tables
            .extend(self.table[..blocks].iter().map(|block| block.0));
        let sample = (positions.end == self.tokens.len()).then(|| self.push_sample(eos, step));
        step.sequences.push(StepSequence {
            tokens: range(first, step.tokens.len()),
            context_len: positions.end as u32,
            block_table: range(tables, step.block_tables.len()),
            sample,
            embed: false,
        });
        sample
    }

    /// Notes that `count` more tokens are computed, and gives the pool the blocks that became full.
    pub(super) fn advance(
        &mut self,
        count: usize,
        recipe: Option<&HashRecipe>,
        pool: &mut BlockPool,
    ) {
        self.computed += count;
        let Some(recipe) = recipe else { return };
        let size = pool.block_size();
        let full = self.computed / size as usize;
        if full <= self.committed {
            return;
        }
        let salt = self.cache_salt.as_deref();
        let tokens = &self.tokens[..full * size as usize];
        recipe.extend(&mut self.digests, tokens, size, salt);
        let run = Run {
            digests: &self.digests[..full],
            tokens,
            first: self.committed,
            cache_salt: self.cache_salt.as_ref(),
        };
        pool.commit(&run, &mut self.table);
        self.committed = full;
    }

    /// Takes a sampled token and says what it means.
    pub(super) fn append(&mut self, token: u32, now: Duration, eos: &[u32]) -> Appended {
        self.tokens.push(token);
        let before = self.last_token_at.replace(now);
        self.first_token_at.get_or_insert(now);
        Appended {
            finish: self.finish_after(token, eos),
            first_token_wait: before
                .is_none()
                .then(|| now.saturating_sub(self.arrived_at)),
            inter_token_gap: before.map(|before| now.saturating_sub(before)),
        }
    }

    pub(super) fn report(&self, finish: Finish, now: Duration) -> RequestReport {
        RequestReport {
            number: self.key.number,
            prompt_tokens: self.prompt_len as u32,
            cached_tokens: self.cached_tokens.unwrap_or(0),
            generated_tokens: self.generated() as u32,
            max_tokens: self.max_tokens,
            preemptions: self.preemptions,
            finish,
            arrived_at: self.arrived_at,
            scheduled_at: self.scheduled_at,
            first_token_at: self.first_token_at,
            last_token_at: self.last_token_at,
            finished_at: now,
        }
    }

    fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    fn below_min_tokens(&self) -> bool {
        self.generated() < self.sampling.min_tokens as usize
    }

    /// vLLM's order: end of sequence, the request's own stop tokens, length. Stop tokens do not count before
    /// `min_tokens`; sampling avoids them until then, and this holds even for a backend that does not.
    fn finish_after(&self, token: u32, eos: &[u32]) -> Option<Finish> {
        if !self.below_min_tokens() {
            if !self.sampling.ignore_eos && eos.contains(&token) {
                return Some(Finish::Stop { token: None });
            }
            if self.sampling.stop_token_ids.contains(&token) {
                return Some(Finish::Stop { token: Some(token) });
            }
        }
        (self.generated() >= self.max_tokens as usize).then_some(Finish::Length)
    }

    fn push_sample(&self, eos: &[u32], step: &mut Step) -> u32 {
        let sampling = &self.sampling;
        let (history, banned) = (step.history.len(), step.banned.len());
        let penalised = sampling.has_penalties();
        if penalised {
            step.history.extend_from_slice(&self.tokens);
        }
        // `min_tokens` counts the token that is about to be sampled, so it may be a stop token only as the
        // (min_tokens + 1)th.
        if self.below_min_tokens() {
            if !sampling.ignore_eos {
                step.banned.extend_from_slice(eos);
            }
            step.banned.extend_from_slice(&sampling.stop_token_ids);
        }
        let output = if penalised {
            history + self.prompt_len
        } else {
            history
        };
        step.samples.push(SampleSpec {
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            seed: self.seed,
            position: self.generated() as u32,
            logprobs: sampling.logprobs,
            prompt: range(history, output),
            output: range(output, step.history.len()),
            banned: range(banned, step.banned.len()),
            ..SampleSpec::greedy()
        });
        step.samples.len() as u32 - 1
    }
}

/// What a sampled token means for its request.
pub(super) struct Appended {
    pub(super) finish: Option<Finish>,
    /// Since arrival, when it is the first one.
    pub(super) first_token_wait: Option<Duration>,
    /// Since the token before, when there is one.
    pub(super) inter_token_gap: Option<Duration>,
}

fn range(start: usize, end: usize) -> Range<u32> {
    start as u32..end as u32
}
