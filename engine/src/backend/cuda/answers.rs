//! From the rows that were asked for to tokens and log probabilities: the head, changes, draws, and reading back.
//!
//! Tokens are on their way back before the step is done, and where they were stays as it is until the next step samples:
//! that step may take its own tokens from there. All else is read when the step is finished, and no step may be begun
//! between.
//!
//! Logits are `[rows, stride]` of f32, with the stride a multiple of 4. Sampled rows come first and all at once, with room
//! behind them for rows that are kept as they were; the places of prompts follow in batches, in the same memory.
//!
//! Ranks of a group each compute some columns of the logits, put them together, and sample all rows alike. What counts is
//! what rank 0 samples: a bit that differs between them must not part their contexts.

use super::arrays::{Arrays, Counts, Sections};
use super::device::{Device, DeviceError, Memory, StridedCopy, Ticket};
use super::forward::{Buffer, Sizes};
use super::kernels::{
    Address, ChangesArguments, DrawArguments, LogprobArguments, NONE, RowLogprobs,
};
use super::ops::{Multiply, Ops};
use super::plan::BUCKETS;
use crate::backend::{Sampled, StepOutput};
use crate::sample::{Sampler, TokenLogprob};

/// Places of prompts whose logits are computed together.
const PROMPT_ROWS: u32 = 64;

/// Blocks of `change_logits`, each with counts of its own for a whole vocabulary.
const CHANGE_BLOCKS: u32 = 32;

/// Memory for answers, on the device and here.
#[derive(Debug, Default)]
pub struct Answers {
    logits: Buffer,
    /// Of ranks of a group: this one's columns of the logits, and those of all, one rank's rows behind the other's.
    part: Buffer,
    parts: Buffer,
    counts: Buffer,
    /// What this rank sampled, where there are others.
    own: Buffer,
    sampled: Buffer,
    chosen: Buffer,
    listed: Buffer,
    /// Read back: tokens, pairs of log probability and rank, pairs of token and log probability.
    tokens: Vec<u32>,
    pairs: Vec<u32>,
    lists: Vec<u32>,
    /// A row of logits, for more likeliest tokens than the device lists.
    row: Vec<f32>,
    sampler: Sampler,
}

/// What answers are computed from.
#[derive(Clone, Copy, Debug)]
pub struct Questions<'a> {
    pub sizes: &'a Sizes,
    pub head: Memory,
    pub arrays: &'a Arrays,
    /// Where the arrays lie on the device.
    pub base: Address,
    /// `[rows, hidden]`, normed.
    pub rows: Address,
}

impl Questions<'_> {
    fn stride(&self) -> u32 {
        self.sizes.vocabulary.next_multiple_of(4)
    }

    fn at(&self, section: impl Fn(&Sections) -> usize) -> Address {
        Arrays::address(self.base, section(self.arrays.sections()))
    }

    fn row_bytes(&self) -> usize {
        self.stride() as usize * size_of::<f32>()
    }

    /// Elements of a row of one rank's columns.
    fn part_stride(&self) -> u32 {
        self.sizes.own_vocabulary().next_multiple_of(4)
    }

    /// Whether other ranks have other columns of the logits.
    fn shared(&self) -> bool {
        self.sizes.ranks > 1
    }
}

impl Answers {
    /// Where sampled tokens lie, from the first step to the last; it has room for those of any graph, and of any rank.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub fn sampled(
        &mut self,
        device: &mut dyn Device,
        sizes: &Sizes,
        count: u32,
    ) -> Result<Address, DeviceError> {
        let count = count.max(BUCKETS[BUCKETS.len() - 1]) * sizes.ranks;
        let bytes = count as usize * size_of::<u32>();
        if sizes.ranks > 1 {
            self.own.of(device, bytes)?;
        }
        Ok(self.sampled.of(device, bytes)?.address)
    }

    /// Samples, and has the tokens read.
    ///
    /// # Errors
    /// When the device fails.
    pub fn begin(
        &mut self,
        ops: &mut Ops<'_>,
        questions: &Questions<'_>,
    ) -> Result<Option<Ticket>, DeviceError> {
        let counts = questions.arrays.counts();
        self.prepare(ops.device, questions, counts)?;
        self.sample(ops, questions, counts)?;
        let logits = self.logits.address();
        self.logprobs(ops, questions, (0, counts.wanted), logits)?;
        if counts.sampled == 0 {
            return Ok(None);
        }
        let bytes = counts.sampled as usize * size_of::<u32>();
        ops.device
            .read_later(self.sampled.memory(), bytes)
            .map(Some)
    }

    /// Waits for the sampled tokens of a step.
    ///
    /// # Errors
    /// When the device fails.
    pub fn finish(
        &mut self,
        device: &mut dyn Device,
        sampled: u32,
        ticket: Option<Ticket>,
        out: &mut StepOutput,
    ) -> Result<(), DeviceError> {
        self.tokens.resize(sampled as usize, NONE);
        if let Some(ticket) = ticket {
            device.collect(ticket, bytemuck::cast_slice_mut(&mut self.tokens))?;
        }
        out.sampled.extend(self.tokens.iter().map(|token| Sampled {
            token: Some(*token).filter(|token| *token != NONE),
            logprob: None,
        }));
        Ok(())
    }

    /// Reads the log probabilities of the sampled tokens, and computes those of prompts.
    ///
    /// # Errors
    /// When the device fails.
    pub fn explain(
        &mut self,
        ops: &mut Ops<'_>,
        questions: &Questions<'_>,
        out: &mut StepOutput,
    ) -> Result<(), DeviceError> {
        let counts = questions.arrays.counts();
        let mut wanted = questions.arrays.wanted();
        let of_samples = counts.wanted as usize;
        self.read(ops.device)?;
        for (index, (row, too_many)) in wanted.by_ref().take(of_samples).enumerate() {
            let logprob = self.logprob(ops.device, questions, (index, row, too_many), row.row)?;
            if let Some(sampled) = out.sampled.get_mut(row.sampled as usize) {
                sampled.logprob = sampled.token.map(|_| logprob);
            }
        }
        for first in (0..counts.prompt_rows).step_by(PROMPT_ROWS as usize) {
            let rows = PROMPT_ROWS.min(counts.prompt_rows - first);
            self.multiply(ops, questions, counts.sampled + first, rows)?;
            // Rows are numbered from the first sampled one: the address is that of a row which is not there.
            let behind = u64::from(counts.sampled + first) * questions.row_bytes() as u64;
            let logits = self.logits.address().wrapping_sub(behind);
            self.logprobs(ops, questions, (counts.wanted + first, rows), logits)?;
            self.read(ops.device)?;
            for (index, (row, too_many)) in wanted.by_ref().take(rows as usize).enumerate() {
                let index = (counts.wanted + first) as usize + index;
                let place = row.row - counts.sampled - first;
                let logprob = self.logprob(ops.device, questions, (index, row, too_many), place)?;
                out.prompt_logprobs.push(logprob);
            }
        }
        Ok(())
    }

    fn prepare(
        &mut self,
        device: &mut dyn Device,
        questions: &Questions<'_>,
        counts: Counts,
    ) -> Result<(), DeviceError> {
        let word = size_of::<u32>();
        let rows = (counts.sampled + counts.kept).max(PROMPT_ROWS.min(counts.prompt_rows));
        self.logits
            .of(device, rows as usize * questions.row_bytes())?;
        if counts.changes > 0 {
            let all = CHANGE_BLOCKS as usize * questions.sizes.vocabulary as usize;
            self.counts.of(device, all * word)?;
        }
        if questions.shared() {
            let bytes = rows as usize * questions.part_stride() as usize * size_of::<f32>();
            self.part.of(device, bytes)?;
            self.parts
                .of(device, bytes * questions.sizes.ranks as usize)?;
        }
        self.sampled(device, questions.sizes, counts.sampled)?;
        let wanted = (counts.wanted + counts.prompt_rows) as usize;
        self.chosen.of(device, 2 * wanted * word)?;
        self.listed.of(device, 2 * counts.listed as usize * word)?;
        self.pairs.resize(2 * wanted, 0);
        self.lists.resize(2 * counts.listed as usize, 0);
        Ok(())
    }

    /// Logits of so many of the picked rows, from the beginning of the memory for them.
    fn multiply(
        &self,
        ops: &mut Ops<'_>,
        questions: &Questions<'_>,
        first: u32,
        rows: u32,
    ) -> Result<(), DeviceError> {
        let hidden = questions.sizes.hidden;
        if rows == 0 {
            return Ok(());
        }
        let (y, y_stride) = if questions.shared() {
            (&self.part, questions.part_stride())
        } else {
            (&self.logits, questions.stride())
        };
        ops.multiply(Multiply {
            y: y.address(),
            x: questions.rows + u64::from(first) * u64::from(hidden) * 2,
            weight: questions.head.address,
            m: rows,
            n: questions.sizes.own_vocabulary(),
            k: hidden,
            y_stride,
            wide: true,
        })?;
        if questions.shared() {
            self.put_together(ops, questions, rows)?;
        }
        Ok(())
    }

    /// All ranks' columns of so many rows of logits.
    fn put_together(
        &self,
        ops: &mut Ops<'_>,
        questions: &Questions<'_>,
        rows: u32,
    ) -> Result<(), DeviceError> {
        let Sizes {
            vocabulary, ranks, ..
        } = *questions.sizes;
        let own = questions.sizes.own_vocabulary();
        let bytes = |elements: u32| elements as usize * size_of::<f32>();
        let of_rank = rows as usize * bytes(questions.part_stride());
        let [part, parts] = [&self.part, &self.parts].map(Buffer::address);
        ops.device.gather(part, parts, of_rank)?;
        for rank in 0..ranks {
            let first = (rank * own).min(vocabulary);
            ops.device.copy(StridedCopy {
                from: parts + (rank as usize * of_rank) as Address,
                to: self.logits.address() + bytes(first) as Address,
                rows: rows as usize,
                bytes: bytes(own.min(vocabulary - first)),
                from_stride: bytes(questions.part_stride()),
                to_stride: questions.row_bytes(),
            })?;
        }
        Ok(())
    }

    fn sample(
        &self,
        ops: &mut Ops<'_>,
        questions: &Questions<'_>,
        counts: Counts,
    ) -> Result<(), DeviceError> {
        if counts.sampled == 0 {
            return Ok(());
        }
        self.multiply(ops, questions, 0, counts.sampled)?;
        let (logits, stride) = (self.logits.address(), questions.stride());
        let vocabulary = questions.sizes.vocabulary;
        if counts.changes > 0 {
            let changes = ChangesArguments {
                logits,
                raw: logits + u64::from(counts.sampled) * questions.row_bytes() as u64,
                changes: questions.at(|sections| sections.changes),
                masks: questions.at(|sections| sections.masks),
                banned: questions.at(|sections| sections.banned),
                biases: questions.at(|sections| sections.biases),
                history: questions.at(|sections| sections.history),
                counts: self.counts.address(),
                changes_count: counts.changes,
                vocabulary,
                stride,
            };
            ops.change_logits(CHANGE_BLOCKS.min(counts.changes), changes)?;
        }
        let sampled = if questions.shared() {
            &self.own
        } else {
            &self.sampled
        };
        let draws = DrawArguments {
            logits,
            draws: questions.at(|sections| sections.draws),
            sampled: sampled.address(),
            vocabulary,
            stride,
        };
        ops.sample(counts.sampled, draws)?;
        if questions.shared() {
            // Rank 0's come first, where everybody looks.
            let bytes = counts.sampled as usize * size_of::<u32>();
            let [own, all] = [&self.own, &self.sampled].map(Buffer::address);
            ops.device.gather(own, all, bytes)?;
        }
        Ok(())
    }

    /// Log probabilities of so many of what was asked for, from the `first` on.
    fn logprobs(
        &self,
        ops: &mut Ops<'_>,
        questions: &Questions<'_>,
        (first, count): (u32, u32),
        logits: Address,
    ) -> Result<(), DeviceError> {
        if count == 0 {
            return Ok(());
        }
        let wanted = questions.at(|sections| sections.wanted);
        let pair = 2 * size_of::<u32>() as u64;
        let arguments = LogprobArguments {
            logits,
            wanted: wanted + u64::from(first) * size_of::<RowLogprobs>() as u64,
            sampled: self.sampled.address(),
            asked: questions.at(|sections| sections.asked),
            chosen: self.chosen.address() + u64::from(first) * pair,
            listed: self.listed.address(),
            vocabulary: questions.sizes.vocabulary,
            stride: questions.stride(),
        };
        ops.logprobs(count, arguments)
    }

    fn read(&mut self, device: &mut dyn Device) -> Result<(), DeviceError> {
        for (buffer, words) in [
            (&self.chosen, &mut self.pairs),
            (&self.listed, &mut self.lists),
        ] {
            if !words.is_empty() {
                device.read(buffer.memory(), 0, bytemuck::cast_slice_mut(words))?;
            }
        }
        Ok(())
    }

    /// What was read back of one row, which is at `place` among the logits.
    fn logprob(
        &mut self,
        device: &mut dyn Device,
        questions: &Questions<'_>,
        (index, row, too_many): (usize, &RowLogprobs, Option<u32>),
        place: u32,
    ) -> Result<TokenLogprob, DeviceError> {
        if let Some(top) = too_many {
            let sampled = self.tokens.get(row.sampled as usize).copied();
            let token = if row.sampled == NONE {
                row.token
            } else {
                sampled.unwrap_or(NONE)
            };
            self.row.resize(questions.sizes.vocabulary as usize, 0.0);
            let offset = place as usize * questions.row_bytes();
            let bytes = bytemuck::cast_slice_mut(&mut self.row);
            device.read(self.logits.memory(), offset, bytes)?;
            return Ok(self.sampler.logprob(&mut self.row, token, top));
        }
        let listed = row.listed as usize..(row.listed + row.entries()) as usize;
        let pairs = self.lists.get(2 * listed.start..2 * listed.end);
        let pairs = pairs.unwrap_or_default().chunks_exact(2);
        let top = pairs.map(|pair| (pair[0], f32::from_bits(pair[1])));
        let [logprob, rank] = [0, 1].map(|i| self.pairs.get(2 * index + i).copied().unwrap_or(0));
        Ok(TokenLogprob {
            logprob: f32::from_bits(logprob),
            rank,
            top: top.filter(|pair| pair.0 != NONE).collect(),
        })
    }
}
