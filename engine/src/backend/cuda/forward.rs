//! One step through all layers, as launches.
//!
//! ```text
//! embed_norm                                        hidden, normed
//! each layer:  multiply qkv ▶ finish_qkv ▶ prefill | decode, combine ▶ multiply o (▶ add up) ▶ add_norm
//!              multiply gate_up ▶ silu_multiply ▶ multiply down (▶ add up) ▶ add_norm of the next layer
//! gather_norm of the rows that somebody asks for    normed
//! ```
//!
//! Ranks of a group have a part of each layer, and add up what it comes to (see `model::shard`).
//! Nine launches a layer for decodes, whose shapes are the bucket's where the step runs in a graph. Buffers are as large as the largest step and stay where they are.

use super::arrays::{Arrays, Sections};
use super::device::{Device, DeviceError, Memory};
use super::kernels::{Address, AttentionArguments, RopeArguments, SPLITS_MAX};
use super::ops::{Embedding, Norm, Ops};
use super::plan::{AttentionPlan, GraphKey, splits_most};
use super::weights::{LayerWeights, Matrix, Weights};
use crate::model::ModelConfig;

/// Bytes of an activation.
const ELEMENT: usize = 2;

/// The sizes that launches follow from.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub hidden: u32,
    pub inner: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub rotated: u32,
    /// Of the whole model; a rank has logits of [`Sizes::own_vocabulary`].
    pub vocabulary: u32,
    pub eps: f32,
    /// How many ranks the model is shared by.
    pub ranks: u32,
}

impl Sizes {
    /// Of what one of so many ranks computes, whose configuration this is.
    pub fn of(config: &ModelConfig, ranks: usize) -> Self {
        Self {
            ranks: ranks as u32,
            hidden: config.hidden_size as u32,
            inner: config.intermediate_size as u32,
            heads: config.heads as u32,
            kv_heads: config.kv_heads as u32,
            head_dim: config.head_dim as u32,
            rotated: config.rope.dim as u32,
            vocabulary: config.vocab_size as u32,
            eps: config.rms_norm_eps,
        }
    }

    /// Query heads that share a key-value head.
    pub fn group(&self) -> u32 {
        self.heads / self.kv_heads
    }

    /// Tokens whose logits a rank computes; see [`crate::model::Shard::vocabulary_of`]. The last one may have fewer, and
    /// computes as many.
    pub fn own_vocabulary(&self) -> u32 {
        self.vocabulary.div_ceil(self.ranks)
    }

    fn qkv(&self) -> u32 {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    fn attended(&self) -> u32 {
        self.heads * self.head_dim
    }
}

/// Keys and values of all layers: `[layers, blocks, kv_heads, block_size, head_dim]` each.
#[derive(Clone, Copy, Debug, Default)]
pub struct KvPages {
    pub keys: Memory,
    pub values: Memory,
    /// Bytes of one layer of one of them.
    pub layer_bytes: usize,
    /// Bytes of one block of one layer of one of them.
    pub block_bytes: usize,
    pub block_log2: u32,
}

/// Buffers over a step's tokens.
#[derive(Debug, Default)]
pub struct Buffers {
    hidden: Buffer,
    normed: Buffer,
    qkv: Buffer,
    attended: Buffer,
    delta: Buffer,
    gate_up: Buffer,
    activated: Buffer,
    partial_sums: Buffer,
    partial_norms: Buffer,
    /// `[rows, hidden]`, what `gather_norm` picks.
    picked: Buffer,
}

/// Memory that grows to what was needed and stays.
#[derive(Debug, Default)]
pub struct Buffer {
    memory: Memory,
}

impl Buffer {
    /// Memory for at least so many bytes; what it held is lost when it has to grow.
    ///
    /// # Errors
    /// When there is not as much.
    pub fn of(&mut self, device: &mut dyn Device, bytes: usize) -> Result<Memory, DeviceError> {
        if self.memory.bytes < bytes {
            device.free(std::mem::take(&mut self.memory));
            self.memory = device.allocate(bytes.next_power_of_two().max(256))?;
        }
        Ok(self.memory)
    }

    /// What it has.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Where it is.
    pub fn address(&self) -> Address {
        self.memory.address
    }
}

impl Buffers {
    /// `[rows, hidden]`: the normed rows that were asked for.
    pub fn picked(&self) -> Memory {
        self.picked.memory()
    }

    /// All of them, where graphs expect them.
    pub fn places(&self) -> [Address; 10] {
        [
            &self.hidden,
            &self.normed,
            &self.qkv,
            &self.attended,
            &self.delta,
            &self.gate_up,
            &self.activated,
            &self.partial_sums,
            &self.partial_norms,
            &self.picked,
        ]
        .map(Buffer::address)
    }

    /// Makes them large enough for a step.
    ///
    /// # Errors
    /// When there is not as much memory.
    pub fn prepare(
        &mut self,
        device: &mut dyn Device,
        sizes: &Sizes,
        extent: Extent,
    ) -> Result<(), DeviceError> {
        let Extent {
            tokens,
            decodes,
            rows,
        } = extent;
        let rows_of = |rows: u32, width: u32| rows as usize * width as usize * ELEMENT;
        for (buffer, width) in [
            (&mut self.hidden, sizes.hidden),
            (&mut self.normed, sizes.hidden),
            (&mut self.qkv, sizes.qkv()),
            (&mut self.attended, sizes.attended()),
            (&mut self.delta, sizes.hidden),
            (&mut self.gate_up, 2 * sizes.inner),
            (&mut self.activated, sizes.inner),
        ] {
            buffer.of(device, rows_of(tokens, width))?;
        }
        self.picked.of(device, rows_of(rows, sizes.hidden))?;
        let parts = (decodes * sizes.heads * SPLITS_MAX) as usize;
        let floats = |count: usize| count * size_of::<f32>();
        self.partial_sums
            .of(device, floats(parts * sizes.head_dim as usize))?;
        self.partial_norms.of(device, floats(parts * 2))?;
        Ok(())
    }
}

/// How many rows of what a step has, with its padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub tokens: u32,
    pub decodes: u32,
    /// Rows that somebody asks for.
    pub rows: u32,
}

/// What a step is computed with.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    pub sizes: &'a Sizes,
    pub weights: &'a Weights,
    /// How many tokens each layer's tokens see; see `ModelConfig::windows`.
    pub windows: &'a [Option<usize>],
    /// See `rope.cu`.
    pub angles: Address,
    pub kv: &'a KvPages,
    pub plan: &'a AttentionPlan,
    pub arrays: &'a Arrays,
    /// Where the arrays lie on the device.
    pub base: Address,
    /// Where the tokens lie that the step before sampled.
    pub sampled: Address,
    /// What the launches must be the same for.
    pub graph: Option<GraphKey>,
}

impl Pass<'_> {
    /// What the buffers must have room for.
    pub fn extent(&self) -> Extent {
        if let Some(key) = self.graph {
            return Extent {
                tokens: key.rows,
                decodes: key.rows,
                rows: key.rows,
            };
        }
        let counts = self.arrays.counts();
        Extent {
            tokens: counts.tokens,
            decodes: self.plan.decodes.len() as u32,
            rows: counts.sampled + counts.prompt_rows + counts.embedded,
        }
    }

    /// Computes all layers. The normed rows that were asked for are in [`Buffers::picked`].
    ///
    /// # Errors
    /// When the device fails.
    pub fn run(&self, ops: &mut Ops<'_>, b: &Buffers) -> Result<(), DeviceError> {
        let (sizes, Extent { tokens, rows, .. }) = (self.sizes, self.extent());
        let [hidden, normed, delta] = [&b.hidden, &b.normed, &b.delta].map(Buffer::address);
        let norm = |weight: Memory| Norm {
            weight: weight.address,
            eps: sizes.eps,
        };
        let Some(first) = self.weights.layers.first() else {
            return Ok(());
        };
        let fed = self.arrays.fed();
        let embedding = Embedding {
            tokens: self.at(|sections| sections.tokens),
            sources: if fed {
                self.at(|sections| sections.sources)
            } else {
                0
            },
            sampled: self.sampled,
            table: self.weights.embedding.address,
            vocabulary: sizes.vocabulary,
        };
        ops.embed_norm(
            tokens,
            sizes.hidden,
            [hidden, normed],
            embedding,
            norm(first.input_norm),
        )?;
        for (index, layer) in self.weights.layers.iter().enumerate() {
            self.attend(ops, b, index, layer)?;
            ops.add_norm(
                tokens,
                sizes.hidden,
                [hidden, normed, delta],
                norm(layer.post_norm),
            )?;
            self.feed_forward(ops, b, layer)?;
            if let Some(next) = self.weights.layers.get(index + 1) {
                let norm = norm(next.input_norm);
                ops.add_norm(tokens, sizes.hidden, [hidden, normed, delta], norm)?;
            }
        }
        if rows > 0 {
            let picked = (rows, self.at(|sections| sections.rows));
            let rows_of = [b.picked.address(), hidden, delta];
            ops.gather_norm(picked, sizes.hidden, rows_of, norm(self.weights.norm))?;
        }
        Ok(())
    }

    /// `delta = attention(normed)·oᵀ`, writing keys and values on the way.
    fn attend(
        &self,
        ops: &mut Ops<'_>,
        b: &Buffers,
        index: usize,
        layer: &LayerWeights,
    ) -> Result<(), DeviceError> {
        let (sizes, Extent { tokens, .. }) = (self.sizes, self.extent());
        self.multiply(ops, &layer.qkv, [&b.qkv, &b.normed])?;
        let page = |pages: Memory| pages.address + (index * self.kv.layer_bytes) as Address;
        let (keys, values) = (page(self.kv.keys), page(self.kv.values));
        ops.finish_qkv(tokens, self.rope(b, layer, [keys, values]))?;
        let window = self.windows.get(index).copied().flatten();
        let window = window.map(|window| u32::try_from(window).unwrap_or(u32::MAX));
        let attention = AttentionArguments {
            queries: b.qkv.address(),
            keys,
            values,
            out: b.attended.address(),
            partial_sums: b.partial_sums.address(),
            partial_norms: b.partial_norms.address(),
            sequences: self.at(|sections| sections.sequences),
            block_tables: self.at(|sections| sections.block_tables),
            work: 0,
            query_stride: sizes.qkv(),
            heads: sizes.heads,
            kv_heads: sizes.kv_heads,
            block_log2: self.kv.block_log2,
            window: window.unwrap_or(0),
            scale: (std::f64::consts::LOG2_E / f64::from(sizes.head_dim).sqrt()) as f32,
        };
        self.attention(ops, attention, window)?;
        self.multiply(ops, &layer.o, [&b.delta, &b.attended])?;
        self.add_up(ops, b)
    }

    /// `delta` over all ranks.
    fn add_up(&self, ops: &mut Ops<'_>, b: &Buffers) -> Result<(), DeviceError> {
        if self.sizes.ranks == 1 {
            return Ok(());
        }
        let Extent { tokens, .. } = self.extent();
        ops.add_up(b.delta.address(), tokens * self.sizes.hidden)
    }

    /// `y = x·wᵀ` over the step's tokens.
    fn multiply(
        &self,
        ops: &mut Ops<'_>,
        matrix: &Matrix,
        [y, x]: [&Buffer; 2],
    ) -> Result<(), DeviceError> {
        let widened = self.weights.widened.address;
        let Extent { tokens, .. } = self.extent();
        ops.multiply_by(matrix, widened, [y.address(), x.address()], tokens)
    }

    fn rope(
        &self,
        b: &Buffers,
        layer: &LayerWeights,
        [keys, values]: [Address; 2],
    ) -> RopeArguments {
        let sizes = self.sizes;
        RopeArguments {
            qkv: b.qkv.address(),
            bias: layer.qkv_bias.address,
            q_norm: layer.q_norm.address,
            k_norm: layer.k_norm.address,
            angles: self.angles,
            positions: self.at(|sections| sections.positions),
            slots: self.at(|sections| sections.slots),
            keys,
            values,
            heads: sizes.heads,
            kv_heads: sizes.kv_heads,
            head_dim: sizes.head_dim,
            rotated: sizes.rotated,
            block_log2: self.kv.block_log2,
            eps: sizes.eps,
        }
    }

    fn attention(
        &self,
        ops: &mut Ops<'_>,
        a: AttentionArguments,
        window: Option<u32>,
    ) -> Result<(), DeviceError> {
        let (tiles, Extent { decodes, .. }) = (self.plan.tiles.len() as u32, self.extent());
        if tiles > 0 {
            let work = self.at(|sections| sections.tiles);
            ops.prefill(tiles, self.sizes.head_dim, AttentionArguments { work, ..a })?;
        }
        if decodes > 0 {
            let work = self.at(|sections| sections.decodes);
            let splits = match self.graph {
                Some(key) => key.splits.min(splits_most(window)),
                None => self.plan.splits(window),
            };
            let a = AttentionArguments { work, ..a };
            ops.decode((decodes, splits), self.sizes.head_dim, a)?;
        }
        Ok(())
    }

    /// `delta = mlp(normed)`.
    fn feed_forward(
        &self,
        ops: &mut Ops<'_>,
        b: &Buffers,
        layer: &LayerWeights,
    ) -> Result<(), DeviceError> {
        let (sizes, Extent { tokens: m, .. }) = (self.sizes, self.extent());
        self.multiply(ops, &layer.gate_up, [&b.gate_up, &b.normed])?;
        ops.silu_multiply(m, sizes.inner, [b.activated.address(), b.gate_up.address()])?;
        self.multiply(ops, &layer.down, [&b.delta, &b.activated])?;
        self.add_up(ops, b)
    }

    fn at(&self, section: impl Fn(&Sections) -> usize) -> Address {
        Arrays::address(self.base, section(self.arrays.sections()))
    }
}
