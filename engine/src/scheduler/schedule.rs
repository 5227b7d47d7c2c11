//! The scheduler itself: forms a step, and takes its outcome in.

use std::collections::BTreeSet;
use std::time::Duration;

use pointsman_proto::block_hash::BlockDigest;
use pointsman_proto::kv_events::Event;
use rustc_hash::FxHashMap;
use tracing::debug;

use super::sequence::{Key, Sequence};
use super::{
    ConfigError, Finish, Intake, Prepared, QueueLimits, RequestReport, SchedulerConfig, Stats,
    StepReport, TokenUpdate,
};
use crate::backend::{BlockCopy, BlockPlace, Step, StepOutput};
use crate::kv::{BlockPool, Hit, Transfer};

/// A request's number in this engine: its place in the order of arrival, never used twice.
pub type SequenceNumber = u64;

/// Waiting and running requests over one block pool.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    pool: BlockPool,
    sequences: FxHashMap<SequenceNumber, Sequence>,
    /// Those that hold blocks, in order.
    running: Vec<Key>,
    /// Those that hold none, in order. Bounded by [`QueueLimits`], which whoever adds requests applies.
    waiting: BTreeSet<Key>,
    /// The step under way, in the order of its sequences.
    planned: Vec<Planned>,
    next_number: SequenceNumber,
    totals: Stats,
    hits: Vec<Hit>,
}

/// One request's part of the step under way.
#[derive(Clone, Copy, Debug)]
struct Planned {
    number: SequenceNumber,
    tokens: usize,
    /// Index of its sample in the step, when it asks for one.
    sample: Option<u32>,
}

/// What a step brought. Reused: [`Scheduler::complete`] clears it first.
#[derive(Debug, Default)]
pub struct Outcome {
    /// One update for each request that got a token or ended.
    pub updates: Vec<(SequenceNumber, TokenUpdate)>,
    /// Reports of those that ended.
    pub finished: Vec<RequestReport>,
    /// The step as a whole; its `started_at` is for the caller to set.
    pub report: StepReport,
}

impl Scheduler {
    /// An empty scheduler.
    ///
    /// # Errors
    /// See [`SchedulerConfig::check`].
    pub fn new(config: SchedulerConfig) -> Result<Self, ConfigError> {
        config.check()?;
        Ok(Self {
            pool: BlockPool::new(config.blocks, config.block_size, config.kv_events)
                .with_host(config.host_blocks),
            sequences: FxHashMap::default(),
            running: Vec::with_capacity(config.max_num_seqs as usize),
            waiting: BTreeSet::new(),
            planned: Vec::with_capacity(config.max_num_seqs as usize),
            next_number: 0,
            totals: Stats::default(),
            hits: Vec::new(),
            config,
        })
    }

    /// Checks and readies requests for this scheduler.
    pub fn intake(&self) -> Intake {
        Intake {
            block_size: self.config.block_size,
            max_model_len: self.config.max_model_len,
            blocks_total: self.pool.total(),
            vocab_size: self.config.vocab_size,
            recipe: self.config.prefix_cache.clone(),
        }
    }

    /// The bound on live requests. [`Scheduler::add`] leaves it to its caller to apply it, because the refusal
    /// belongs where the client can still be told.
    pub fn queue_limits(&self) -> QueueLimits {
        self.config.queue_limits()
    }

    /// Puts a request in the waiting queue.
    pub fn add(&mut self, request: Prepared, now: Duration) -> SequenceNumber {
        let number = self.next_number;
        self.next_number += 1;
        let seed = derive_seed(self.config.seed, number);
        let sequence = Sequence::new(request, number, seed, now);
        self.waiting.insert(sequence.key);
        self.sequences.insert(number, sequence);
        number
    }

    /// Whether no request is alive.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Gauges and totals.
    pub fn stats(&self) -> Stats {
        Stats {
            running: self.running.len() as u32,
            waiting: self.waiting.len() as u32,
            blocks_used: self.pool.used(),
            blocks_total: self.pool.total(),
            ..self.totals
        }
    }

    /// Changes of the prefix cache since the last call, in order. They are true once the step formed last is computed.
    pub fn take_events(&mut self) -> Vec<Event<BlockDigest>> {
        self.pool.take_events()
    }

    /// Empties the prefix cache; false, and nothing changes, while a request holds blocks.
    pub fn reset_prefix_cache(&mut self) -> bool {
        self.pool.reset()
    }

    /// Forms the next step in `step`; false when there is nothing to compute.
    ///
    /// While any request is alive there is always something: the first in order fits into an empty pool.
    pub fn schedule(&mut self, now: Duration, step: &mut Step) -> bool {
        step.clear();
        self.planned.clear();
        let mut budget = self.config.max_num_batched_tokens as usize;
        let preempted = self.plan_decodes(&mut budget);
        self.plan_prefills(&mut budget);
        if !preempted {
            while self.admit_first_waiting(now, &mut budget) {}
        }
        let block_size = self.config.block_size as usize;
        for planned in &mut self.planned {
            if let Some(sequence) = self.sequences.get(&planned.number) {
                let eos = &self.config.eos_token_ids;
                planned.sample = sequence.fill(planned.tokens, block_size, eos, step);
            }
        }
        if self.planned.is_empty() {
            return false;
        }
        self.pool
            .take_transfers(|transfer| step.copies.push(block_copy(transfer)));
        true
    }

    /// Takes in what the step that was formed last has brought.
    ///
    /// Blocks are published here and not when they are planned: a reader of the KV events may count on them.
    pub fn complete(&mut self, output: &mut StepOutput, now: Duration, outcome: &mut Outcome) {
        outcome.clear();
        self.pool.transferred();
        let planned = std::mem::take(&mut self.planned);
        for part in &planned {
            // A request that was aborted since is gone, and its sample with it.
            let Some(sequence) = self.sequences.get_mut(&part.number) else {
                continue;
            };
            outcome.report.batched_tokens += part.tokens as u32;
            outcome.report.batched_requests += 1;
            let prefix_cache = self.config.prefix_cache.as_ref();
            sequence.advance(part.tokens, prefix_cache, &mut self.pool);
            let Some(sample) = part.sample else { continue };
            let sampled = output.sampled.get_mut(sample as usize).map(std::mem::take);
            let sampled = sampled.unwrap_or_default();
            let update = match sampled.token {
                Some(token) => self.take_token(part.number, token, now, outcome),
                None => self.end_without_token(part.number, now, outcome),
            };
            outcome.updates.extend(update.map(|update| {
                let logprob = sampled.logprob;
                (part.number, TokenUpdate { logprob, ..update })
            }));
        }
        self.planned = planned;
        self.planned.clear();
        outcome.report.finished_at = now;
        outcome.report.stats = self.stats();
    }

    /// Ends a request from outside, frees its blocks, and reports on it. None when there is no such request.
    pub fn abort(
        &mut self,
        number: SequenceNumber,
        finish: Finish,
        now: Duration,
    ) -> Option<(TokenUpdate, RequestReport)> {
        let sequence = self.remove(number)?;
        let report = sequence.report(finish.clone(), now);
        let update = TokenUpdate {
            cached_tokens: report.cached_tokens,
            finish: Some(finish),
            ..TokenUpdate::default()
        };
        Some((update, report))
    }

    /// Plans the requests that lack exactly one token. Each may need a new block; when there is none, the last in
    /// order loses its own. Returns whether that happened.
    fn plan_decodes(&mut self, budget: &mut usize) -> bool {
        let block_size = self.config.block_size as usize;
        let mut preempted = false;
        let mut index = 0;
        while index < self.running.len() && *budget > 0 {
            let number = self.running[index].number;
            index += 1;
            let Some(sequence) = self.sequences.get(&number) else {
                continue;
            };
            if sequence.lag() != 1 {
                continue;
            }
            let blocks = sequence.tokens.len().div_ceil(block_size) - sequence.table.len();
            // The victim is never a request planned already: it is the last in order, and planning goes by order.
            let mut lost = false;
            while !lost && blocks > 0 && !self.allocate(number, blocks) {
                preempted = true;
                lost = self.preempt_last() == Some(number);
            }
            if !lost {
                self.planned.push(Planned::new(number, 1));
                *budget -= 1;
            }
        }
        preempted
    }

    /// Plans a chunk for each running request in the middle of its prompt. Their blocks were taken at admission.
    fn plan_prefills(&mut self, budget: &mut usize) {
        for key in &self.running {
            let lag = self.sequences.get(&key.number).map_or(0, Sequence::lag);
            let count = lag.min(*budget);
            if lag > 1 && count > 0 {
                self.planned.push(Planned::new(key.number, count));
                *budget -= count;
            }
        }
    }

    /// Admits the first waiting request, if places, budget and blocks allow; nobody overtakes it.
    fn admit_first_waiting(&mut self, now: Duration, budget: &mut usize) -> bool {
        if *budget == 0 || self.running.len() >= self.config.max_num_seqs as usize {
            return false;
        }
        let Some(&key) = self.waiting.first() else {
            return false;
        };
        let Some(sequence) = self.sequences.get_mut(&key.number) else {
            return false;
        };
        let block_size = self.config.block_size as usize;
        self.hits.clear();
        self.pool
            .lookup(sequence.reusable_digests(block_size), &mut self.hits);
        let blocks = sequence.tokens.len().div_ceil(block_size);
        if !self.pool.admit(&self.hits, blocks, &mut sequence.table) {
            return false;
        }
        sequence.admit(&self.hits, block_size, now, &mut self.pool);
        if sequence.cached_tokens.is_none() {
            let cached = (self.hits.len() * block_size) as u32;
            sequence.cached_tokens = Some(cached);
            let loads = self.hits.iter().filter(|hit| matches!(hit, Hit::Host(_)));
            sequence.cached_tokens_host = (loads.count() * block_size) as u32;
            if self.config.prefix_cache.is_some() {
                self.totals.prefix_queries += sequence.prompt_len as u64;
                self.totals.prefix_hits += u64::from(cached);
            }
        }
        let count = sequence.lag().min(*budget);
        *budget -= count;
        self.planned.push(Planned::new(key.number, count));
        self.waiting.remove(&key);
        let place = self.running.partition_point(|other| other < &key);
        self.running.insert(place, key);
        true
    }

    fn allocate(&mut self, number: SequenceNumber, blocks: usize) -> bool {
        let sequence = self.sequences.get_mut(&number);
        sequence.is_some_and(|sequence| self.pool.allocate(blocks as u32, &mut sequence.table))
    }

    /// Sends the last running request back to waiting, where it keeps its place in the order.
    fn preempt_last(&mut self) -> Option<SequenceNumber> {
        let key = self.running.pop()?;
        self.waiting.insert(key);
        self.totals.preemptions += 1;
        let sequence = self.sequences.get_mut(&key.number)?;
        sequence.preempt(&mut self.pool);
        debug!(request = %sequence.id, tokens = sequence.tokens.len(), "request preempted");
        Some(key.number)
    }

    fn take_token(
        &mut self,
        number: SequenceNumber,
        token: u32,
        now: Duration,
        outcome: &mut Outcome,
    ) -> Option<TokenUpdate> {
        let sequence = self.sequences.get_mut(&number)?;
        let appended = sequence.append(token, now, &self.config.eos_token_ids);
        let cached_tokens = sequence.cached_tokens.unwrap_or(0);
        self.totals.generated_tokens += 1;
        if appended.first_token_wait.is_some() {
            self.totals.prompt_tokens += sequence.prompt_len as u64;
            self.totals.prompt_tokens_cached += u64::from(cached_tokens);
            self.totals.prompt_tokens_cached_host += u64::from(sequence.cached_tokens_host);
        }
        outcome
            .report
            .first_token_waits
            .extend(appended.first_token_wait);
        outcome
            .report
            .inter_token_gaps
            .extend(appended.inter_token_gap);
        if let Some(finish) = appended.finish.clone() {
            let sequence = self.remove(number)?;
            outcome.finished.push(sequence.report(finish, now));
        }
        Some(TokenUpdate {
            token: Some(token),
            cached_tokens,
            finish: appended.finish,
            ..TokenUpdate::default()
        })
    }

    fn end_without_token(
        &mut self,
        number: SequenceNumber,
        now: Duration,
        outcome: &mut Outcome,
    ) -> Option<TokenUpdate> {
        let finish = Finish::Error("the model produced no finite logit".to_owned());
        let (update, report) = self.abort(number, finish, now)?;
        outcome.finished.push(report);
        Some(update)
    }

    /// Takes a request out of everything and frees its blocks.
    fn remove(&mut self, number: SequenceNumber) -> Option<Sequence> {
        let mut sequence = self.sequences.remove(&number)?;
        self.pool.release(&mut sequence.table);
        if !self.waiting.remove(&sequence.key) {
            self.running.retain(|key| key != &sequence.key);
        }
        Some(sequence)
    }

    #[cfg(test)]
    pub(super) fn pool(&self) -> &BlockPool {
        &self.pool
    }
}

impl Planned {
    fn new(number: SequenceNumber, tokens: usize) -> Self {
        Self {
            number,
            tokens,
            sample: None,
        }
    }
}

impl Outcome {
    fn clear(&mut self) {
        self.updates.clear();
        self.finished.clear();
        self.report.batched_tokens = 0;
        self.report.batched_requests = 0;
        self.report.first_token_waits.clear();
        self.report.inter_token_gaps.clear();
    }
}

fn block_copy(transfer: Transfer) -> BlockCopy {
    let (from, to) = match transfer {
        Transfer::Save { from, to } => (BlockPlace::Device(from.0), BlockPlace::Host(to.0)),
        Transfer::Load { from, to } => (BlockPlace::Host(from.0), BlockPlace::Device(to.0)),
    };
    BlockCopy { from, to }
}

/// The seed of a request that brings none: SplitMix64's finaliser over the engine's seed and the request's number.
fn derive_seed(root: u64, number: SequenceNumber) -> u64 {
    let mut mixed = root.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
