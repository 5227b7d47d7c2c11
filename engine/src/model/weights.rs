//! Weights as they lie on disk: safetensors files, mapped and not copied.
//!
//! A safetensors file is `[header length u64 LE][JSON header][data]`. A model is one `model.safetensors`, or shards
//! that `model.safetensors.index.json` maps tensor names to. Offsets have no alignment guarantee, so readers go
//! through bytes. Mapping means start-up reads each page once, straight into wherever the backend packs it. Weights of 8
//! bits come with scales; see [`super::fp8`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo};
use serde::Deserialize;

use super::ModelError;
use super::fp8::{Scales, e4m3};
use super::raw::read_json;

/// Shards of one model at most.
const MAX_SHARDS: usize = 4096;

/// The mapped files of a model.
#[derive(Debug)]
pub struct Weights {
    folder: PathBuf,
    shards: Vec<Shard>,
    /// Which shard an index file says a tensor is in; empty for a single file.
    index: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    /// Where the data begins.
    data: usize,
}

/// A tensor in a mapped file, row-major.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Type of the elements.
    pub element: ElementType,
    /// Sizes, slowest dimension first.
    pub shape: &'a [usize],
    /// Little-endian elements, without alignment.
    pub bytes: &'a [u8],
    /// What the elements are multiplied by; none for nothing.
    pub scales: Option<Scales<'a>>,
}

/// A tensor that is in a file, before anything about it is believed.
pub(super) struct Found<'a, 'n> {
    name: &'n str,
    shard: &'a Shard,
    info: &'a TensorInfo,
}

/// Types of weights that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// Brain float: the upper half of an f32.
    Bf16,
    /// IEEE half.
    F16,
    /// IEEE single.
    F32,
    /// 8 bits, four of them an exponent; see [`e4m3`].
    E4m3,
}

impl ElementType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
            Self::E4m3 => 1,
        }
    }
}

impl<'a> Tensor<'a> {
    /// The tensors that this one is a stack of: one for each index of its first dimension.
    pub fn parts(&self) -> impl Iterator<Item = Tensor<'a>> + use<'a> {
        let (element, bytes) = (self.element, self.bytes);
        let shape = self.shape.get(1..).unwrap_or_default();
        let size = shape.iter().product::<usize>() * element.size();
        bytes.chunks_exact(size.max(1)).map(move |bytes| Tensor {
            element,
            shape,
            bytes,
            scales: None,
        })
    }

    /// Element `index` in row-major order, widened and scaled; none behind the end.
    pub fn get(&self, index: usize) -> Option<f32> {
        let width = self.shape.last().copied().unwrap_or(1).max(1);
        let scale = |scales: Scales<'_>| scales.at(index / width, index % width);
        Some(self.element.get(self.bytes, index)? * self.scales.map_or(1.0, scale))
    }

    /// All elements, widened and scaled.
    pub fn to_vec(&self) -> Vec<f32> {
        (0..self.shape.iter().product())
            .map_while(|index| self.get(index))
            .collect()
    }
}

impl ElementType {
    /// Element `index` of so many as `bytes` has, widened; none behind the end.
    pub fn get(self, bytes: &[u8], index: usize) -> Option<f32> {
        let size = self.size();
        let bytes = bytes.get(index * size..(index + 1) * size)?;
        match (self, bytes) {
            (Self::Bf16, &[a, b]) => Some(half::bf16::from_le_bytes([a, b]).to_f32()),
            (Self::F16, &[a, b]) => Some(half::f16::from_le_bytes([a, b]).to_f32()),
            (Self::F32, &[a, b, c, d]) => Some(f32::from_le_bytes([a, b, c, d])),
            (Self::E4m3, &[bits]) => Some(e4m3(bits)),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// No weights, of a folder that need not have any.
    pub(super) fn none(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            shards: Vec::new(),
            index: BTreeMap::new(),
        }
    }

    /// Maps the safetensors files of a folder and checks their headers against their sizes.
    ///
    /// # Errors
    /// Names the file that is missing, truncated or malformed.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let single = folder.join("model.safetensors");
        let index_path = folder.join("model.safetensors.index.json");
        if !index_path.is_file() {
            return Ok(Self {
                folder: folder.to_owned(),
                shards: vec![Shard::open(single)?],
                index: BTreeMap::new(),
            });
        }
        let raw: Index = read_json(&index_path)?;
        let malformed = |reason| ModelError::Malformed {
            path: index_path.clone(),
            reason,
        };
        let files: BTreeSet<&String> = raw.weight_map.values().collect();
        if files.len() > MAX_SHARDS {
            return Err(malformed(format!(
                "{} shards; at most {MAX_SHARDS}",
                files.len()
            )));
        }
        // A name with a folder in it could reach any file of the machine.
        if let Some(name) = files.iter().find(|name| !is_plain_name(name)) {
            return Err(malformed(format!("{name} is not a plain file name")));
        }
        let places: BTreeMap<&String, usize> = files.iter().copied().zip(0..).collect();
        let shards = files.iter().map(|name| Shard::open(folder.join(name)));
        let shards = shards.collect::<Result<_, _>>()?;
        let index = raw
            .weight_map
            .iter()
            .filter_map(|(tensor, file)| Some((tensor.clone(), *places.get(file)?)));
        Ok(Self {
            folder: folder.to_owned(),
            shards,
            index: index.collect(),
        })
    }

    /// The tensor `name`, which must have exactly this shape, and elements of 16 or 32 bits.
    ///
    /// # Errors
    /// When there is no such tensor, or it has another shape, or elements of a type that cannot be read.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, ModelError> {
        let found = self.find(name)?;
        found.check_shape(&[shape])?;
        found.tensor()
    }

    /// The tensor `name`, whatever it is.
    ///
    /// # Errors
    /// When there is no such tensor.
    pub(super) fn find<'n>(&self, name: &'n str) -> Result<Found<'_, 'n>, ModelError> {
        let missing = |path: &Path| ModelError::Tensor {
            path: path.to_owned(),
            name: name.to_owned(),
            reason: "is missing".to_owned(),
        };
        let shard = match self.index.get(name) {
            Some(&shard) => self.shards.get(shard),
            None if self.index.is_empty() => self.shards.first(),
            None => None,
        };
        let shard = shard.ok_or_else(|| missing(&self.folder))?;
        let info = shard.metadata.info(name);
        let info = info.ok_or_else(|| missing(&shard.path))?;
        Ok(Found { name, shard, info })
    }

    /// The folder that was opened.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        let listed = self.index.contains_key(name);
        listed
            || self
                .shards
                .iter()
                .any(|shard| shard.metadata.info(name).is_some())
    }
}

impl<'a> Found<'a, '_> {
    /// An error that names file and tensor.
    pub(super) fn wrong(&self, reason: String) -> ModelError {
        ModelError::Tensor {
            path: self.shard.path.clone(),
            name: self.name.to_owned(),
            reason,
        }
    }

    /// Fails unless the shape is one of `shapes`, of which errors name the first.
    pub(super) fn check_shape(&self, shapes: &[&[usize]]) -> Result<(), ModelError> {
        if shapes.contains(&self.info.shape.as_slice()) {
            return Ok(());
        }
        let (found, said) = (&self.info.shape, shapes.first().copied().unwrap_or(&[]));
        Err(self.wrong(format!(
            "has shape {found:?}; the configuration says {said:?}"
        )))
    }

    /// Whether its elements are of 8 bits, and worth nothing without their scales.
    pub(super) fn is_e4m3(&self) -> bool {
        self.info.dtype == Dtype::F8_E4M3
    }

    /// It with elements of 16 or 32 bits.
    pub(super) fn tensor(&self) -> Result<Tensor<'a>, ModelError> {
        let element = match self.info.dtype {
            Dtype::BF16 => ElementType::Bf16,
            Dtype::F16 => ElementType::F16,
            Dtype::F32 => ElementType::F32,
            other => return Err(self.wrong(format!("has elements of type {other:?}"))),
        };
        self.of(element, None)
    }

    /// It with elements of 8 bits, which `scales` are of.
    pub(super) fn scaled(&self, scales: Scales<'a>) -> Result<Tensor<'a>, ModelError> {
        self.of(ElementType::E4m3, Some(scales))
    }

    fn of(
        &self,
        element: ElementType,
        scales: Option<Scales<'a>>,
    ) -> Result<Tensor<'a>, ModelError> {
        let (shard, shape) = (self.shard, &self.info.shape);
        let (start, end) = self.info.data_offsets;
        let bytes = shard.map.get(shard.data + start..shard.data + end);
        let size = shape.iter().product::<usize>() * element.size();
        let bytes = bytes.filter(|bytes| bytes.len() == size);
        Ok(Tensor {
            element,
            shape,
            bytes: bytes.ok_or_else(|| self.wrong("lies outside its file".to_owned()))?,
            scales,
        })
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self, ModelError> {
        let map = map(&path)?;
        let malformed = |error: safetensors::SafeTensorError| ModelError::Malformed {
            path: path.clone(),
            reason: format!("{error} (file of {} bytes)", map.len()),
        };
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(malformed)?;
        let data = header + size_of::<u64>();
        Ok(Self {
            path,
            map,
            metadata,
            data,
        })
    }
}

/// Whether this is the name of a file in the same folder, and not a way to another one.
pub(super) fn is_plain_name(name: &str) -> bool {
    Path::new(name).file_name() == Some(name.as_ref())
}

/// Maps a whole file.
pub(super) fn map(path: &Path) -> Result<Mmap, ModelError> {
    let read = |source| ModelError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(read)?;
    #[expect(unsafe_code, reason = "mapping a file is unsafe: others may change it")]
    // SAFETY: the map is read-only and outlives no borrow of it. Whoever truncates or rewrites a weight file
    // under a running worker breaks that worker; model folders are immutable by contract, as with any loader.
    unsafe { Mmap::map(&file) }.map_err(read)
}

#[cfg(test)]
mod tests;
