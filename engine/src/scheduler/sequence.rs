//! One request on its way through the engine.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use pointsman_proto::block_hash::BlockDigest;

use super::cost::Load;
use super::{Finish, Prepared, RequestReport, Task};
use crate::backend::{PromptRow, Step, StepSequence};
use crate::kv::{BlockId, BlockPool, HashRecipe, Hit, Run};
use crate::sample::{SamplingParams, TokenLogprob};

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
    pub(super) sampling: SamplingParams,
    task: Task,
    max_tokens: u32,
    pub(super) seed: u64,
    cache_salt: Option<Arc<str>>,
    /// Prompt tokens found in the cache at the first admission; none before it.
    pub(super) cached_tokens: Option<u32>,
    /// Of the prompt, as far as they are computed and until they are delivered.
    pub(super) prompt_logprobs: Vec<TokenLogprob>,
    /// Rows of the prompt whose log probabilities are known; a preemption does not lose them.
    rows_known: usize,
    /// When it ends, finished or not.
    pub(super) deadline_at: Option<Duration>,
    /// Those of them that were in host memory.
    pub(super) cached_tokens_host: u32,
    /// Reused blocks are announced like computed ones.
    report_reused_blocks: bool,
    pub(super) preemptions: u32,
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
            prompt_logprobs: match request.sampling.prompt_logprobs {
                Some(_) => Vec::with_capacity(request.tokens.len() - 1),
                None => Vec::new(),
            },
            rows_known: 0,
            deadline_at: request
                .deadline
                .map(|deadline| now.saturating_add(deadline)),
            task: request.task,
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
    /// the step is for. A row whose log probabilities are wanted is computed, too.
    pub(super) fn reusable_digests(&self, block_size: usize) -> &[BlockDigest] {
        let mut tokens = self.tokens.len() - 1;
        if self.wants_rows() && self.rows_known + 1 < self.prompt_len {
            tokens = tokens.min(self.rows_known);
        }
        let blocks_max = tokens / block_size;
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

    /// Whether anything of it may come from the prefix cache at its first admission.
    pub(super) fn reads_cache(&self) -> bool {
        !self.wants_rows()
    }

    fn wants_rows(&self) -> bool {
        self.sampling.prompt_logprobs.is_some() && self.task == Task::Generate
    }

    /// Those of `positions` whose log probabilities are wanted and not known: of every prompt token but the last,
    /// which has no successor in the prompt.
    fn rows(&self, positions: &Range<usize>) -> Range<usize> {
        if !self.wants_rows() {
            return 0..0;
        }
        let end = positions.end.min(self.prompt_len - 1);
        positions.start.max(self.rows_known).min(end)..end
    }

    /// Takes the log probabilities of the rows of the step that [`Sequence::advance`] has just counted.
    pub(super) fn take_prompt_logprobs(&mut self, rows: impl Iterator<Item = TokenLogprob>) {
        let before = self.prompt_logprobs.len();
        self.prompt_logprobs.extend(rows);
        self.rows_known += self.prompt_logprobs.len() - before;
    }

    /// Whether rows of the prompt are computed whose log probabilities did not come.
    pub(super) fn lacks_prompt_logprobs(&self) -> bool {
        !self.rows(&(0..self.computed)).is_empty()
    }

    /// Appends the next `count` tokens to compute to `step`, and what is asked of them.
    pub(super) fn fill(
        &self,
        count: usize,
        block_size: usize,
        eos: &[u32],
        step: &mut Step,
    ) -> Filled {
        let first = step.tokens.len();
        let positions = self.computed..self.computed + count;
        step.tokens
            .extend_from_slice(&self.tokens[positions.clone()]);
        let top = self.sampling.prompt_logprobs.unwrap_or(0);
        let rows = self.rows(&positions).map(|row| PromptRow {
            token: (first + row - positions.start) as u32,
            target: self.tokens[row + 1],
            top,
        });
        step.prompt_rows.extend(rows);
        let filled = self.asks(count, step.samples.len() as u32);
        if filled.sample.is_some() {
            self.push_sample(0, eos, step);
        }
        self.place(positions, filled, block_size, step);
        filled
    }

    /// Appends the token that the step under way samples to `step`, and asks for the one after it. It is sample `source`
    /// of that step.
    pub(super) fn fill_ahead(
        &self,
        source: u32,
        block_size: usize,
        eos: &[u32],
        step: &mut Step,
    ) -> Filled {
        step.tokens.push(0);
        step.sources.push(source);
        let filled = Filled {
            sample: Some(step.samples.len() as u32),
            ..Filled::default()
        };
        self.push_sample(1, eos, step);
        let position = self.tokens.len();
        self.place(position..position + 1, filled, block_size, step);
        filled
    }

    /// Appends where the tokens at `positions` are and go to, and what is asked of them.
    fn place(&self, positions: Range<usize>, filled: Filled, block_size: usize, step: &mut Step) {
        let first = step.positions.len();
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
        step.sequences.push(StepSequence {
            tokens: range(first, step.positions.len()),
            context_len: positions.end as u32,
            block_table: range(tables, step.block_tables.len()),
            sample: filled.sample,
            embed: filled.embed,
        });
    }

    /// Counts the next `count` tokens in `load`.
    pub(super) fn count_in(&self, load: &mut Load, count: usize) {
        if self.lag() == 1 {
            load.add_decode(self.tokens.len());
        } else {
            load.add_prompt(self.computed, count);
        }
    }

    /// What computing the next `count` tokens asks of a step that has `samples` samples so far.
    pub(super) fn asks(&self, count: usize, samples: u32) -> Filled {
        let positions = self.computed..self.computed + count;
        let last = positions.end == self.tokens.len();
        let embed = last && self.task == Task::Embed;
        Filled {
            sample: (last && !embed).then_some(samples),
            embed,
            rows: self.rows(&positions).len() as u32,
        }
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

    pub(super) fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Tokens that may still be generated.
    pub(super) fn left(&self) -> usize {
        (self.max_tokens as usize).saturating_sub(self.generated())
    }

    /// Whether nothing but its length can end it from here on, and nothing but tokens is wanted of it: its first token
    /// is known and the next ones change no more than their number.
    pub(super) fn only_grows(&self) -> bool {
        let sampling = &self.sampling;
        self.first_token_at.is_some()
            && self.task == Task::Generate
            && sampling.ignore_eos
            && sampling.stop_token_ids.is_empty()
            && sampling.logprobs.is_none()
            && sampling.prompt_logprobs.is_none()
    }

    /// Whether computing the next `count` tokens brings a token of it, and the step after that can be asked for the one
    /// behind it before this one is known: nothing but tokens is wanted, and none depends on which ones came before but by
    /// the model.
    pub(super) fn generates_ahead(&self, count: usize) -> bool {
        let sampling = &self.sampling;
        self.task == Task::Generate
            && count == self.lag()
            && sampling.logprobs.is_none()
            && sampling.logprob_token_ids.is_empty()
            && sampling.prompt_logprobs.is_none()
            && !sampling.has_penalties()
            && sampling.bad_words.iter().all(|word| word.len() < 2)
    }

    /// Blocks that it lacks to hold one more token than it has.
    pub(super) fn blocks_ahead(&self, block_size: usize) -> usize {
        let blocks = (self.tokens.len() + 1).div_ceil(block_size);
        blocks.saturating_sub(self.table.len())
    }

    /// Notes that its latest token came at `now`; how long it had waited for it.
    pub(super) fn note_token_at(&mut self, now: Duration) -> Duration {
        let before = self.last_token_at.replace(now);
        now.saturating_sub(before.unwrap_or(now))
    }

    /// Whether a stop token would come too early as the next one, after `ahead` more than are known.
    pub(super) fn below_min_tokens(&self, ahead: usize) -> bool {
        self.generated() + ahead < self.sampling.min_tokens as usize
    }

    /// vLLM's order: end of sequence, the request's own stop tokens, length. Stop tokens do not count before
    /// `min_tokens`; sampling avoids them until then, and this holds even for a backend that does not.
    fn finish_after(&self, token: u32, eos: &[u32]) -> Option<Finish> {
        if !self.below_min_tokens(0) {
            if !self.sampling.ignore_eos && eos.contains(&token) {
                return Some(Finish::Stop { token: None });
            }
            if self.sampling.stop_token_ids.contains(&token) {
                return Some(Finish::Stop { token: Some(token) });
            }
        }
        (self.generated() >= self.max_tokens as usize).then_some(Finish::Length)
    }
}

/// What a sequence asks of a step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Filled {
    /// Index of its sample.
    pub(super) sample: Option<u32>,
    /// Whether its embedding comes of it.
    pub(super) embed: bool,
    /// How many of its rows' log probabilities.
    pub(super) rows: u32,
}

/// What a sampled token means for its request.
pub(super) struct Appended {
    pub(super) finish: Option<Finish>,
    /// Since arrival, when it is the first one.
    pub(super) first_token_wait: Option<Duration>,
    /// Since the token before, when there is one.
    pub(super) inter_token_gap: Option<Duration>,
}

pub(super) fn range(start: usize, end: usize) -> Range<u32> {
    start as u32..end as u32
}
