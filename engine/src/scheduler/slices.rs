//! A part of a prompt whose layers are spread over several steps.
//!
//! Every part of a prompt reads the whole context before it, in every layer, however few tokens it has. Behind 16,000
//! tokens a small model's step reads three times its weights that way, so that one token of a prompt already takes
//! longer than decodes should have to wait. There, a part has as many tokens as make that reading worth it, and its
//! layers go into steps of their own, a few at a time, each as long as prompts may take beside decodes:
//!
//! ```text
//! decodes │ part, layers 0..3 │ decodes │ part, layers 3..6 │ decodes │ … │ part, layers 27..30 │ decodes
//! ```
//!
//! The part counts as computed when its last layers are; until then nobody looks at what it writes. One part is under way at
//! a time. While it is, shorter prompts share the time with it as they do with any first in order: every other turn is
//! theirs.

use std::ops::Range;

use super::cost::Load;
use super::prompts::First;
use super::room::Room;
use super::schedule::Planned;
use super::sequence::{Key, Sequence};
use super::{Pause, Scheduler, SequenceNumber};

/// The part under way, and whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Slices {
    part: Option<Part>,
    /// Whether the latest step was a slice: then it is the turn of those that generate.
    just_now: bool,
    /// Whether the others have had a step that was open to their prompts since the latest slice.
    others_had_theirs: bool,
}

/// Tokens of a prompt in the middle of the layers.
#[derive(Clone, Copy, Debug)]
struct Part {
    number: SequenceNumber,
    tokens: usize,
    /// Layers that are computed.
    done: u32,
}

impl Slices {
    /// The request whose part is under way.
    pub(super) fn request(&self) -> Option<SequenceNumber> {
        self.part.map(|part| part.number)
    }

    /// Whether the step that is being formed must be without prompts, because running requests have waited for a
    /// slice already.
    pub(super) fn just_now(&self) -> bool {
        self.just_now
    }

    pub(super) fn begin(&mut self, number: SequenceNumber, tokens: usize) {
        let done = 0;
        self.part = Some(Part {
            number,
            tokens,
            done,
        });
    }

    /// What was computed of the request's part is lost.
    pub(super) fn forget(&mut self, number: SequenceNumber) {
        if self.request() == Some(number) {
            self.part = None;
        }
    }

    /// Notes that a step was computed, with its layers if it was a slice.
    pub(super) fn stepped(&mut self, slice: Option<&Range<u32>>, layers: u32) {
        match slice {
            Some(slice) => {
                self.others_had_theirs = false;
                // Its request may be gone by now.
                self.part = self.part.filter(|_| slice.end < layers);
                if let Some(part) = &mut self.part {
                    part.done = slice.end;
                }
            }
            None => self.others_had_theirs |= !self.just_now,
        }
        self.just_now = slice.is_some();
    }
}

impl Scheduler {
    /// Plans the next layers of the part under way, if it is its turn.
    pub(super) fn plan_slice(&mut self) -> bool {
        let Some(part) = self.slices.part else {
            return false;
        };
        let decodes = self.decodes();
        let alone = decodes.decode_rows == 0;
        let turn = !self.slices.just_now
            && (self.slices.others_had_theirs || !self.others_are_due(part.number));
        let Some(sequence) = self.sequences.get(&part.number) else {
            return false;
        };
        if !turn && !alone {
            return false;
        }
        let start = sequence.computed;
        let count = self.layers_within(part, start, decodes);
        self.step.slice = Some(part.done..part.done + count);
        self.planned.push(Planned::new(part.number, part.tokens));
        true
    }

    /// How many of the layers that the part lacks fit into the time for prompts; one at least. What is lacking is
    /// shared out evenly.
    fn layers_within(&self, part: Part, start: usize, decodes: Load) -> u32 {
        let lacking = self.config.layers - part.done;
        let (Some(cost), Some(slowdown)) =
            (self.cost.prompt_cost(), self.config.max_decode_slowdown)
        else {
            return lacking;
        };
        // The weights are read for it alone.
        let whole = cost.seconds(start, part.tokens) + self.cost.decode_seconds(Load::default());
        let each = whole / f64::from(self.config.layers);
        let count = Room::seconds_for_prompts(&self.cost, decodes, slowdown) / each;
        let count = (count as u32).clamp(1, lacking);
        lacking.div_ceil(lacking.div_ceil(count))
    }

    /// What the running requests that lack one token each come to.
    fn decodes(&self) -> Load {
        let mut load = Load::default();
        for key in &self.running {
            if let Some(sequence) = self.sequences.get(&key.number)
                && sequence.lag() == 1
            {
                load.add_decode(sequence.tokens.len());
            }
        }
        load
    }

    /// Whether prompts that share the time with the part of `number` could be computed.
    fn others_are_due(&self, number: SequenceNumber) -> bool {
        let Some(first) = self.first_of_part(number) else {
            return false;
        };
        let due = |key: &Key| {
            let lag = self.sequences.get(&key.number).map_or(0, Sequence::lag);
            key.number != number && lag > 1 && first.shares(*key, lag)
        };
        let admits = self.paused != Some(Pause::Admission)
            && self.running.len() < self.config.max_num_seqs as usize;
        self.running.iter().any(due) || admits && self.may_admit(Some(first))
    }

    /// The request whose part is under way, as the first in order that others share with.
    pub(super) fn first_of_part(&self, number: SequenceNumber) -> Option<First> {
        let sequence = self.sequences.get(&number)?;
        Some(First::elsewhere(sequence.key, sequence.lag()))
    }
}
