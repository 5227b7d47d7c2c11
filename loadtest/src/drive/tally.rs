//! Records as they come in, and the gaps between tokens in a histogram at once: they are too many to keep.

use std::collections::BTreeMap;

use super::record::{ErrorClass, Record};
use super::spread::Spread;

/// Messages of failures that are kept of each class.
const EXAMPLES_MAX: usize = 3;

/// One run's results while they come in.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) sent: usize,
    pub(super) failed: usize,
    pub(super) answer_tokens: u64,
    pub(super) records: Vec<Record>,
    pub(super) gaps: Spread,
    pub(super) examples: BTreeMap<ErrorClass, Vec<String>>,
    pub(super) interrupted: bool,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            sent: 0,
            failed: 0,
            answer_tokens: 0,
            records: Vec::new(),
            gaps: Spread::new(),
            examples: BTreeMap::new(),
            interrupted: false,
        }
    }

    pub(super) fn take(&mut self, mut record: Record) {
        for gap in std::mem::take(&mut record.gaps_us) {
            self.gaps.add_us(u64::from(gap));
        }
        self.answer_tokens += record.answer_tokens;
        if let Some(failure) = &record.failure {
            self.failed += 1;
            let examples = self.examples.entry(failure.class).or_default();
            if examples.len() < EXAMPLES_MAX && !examples.contains(&failure.detail) {
                examples.push(failure.detail.clone());
            }
        }
        self.records.push(record);
    }
}
