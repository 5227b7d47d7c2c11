//! Many steps at once, as long as every one of them is the same but for its contexts.
//!
//! While all running requests lack one token each and nobody can be admitted, a step does the same to each: one more
//! token. What a step changes besides is rare and known beforehand. A request takes a block when its context passes
//! the end of one, and gives a full block to the cache one step earlier; it ends when its length says so. So the
//! requests are sorted by their place in a block, and a step looks only at those whose turn it is:
//!
//! ```text
//! context mod block size    0  1  2  3  4 …              step k:  those at -k     take a block
//!                           │  │     │                            those at -k - 1 give one to the cache
//!                           a  b,c   d
//! ```
//!
//! The outcome is that of as many rounds of [`Scheduler::schedule`] and [`Scheduler::complete`] with the same times
//! and tokens: blocks, events and their order, what is learned of times, statistics. The run stops before any step
//! that does something else, and that one is made in the ordinary way.

use std::ops::Range;
use std::time::Duration;

use pointsman_proto::block_hash::BlockDigest;
use pointsman_proto::kv_events::Event;

use super::cost::Load;
use super::{Pause, Scheduler, SequenceNumber};
use crate::backend::sim::StepShape;

/// No further member.
const NONE: u32 = u32::MAX;

/// What a run of decodes needs from outside, and whom it tells.
pub trait DecodeDriver {
    /// When the step of this shape that starts at `start` ends; none if it is not to be made.
    fn step_end(&mut self, start: Duration, shape: &StepShape) -> Option<Duration>;

    /// Appends the tokens that the request generates at `places` (0 is its first) to `tokens`.
    fn generate(&mut self, number: SequenceNumber, places: Range<u32>, tokens: &mut Vec<u32>);

    /// The changes of the prefix cache by the step that ended at `end`.
    fn events(&mut self, end: Duration, events: Vec<Event<BlockDigest>>);

    /// So many tokens came this long after the ones before them.
    fn gaps(&mut self, _gap: Duration, _count: u32) {}
}

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeRun {
    /// Steps made.
    pub steps: u32,
    /// When the last of them ended; the beginning, if there was none.
    pub ended_at: Duration,
}

/// The requests of a run. Kept between runs for its memory; bounded by `max_num_seqs` and the block size.
#[derive(Debug, Default)]
pub(super) struct Lockstep {
    members: Vec<Member>,
    /// By the number of computed tokens modulo the block size: the first member in order.
    heads: Vec<u32>,
    /// Tokens of all of them together, before the first step.
    context: u64,
    /// Steps until one of them ends, which is not part of the run.
    limit: u32,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    number: SequenceNumber,
    /// Its tokens before the first step.
    tokens: usize,
    /// The next one at the same place in its block.
    next: u32,
}

impl Lockstep {
    fn clear(&mut self, block_size: u32) {
        self.members.clear();
        self.heads.clear();
        self.heads.resize(block_size as usize, NONE);
        self.context = 0;
        self.limit = u32::MAX;
    }

    /// Chains the members by their place in a block, in order.
    fn chain(&mut self) {
        let size = self.heads.len();
        for (index, member) in self.members.iter_mut().enumerate().rev() {
            if let Some(head) = self.heads.get_mut((member.tokens - 1) % size) {
                member.next = std::mem::replace(head, index as u32);
            }
        }
    }

    /// The members that, in step `step`, compute a token at the first place of a block; one step earlier it was the last
    /// place.
    fn at_first_place(&self, step: u32) -> impl Iterator<Item = Member> {
        let size = self.heads.len();
        let place = (size - step as usize % size) % size;
        let mut next = self.heads.get(place).copied().unwrap_or(NONE);
        std::iter::from_fn(move || {
            let member = self.members.get(next as usize)?;
            next = member.next;
            Some(*member)
        })
    }

    fn load(&self, step: u32) -> Load {
        let rows = self.members.len() as u64;
        Load {
            decode_rows: rows,
            decode_context: self.context + rows * u64::from(step),
            ..Load::default()
        }
    }
}

impl Scheduler {
    /// Makes steps from `now` on, one right after the other, as long as they are decodes alone and `driver` wants
    /// them. Makes none where this is not worth it or not known to be exact: a request may stop by a token or wants
    /// more than tokens, or there is a second tier.
    pub fn decode_run(&mut self, now: Duration, driver: &mut impl DecodeDriver) -> DecodeRun {
        let mut run = DecodeRun {
            steps: 0,
            ended_at: now,
        };
        let mut lockstep = std::mem::take(&mut self.lockstep);
        if self.gather(&mut lockstep) {
            self.run(&lockstep, &mut run, driver);
            self.scatter(&lockstep, run, driver);
        }
        self.lockstep = lockstep;
        run
    }

    /// Whether every running request only grows; they are in `lockstep` then.
    fn gather(&self, lockstep: &mut Lockstep) -> bool {
        let held = self.paused == Some(Pause::Everything) || self.config.host_blocks > 0;
        if held || self.running.is_empty() {
            return false;
        }
        lockstep.clear(self.config.block_size);
        // The newest come last, and they are those in the middle of their prompts.
        for key in self.running.iter().rev() {
            let Some(sequence) = self.sequences.get(&key.number) else {
                return false;
            };
            if sequence.lag() != 1 || !sequence.only_grows() {
                return false;
            }
            lockstep.context += sequence.tokens.len() as u64;
            let limit = sequence.left().saturating_sub(1) as u32;
            lockstep.limit = lockstep.limit.min(limit);
            lockstep.members.push(Member {
                number: key.number,
                tokens: sequence.tokens.len(),
                next: NONE,
            });
        }
        lockstep.members.reverse();
        lockstep.chain();
        lockstep.limit > 0
    }

    fn run(&mut self, lockstep: &Lockstep, run: &mut DecodeRun, driver: &mut impl DecodeDriver) {
        let mut changed = true;
        while run.steps < lockstep.limit {
            let start = run.ended_at;
            let expired = self.deadlines.first().is_some_and(|(at, _)| *at <= start);
            let wanted = lockstep.at_first_place(run.steps).count();
            if expired || wanted > self.pool.free() as usize || changed && self.could_admit() {
                return;
            }
            let load = lockstep.load(run.steps);
            let Some(end) = driver.step_end(start, &shape(load)) else {
                return;
            };
            changed = self.step(lockstep, run.steps, driver);
            let took = end.saturating_sub(start);
            self.cost.observe(load, took.as_secs_f64());
            if changed {
                let events = self.pool.take_events();
                if !events.is_empty() {
                    driver.events(end, events);
                }
            }
            if run.steps > 0 {
                driver.gaps(took, load.decode_rows as u32);
            } else {
                self.first_gaps(lockstep, end, driver);
            }
            run.steps += 1;
            run.ended_at = end;
        }
    }

    /// What one step does to the pool; whether it does anything.
    fn step(&mut self, lockstep: &Lockstep, step: u32, driver: &mut impl DecodeDriver) -> bool {
        let block_size = self.config.block_size as usize;
        let mut changed = false;
        for member in lockstep.at_first_place(step) {
            let Some(sequence) = self.sequences.get_mut(&member.number) else {
                continue;
            };
            let needed = (member.tokens + step as usize).div_ceil(block_size);
            let blocks = needed.saturating_sub(sequence.table.len());
            // There are as many: see the caller.
            changed |= self.pool.allocate(blocks as u32, &mut sequence.table);
        }
        let Some(recipe) = &self.config.prefix_cache else {
            return changed;
        };
        for member in lockstep.at_first_place(step + 1) {
            let Some(sequence) = self.sequences.get_mut(&member.number) else {
                continue;
            };
            let computed = member.tokens + step as usize;
            sequence.grow(computed, driver);
            sequence.advance(computed - sequence.computed, Some(recipe), &mut self.pool);
            changed = true;
        }
        changed
    }

    /// How long each request had waited for the first token of the run, which came at `end`.
    fn first_gaps(&mut self, lockstep: &Lockstep, end: Duration, driver: &mut impl DecodeDriver) {
        for member in &lockstep.members {
            if let Some(sequence) = self.sequences.get_mut(&member.number) {
                driver.gaps(sequence.note_token_at(end), 1);
            }
        }
    }

    /// Brings every request to the end of the run.
    fn scatter(&mut self, lockstep: &Lockstep, run: DecodeRun, driver: &mut impl DecodeDriver) {
        if run.steps == 0 {
            return;
        }
        for member in &lockstep.members {
            let Some(sequence) = self.sequences.get_mut(&member.number) else {
                continue;
            };
            let tokens = member.tokens + run.steps as usize;
            sequence.grow(tokens, driver);
            sequence.computed = tokens - 1;
            sequence.note_token_at(run.ended_at);
        }
        self.totals.generated_tokens += u64::from(run.steps) * lockstep.members.len() as u64;
    }

    /// How many steps from here on, a step under way included, are decodes of which the outside sees nothing: no request
    /// ends or gets its first token, no block enters or leaves the cache, nobody is admitted. And the shape of the
    /// first. It may say too few. Without `is_cache_watched` the outside does not look at the cache.
    pub fn quiet_steps(&self, is_cache_watched: bool) -> (u32, StepShape) {
        let nothing = (0, StepShape::default());
        if !self.waiting.is_empty() || self.config.host_blocks > 0 {
            return nothing;
        }
        let told = is_cache_watched && self.config.kv_events && self.config.prefix_cache.is_some();
        let size = self.config.block_size as usize;
        let (mut steps, mut context) = (usize::MAX, 0);
        for key in self.running.iter().rev() {
            let Some(sequence) = self.sequences.get(&key.number) else {
                continue;
            };
            let tokens = sequence.tokens.len();
            if sequence.lag() != 1 || !sequence.only_grows() {
                return nothing;
            }
            steps = steps.min(sequence.left().saturating_sub(1));
            if told {
                // The step at the first place of a block may have evicted another to get it.
                let last_place = (size - tokens % size) % size;
                let evicts = (tokens - 1).is_multiple_of(size);
                steps = steps.min(if evicts { 0 } else { last_place });
            }
            context += tokens as u64;
        }
        let load = Load {
            decode_rows: self.running.len() as u64,
            decode_context: context,
            ..Load::default()
        };
        (u32::try_from(steps).unwrap_or(0), shape(load))
    }

    /// Whether the first that waits would fit in now. What the run itself does only takes blocks away from it, until a
    /// block enters the cache.
    pub(super) fn could_admit(&mut self) -> bool {
        if self.paused.is_some() || self.running.len() >= self.config.max_num_seqs as usize {
            return false;
        }
        let mut hits = std::mem::take(&mut self.hits);
        hits.clear();
        let fits = self.first_waiting().is_some_and(|sequence| {
            let block_size = self.config.block_size as usize;
            self.pool
                .lookup(sequence.reusable_digests(block_size), &mut hits);
            let blocks = sequence.tokens.len().div_ceil(block_size);
            self.pool.left_after(&hits, blocks).is_some()
        });
        self.hits = hits;
        fits
    }
}

impl super::sequence::Sequence {
    /// Generates tokens until there are `tokens`.
    fn grow(&mut self, tokens: usize, driver: &mut impl DecodeDriver) {
        let places = self.generated() as u32..(tokens - self.prompt_len) as u32;
        driver.generate(self.key.number, places, &mut self.tokens);
    }
}

/// Each request computes one token, which looks at all before it.
fn shape(load: Load) -> StepShape {
    StepShape {
        sequences: load.decode_rows,
        tokens: load.decode_rows,
        sampled: load.decode_rows,
        context: load.decode_context,
        pairs: load.decode_context,
        copied: 0,
    }
}
