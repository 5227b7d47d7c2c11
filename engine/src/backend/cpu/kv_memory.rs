//! Paged KV memory, laid out so that both halves of attention are the same tile product as the weights are.
//!
//! ```text
//! keys    [layer][block][kv head][group of 16 slots][head_dim][16 slots]     scores: 16 keys at a time
//! values  [layer][block][kv head][16 of head_dim][slot][16]                  sums:   16 dimensions at a time
//! ```
//!
//! Blocks whose size, or heads whose width, is no multiple of 16 are padded up to one. Memory comes zeroed from the
//! operating system, which backs it only once it is written.

use super::super::{BackendError, KvLayout};
use super::kernels::{LANES, Lanes};
use super::pages::Pages;
use crate::model::ModelConfig;

/// The sizes that do not depend on the pool.
#[derive(Clone, Copy, Debug)]
pub(super) struct KvGeometry {
    layers: usize,
    kv_heads: usize,
    pub(super) head_dim: usize,
}

/// The memory of all layers.
#[derive(Debug)]
pub(super) struct KvMemory {
    geometry: KvGeometry,
    pub(super) block_size: usize,
    blocks: usize,
    keys: Pages<Lanes>,
    values: Pages<Lanes>,
}

impl KvGeometry {
    pub(super) fn new(config: &ModelConfig) -> Self {
        Self {
            layers: config.layers,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        }
    }

    /// Bytes of keys and values for a block of this size.
    pub(super) fn bytes_per_block(self, block_size: usize) -> usize {
        let lanes = self.key_rows(block_size) + self.value_rows(block_size);
        self.layers * self.kv_heads * lanes * size_of::<Lanes>()
    }

    /// Rows of lanes that hold one head's keys of a block.
    fn key_rows(self, block_size: usize) -> usize {
        block_size.div_ceil(LANES) * self.head_dim
    }

    /// Rows of lanes that hold one head's values of a block.
    fn value_rows(self, block_size: usize) -> usize {
        self.head_dim.div_ceil(LANES) * block_size
    }
}

impl KvMemory {
    /// No memory yet.
    pub(super) fn new(geometry: KvGeometry) -> Self {
        Self {
            geometry,
            block_size: 1,
            blocks: 0,
            keys: Pages::empty(),
            values: Pages::empty(),
        }
    }

    pub(super) fn allocate(&mut self, layout: KvLayout) -> Result<(), BackendError> {
        let geometry = self.geometry;
        let block_size = layout.block_size as usize;
        let blocks = layout.blocks as usize;
        let heads = geometry.layers * geometry.kv_heads;
        let bytes = geometry.bytes_per_block(block_size).saturating_mul(blocks);
        let refuse = |reason: String| BackendError::KvMemory {
            bytes,
            blocks: layout.blocks,
            reason,
        };
        let zeroed = |rows: usize| {
            Pages::zeroed(heads.saturating_mul(blocks).saturating_mul(rows))
                .map_err(|error| refuse(error.to_string()))
        };
        self.keys = zeroed(geometry.key_rows(block_size))?;
        self.values = zeroed(geometry.value_rows(block_size))?;
        self.block_size = block_size;
        self.blocks = blocks;
        Ok(())
    }

    /// Writes one token's key and value of one head.
    pub(super) fn write(
        &mut self,
        layer: usize,
        slot: u32,
        head: usize,
        key: &[f32],
        value: &[f32],
    ) {
        let block = slot as usize / self.block_size;
        let offset = slot as usize % self.block_size;
        let index = self.index(layer, block, head);
        let rows = self.geometry.key_rows(self.block_size);
        let group = index * rows + offset / LANES * self.geometry.head_dim;
        for (lanes, key) in self.keys[group..].iter_mut().zip(key) {
            lanes[offset % LANES] = *key;
        }
        let first = index * self.geometry.value_rows(self.block_size) + offset;
        let rows = self.values[first..].iter_mut().step_by(self.block_size);
        for (lanes, value) in rows.zip(value.chunks(LANES)) {
            lanes[..value.len()].copy_from_slice(value);
        }
    }

    /// The keys of 16 slots of a block, as a panel over the head's dimensions.
    pub(super) fn key_panel(
        &self,
        layer: usize,
        block: u32,
        head: usize,
        group: usize,
    ) -> &[Lanes] {
        let rows = self.geometry.key_rows(self.block_size);
        let head_dim = self.geometry.head_dim;
        let first = self.index(layer, block as usize, head) * rows + group * head_dim;
        &self.keys[first..first + head_dim]
    }

    /// 16 dimensions of a block's values, as a panel over the block's slots.
    pub(super) fn value_panel(
        &self,
        layer: usize,
        block: u32,
        head: usize,
        chunk: usize,
    ) -> &[Lanes] {
        let rows = self.geometry.value_rows(self.block_size);
        let first = self.index(layer, block as usize, head) * rows + chunk * self.block_size;
        &self.values[first..first + self.block_size]
    }

    fn index(&self, layer: usize, block: usize, head: usize) -> usize {
        (layer * self.blocks + block) * self.geometry.kv_heads + head
    }

    /// Fills all memory with NaN, so that reading a slot nobody wrote shows.
    #[cfg(test)]
    pub(super) fn poison(&mut self) {
        self.keys.fill([f32::NAN; LANES]);
        self.values.fill([f32::NAN; LANES]);
    }
}
