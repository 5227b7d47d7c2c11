//! What a step is launched as: which sequences go where, how contexts are cut, which graph fits, how much memory is for
//! what. Pure: numbers in, numbers out.
//!
//! Decodes and prompts share everything but attention. A step of decodes alone is a graph: its shapes are those of the
//! smallest bucket of sequences that holds it, and of the splits that its longest context needs; what is left of the
//! bucket are rows that write to block 0 and that nobody reads.

use super::kernels::{
    DECODE_ROWS, PREFILL_ROWS, SKINNY_ROWS, SPLITS_MAX, SequenceOfStep, TILE_KEYS,
};
use crate::backend::{BackendError, SampleSpec, Step, StepSequence};

/// Sequences that graphs are captured for. Beyond the last, and in steps with prompts, kernels are launched one by one.
pub const BUCKETS: [u32; 16] = [
    1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256,
];

/// What tells one graph from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GraphKey {
    /// Rows of the step, padding included.
    pub rows: u32,
    /// Splits that are launched of each context.
    pub splits: u32,
}

/// A step's sequences as attention wants them. Reused: after warm-up, filling it allocates nothing.
#[derive(Debug, Default)]
pub struct AttentionPlan {
    /// In the order of the step.
    pub sequences: Vec<SequenceOfStep>,
    /// Sequences with one new token.
    pub decodes: Vec<u32>,
    /// The others, in tiles: sequence and first row.
    pub tiles: Vec<[u32; 2]>,
}

impl AttentionPlan {
    /// Deals out the sequences of a step, for groups of `group` query heads.
    pub fn fill(&mut self, step: &Step, group: u32) {
        self.sequences.clear();
        self.decodes.clear();
        self.tiles.clear();
        for (index, sequence) in step.sequences.iter().enumerate() {
            let new_tokens = sequence.tokens.end - sequence.tokens.start;
            self.sequences.push(SequenceOfStep {
                first_token: sequence.tokens.start,
                new_tokens,
                context: sequence.context_len,
                first_block: sequence.block_table.start,
            });
            if new_tokens == 1 {
                self.decodes.push(index as u32);
            } else {
                let rows = (0..new_tokens * group).step_by(PREFILL_ROWS as usize);
                self.tiles.extend(rows.map(|row| [index as u32, row]));
            }
        }
        // The tiles with the most keys first: they would else be what the others wait for at the end.
        let sequences = &self.sequences;
        self.tiles.sort_by_key(|&[index, row]| {
            let sequence = &sequences[index as usize];
            std::cmp::Reverse(sequence.context - sequence.new_tokens + row / group)
        });
    }

    /// Splits of the decode that has the most of them, which need not be the longest.
    pub fn splits(&self, window: Option<u32>) -> u32 {
        let most = self.decodes.iter().map(|index| {
            let sequence = self.sequences.get(*index as usize);
            sequence.map_or(1, |sequence| splits_of(sequence.context, window))
        });
        most.max().unwrap_or(1)
    }

    /// The graph that this step runs in, if it is one of decodes that fits into one; `windows` are those of the layers.
    pub fn graph(&self, windows: impl IntoIterator<Item = Option<u32>>) -> Option<GraphKey> {
        if !self.tiles.is_empty() || self.decodes.is_empty() {
            return None;
        }
        let rows = bucket(self.decodes.len() as u32)?;
        let splits = windows.into_iter().map(|window| self.splits(window)).max();
        let splits = splits.unwrap_or(1).next_power_of_two();
        Some(GraphKey { rows, splits })
    }

    /// Fills a graph's rows with decodes of one token, whose context is in the block that the block tables name at
    /// `null_block`.
    pub fn pad(&mut self, rows: u32, null_block: u32) {
        for row in self.decodes.len() as u32..rows {
            self.decodes.push(self.sequences.len() as u32);
            self.sequences.push(SequenceOfStep {
                first_token: row,
                new_tokens: 1,
                context: 1,
                first_block: null_block,
            });
        }
    }
}

/// The smallest bucket that holds so many sequences.
pub fn bucket(sequences: u32) -> Option<u32> {
    BUCKETS.into_iter().find(|bucket| *bucket >= sequences)
}

/// The splits that `decode` cuts a context into; the same arithmetic is in `decode.cu`.
pub fn splits_of(context: u32, window: Option<u32>) -> u32 {
    let first = window.map_or(0, |window| context.saturating_sub(window));
    let tiles = context.div_ceil(TILE_KEYS) - first / TILE_KEYS;
    let each = tiles.div_ceil(SPLITS_MAX);
    tiles.div_ceil(each.max(1))
}

/// The splits that a context of any length may be cut into, so that they are enough for a graph.
pub fn splits_most(window: Option<u32>) -> u32 {
    let tiles = window.map(|window| window.div_ceil(TILE_KEYS).saturating_add(1));
    tiles.map_or(SPLITS_MAX, |tiles| tiles.min(SPLITS_MAX))
}

/// Blocks of `decode` that share the query heads of a key-value head.
pub fn head_parts(group: u32) -> u32 {
    group.div_ceil(DECODE_ROWS)
}

/// What multiplies so many rows with a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// Our own kernel, with room for this many rows.
    Skinny(u32),
    /// cuBLASLt.
    Library,
}

/// Few rows are limited by the weights' bytes, which our own kernel reads at the speed of memory.
pub fn product_for(rows: u32) -> Product {
    match rows {
        0..=8 => Product::Skinny(8),
        9..=SKINNY_ROWS => Product::Skinny(SKINNY_ROWS),
        _ => Product::Library,
    }
}

/// The largest step that may come: so many sequences that sample, of which the first has a prompt that fills the step up
/// to `tokens`. All of them lie in block 1, whose contents do not matter to how much memory a step takes.
pub fn largest_step(tokens: u32, sequences: u32, block_size: u32) -> Step {
    let sequences = sequences.clamp(1, tokens.max(1));
    let prompt = tokens.max(1) - (sequences - 1);
    let mut step = Step::default();
    for index in 0..sequences {
        let new = if index == 0 { prompt } else { 1 };
        let (first, table) = (step.tokens.len() as u32, step.block_tables.len() as u32);
        step.tokens.resize((first + new) as usize, 0);
        step.positions.resize((first + new) as usize, 0);
        step.slots.resize((first + new) as usize, block_size);
        let blocks = new.div_ceil(block_size);
        step.block_tables.resize((table + blocks) as usize, 1);
        step.sequences.push(StepSequence {
            tokens: first..first + new,
            context_len: new,
            block_table: table..table + blocks,
            sample: Some(index),
            embed: false,
        });
        step.samples.push(SampleSpec::greedy());
    }
    step
}

/// Memory of a device, in bytes, once weights and the buffers of the largest step are taken.
#[derive(Clone, Copy, Debug)]
pub struct DeviceMemory {
    /// All there is.
    pub total: u64,
    /// What nobody has.
    pub free: u64,
}

/// Bytes for KV blocks: what the worker may have of the device, less what is taken already.
///
/// # Errors
/// When nothing is left.
pub fn kv_bytes(memory: DeviceMemory, utilization: f64) -> Result<u64, BackendError> {
    let allowed = (memory.total as f64 * utilization.clamp(0.0, 1.0)) as u64;
    let taken = memory.total.saturating_sub(memory.free);
    allowed.checked_sub(taken).filter(|left| *left > 0).ok_or_else(|| BackendError::KvMemory {
        bytes: 0,
        blocks: 0,
        reason: format!(
            "the device has {} bytes, of which {allowed} may be used; weights and steps take {taken}",
            memory.total
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(lengths: &[(u32, u32)]) -> Step {
        let mut step = Step::default();
        let mut first = 0;
        for &(new, context) in lengths {
            step.sequences.push(StepSequence {
                tokens: first..first + new,
                context_len: context,
                block_table: 3 * first..3 * first + 1,
                sample: None,
                embed: false,
            });
            first += new;
        }
        step
    }

    #[test]
    fn decodes_and_prompts_go_their_ways() {
        let mut plan = AttentionPlan::default();
        plan.fill(&step(&[(1, 9), (20, 20), (1, 500), (33, 90)]), 4);
        assert_eq!(plan.decodes, [0, 2]);
        assert_eq!(plan.sequences[3].first_token, 22);
        assert_eq!(plan.sequences[3].first_block, 66);
        // 80 and 132 rows in tiles of 64, those that see the most first.
        assert_eq!(plan.tiles, [[3, 128], [3, 64], [3, 0], [1, 64], [1, 0]]);
        assert_eq!(plan.graph([None]), None);
    }

    #[test]
    fn steps_of_decodes_share_graphs() {
        let mut plan = AttentionPlan::default();
        plan.fill(&step(&[(1, 100), (1, 190), (1, 10)]), 4);
        let key = GraphKey { rows: 4, splits: 4 };
        assert_eq!(plan.graph([None]), Some(key));
        // A window of 64 keys lies in two tiles at most.
        let two = GraphKey { splits: 2, ..key };
        assert_eq!(plan.graph([Some(64)]), Some(two));
        assert_eq!(plan.graph([Some(64), None, Some(64)]), Some(key));
        plan.fill(&step(&[(1, 1); 257]), 4);
        assert_eq!(plan.graph([None]), None);
        plan.fill(&step(&[]), 4);
        assert_eq!(plan.graph([None]), None);
    }

    #[test]
    fn padding_is_of_one_token_in_the_null_block() {
        let mut plan = AttentionPlan::default();
        plan.fill(&step(&[(1, 100), (1, 190)]), 4);
        plan.pad(4, 77);
        assert_eq!(plan.decodes, [0, 1, 2, 3]);
        let pad = |row: usize| {
            let sequence = plan.sequences[row];
            [sequence.first_token, sequence.context, sequence.first_block]
        };
        assert_eq!([pad(2), pad(3)], [[2, 1, 77], [3, 1, 77]]);
    }

    #[test]
    fn buckets_ascend_and_hold_what_they_say() {
        assert!(BUCKETS.is_sorted());
        for sequences in 1..=256 {
            let bucket = bucket(sequences).unwrap();
            assert!(bucket >= sequences && bucket < 2 * sequences.max(2));
        }
        assert_eq!(bucket(257), None);
    }

    #[test]
    fn splits_are_as_many_as_the_tiles_need() {
        let of = |context| splits_of(context, None);
        assert_eq!(
            [1, 64, 65, 1_024, 1_025, 4_096, 131_072].map(of),
            [1, 1, 2, 16, 9, 16, 16]
        );
        for context in 1..5_000 {
            for window in [None, Some(1), Some(700)] {
                assert!((1..=splits_most(window)).contains(&splits_of(context, window)));
            }
        }
    }

    #[test]
    fn products_are_chosen_by_rows() {
        let of = [1, 8, 9, 16, 17, 4_096].map(product_for);
        let [eight, sixteen] = [Product::Skinny(8), Product::Skinny(16)];
        assert_eq!(
            of,
            [
                eight,
                eight,
                sixteen,
                sixteen,
                Product::Library,
                Product::Library
            ]
        );
    }

    #[test]
    fn kv_memory_is_what_is_left() {
        let memory = DeviceMemory {
            total: 1_000,
            free: 600,
        };
        assert_eq!(kv_bytes(memory, 0.9).unwrap(), 500);
        assert!(kv_bytes(memory, 0.4).is_err());
    }

    #[test]
    fn the_largest_step_has_all_tokens_and_samples() {
        let step = largest_step(100, 8, 16);
        assert_eq!((step.tokens.len(), step.samples.len()), (100, 8));
        assert_eq!(step.sequences[0].tokens, 0..93);
        assert_eq!(step.sequences[0].block_table, 0..6);
        assert_eq!(step.sequences[7].tokens, 99..100);
        assert_eq!(step.slots.len(), step.positions.len());
        // More sequences than tokens, or none of either, is still a step.
        assert_eq!(largest_step(3, 8, 16).sequences.len(), 3);
        assert_eq!(largest_step(0, 0, 16).tokens.len(), 1);
    }
}
