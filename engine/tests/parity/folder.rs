//! Model folders and prompts out of an integer hash, the same as in `make_golden.py`.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::path::Path;

use half::bf16;
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// A model's configuration and weights, and what else is known of it.
#[derive(Deserialize)]
pub(crate) struct Weights<T> {
    config: serde_json::Value,
    seed: u64,
    /// Name, shape, mean and half width.
    tensors: Vec<(String, Vec<usize>, f32, f32)>,
    #[serde(flatten)]
    pub(crate) cases: T,
}

impl<T> Weights<T> {
    /// Writes the folder in two shards, with an index and a manifest.
    pub(crate) fn write(&self, folder: &Path, narrow: bool) {
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).unwrap();
        write("config.json", self.config.to_string().as_bytes());
        let mut places = BTreeMap::new();
        let mut sums = String::new();
        let half = self.tensors.len() / 2;
        for (number, tensors) in [&self.tensors[..half], &self.tensors[half..]]
            .iter()
            .enumerate()
        {
            let file = format!("model-0000{}-of-00002.safetensors", number + 1);
            let data: Vec<Vec<u8>> = (tensors.iter())
                .map(|(name, shape, mean, width)| {
                    let values = uniform(self.seed, name, shape.iter().product());
                    let values = values.map(|value| value * width + mean);
                    if narrow {
                        values
                            .flat_map(|value| bf16::from_f32(value).to_le_bytes())
                            .collect()
                    } else {
                        values.flat_map(f32::to_le_bytes).collect()
                    }
                })
                .collect();
            let dtype = if narrow { Dtype::BF16 } else { Dtype::F32 };
            let views = tensors.iter().zip(&data).map(|((name, shape, ..), data)| {
                places.insert(name, file.clone());
                (name, TensorView::new(dtype, shape.clone(), data).unwrap())
            });
            let bytes = safetensors::serialize(views, None::<HashMap<String, String>>).unwrap();
            write(&file, &bytes);
            for byte in Sha256::digest(&bytes) {
                write!(sums, "{byte:02x}").unwrap();
            }
            writeln!(sums, "  {file}").unwrap();
        }
        let index = serde_json::json!({"metadata": {}, "weight_map": places});
        write("model.safetensors.index.json", index.to_string().as_bytes());
        write("SHA256SUMS", sums.as_bytes());
    }
}

/// A random prompt.
pub(crate) fn prompt(seed: u64, length: usize, vocab: u32) -> Vec<u32> {
    let ids = hashes(seed, "prompt", length);
    ids.map(|hash| (hash % u64::from(vocab)) as u32).collect()
}

/// Multiples of 2^-23 in [-1, 1).
fn uniform(seed: u64, name: &str, count: usize) -> impl Iterator<Item = f32> {
    hashes(seed, name, count).map(|hash| (hash >> 40) as f32 / (1_u32 << 23) as f32 - 1.0)
}

/// SplitMix64 from the name's hash on.
fn hashes(seed: u64, name: &str, count: usize) -> impl Iterator<Item = u64> {
    let start = name_hash(seed, name);
    (1..=count as u64).map(move |index| {
        let z = start.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// FNV-1a over the seed's eight bytes and the name.
fn name_hash(seed: u64, name: &str) -> u64 {
    let bytes = seed.to_le_bytes().into_iter().chain(name.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |state, byte| {
        (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}
