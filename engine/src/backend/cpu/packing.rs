//! Weights as they lie in memory: how a tensor's rows become panels, and how much each element takes.
//!
//! bf16 stays as it is, or becomes f32. 8-bit integers are the nearest multiples of one scale a row, the row's largest
//! magnitude over 127: half the bytes of bf16, and each weight off by at most half a step. f16 has more digits than
//! bf16 and becomes f32; so does e4m3 with its scale.

use half::{bf16, f16};

use super::columns::each_chunk;
use super::kernels::{LANES, Lanes, Packed, Pairs, Quants};
use super::pages::Pages;
use super::team::Team;
use crate::model::{ElementType, Scales, Tensor, e4m3};

/// Largest magnitude of a quantised weight.
const QUANT_MAX: f32 = 127.0;

/// The type of packed weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storage {
    F32,
    Bf16,
    Int8,
}

impl Storage {
    /// For the log.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

/// A matrix in panels of 16 outputs.
#[derive(Debug)]
pub(super) enum Panels {
    F32(Pages<Lanes>),
    Bf16(Pages<Pairs>),
    /// And the scales of each panel's outputs.
    Int8(Pages<Quants>, Vec<Lanes>),
}

impl Panels {
    /// Packs tensors `[_, inputs]`, of `outputs` rows together, one below the other.
    pub(super) fn pack(
        team: &Team,
        tensors: &[Tensor<'_>],
        inputs: usize,
        outputs: usize,
        storage: Storage,
    ) -> std::io::Result<Self> {
        let rows = Rows { tensors, inputs };
        let panels = outputs.div_ceil(LANES);
        Ok(match storage {
            Storage::F32 => Self::F32(pack(team, panels, inputs, |panel, items: &mut [Lanes]| {
                rows.each(panel, |lane, row| {
                    for (item, value) in items.iter_mut().zip(row.values(&mut Vec::new())) {
                        item[lane] = *value;
                    }
                });
            })?),
            Storage::Bf16 => Self::Bf16(pack(team, panels, inputs, |panel, items| {
                rows.each(panel, |lane, row| row.pairs(lane, items));
            })?),
            Storage::Int8 => {
                let mut scales = vec![[0.0; LANES]; panels];
                each_chunk(team, &mut scales, 1, |panel, scales| {
                    rows.each(panel, |lane, row| {
                        scales[0][lane] = row.largest() / QUANT_MAX;
                    });
                });
                let quants = pack(team, panels, inputs, |panel, items: &mut [Quants]| {
                    rows.each(panel, |lane, row| {
                        let scale = scales[panel][lane];
                        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                        for (item, value) in items.iter_mut().zip(row.values(&mut Vec::new())) {
                            item[lane] = nearest(value * inverse);
                        }
                    });
                })?;
                Self::Int8(quants, scales)
            }
        })
    }

    /// Row `output`, of `inputs` values, of the matrix that was packed; for int8 what is left of it.
    pub(super) fn unpack_row(&self, inputs: usize, output: usize, row: &mut [f32]) {
        fn gather<W: Packed>(panels: &[W], inputs: usize, output: usize, row: &mut [f32]) {
            let items = inputs.div_ceil(W::DEPTH);
            let panel = &panels[output / LANES * items..][..items];
            for (values, item) in row.chunks_mut(W::DEPTH).zip(panel) {
                for (step, value) in values.iter_mut().enumerate() {
                    *value = item.widen(step)[output % LANES];
                }
            }
        }
        match self {
            Self::F32(panels) => gather(panels, inputs, output, row),
            Self::Bf16(panels) => gather(panels, inputs, output, row),
            Self::Int8(panels, scales) => {
                gather(panels, inputs, output, row);
                let scale = scales[output / LANES][output % LANES];
                for value in row.iter_mut() {
                    *value *= scale;
                }
            }
        }
    }
}

/// Panels whose items `fill` writes, given the panel's number.
fn pack<W: Packed>(
    team: &Team,
    panels: usize,
    inputs: usize,
    fill: impl Fn(usize, &mut [W]) + Sync,
) -> std::io::Result<Pages<W>> {
    let items = inputs.div_ceil(W::DEPTH);
    let mut pages = Pages::zeroed(panels * items)?;
    each_chunk(team, &mut pages, items, fill);
    Ok(pages)
}

/// The rows of several tensors, one below the other.
struct Rows<'a> {
    tensors: &'a [Tensor<'a>],
    inputs: usize,
}

/// One of them.
struct Row<'a> {
    element: ElementType,
    bytes: &'a [u8],
    /// What its elements are multiplied by, and its number among the rows of its tensor.
    scales: Option<(Scales<'a>, usize)>,
}

impl<'a> Rows<'a> {
    fn row(&self, mut output: usize) -> Option<Row<'a>> {
        for tensor in self.tensors {
            if output < tensor.shape[0] {
                let width = self.inputs * tensor.element.size();
                return Some(Row {
                    element: tensor.element,
                    bytes: tensor.bytes.get(output * width..(output + 1) * width)?,
                    scales: tensor.scales.map(|scales| (scales, output)),
                });
            }
            output -= tensor.shape[0];
        }
        None
    }

    /// The rows of a panel that there are, with their lanes.
    fn each(&self, panel: usize, mut work: impl FnMut(usize, Row<'a>)) {
        for lane in 0..LANES {
            if let Some(row) = self.row(panel * LANES + lane) {
                work(lane, row);
            }
        }
    }
}

/// The integer nearest to `value`, which is of the order of 127 at most: adding 1.5·2^23 rounds, and leaves it in the
/// low bits.
fn nearest(value: f32) -> i8 {
    (value + 12_582_912.0).to_bits() as i8
}

impl Row<'_> {
    /// All elements, in `room`.
    fn values<'r>(&self, room: &'r mut Vec<f32>) -> &'r [f32] {
        let (halves, _) = self.bytes.as_chunks::<2>();
        let (wholes, _) = self.bytes.as_chunks::<4>();
        match self.element {
            ElementType::Bf16 => {
                room.extend(halves.iter().map(|b| bf16::from_le_bytes(*b).to_f32()));
            }
            ElementType::F16 => room.extend(halves.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
            ElementType::F32 => room.extend(wholes.iter().map(|b| f32::from_le_bytes(*b))),
            ElementType::E4m3 => room.extend(self.bytes.iter().map(|bits| e4m3(*bits))),
        }
        if let Some((scales, row)) = self.scales {
            let [_, each] = scales.grain.each();
            for (index, values) in room.chunks_mut(each).enumerate() {
                let scale = scales.at(row, index * each);
                for value in values {
                    *value *= scale;
                }
            }
        }
        room
    }

    fn largest(&self) -> f32 {
        let mut room = Vec::new();
        let values = self.values(&mut room).iter();
        values.fold(0.0, |largest, value| largest.max(value.abs()))
    }

    /// Writes this row's pairs to one lane of a panel.
    fn pairs(&self, lane: usize, items: &mut [Pairs]) {
        if self.element == ElementType::Bf16 {
            // Two of them lie in memory as a pair does.
            let (pairs, rest) = self.bytes.as_chunks::<4>();
            for (item, pair) in items.iter_mut().zip(pairs) {
                item[lane] = u32::from_le_bytes(*pair);
            }
            if let (&[a, b], Some(item)) = (rest, items.last_mut()) {
                item[lane] = u32::from_le_bytes([a, b, 0, 0]);
            }
            return;
        }
        let mut room = Vec::new();
        let bits = |value: &f32| u32::from(bf16::from_f32(*value).to_bits());
        for (item, pair) in items.iter_mut().zip(self.values(&mut room).chunks(2)) {
            item[lane] = bits(&pair[0]) | pair.get(1).map_or(0, bits) << 16;
        }
    }
}
