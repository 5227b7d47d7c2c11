//! The scheduler with a made-up backend: budgets hold, every request ends, no block leaks, and batching changes no token.

mod ahead;
mod behaviour;
mod limits;
mod load;
mod skip;
mod tasks;
mod time;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use pointsman_proto::block_hash::BlockDigest;
use pointsman_proto::kv_events::Event;

use super::*;
use crate::backend::testing::{Behind, HashBackend, LAYERS, next_token, random};
use crate::backend::{Backend, KvLayout, Step, StepOutput};
use crate::kv::{BlockId, HashRecipe};
use crate::sample::{SamplingParams, TokenLogprob};

const VOCAB: u32 = 97;

fn config() -> SchedulerConfig {
    SchedulerConfig {
        block_size: 4,
        blocks: 65,
        max_num_seqs: 4,
        max_num_batched_tokens: 16,
        max_num_queued: 100,
        max_model_len: 64,
        vocab_size: VOCAB,
        prefix_cache: Some(HashRecipe::sha256_cbor("vllm-none-hash")),
        kv_events: true,
        eos_token_ids: vec![0],
        seed: 1,
        ..SchedulerConfig::default()
    }
}

fn request(prompt: Vec<u32>, sampling: SamplingParams) -> NewRequest {
    NewRequest::new("test", prompt, sampling)
}

/// A request that runs for exactly `max_tokens` tokens.
fn steady(prompt: std::ops::Range<u32>, max_tokens: u32) -> NewRequest {
    let sampling = SamplingParams {
        ignore_eos: true,
        ..SamplingParams::greedy(max_tokens)
    };
    request(prompt.collect(), sampling)
}

/// Scheduler and backend together; one call of `turn` is one step.
struct Rig {
    config: SchedulerConfig,
    scheduler: Scheduler,
    backend: Behind<HashBackend>,
    /// Whether steps are formed ahead where the scheduler will have it.
    goes_ahead: bool,
    step: Step,
    /// What each step under way takes.
    took: VecDeque<Duration>,
    output: StepOutput,
    outcome: Outcome,
    turns: u32,
    tokens: BTreeMap<SequenceNumber, Vec<u32>>,
    finished: BTreeMap<SequenceNumber, Finish>,
    cached: BTreeMap<SequenceNumber, u32>,
    prompt_logprobs: BTreeMap<SequenceNumber, Vec<TokenLogprob>>,
    embeddings: BTreeMap<SequenceNumber, Vec<f32>>,
    events: Vec<Event<BlockDigest>>,
}

impl Rig {
    fn new(config: SchedulerConfig) -> Self {
        let mut backend = Behind::new(HashBackend::new(config.vocab_size));
        let layout = KvLayout {
            host_blocks: config.host_blocks,
            block_size: config.block_size,
            blocks: config.blocks,
        };
        backend.allocate(&layout).unwrap();
        Self {
            scheduler: Scheduler::new(config.clone()).unwrap(),
            config,
            backend,
            goes_ahead: false,
            step: Step::default(),
            took: VecDeque::new(),
            output: StepOutput::default(),
            outcome: Outcome::default(),
            turns: 0,
            tokens: BTreeMap::new(),
            finished: BTreeMap::new(),
            cached: BTreeMap::new(),
            prompt_logprobs: BTreeMap::new(),
            embeddings: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    fn now(&self) -> Duration {
        Duration::from_secs(self.turns.into())
    }

    fn add(&mut self, request: NewRequest) -> SequenceNumber {
        let prepared = self.scheduler.intake().prepare(request).unwrap();
        self.scheduler.add(prepared, self.now())
    }

    /// Ends a request from outside, as the engine thread does it.
    fn abort(&mut self, number: SequenceNumber, finish: Finish) {
        let now = self.now();
        if let Some((update, _)) = self.scheduler.abort(number, finish, now) {
            self.take(number, update);
        }
    }

    /// One that forms steps ahead.
    fn ahead(config: SchedulerConfig) -> Self {
        let mut rig = Self::new(config);
        rig.goes_ahead = true;
        rig
    }

    /// One step, with everything that must hold for any step.
    fn turn(&mut self) -> bool {
        let now = self.now();
        self.turns += 1;
        while let Some(number) = self.scheduler.expired(now) {
            self.abort(number, Finish::Deadline);
        }
        self.recount();
        let under_way = self.backend.under_way() > 0;
        if !under_way && !self.scheduler.schedule(now, &mut self.step) {
            return false;
        }
        if !under_way {
            self.begin();
        }
        if self.goes_ahead && self.scheduler.schedule_ahead(now, &mut self.step) {
            self.begin();
        }
        self.finish(now);
        true
    }

    /// Begins the step that is formed.
    fn begin(&mut self) {
        self.check_step();
        self.recount();
        self.backend.begin(&self.step).unwrap();
        let took = if self.config.max_decode_slowdown.is_some() {
            // Contexts cost much, so that parts of prompts are often spread over several steps.
            let context = self.step.sequences.iter().map(|part| part.context_len);
            let all = 100 + 3 * self.step.tokens.len() as u64 + 7 * u64::from(context.sum::<u32>());
            let layers = self.step.layers.clone();
            let layers = layers.map_or(LAYERS, |layers| layers.end - layers.start);
            all * u64::from(layers) / u64::from(LAYERS)
        } else {
            500
        };
        self.took.push_back(Duration::from_millis(took));
    }

    /// Finishes the step that was begun first, after `now`.
    fn finish(&mut self, now: Duration) {
        self.backend.finish(&mut self.output).unwrap();
        let later = now + self.took.pop_front().unwrap();
        self.scheduler
            .complete(&mut self.output, later, &mut self.outcome);
        self.recount();
        let mut seen = BTreeSet::new();
        for (number, update) in std::mem::take(&mut self.outcome.updates) {
            assert!(
                seen.insert(number),
                "two updates for one request in one step"
            );
            self.take(number, update);
        }
        self.events.extend(self.scheduler.take_events());
    }

    fn take(&mut self, number: SequenceNumber, update: TokenUpdate) {
        assert!(
            !self.finished.contains_key(&number),
            "an update after the end"
        );
        let tokens = self.tokens.entry(number).or_default();
        if !update.prompt_logprobs.is_empty() {
            assert!(tokens.is_empty(), "prompt log probabilities come first");
            self.prompt_logprobs.insert(number, update.prompt_logprobs);
        }
        tokens.extend(update.token);
        let cached = *self.cached.entry(number).or_insert(update.cached_tokens);
        assert_eq!(
            cached, update.cached_tokens,
            "cached tokens are fixed at admission"
        );
        if let Some(embedding) = update.embedding {
            assert!(update.finish.is_some());
            self.embeddings.insert(number, embedding);
        }
        if let Some(finish) = update.finish {
            self.finished.insert(number, finish);
        }
    }

    fn check_step(&self) {
        let (step, config) = (&self.step, &self.config);
        assert!(step.tokens.len() <= config.max_num_batched_tokens as usize);
        assert!(step.sequences.len() <= config.max_num_seqs as usize);
        let mut end = 0;
        for sequence in &step.sequences {
            assert_eq!(sequence.tokens.start, end);
            assert!(sequence.tokens.end > end, "a sequence without tokens");
            end = sequence.tokens.end;
        }
        assert_eq!(end as usize, step.tokens.len());
    }

    /// Gauges and books against a count of everything.
    fn recount(&self) {
        let scheduler = &self.scheduler;
        let stats = scheduler.stats();
        assert!(stats.running <= self.config.max_num_seqs);
        assert_eq!(stats.running as usize, scheduler.running.len());
        assert_eq!(stats.waiting as usize, scheduler.waiting.len());
        assert_eq!(
            scheduler.running.len() + scheduler.waiting.len(),
            scheduler.sequences.len()
        );
        assert!(scheduler.running.is_sorted());
        let mut held: BTreeSet<BlockId> = BTreeSet::new();
        let mut queued = 0;
        let mut deadlines = 0;
        for sequence in scheduler.sequences.values() {
            let waits = scheduler.waiting.contains(&sequence.key);
            assert!(waits != scheduler.running.contains(&sequence.key));
            if waits {
                assert!(sequence.table.is_empty() && sequence.computed == 0);
                queued += sequence.tokens.len() as u64;
            }
            held.extend(sequence.table.iter().copied());
            deadlines += usize::from(sequence.deadline_at.is_some());
        }
        assert_eq!(
            stats.blocks_used as usize,
            held.len(),
            "blocks held by none"
        );
        assert_eq!(stats.queued_tokens, queued);
        for slot in self.backend.slots_to_write() {
            let block = BlockId(slot / self.config.block_size);
            assert!(!scheduler.pool.is_cached(block), "it may be found already");
        }
        assert!(
            scheduler.deadlines.len() <= deadlines,
            "a deadline of no request"
        );
    }

    fn run(&mut self) {
        while self.turn() {
            assert!(self.turns < 20_000, "some request never ends");
        }
        assert!(self.scheduler.is_empty());
        assert_eq!(self.scheduler.pool().used(), 0, "blocks leaked");
    }
}

/// What a request generates, worked out without scheduler, blocks or backend.
fn alone(request: &NewRequest, config: &SchedulerConfig) -> (Vec<u32>, Finish) {
    if request.task == Task::Embed {
        return (Vec::new(), Finish::Stop { token: None });
    }
    let sampling = &request.sampling;
    let mut tokens = request.prompt.clone();
    let pool = (config.blocks - 1) * config.block_size + 1;
    let room = config.max_model_len.min(pool) as usize;
    let mut output = Vec::new();
    loop {
        let stops = |token: u32| {
            !sampling.ignore_eos && config.eos_token_ids.contains(&token)
                || sampling.stop_token_ids.contains(&token)
        };
        let early = output.len() < sampling.min_tokens as usize;
        let bad = |token: u32| {
            let mut words = sampling.bad_words.iter();
            words.any(|word| {
                let (last, others) = word.split_last().unwrap();
                token == *last && output.ends_with(others)
            })
        };
        let seed = sampling.seed.unwrap_or(0);
        let random = random(sampling.temperature, seed, output.len() as u32);
        let start = next_token(tokens.iter().copied(), config.vocab_size) + random;
        let mut candidates = (0..config.vocab_size).map(|i| (start + i) % config.vocab_size);
        let token = candidates
            .find(|token| !(bad(*token) || early && stops(*token)))
            .unwrap();
        tokens.push(token);
        output.push(token);
        if !early && stops(token) && output.len() >= sampling.min_tokens as usize {
            let eos = !sampling.ignore_eos && config.eos_token_ids.contains(&token);
            return (
                output,
                Finish::Stop {
                    token: (!eos).then_some(token),
                },
            );
        }
        if output.len() >= sampling.max_tokens as usize || tokens.len() >= room {
            return (output, Finish::Length);
        }
    }
}

/// The log probabilities that the made-up backend has for the rows of a prompt.
fn prompt_rows_of(prompt: &[u32]) -> Vec<f32> {
    let rows = 1..prompt.len();
    rows.map(|end| next_token(prompt[..end].iter().copied(), VOCAB) as f32)
        .collect()
}
