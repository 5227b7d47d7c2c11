//! What a simulated worker is: a model on a GPU, limits, and how fast it goes.

use std::time::Duration;

use pointsman_engine::backend::sim::{StepShape, TimeModel};
use pointsman_engine::kv::{HashAlgorithm, HashRecipe};
use pointsman_engine::scheduler::SchedulerConfig;
use pointsman_proto::block_hash::BlockDigest;

use crate::workload::tokens::Vocabulary;

/// All workers of a simulation have the same, unlike those of a real fleet, so that a prompt is hashed once for all of
/// them.
const HASH_SEED: &str = "simulate";

/// See the module.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    pub time: TimeModel,
    pub scheduler: SchedulerConfig,
    /// What answers are made of.
    pub vocabulary: Vocabulary,
    /// A step takes this many times what the time model says.
    pub slowdown: f64,
    /// Long runs of decodes are made at once. Off, each step is made by itself: same outcome, more work.
    pub skip: bool,
}

impl WorkerOptions {
    /// As `engine --backend sim` runs by default, with KV events on.
    pub fn new(time: TimeModel, vocabulary: Vocabulary, block_size: u32) -> Self {
        let block_bytes = time.model().kv_bytes_per_token() * u64::from(block_size.max(1));
        let blocks = time.kv_memory() / block_bytes.max(1);
        let recipe = HashRecipe::new(HashAlgorithm::Siphash, HASH_SEED);
        Self {
            scheduler: SchedulerConfig {
                block_size,
                blocks: u32::try_from(blocks).unwrap_or(u32::MAX),
                max_model_len: time.model().context,
                vocab_size: vocabulary.first.saturating_add(vocabulary.count.max(1)),
                prefix_cache: Some(recipe),
                kv_events: true,
                max_decode_slowdown: Some(2.5),
                ..SchedulerConfig::default()
            },
            time,
            vocabulary,
            slowdown: 1.0,
            skip: true,
        }
    }

    /// How long a step takes.
    pub fn step_time(&self, shape: &StepShape) -> Duration {
        self.time.step_time(shape).mul_f64(self.slowdown)
    }

    /// Hashes the prompt's full blocks as the worker does; appended to `digests`, which may hold the first ones already.
    pub fn digests(&self, prompt: &[u32], digests: &mut Vec<BlockDigest>) {
        if let Some(recipe) = &self.scheduler.prefix_cache {
            recipe.extend(digests, prompt, self.scheduler.block_size, None);
        }
    }
}
