//! A backend for tests of everything above it: exact, instant, and suspicious.
//!
//! Its KV memory holds, in each slot, the token and position that were written there. The sampled token is a hash of the
//! whole context, read back through the block table, and of the random numbers where there are any. So a wrong slot, a wrong table, a block freed too early or a
//! prefix hit on the wrong block changes the tokens or panics.

use super::{
    Backend, BackendError, BackendInfo, BlockCopy, BlockPlace, KvLayout, Sampled, Step, StepOutput,
    StepSequence,
};
use crate::sample::TokenLogprob;

mod behind;

pub(crate) use behind::Behind;

/// Layers that it pretends to have.
pub(crate) const LAYERS: u32 = 5;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct HashBackend {
    info: BackendInfo,
    vocab_size: u32,
    block_size: u32,
    slots: Vec<Option<(u32, u32)>>,
    /// The second tier, laid out like the first.
    host_slots: Vec<Option<(u32, u32)>>,
    /// A step that has come to the end of some layer before the last: its slots, its tokens and that layer.
    stopped: Option<(Vec<u32>, Vec<u32>, u32)>,
    /// Steps that ended before the last layer.
    pub(crate) slices: usize,
    /// What the step under way brings.
    brought: StepOutput,
    /// Blocks copied so far.
    pub(crate) copied: usize,
    /// The largest number of tokens seen in one step.
    pub(crate) largest_step: usize,
}

impl HashBackend {
    pub(crate) fn new(vocab_size: u32) -> Self {
        Self {
            info: BackendInfo {
                name: "hash",
                device: "test".to_owned(),
                kv_bytes_per_token: 8,
                kv_memory_bytes: None,
                layers: LAYERS,
                ahead: false,
            },
            vocab_size,
            block_size: 1,
            slots: Vec::new(),
            host_slots: Vec::new(),
            stopped: None,
            slices: 0,
            brought: StepOutput::default(),
            copied: 0,
            largest_step: 0,
        }
    }

    /// Whether the step ends with the last layer. Slices of a step must follow each other, and nothing may be asked of it
    /// before the last.
    fn goes_through(&mut self, step: &Step) -> bool {
        let layers = step.layers.clone().unwrap_or(0..LAYERS);
        assert!(
            layers.start < layers.end && layers.end <= LAYERS,
            "{layers:?}"
        );
        let this = |end| (step.slots.clone(), step.tokens.clone(), end);
        if layers.start > 0 {
            let before = self.stopped.take();
            assert_eq!(before, Some(this(layers.start)), "another step's layers");
        }
        if layers.end == LAYERS {
            return true;
        }
        assert!(step.samples.is_empty() && step.prompt_rows.is_empty());
        let mut sequences = step.sequences.iter();
        assert!(sequences.all(|sequence| sequence.sample.is_none() && !sequence.embed));
        self.stopped = Some(this(layers.end));
        self.slices += 1;
        false
    }

    fn copy(&mut self, copy: &BlockCopy) {
        let size = self.block_size as usize;
        let range = |block: u32| block as usize * size..(block as usize + 1) * size;
        let contents = match copy.from {
            BlockPlace::Device(block) => self.slots[range(block)].to_vec(),
            BlockPlace::Host(block) => self.host_slots[range(block)].to_vec(),
        };
        assert!(
            contents.iter().all(Option::is_some),
            "a block that was never written whole is copied"
        );
        match copy.to {
            BlockPlace::Device(block) => self.slots[range(block)].copy_from_slice(&contents),
            BlockPlace::Host(block) => self.host_slots[range(block)].copy_from_slice(&contents),
        }
        self.copied += 1;
    }

    fn run(&mut self, step: &Step, out: &mut StepOutput) {
        self.largest_step = self.largest_step.max(step.tokens.len());
        for copy in &step.copies {
            self.copy(copy);
        }
        if !self.goes_through(step) {
            return;
        }
        for sequence in &step.sequences {
            let token = self.compute(step, sequence);
            self.prompt_rows(step, sequence, out);
            if sequence.embed {
                out.embeddings
                    .push(vec![token as f32, sequence.context_len as f32]);
            }
            if let Some(sample) = sequence.sample {
                let spec = &step.samples[sample as usize];
                let banned = &step.banned[spec.banned.start as usize..spec.banned.end as usize];
                let token = token + random(spec.temperature, spec.seed, spec.position);
                let allowed = (0..self.vocab_size).map(|i| (token + i) % self.vocab_size);
                let token = allowed.into_iter().find(|token| !banned.contains(token));
                out.sampled.push(Sampled {
                    token,
                    logprob: None,
                });
            }
        }
    }

    fn compute(&mut self, step: &Step, sequence: &StepSequence) -> u32 {
        let new = sequence.tokens.start as usize..sequence.tokens.end as usize;
        let table = &step.block_tables
            [sequence.block_table.start as usize..sequence.block_table.end as usize];
        let slot_of = |position: u32| {
            table[(position / self.block_size) as usize] * self.block_size
                + position % self.block_size
        };
        for index in new.clone() {
            let position = step.positions[index];
            assert_eq!(
                step.slots[index],
                slot_of(position),
                "slot and block table disagree"
            );
            assert!(
                step.slots[index] >= self.block_size,
                "a request writes into the null block"
            );
            self.slots[step.slots[index] as usize] = Some((step.tokens[index], position));
        }
        assert_eq!(step.positions[new.end - 1] + 1, sequence.context_len);
        self.after(step, sequence, sequence.context_len)
    }

    /// The token after the first `len` of a sequence's context, read back from where they were written.
    fn after(&self, step: &Step, sequence: &StepSequence, len: u32) -> u32 {
        let first = sequence.block_table.start;
        let context = (0..len).map(|position| {
            let block = step.block_tables[(first + position / self.block_size) as usize];
            let slot = block * self.block_size + position % self.block_size;
            let (token, written_at) = self.slots[slot as usize].expect("never written");
            assert_eq!(written_at, position, "the slot belongs to another position");
            token
        });
        next_token(context, self.vocab_size)
    }

    /// The rows of the prompt that are asked for: made-up log probabilities, the target as their rank.
    fn prompt_rows(&self, step: &Step, sequence: &StepSequence, out: &mut StepOutput) {
        let rows = step.prompt_rows.iter();
        for row in rows.filter(|row| sequence.tokens.contains(&row.token)) {
            let len = step.positions[row.token as usize] + 1;
            out.prompt_logprobs.push(TokenLogprob {
                logprob: self.after(step, sequence, len) as f32,
                rank: row.target,
                top: vec![(0, 0.0); row.top as usize],
            });
        }
    }
}

/// The token that follows a context.
pub(crate) fn next_token(context: impl Iterator<Item = u32>, vocab_size: u32) -> u32 {
    let hash = context.fold(17_u64, |hash, token| {
        (hash ^ u64::from(token))
            .wrapping_mul(0x100_0000_01b3)
            .rotate_left(23)
    });
    ((hash >> 32) % u64::from(vocab_size)) as u32
}

/// What the random numbers of a sample add to the token.
pub(crate) fn random(temperature: f32, seed: u64, position: u32) -> u32 {
    let mixed = (seed << 20 | u64::from(position)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    if temperature > 0.0 {
        (mixed >> 48) as u32
    } else {
        0
    }
}

impl Backend for HashBackend {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn allocate(&mut self, layout: &KvLayout) -> Result<(), BackendError> {
        self.block_size = layout.block_size;
        self.slots = vec![None; (layout.blocks * layout.block_size) as usize];
        self.host_slots = vec![None; (layout.host_blocks * layout.block_size) as usize];
        Ok(())
    }

    fn begin(&mut self, step: &Step) -> Result<(), BackendError> {
        assert!(step.sources.is_empty(), "tokens that are not known yet");
        let mut brought = std::mem::take(&mut self.brought);
        brought.clear();
        self.run(step, &mut brought);
        self.brought = brought;
        Ok(())
    }

    fn finish(&mut self, out: &mut StepOutput) -> Result<(), BackendError> {
        std::mem::swap(&mut self.brought, out);
        Ok(())
    }
}
