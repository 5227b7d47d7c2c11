//! When a prompt's first token would come, for a policy that knows everything about its workers.
//!
//! An estimate, not a simulation: to be exact one would have to run a copy of the worker ahead. It knows the true
//! cache and the true remaining work of everybody before the prompt, and takes the load to stay as it is:
//!
//! ```text
//! first token = what is left of the step under way
//!             + max( until enough requests have ended to leave a place and blocks,  work of all prompts before it )
//!             + its own work, what is cached excepted
//! ```
//!
//! Work is done in steps that are as full as the budget and `max_decode_slowdown` allow. Two prompts of which the
//! later is much the shorter share their steps, as the scheduler has it. What a waiting prompt finds in the cache is
//! looked up now, not at its turn.

use std::time::Duration;

use pointsman_engine::backend::sim::StepShape;
use pointsman_engine::scheduler::Alive;
use pointsman_proto::block_hash::BlockDigest;

use super::SimWorker;

/// See [`SimWorker::weigh`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weight {
    pub ahead_s: f64,
    pub own_s: f64,
    pub kv: f64,
}

/// Prompt tokens to compute, and the pairs of such a token and one that it looks at.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    tokens: f64,
    pairs: f64,
}

impl Work {
    /// The tokens from `start` to `end` of a prompt.
    fn between(start: usize, end: usize) -> Self {
        let (start, end) = (start as f64, end as f64);
        let tokens = (end - start).max(0.0);
        Self {
            tokens,
            pairs: tokens * (start + end + 1.0) / 2.0,
        }
    }

    fn add(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.pairs += other.pairs;
    }

    /// As much of it as `tokens` are, with as many pairs each.
    fn part(self, tokens: f64) -> Self {
        let share = if self.tokens > 0.0 {
            (tokens / self.tokens).min(1.0)
        } else {
            0.0
        };
        Self {
            tokens: self.tokens * share,
            pairs: self.pairs * share,
        }
    }
}

/// What is before a prompt that would come now.
#[derive(Debug, Default)]
struct Ahead {
    decodes: StepShape,
    work: Work,
    /// Tokens that the first prompt in order lacks.
    first_lacks: f64,
    waiting: usize,
    running: usize,
    /// Blocks that those who wait will take.
    blocks: usize,
    /// Of those that run: tokens until their end, and blocks that they give back then.
    ends: Vec<(usize, usize)>,
}

impl SimWorker {
    /// How long after `now` the first token of a prompt of `tokens` tokens with these digests would come, were it added
    /// now. See the module for what it leaves out.
    pub fn estimate_first_token(
        &self,
        tokens: usize,
        digests: &[BlockDigest],
        now: Duration,
    ) -> Duration {
        self.estimate_with(tokens, self.cached_tokens(digests), now)
    }

    /// The same for a prompt of which `cached` tokens will be there, wherever they come from.
    pub fn estimate_with(&self, tokens: usize, cached: usize, now: Duration) -> Duration {
        let ahead = self.ahead();
        let cached = cached.min(tokens.saturating_sub(1));
        let own = Work::between(cached, tokens);
        let mut before = ahead.work;
        if ahead.waiting == 0 && own.tokens * 2.0 <= ahead.first_lacks {
            before = before.part(own.tokens);
        }
        let under_way = self.under_way.unwrap_or(now).saturating_sub(now);
        let freed = self.until_free(&ahead, tokens);
        let before = self.prompt_time(&ahead.decodes, before);
        under_way + freed.max(before) + self.prompt_time(&ahead.decodes, own)
    }

    /// All the work there is and this prompt's own, in seconds, and the share of the KV blocks in use with it: what a pick has to
    /// weigh who looks further than its own request.
    pub fn weigh(&self, tokens: usize, cached: usize, now: Duration) -> Weight {
        let ahead = self.ahead();
        let cached = cached.min(tokens.saturating_sub(1));
        let under_way = self.under_way.unwrap_or(now).saturating_sub(now);
        let freed = self.until_free(&ahead, tokens);
        let before = self.prompt_time(&ahead.decodes, ahead.work);
        let own = self.prompt_time(&ahead.decodes, Work::between(cached, tokens));
        let stats = self.stats();
        let wanted = ahead.blocks + tokens.div_ceil(self.block_size());
        Weight {
            ahead_s: (under_way + freed.max(before)).as_secs_f64(),
            own_s: own.as_secs_f64(),
            kv: (f64::from(stats.blocks_used) + wanted as f64)
                / f64::from(stats.blocks_total.max(1)),
        }
    }

    fn ahead(&self) -> Ahead {
        let mut ahead = Ahead::default();
        for alive in self.scheduler.alive() {
            let lacks = alive.tokens - alive.computed;
            if alive.waits {
                ahead.add_waiting(&alive, self.scheduler.cached_tokens(alive.digests));
                ahead.blocks += alive.tokens.div_ceil(self.block_size());
                continue;
            }
            ahead.running += 1;
            ahead.ends.push((alive.left, alive.blocks));
            if lacks == 1 {
                ahead.decodes.add(1, alive.tokens as u32, true);
            } else {
                ahead.add_prompt(Work::between(alive.computed, alive.tokens));
            }
        }
        for arriving in &self.arriving {
            let tokens = arriving.prepared.prompt_tokens() as usize;
            ahead.waiting += 1;
            ahead.blocks += tokens.div_ceil(self.block_size());
            ahead.add_prompt(Work::between(0, tokens));
        }
        // The step under way does some of it.
        let done = self.scheduler.prompt_tokens_under_way() as f64;
        ahead.work = ahead.work.part(ahead.work.tokens - done);
        ahead
    }

    /// How long it takes until enough of those that run have ended for one more prompt of `tokens` tokens, and for
    /// those that wait before it.
    fn until_free(&self, ahead: &Ahead, tokens: usize) -> Duration {
        let config = self.scheduler.config();
        let places =
            (ahead.running + ahead.waiting + 1).saturating_sub(config.max_num_seqs as usize);
        let blocks = (ahead.blocks + tokens.div_ceil(self.block_size()))
            .saturating_sub(self.scheduler.blocks_free() as usize);
        if places == 0 && blocks == 0 {
            return Duration::ZERO;
        }
        let mut ends = ahead.ends.clone();
        ends.sort_unstable();
        let (mut given, mut steps) = (0, 0);
        for (index, (left, held)) in ends.iter().enumerate() {
            steps = *left;
            given += held;
            if given >= blocks && index + 1 >= places {
                break;
            }
        }
        let step = self.options.step_time(&ahead.decodes);
        step.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX))
    }

    /// How long `work` takes beside the decodes.
    fn prompt_time(&self, decodes: &StepShape, work: Work) -> Duration {
        if work.tokens < 1.0 {
            return Duration::ZERO;
        }
        let chunk = self.chunk(decodes, work).min(work.tokens);
        let full = (work.tokens / chunk).floor();
        let step = self.mixed_step(decodes, work.part(chunk));
        let rest = work.tokens - full * chunk;
        let last = match rest {
            rest if rest < 1.0 => Duration::ZERO,
            rest => self.mixed_step(decodes, work.part(rest)),
        };
        step.mul_f64(full) + last
    }

    /// The most tokens of `work` that a step takes beside the decodes.
    fn chunk(&self, decodes: &StepShape, work: Work) -> f64 {
        let config = self.scheduler.config();
        let budget = f64::from(config.max_num_batched_tokens) - decodes.tokens as f64;
        let (mut low, mut high) = (1.0, budget.max(1.0));
        let Some(slowdown) = config.max_decode_slowdown.filter(|_| decodes.tokens > 0) else {
            return high;
        };
        let longest = self.options.step_time(decodes).mul_f64(slowdown);
        let fits = |tokens| self.mixed_step(decodes, work.part(tokens)) <= longest;
        if fits(high) {
            return high;
        }
        while high - low > 1.0 {
            let middle = f64::midpoint(low, high);
            if fits(middle) {
                low = middle;
            } else {
                high = middle;
            }
        }
        low
    }

    fn mixed_step(&self, decodes: &StepShape, chunk: Work) -> Duration {
        let tokens = chunk.tokens.ceil() as u64;
        self.options.step_time(&StepShape {
            sequences: decodes.sequences + 1,
            tokens: decodes.tokens + tokens,
            sampled: decodes.sampled,
            // The context of a chunk is about what its tokens look at, and its reading is hidden by computing.
            context: decodes.context + (chunk.pairs / chunk.tokens.max(1.0)) as u64,
            pairs: decodes.pairs + chunk.pairs as u64,
            copied: 0,
        })
    }

    fn block_size(&self) -> usize {
        self.scheduler.config().block_size.max(1) as usize
    }
}

impl Ahead {
    fn add_prompt(&mut self, work: Work) {
        if self.first_lacks == 0.0 {
            self.first_lacks = work.tokens;
        }
        self.work.add(work);
    }

    fn add_waiting(&mut self, alive: &Alive<'_>, cached: usize) {
        let cached = cached.min(alive.tokens.saturating_sub(1));
        self.waiting += 1;
        self.add_prompt(Work::between(cached, alive.tokens));
    }
}
