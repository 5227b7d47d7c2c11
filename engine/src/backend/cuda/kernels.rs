//! The kernels as the host knows them: their text, their names, and their arguments as they lie in memory.
//!
//! The text is in `kernels/`, one file for what belongs together, and each file says what it computes, how its arrays lie
//! and how many bytes and operations a call costs. It is part of the binary, for chips that it holds no machine code for.

use sha2::{Digest, Sha256};

/// A file of kernels, or one that they include.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The file's name.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

macro_rules! sources {
    ($($name:literal),* $(,)?) => {
        [$(Source { name: $name, text: include_str!(concat!("kernels/", $name)) }),*]
    };
}

/// What is compiled, each file by itself.
pub static SOURCES: [Source; 9] = sources![
    "activation.cu",
    "changes.cu",
    "decode.cu",
    "logprobs.cu",
    "norm.cu",
    "prefill.cu",
    "rope.cu",
    "sample.cu",
    "skinny.cu",
];

/// What those files include.
pub static HEADERS: [Source; 5] = sources![
    "attention.cuh",
    "mma.cuh",
    "prelude.cuh",
    "scales.cuh",
    "select.cuh",
];

/// SHA-256 over the names and texts of all sources and headers: what machine code was made from.
pub fn fingerprint() -> String {
    let mut hash = Sha256::new();
    for source in SOURCES.iter().chain(&HEADERS) {
        hash.update(source.name.len().to_le_bytes());
        hash.update(source.name);
        hash.update(source.text.len().to_le_bytes());
        hash.update(source.text);
    }
    hex(&hash.finalize())
}

/// Bytes as digits.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(value.into(), 16).unwrap_or_default();
    let digits = bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]);
    digits.collect()
}

/// No token, no row, no mask.
pub const NONE: u32 = u32::MAX;

/// An address of device memory.
pub type Address = u64;

/// Threads of a block of `prefill`, `decode`.
pub const ATTENTION_THREADS: u32 = 128;
/// Rows (tokens times query heads of a group) of a tile of `prefill`.
pub const PREFILL_ROWS: u32 = 64;
/// Keys that `prefill` and `decode` take in at a time.
pub const TILE_KEYS: u32 = 64;
/// Splits of a context at most.
pub const SPLITS_MAX: u32 = 16;
/// Query heads that share a block of `decode`.
pub const DECODE_ROWS: u32 = 16;
/// Widths of heads that there are attention kernels for.
pub const HEAD_DIMS: [u32; 4] = [32, 64, 96, 128];
/// Threads of a block of `skinny`, and the columns of the answer that it computes.
pub const SKINNY_THREADS: u32 = 256;
/// See [`SKINNY_THREADS`].
pub const SKINNY_COLUMNS: u32 = 16;
/// Rows of x that `skinny` takes at most.
pub const SKINNY_ROWS: u32 = 16;
/// Threads of a block of `change_logits`, `sample` and `logprobs`.
pub const ROW_THREADS: u32 = 1024;
/// The likeliest tokens that `logprobs` lists at most.
pub const TOP_MAX: u32 = 1024;

/// Bytes of shared memory that a block of `prefill` or `decode` takes.
pub const fn attention_bytes(head_dim: u32) -> u32 {
    2 * 2 * TILE_KEYS * (head_dim + 8) * 2
}

/// `finish_qkv`; see `rope.cu`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct RopeArguments {
    pub qkv: Address,
    pub bias: Address,
    pub q_norm: Address,
    pub k_norm: Address,
    pub angles: Address,
    pub positions: Address,
    pub slots: Address,
    pub keys: Address,
    pub values: Address,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub rotated: u32,
    pub block_log2: u32,
    pub eps: f32,
}

/// One sequence of a step; see `attention.cuh`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct SequenceOfStep {
    pub first_token: u32,
    pub new_tokens: u32,
    pub context: u32,
    pub first_block: u32,
}

/// `prefill`, `decode` and `combine`; see `attention.cuh`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct AttentionArguments {
    pub queries: Address,
    pub keys: Address,
    pub values: Address,
    pub out: Address,
    pub partial_sums: Address,
    pub partial_norms: Address,
    pub sequences: Address,
    pub block_tables: Address,
    pub work: Address,
    pub query_stride: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub block_log2: u32,
    pub window: u32,
    pub scale: f32,
}

/// How 8-bit weights are scaled; see `scales.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Scaling {
    None = 0,
    PerTensor = 1,
    PerChannel = 2,
    PerBlock = 3,
}

/// `skinny`; see `skinny.cu`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct SkinnyArguments {
    pub y: Address,
    pub x: Address,
    pub weight: Address,
    pub scales: Address,
    pub m: u32,
    pub n: u32,
    pub k: u32,
    pub x_stride: u32,
    pub y_stride: u32,
    pub scaling: u32,
    pub add: u32,
}

/// What is done to one row of logits; see `changes.cu`.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RowChanges {
    pub row: u32,
    pub keep: u32,
    pub mask: u32,
    pub banned_first: u32,
    pub banned_count: u32,
    pub biases_first: u32,
    pub biases_count: u32,
    pub prompt_first: u32,
    pub prompt_count: u32,
    pub output_first: u32,
    pub output_count: u32,
    pub repetition: f32,
    pub frequency: f32,
    pub presence: f32,
}

/// `change_logits`; see `changes.cu`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct ChangesArguments {
    pub logits: Address,
    pub raw: Address,
    pub changes: Address,
    pub masks: Address,
    pub banned: Address,
    pub biases: Address,
    pub history: Address,
    pub counts: Address,
    pub changes_count: u32,
    pub vocabulary: u32,
    pub stride: u32,
}

/// How a token is drawn from one row; see `sample.cu`.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RowDraw {
    pub row: u32,
    pub out: u32,
    pub temperature: f32,
    pub top_p: f32,
    pub min_p: f32,
    pub top_k: u32,
    pub seed_low: u32,
    pub seed_high: u32,
    pub position: u32,
}

/// `sample`; see `sample.cu`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct DrawArguments {
    pub logits: Address,
    pub draws: Address,
    pub sampled: Address,
    pub vocabulary: u32,
    pub stride: u32,
}

/// Which log probabilities of one row are wanted; see `logprobs.cu`.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RowLogprobs {
    pub row: u32,
    pub token: u32,
    pub sampled: u32,
    pub top: u32,
    pub asked_first: u32,
    pub asked_count: u32,
    pub listed: u32,
}

impl RowLogprobs {
    /// Pairs that are listed for it.
    pub fn entries(&self) -> u32 {
        if self.asked_count > 0 {
            self.asked_count
        } else {
            self.top
        }
    }
}

/// `logprobs`; see `logprobs.cu`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct LogprobArguments {
    pub logits: Address,
    pub wanted: Address,
    pub sampled: Address,
    pub asked: Address,
    pub chosen: Address,
    pub listed: Address,
    pub vocabulary: u32,
    pub stride: u32,
}
