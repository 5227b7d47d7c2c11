//! Paged KV memory, laid out so that both halves of attention are the same tile product as the weights are.
//!
//! ```text
//! keys    [layer][block][kv head][group of 16 slots][head_dim][16 slots]     scores: 16 keys at a time
//! values  [layer][block][kv head][16 of head_dim][slot][16]                  sums:   16 dimensions at a time
//! ```
//!
//! Elements are f32, or bf16: then two that follow each other along a head's dimensions (keys) or along the slots
//! (values) share 32 bits, as two weights do. Slots of a block are written in order, and one that is the first of two
//! clears the second: so what nobody wrote is a number where the other is read.
//!
//! Blocks whose size, or heads whose width, is no multiple of 16 are padded up to one. Memory comes zeroed from the
//! operating system, which backs it only once it is written.

use std::ops::Range;

use half::bf16;

use super::super::{BackendError, BlockCopy, BlockPlace, KvLayout};
use super::kernels::{LANES, Packed, Pairs};
use super::pages::Pages;
use crate::model::ModelConfig;

/// The type of keys and values in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KvElement {
    F32,
    Bf16,
}

impl KvElement {
    /// For the log.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// Elements of one lane in an item of a panel.
    fn depth(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
        }
    }
}

/// 16 lanes of 32 bits, whatever they hold.
type Item = Pairs;

/// The sizes that do not depend on the pool.
#[derive(Clone, Copy, Debug)]
pub(super) struct KvGeometry {
    pub(super) element: KvElement,
    layers: usize,
    kv_heads: usize,
    pub(super) head_dim: usize,
}

/// The memory of all layers.
#[derive(Debug)]
pub(super) struct KvMemory {
    pub(super) geometry: KvGeometry,
    pub(super) block_size: usize,
    blocks: usize,
    keys: Pages<Item>,
    values: Pages<Item>,
    /// The second tier, laid out like the first.
    host_blocks: usize,
    host_keys: Pages<Item>,
    host_values: Pages<Item>,
}

impl KvGeometry {
    pub(super) fn new(config: &ModelConfig, element: KvElement) -> Self {
        Self {
            element,
            layers: config.layers,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        }
    }

    /// Of so many heads in so many layers.
    #[cfg(test)]
    pub(super) fn of(element: KvElement, layers: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self {
            element,
            layers,
            kv_heads,
            head_dim,
        }
    }

    /// Bytes of keys and values for a block of this size.
    pub(super) fn bytes_per_block(self, block_size: usize) -> usize {
        let lanes = self.key_rows(block_size) + self.value_rows(block_size);
        self.layers * self.kv_heads * lanes * size_of::<Item>()
    }

    /// Items that hold one head's keys of a block.
    fn key_rows(self, block_size: usize) -> usize {
        block_size.div_ceil(LANES) * self.key_items()
    }

    /// Items that hold one head's values of a block.
    fn value_rows(self, block_size: usize) -> usize {
        self.head_dim.div_ceil(LANES) * self.value_items(block_size)
    }

    /// Items of 16 keys.
    fn key_items(self) -> usize {
        self.head_dim.div_ceil(self.element.depth())
    }

    /// Items of 16 dimensions of a block's values.
    fn value_items(self, block_size: usize) -> usize {
        block_size.div_ceil(self.element.depth())
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
            host_blocks: 0,
            host_keys: Pages::empty(),
            host_values: Pages::empty(),
        }
    }

    pub(super) fn allocate(&mut self, layout: KvLayout) -> Result<(), BackendError> {
        let geometry = self.geometry;
        let block_size = layout.block_size as usize;
        let blocks = layout.blocks as usize;
        let heads = geometry.layers * geometry.kv_heads;
        let host_blocks = layout.host_blocks as usize;
        let both = blocks.saturating_add(host_blocks);
        let bytes = geometry.bytes_per_block(block_size).saturating_mul(both);
        let refuse = |reason: String| BackendError::KvMemory {
            bytes,
            blocks: layout.blocks.saturating_add(layout.host_blocks),
            reason,
        };
        let zeroed = |blocks: usize, rows: usize| {
            Pages::zeroed(heads.saturating_mul(blocks).saturating_mul(rows))
                .map_err(|error| refuse(error.to_string()))
        };
        self.keys = zeroed(blocks, geometry.key_rows(block_size))?;
        self.values = zeroed(blocks, geometry.value_rows(block_size))?;
        self.host_keys = zeroed(host_blocks, geometry.key_rows(block_size))?;
        self.host_values = zeroed(host_blocks, geometry.value_rows(block_size))?;
        self.block_size = block_size;
        self.blocks = blocks;
        self.host_blocks = host_blocks;
        Ok(())
    }

    /// Gives all memory back to the operating system.
    pub(super) fn release(&mut self) {
        self.keys = Pages::empty();
        self.values = Pages::empty();
        self.blocks = 0;
        self.host_keys = Pages::empty();
        self.host_values = Pages::empty();
        self.host_blocks = 0;
    }

    /// Copies one block, all layers of it.
    pub(super) fn copy(&mut self, copy: &BlockCopy) {
        let key_rows = self.geometry.kv_heads * self.geometry.key_rows(self.block_size);
        let value_rows = self.geometry.kv_heads * self.geometry.value_rows(self.block_size);
        let (blocks, host_blocks) = (self.blocks, self.host_blocks);
        for layer in 0..self.geometry.layers {
            let place = |place: BlockPlace| match place {
                BlockPlace::Device(block) => (false, layer * blocks + block as usize),
                BlockPlace::Host(block) => (true, layer * host_blocks + block as usize),
            };
            let (from, to) = (place(copy.from), place(copy.to));
            copy_rows(&mut self.keys, &mut self.host_keys, key_rows, from, to);
            copy_rows(
                &mut self.values,
                &mut self.host_values,
                value_rows,
                from,
                to,
            );
        }
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
        let group = index * rows + offset / LANES * self.geometry.key_items();
        let element = self.geometry.element;
        let keys = self.keys[group..].iter_mut();
        for (item, key) in keys.zip(key.chunks(element.depth())) {
            item[offset % LANES] = match (element, key) {
                (KvElement::F32, _) => key[0].to_bits(),
                (KvElement::Bf16, [first, second]) => bits(*first) | bits(*second) << 16,
                (KvElement::Bf16, _) => bits(key[0]),
            };
        }
        let first = index * self.geometry.value_rows(self.block_size) + offset / element.depth();
        let chunk = self.geometry.value_items(self.block_size);
        let items = self.values[first..].iter_mut().step_by(chunk);
        for (item, value) in items.zip(value.chunks(LANES)) {
            for (pair, value) in item.iter_mut().zip(value) {
                *pair = match element {
                    KvElement::F32 => value.to_bits(),
                    KvElement::Bf16 if offset.is_multiple_of(2) => bits(*value),
                    KvElement::Bf16 => *pair & 0xffff | bits(*value) << 16,
                };
            }
        }
    }

    /// The keys of 16 slots of a block, as a panel over the head's dimensions, and where values of that block lie that
    /// are as many as these keys. W is what the elements are packed as.
    pub(super) fn key_panel<W: Packed>(
        &self,
        layer: usize,
        block: u32,
        head: usize,
        group: usize,
    ) -> (&[W], *const W) {
        let index = self.index(layer, block as usize, head);
        let items = self.geometry.key_items();
        let first = index * self.geometry.key_rows(self.block_size) + group * items;
        let values = index * self.geometry.value_rows(self.block_size) + group * items;
        let ahead = self.values.as_ptr().wrapping_add(values).cast();
        let panel = &self.keys[first..first + items];
        (bytemuck::cast_slice(panel), ahead)
    }

    /// 16 dimensions of a block's values, as a panel over the block's slots, and where keys of block `next` lie that
    /// are as many as these values.
    pub(super) fn value_panel<W: Packed>(
        &self,
        layer: usize,
        (block, next): (u32, u32),
        head: usize,
        chunk: usize,
    ) -> (&[W], *const W) {
        let geometry = self.geometry;
        let items = geometry.value_items(self.block_size);
        let index = self.index(layer, block as usize, head);
        let first = index * geometry.value_rows(self.block_size) + chunk * items;
        let next = self.index(layer, next as usize, head);
        let keys = next * geometry.key_rows(self.block_size) + chunk * items;
        let ahead = self.keys.as_ptr().wrapping_add(keys).cast();
        let panel = &self.values[first..first + items];
        (bytemuck::cast_slice(panel), ahead)
    }

    fn index(&self, layer: usize, block: usize, head: usize) -> usize {
        (layer * self.blocks + block) * self.geometry.kv_heads + head
    }

    /// Fills all memory with NaN, so that reading a slot nobody wrote shows.
    #[cfg(test)]
    pub(super) fn poison(&mut self) {
        // As f32 and as two bf16.
        self.keys.fill([0x7fc0_7fc0; LANES]);
        self.values.fill([0x7fc0_7fc0; LANES]);
    }
}

/// The nearest bf16, in the lower half.
fn bits(value: f32) -> u32 {
    bf16::from_f32(value).to_bits().into()
}

/// Copies `rows` rows between two places, each the number of a run of so many rows, of host memory or not.
fn copy_rows(
    device: &mut [Item],
    host: &mut [Item],
    rows: usize,
    (from_host, from): (bool, usize),
    (to_host, to): (bool, usize),
) {
    let range = |run: usize| -> Range<usize> { run * rows..(run + 1) * rows };
    match (from_host, to_host) {
        (false, true) => host[range(to)].copy_from_slice(&device[range(from)]),
        (true, false) => device[range(to)].copy_from_slice(&host[range(from)]),
        (false, false) => device.copy_within(range(from), to * rows),
        (true, true) => host.copy_within(range(from), to * rows),
    }
}
