//! The format of Mooncake's traces: a JSON object a line.
//!
//! ```json
//! {"timestamp": 0, "input_length": 1000, "output_length": 50, "hash_ids": [0, 14]}
//! ```
//!
//! `timestamp` is in milliseconds. Each of `hash_ids` stands for a block of the prompt and all that is before it, 512
//! tokens each but for the last, which may be partial. So equal ids are equal prefixes, and each becomes one segment.
//!
//! The trace names no conversations. Nearly all of its prompts begin with the same block, and the second tells them
//! apart, so requests with the same second block count as one session.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::lines::Lines;
use super::{Taker, TraceError, TraceOptions};
use crate::workload::tokens::mix;
use crate::workload::{PlannedRequest, Segment, Workload};

/// Tokens of a block in the published traces.
pub const BLOCK_TOKENS: u32 = 512;
/// Keeps the ids of answers apart from those of blocks.
const ANSWERS: u64 = 0x616e_7377_6572_0000;
const BLOCKS: u64 = 0x626c_6f63_6b00_0000;

#[derive(Deserialize)]
struct Line {
    timestamp: u64,
    input_length: u32,
    output_length: u32,
    hash_ids: Vec<u64>,
}

/// Reads `path`. A session is named by its second block, an answer by its line.
pub fn read(path: &Path, options: TraceOptions) -> Result<Workload, TraceError> {
    let block_tokens = options.block_tokens.unwrap_or(BLOCK_TOKENS).max(1);
    let mut lines = Lines::open(path)?;
    let mut taker = Taker::new(path, options);
    while let Some((number, text)) = lines.next_line()? {
        let line: Line =
            serde_json::from_str(text).map_err(|error| taker.bad(number, error.to_string()))?;
        let request =
            planned(number, &line, block_tokens).map_err(|problem| taker.bad(number, problem))?;
        if !taker.offer(number, request)? {
            break;
        }
    }
    taker.finish()
}

fn planned(number: usize, line: &Line, block_tokens: u32) -> Result<PlannedRequest, String> {
    if line.output_length == 0 {
        return Err("output_length is 0".to_owned());
    }
    let session = line.hash_ids.get(1).or(line.hash_ids.first()).copied();
    Ok(PlannedRequest {
        at: Duration::from_millis(line.timestamp),
        prompt: prompt(line, block_tokens)?,
        answer: Segment {
            id: mix(ANSWERS ^ number as u64),
            tokens: line.output_length,
        },
        session: session.unwrap_or_default(),
        tenant: 0,
        after: None,
    })
}

fn prompt(line: &Line, block_tokens: u32) -> Result<Vec<Segment>, String> {
    let length = line.input_length;
    let blocks = length.div_ceil(block_tokens) as usize;
    let named = line.hash_ids.len();
    if length == 0 || named != blocks {
        return Err(format!(
            "input_length {length} is {blocks} blocks of {block_tokens} tokens, but hash_ids names {named}"
        ));
    }
    let segment = |(place, id): (usize, &u64)| {
        let before = place as u32 * block_tokens;
        Segment {
            id: mix(BLOCKS ^ id),
            tokens: block_tokens.min(length - before),
        }
    };
    Ok(line.hash_ids.iter().enumerate().map(segment).collect())
}
