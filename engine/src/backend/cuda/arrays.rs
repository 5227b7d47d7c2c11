//! A step's arrays as the kernels read them, put together in one run of words that is copied to the device at once.
//!
//! Sections begin at multiples of 16 bytes. Those that a graph reads are as long as its largest bucket and come first, so
//! that they are in the same places in each step that a graph is for; what pads them is the null block's. The vectors are reused: after warm-up, filling them allocates nothing.

use bytemuck::Pod;

use super::kernels::{Address, NONE, RowChanges, RowDraw, RowLogprobs, TOP_MAX};
use super::plan::{AttentionPlan, BUCKETS, GraphKey};
use crate::backend::{SampleSpec, Step};

/// Words, and where each section of them begins.
#[derive(Debug, Default)]
pub struct Arrays {
    words: Vec<u32>,
    /// Rows whose hidden state somebody asks for: those that are sampled, then places of prompts, then embeddings.
    rows: Vec<u32>,
    changes: Vec<RowChanges>,
    masks: Vec<u32>,
    biases: Vec<u32>,
    draws: Vec<RowDraw>,
    wanted: Vec<RowLogprobs>,
    /// Of each of them, how many likeliest tokens were asked for, if that is more than the device lists.
    too_many: Vec<Option<u32>>,
    sections: Sections,
    counts: Counts,
    fed: bool,
}

/// How many there are of what; sampled rows come first among rows, then those of prompts, then embeddings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// New tokens.
    pub tokens: u32,
    /// Rows that are sampled.
    pub sampled: u32,
    /// Places of prompts.
    pub prompt_rows: u32,
    /// Rows whose hidden state is the answer.
    pub embedded: u32,
    /// Rows of logits that requests change.
    pub changes: u32,
    /// Of those, rows that are kept as they were.
    pub kept: u32,
    /// Rows whose log probabilities are wanted: so many of sampled rows, and then the places of prompts.
    pub wanted: u32,
    /// Pairs that are listed beside them.
    pub listed: u32,
}

/// Offsets in words.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sections {
    pub tokens: usize,
    pub positions: usize,
    pub slots: usize,
    pub sources: usize,
    pub sequences: usize,
    pub decodes: usize,
    pub rows: usize,
    pub block_tables: usize,
    pub tiles: usize,
    pub changes: usize,
    pub masks: usize,
    pub banned: usize,
    pub biases: usize,
    pub history: usize,
    pub draws: usize,
    pub wanted: usize,
    pub asked: usize,
}

impl Arrays {
    /// Puts a step's arrays together, for a vocabulary of so many tokens. The plan of a step that runs in a graph is
    /// padded, with the block tables' end for the null block.
    pub fn fill(
        &mut self,
        step: &Step,
        plan: &AttentionPlan,
        graph: Option<GraphKey>,
        vocabulary: usize,
    ) {
        self.counts = Counts {
            tokens: step.tokens.len() as u32,
            ..Counts::default()
        };
        self.gather(step);
        self.sampling(step, vocabulary);
        self.words.clear();
        let words = &mut self.words;
        let room = graph.map_or(0, |_| BUCKETS[BUCKETS.len() - 1] as usize);
        self.fed = !step.sources.is_empty() || graph.is_some();
        self.sections = Sections {
            tokens: padded(words, &step.tokens, room, 0),
            positions: padded(words, &step.positions, room, 0),
            slots: padded(words, &step.slots, room, 0),
            sources: padded(words, &step.sources, room, Step::KNOWN),
            sequences: padded(words, &plan.sequences, room, 0),
            decodes: padded(words, &plan.decodes, room, 0),
            rows: padded(words, &self.rows, room, 0),
            block_tables: section(words, &step.block_tables),
            tiles: {
                // The null block, where the padding of a graph finds it.
                words.push(0);
                section(words, &plan.tiles)
            },
            changes: section(words, &self.changes),
            masks: section(words, &self.masks),
            banned: section(words, &step.banned),
            biases: section(words, &self.biases),
            history: section(words, &step.history),
            draws: section(words, &self.draws),
            wanted: section(words, &self.wanted),
            asked: section(words, &step.asked),
        };
    }

    /// Everything, to be copied.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words)
    }

    /// The address of a section, once the bytes lie at `base`.
    pub fn address(base: Address, section: usize) -> Address {
        base + (section * size_of::<u32>()) as Address
    }

    /// Where sections begin.
    pub fn sections(&self) -> &Sections {
        &self.sections
    }

    /// Whether some tokens may be among the samples of the step before.
    pub fn fed(&self) -> bool {
        self.fed
    }

    /// How many there are of what.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What was asked of the log probabilities, in the order of their answers, and how many likeliest tokens where that is
    /// more than the device lists.
    pub fn wanted(&self) -> impl Iterator<Item = (&RowLogprobs, Option<u32>)> {
        self.wanted.iter().zip(self.too_many.iter().copied())
    }

    fn gather(&mut self, step: &Step) {
        self.rows.clear();
        let last = |end: u32| end - 1;
        for sequence in step
            .sequences
            .iter()
            .filter(|sequence| sequence.sample.is_some())
        {
            self.rows.push(last(sequence.tokens.end));
        }
        self.counts.sampled = self.rows.len() as u32;
        self.rows
            .extend(step.prompt_rows.iter().map(|row| row.token));
        self.counts.prompt_rows = step.prompt_rows.len() as u32;
        for sequence in step.sequences.iter().filter(|sequence| sequence.embed) {
            self.rows.push(last(sequence.tokens.end));
            self.counts.embedded += 1;
        }
    }

    fn sampling(&mut self, step: &Step, vocabulary: usize) {
        self.changes.clear();
        self.masks.clear();
        self.draws.clear();
        self.wanted.clear();
        self.too_many.clear();
        self.biases.clear();
        self.biases.extend(
            step.biases
                .iter()
                .flat_map(|(token, bias)| [*token, bias.to_bits()]),
        );
        let specs = step
            .sequences
            .iter()
            .filter_map(|sequence| step.samples.get(sequence.sample? as usize));
        for (row, spec) in specs.enumerate() {
            let row = row as u32;
            self.draws.push(draw(row, spec));
            let kept = if changes_logits(spec) {
                self.change(step, row, spec, vocabulary)
            } else {
                NONE
            };
            if let Some(top) = spec.logprobs {
                let asked = (spec.asked.start, spec.asked.end - spec.asked.start);
                // Where a request changes the row, it is looked at as it was kept, behind the sampled rows.
                let from = if kept == NONE {
                    row
                } else {
                    self.counts.sampled + kept
                };
                self.counts.wanted += 1;
                self.want(
                    RowLogprobs {
                        row: from,
                        token: NONE,
                        sampled: row,
                        top,
                        ..RowLogprobs::default()
                    },
                    asked,
                );
            }
        }
        for (row, place) in (self.counts.sampled..).zip(&step.prompt_rows) {
            let wanted = RowLogprobs {
                row,
                token: place.target,
                sampled: NONE,
                top: place.top,
                ..RowLogprobs::default()
            };
            self.want(wanted, (0, 0));
        }
    }

    fn want(&mut self, mut wanted: RowLogprobs, (asked_first, asked_count): (u32, u32)) {
        let too_many = (asked_count == 0 && wanted.top > TOP_MAX).then_some(wanted.top);
        if too_many.is_some() {
            wanted.top = 0;
        }
        wanted.listed = self.counts.listed;
        (wanted.asked_first, wanted.asked_count) = (asked_first, asked_count);
        self.counts.listed += wanted.entries();
        self.wanted.push(wanted);
        self.too_many.push(too_many);
    }

    /// Notes what a request changes in its row; where the row is kept, if it is.
    fn change(&mut self, step: &Step, row: u32, spec: &SampleSpec, vocabulary: usize) -> u32 {
        let keep = if spec.logprobs.is_some() {
            self.counts.kept += 1;
            self.counts.kept - 1
        } else {
            NONE
        };
        let allowed = step
            .allowed
            .get(spec.allowed.start as usize..spec.allowed.end as usize)
            .unwrap_or_default();
        let mask = if allowed.is_empty() {
            NONE
        } else {
            self.mask(allowed, vocabulary)
        };
        let count = |range: &std::ops::Range<u32>| range.end - range.start;
        self.changes.push(RowChanges {
            row,
            keep,
            mask,
            banned_first: spec.banned.start,
            banned_count: count(&spec.banned),
            biases_first: spec.biases.start,
            biases_count: count(&spec.biases),
            prompt_first: spec.prompt.start,
            prompt_count: count(&spec.prompt),
            output_first: spec.output.start,
            output_count: count(&spec.output),
            repetition: spec.repetition_penalty,
            frequency: spec.frequency_penalty,
            presence: spec.presence_penalty,
        });
        self.counts.changes += 1;
        keep
    }

    /// A mask with these tokens' bits; its number.
    fn mask(&mut self, allowed: &[u32], vocabulary: usize) -> u32 {
        let words = vocabulary.div_ceil(32);
        let first = self.masks.len();
        self.masks.resize(first + words, 0);
        for &token in allowed {
            if let Some(word) = self.masks[first..].get_mut(token as usize / 32) {
                *word |= 1 << (token % 32);
            }
        }
        (first / words.max(1)) as u32
    }
}

fn section<T: Pod>(words: &mut Vec<u32>, values: &[T]) -> usize {
    words.resize(words.len().next_multiple_of(4), 0);
    let first = words.len();
    words.extend_from_slice(bytemuck::cast_slice(values));
    first
}

/// A section with room for `room` values, of which those that there are not are words of `word`.
fn padded<T: Pod>(words: &mut Vec<u32>, values: &[T], room: usize, word: u32) -> usize {
    let first = section(words, values);
    let end = first + room * size_of::<T>() / size_of::<u32>();
    words.resize(words.len().max(end), word);
    first
}

fn changes_logits(spec: &SampleSpec) -> bool {
    let ranges = [
        &spec.prompt,
        &spec.output,
        &spec.banned,
        &spec.biases,
        &spec.allowed,
    ];
    ranges.iter().any(|range| !range.is_empty())
}

fn draw(row: u32, spec: &SampleSpec) -> RowDraw {
    RowDraw {
        row,
        out: row,
        temperature: spec.temperature,
        top_p: spec.top_p,
        min_p: spec.min_p,
        top_k: spec.top_k,
        seed_low: spec.seed as u32,
        seed_high: (spec.seed >> 32) as u32,
        position: spec.position,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{PromptRow, StepSequence};

    fn spec(
        logprobs: Option<u32>,
        banned: std::ops::Range<u32>,
        allowed: std::ops::Range<u32>,
    ) -> SampleSpec {
        SampleSpec {
            logprobs,
            banned,
            allowed,
            seed: 0x1_0000_0002,
            ..SampleSpec::greedy()
        }
    }

    fn sequence(tokens: std::ops::Range<u32>, sample: Option<u32>, embed: bool) -> StepSequence {
        StepSequence {
            context_len: tokens.end,
            block_table: 0..1,
            tokens,
            sample,
            embed,
        }
    }

    fn step() -> Step {
        Step {
            tokens: vec![5, 6, 7, 8, 9],
            positions: vec![0, 1, 2, 0, 9],
            slots: vec![16, 17, 18, 32, 41],
            sequences: vec![
                sequence(0..3, Some(0), false),
                sequence(3..4, None, true),
                sequence(4..5, Some(1), false),
            ],
            block_tables: vec![1, 2],
            samples: vec![spec(Some(2), 0..1, 0..2), spec(Some(3), 1..1, 2..2)],
            banned: vec![3],
            allowed: vec![0, 33],
            prompt_rows: vec![PromptRow {
                token: 1,
                target: 7,
                top: 4,
            }],
            ..Step::default()
        }
    }

    fn filled(arrays: &mut Arrays) {
        let (step, mut plan) = (step(), AttentionPlan::default());
        plan.fill(&step, 2);
        arrays.fill(&step, &plan, None, 40);
    }

    #[test]
    fn sections_hold_the_step() {
        let mut arrays = Arrays::default();
        filled(&mut arrays);
        filled(&mut arrays);
        let words: &[u32] = bytemuck::cast_slice(arrays.bytes());
        let at = |section: usize, count: usize| &words[section..section + count];
        let sections = arrays.sections();
        assert_eq!(at(sections.tokens, 5), [5, 6, 7, 8, 9]);
        assert_eq!(at(sections.slots, 5), [16, 17, 18, 32, 41]);
        assert_eq!(at(sections.decodes, 2), [1, 2]);
        assert_eq!(at(sections.tiles, 2), [0, 0]);
        // Sampled rows, the prompt's place, the embedding.
        assert_eq!(at(sections.rows, 4), [2, 4, 1, 3]);
        assert_eq!(at(sections.masks, 2), [1, 2]);
        assert!(
            [
                sections.positions,
                sections.rows,
                sections.masks,
                sections.asked
            ]
            .iter()
            .all(|at| at % 4 == 0)
        );
        assert_eq!(Arrays::address(4_096, sections.positions), 4_096 + 8 * 4);
    }

    #[test]
    fn log_probabilities_are_of_rows_as_they_were() {
        let mut arrays = Arrays::default();
        filled(&mut arrays);
        let counts = Counts {
            tokens: 5,
            sampled: 2,
            prompt_rows: 1,
            embedded: 1,
            changes: 1,
            kept: 1,
            wanted: 2,
            listed: 9,
        };
        assert_eq!(arrays.counts(), counts);
        let of = |index: usize| {
            let wanted = arrays.wanted().nth(index).unwrap().0;
            (
                wanted.row,
                wanted.sampled,
                wanted.token,
                wanted.top,
                wanted.listed,
            )
        };
        // The first row is changed, so it is kept behind the two.
        assert_eq!(
            [of(0), of(1), of(2)],
            [(2, 0, NONE, 2, 0), (1, 1, NONE, 3, 2), (2, NONE, 7, 4, 5)]
        );
    }
}
