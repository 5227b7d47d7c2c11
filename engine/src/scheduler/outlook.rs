//! What lies ahead of the requests that are alive, for whoever wants to foresee when another one would have its turn.

use pointsman_proto::block_hash::BlockDigest;

use super::Scheduler;
use super::sequence::Sequence;

/// A request that is alive.
#[derive(Clone, Copy, Debug)]
pub struct Alive<'a> {
    /// Whether it holds no blocks yet, or none any more.
    pub waits: bool,
    /// Its prompt and what was generated.
    pub tokens: usize,
    /// How many of them are computed.
    pub computed: usize,
    /// KV blocks that it holds.
    pub blocks: usize,
    /// Tokens that it may still generate.
    pub left: usize,
    /// Of its full blocks, as far as they are hashed.
    pub digests: &'a [BlockDigest],
}

impl<'a> Alive<'a> {
    fn new(sequence: &'a Sequence, waits: bool) -> Self {
        Self {
            waits,
            tokens: sequence.tokens.len(),
            computed: sequence.computed,
            blocks: sequence.table.len(),
            left: sequence.left(),
            digests: &sequence.digests,
        }
    }
}

impl Scheduler {
    /// The requests that are alive: those that run, then those that wait, each in order.
    pub fn alive(&self) -> impl Iterator<Item = Alive<'_>> {
        let running = self.running.iter().map(|key| (key, false));
        let waiting = self.waiting.iter().map(|key| (key, true));
        running.chain(waiting).filter_map(|(key, waits)| {
            let sequence = self.sequences.get(&key.number)?;
            Some(Alive::new(sequence, waits))
        })
    }

    /// How many tokens of a prompt with these digests the prefix cache holds now. Leaves the cache as it is.
    pub fn cached_tokens(&self, digests: &[BlockDigest]) -> usize {
        self.pool.cached_prefix(digests) * self.config.block_size as usize
    }

    /// Blocks that an admission could take now.
    pub fn blocks_free(&self) -> u32 {
        self.pool.free()
    }

    /// Prompt tokens that the step under way computes; 0 between two steps.
    pub fn prompt_tokens_under_way(&self) -> u64 {
        if self.planned.is_empty() {
            return 0;
        }
        self.step.load.prompt_tokens
    }

    /// The limits in force.
    pub fn config(&self) -> &super::SchedulerConfig {
        &self.config
    }
}
