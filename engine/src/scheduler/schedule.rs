//! The scheduler itself: forms a step, and takes its outcome in.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use pointsman_proto::block_hash::BlockDigest;
use pointsman_proto::kv_events::Event;
use rustc_hash::FxHashMap;
use tracing::debug;

use super::ahead::NextStep;
use super::cost::{CostModel, Load};
use super::rate::PrefillRate;
use super::room::Room;
use super::sequence::{Filled, Key, Sequence};
use super::skip::Lockstep;
use super::slices::Slices;
use super::{
    ConfigError, Finish, Intake, Pause, Prepared, QueueLimits, RequestReport, SchedulerConfig,
    Stats, TokenUpdate,
};
use crate::backend::{BlockCopy, BlockPlace, Step};
use crate::kv::{BlockPool, Hit, Transfer};

/// A request's number in this engine: its place in the order of arrival, never used twice.
pub type SequenceNumber = u64;

/// Waiting and running requests over one block pool.
#[derive(Debug)]
pub struct Scheduler {
    pub(super) config: SchedulerConfig,
    pub(super) pool: BlockPool,
    pub(super) sequences: FxHashMap<SequenceNumber, Sequence>,
    /// Those that hold blocks, in order.
    pub(super) running: Vec<Key>,
    /// Those that hold none, in order. Bounded by [`QueueLimits`], which whoever adds requests applies.
    pub(super) waiting: BTreeSet<Key>,
    /// Tokens of those that wait.
    pub(super) queued_tokens: u64,
    /// When each request that has a deadline ends at the latest.
    pub(super) deadlines: BTreeSet<(Duration, SequenceNumber)>,
    /// The step under way, in the order of its sequences.
    pub(super) planned: Vec<Planned>,
    /// What is noted of the step under way.
    pub(super) step: StepNotes,
    /// The step after it, when it is formed already.
    pub(super) next: NextStep,
    pub(super) slices: Slices,
    pub(super) paused: Option<Pause>,
    next_number: SequenceNumber,
    pub(super) totals: Stats,
    pub(super) hits: Vec<Hit>,
    /// Kept for its memory.
    pub(super) lockstep: Lockstep,
    pub(super) cost: CostModel,
    pub(super) rate: PrefillRate,
    /// Tokens of prompts in the latest step that had any.
    pub(super) prompt_tokens_before: usize,
}

/// One request's part of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    pub(super) number: SequenceNumber,
    /// How often the request had been preempted by then: the part is of no use to it once it was preempted again.
    pub(super) preemptions: u32,
    pub(super) tokens: usize,
    pub(super) filled: Filled,
}

/// What is noted of a step when it is formed.
#[derive(Clone, Debug, Default)]
pub(super) struct StepNotes {
    /// When it was formed, or when the step before it was done, whichever was later.
    pub(super) started_at: Duration,
    pub(super) load: Load,
    /// The layers that it computes, when not all.
    pub(super) slice: Option<Range<u32>>,
    /// Whether log probabilities of prompts come of it.
    pub(super) prompt_logprobs: bool,
    /// Requests that lost their blocks for it.
    pub(super) preempted: u32,
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
            queued_tokens: 0,
            deadlines: BTreeSet::new(),
            planned: Vec::with_capacity(config.max_num_seqs as usize),
            step: StepNotes::default(),
            next: NextStep::new(config.max_num_seqs),
            slices: Slices::default(),
            paused: None,
            next_number: 0,
            totals: Stats::default(),
            hits: Vec::new(),
            lockstep: Lockstep::default(),
            cost: CostModel::default(),
            rate: PrefillRate::default(),
            prompt_tokens_before: 0,
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
            policy: self.config.policy,
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
        let key = sequence.key;
        let deadline = sequence.deadline_at;
        self.deadlines
            .extend(deadline.map(|deadline| (deadline, number)));
        self.sequences.insert(number, sequence);
        self.enqueue(key);
        number
    }

    /// A request whose deadline has passed, each but once. It is for the caller to end it by [`Scheduler::abort`].
    pub fn expired(&mut self, now: Duration) -> Option<SequenceNumber> {
        let &(deadline, number) = self.deadlines.first()?;
        if deadline > now {
            return None;
        }
        self.deadlines.pop_first();
        Some(number)
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
            waiting_deferred: match self.paused {
                Some(_) => self.waiting.len() as u32,
                None => 0,
            },
            queued_tokens: self.queued_tokens,
            prefill_tokens_per_second: self.rate.tokens_per_second(),
            ..self.totals
        }
    }

    /// Changes of the prefix cache since the last call, in order. They are true once the step is computed that
    /// [`Scheduler::schedule`] formed last; a step formed ahead changes nothing that is not true at once.
    pub fn take_events(&mut self) -> Vec<Event<BlockDigest>> {
        self.pool.take_events()
    }

    /// Empties the prefix cache; false, and nothing changes, while a request holds blocks.
    pub fn reset_prefix_cache(&mut self) -> bool {
        self.pool.reset()
    }

    /// Forms the next step in `step`; false when there is nothing to compute. No other step may be under way.
    ///
    /// While any request is alive there is always something, unless the scheduler is paused: the first in order fits
    /// into an empty pool.
    pub fn schedule(&mut self, now: Duration, step: &mut Step) -> bool {
        step.clear();
        if !self.plan(now) {
            return false;
        }
        self.fill(step);
        self.pool
            .take_transfers(|transfer| step.copies.push(block_copy(transfer)));
        true
    }

    /// Decides what the next step computes; false when there is nothing. Blocks are taken, and requests admitted and
    /// preempted.
    pub(super) fn plan(&mut self, now: Duration) -> bool {
        self.planned.clear();
        self.next.clear();
        self.step = StepNotes {
            started_at: now,
            ..StepNotes::default()
        };
        if self.paused == Some(Pause::Everything) {
            return false;
        }
        if self.plan_slice() {
            return true;
        }
        let mut room = Room::new(self.config.max_num_batched_tokens as usize);
        let decodes = self.plan_decodes(&mut room.tokens);
        if let Some(slowdown) = self.config.max_decode_slowdown {
            room.bound_time(&self.cost, decodes, slowdown, self.prompt_tokens_before);
        }
        if self.slices.just_now() && decodes.decode_rows > 0 {
            room.close();
        }
        self.plan_prompts(now, room);
        // Where all that generate have lost their blocks, the part under way need not wait for them.
        !self.planned.is_empty() || self.plan_slice()
    }

    /// Writes what is planned into `step`.
    fn fill(&mut self, step: &mut Step) {
        let block_size = self.config.block_size as usize;
        let load = &mut self.step.load;
        for planned in &mut self.planned {
            let Some(sequence) = self.sequences.get(&planned.number) else {
                continue;
            };
            sequence.count_in(load, planned.tokens);
            planned.preemptions = sequence.preemptions;
            let eos = &self.config.eos_token_ids;
            planned.filled = sequence.fill(planned.tokens, block_size, eos, step);
        }
        if let Some(slice) = &self.step.slice {
            step.layers = Some(slice.clone());
            if slice.end < self.config.layers {
                step.ask_nothing();
            }
        }
        self.step.prompt_logprobs = !step.prompt_rows.is_empty();
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
    /// order loses its own. Returns what they come to.
    fn plan_decodes(&mut self, budget: &mut usize) -> Load {
        let block_size = self.config.block_size as usize;
        let mut load = Load::default();
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
            let context = sequence.tokens.len();
            let blocks = context.div_ceil(block_size) - sequence.table.len();
            // The victim is never a request planned already: it is the last in order, and planning goes by order.
            let mut lost = false;
            while !lost && blocks > 0 && !self.allocate(number, blocks) {
                self.step.preempted += 1;
                lost = self.preempt_last() == Some(number);
            }
            if !lost {
                self.planned.push(Planned::new(number, 1));
                load.add_decode(context);
                *budget -= 1;
            }
        }
        load
    }

    /// Admits the first waiting request, if places, room and blocks allow; nobody overtakes it.
    pub(super) fn admit_first_waiting(&mut self, now: Duration, room: &mut Room) -> bool {
        if room.fit(0, 1) == 0 || self.running.len() >= self.config.max_num_seqs as usize {
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
            if self.config.prefix_cache.is_some() && sequence.reads_cache() {
                self.totals.prefix_queries += sequence.prompt_len as u64;
                self.totals.prefix_hits += u64::from(cached);
            }
        }
        self.plan_prompt(key.number, room);
        self.dequeue(key);
        let place = self.running.partition_point(|other| other < &key);
        self.running.insert(place, key);
        true
    }

    fn allocate(&mut self, number: SequenceNumber, blocks: usize) -> bool {
        let sequence = self.sequences.get_mut(&number);
        sequence.is_some_and(|sequence| self.pool.allocate(blocks as u32, &mut sequence.table))
    }

    /// Sends the last running request back to waiting, where it keeps its place in the order.
    pub(super) fn preempt_last(&mut self) -> Option<SequenceNumber> {
        let key = self.running.pop()?;
        self.enqueue(key);
        self.totals.preemptions += 1;
        let sequence = self.sequences.get_mut(&key.number)?;
        sequence.preempt(&mut self.pool);
        self.slices.forget(key.number);
        debug!(request = %sequence.id, tokens = sequence.tokens.len(), "request preempted");
        Some(key.number)
    }

    /// Lets a request wait, with all of its tokens to compute.
    fn enqueue(&mut self, key: Key) {
        self.waiting.insert(key);
        self.queued_tokens += self.token_count(key);
    }

    /// Takes a request out of those that wait, if it is one.
    fn dequeue(&mut self, key: Key) -> bool {
        let waited = self.waiting.remove(&key);
        if waited {
            self.queued_tokens -= self.token_count(key);
        }
        waited
    }

    fn token_count(&self, key: Key) -> u64 {
        let sequence = self.sequences.get(&key.number);
        sequence.map_or(0, |sequence| sequence.tokens.len() as u64)
    }

    /// The first in order of those that wait.
    pub(super) fn first_waiting(&self) -> Option<&Sequence> {
        let key = self.waiting.first()?;
        self.sequences.get(&key.number)
    }

    /// Takes a request out of everything and frees its blocks.
    pub(super) fn remove(&mut self, number: SequenceNumber) -> Option<Sequence> {
        let key = self.sequences.get(&number)?.key;
        if !self.dequeue(key) {
            self.running.retain(|other| other != &key);
        }
        let mut sequence = self.sequences.remove(&number)?;
        self.slices.forget(number);
        self.pool.release(&mut sequence.table);
        if let Some(deadline) = sequence.deadline_at {
            self.deadlines.remove(&(deadline, number));
        }
        Some(sequence)
    }

    #[cfg(test)]
    pub(super) fn pool(&self) -> &BlockPool {
        &self.pool
    }
}

impl Planned {
    pub(super) fn new(number: SequenceNumber, tokens: usize) -> Self {
        Self {
            number,
            preemptions: 0,
            tokens,
            filled: Filled::default(),
        }
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
