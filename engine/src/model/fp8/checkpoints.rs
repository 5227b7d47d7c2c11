//! Checkpoints of 8 bits made out of others, for tests: as each of the libraries writes them, and beside it the same
//! model with its weights widened by their definition.
//!
//! Scales of neighbours differ by whole factors, so that a weight with another's scale is far off; two modules of the
//! second layer stay wide.

use std::collections::HashMap;
use std::path::Path;

use half::bf16;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Grain, e4m3};
use crate::model::{Model, Tensor, Weights};

/// A way of writing weights of 8 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `fp8`, one scale for a matrix.
    Tensor,
    /// `fp8`, blocks.
    Blocks,
    /// `compressed-tensors`, with scales of bf16 but for blocks.
    Compressed(Grain),
}

/// All of them.
pub(crate) const FORMS: [Form; 5] = [
    Form::Tensor,
    Form::Blocks,
    Form::Compressed(Grain::Tensor),
    Form::Compressed(Grain::Row),
    Form::Compressed(Grain::Block),
];

/// Modules that stay wide.
const WIDE: [&str; 2] = [
    "model.layers.1.mlp.down_proj",
    "model.layers.1.self_attn.k_proj",
];

/// One model in two folders.
pub(crate) struct Checkpoints {
    /// Of 8 bits.
    pub(crate) narrow: TempDir,
    /// The same values in f32.
    pub(crate) wide: TempDir,
}

/// A tensor of a file.
#[derive(Clone)]
pub(crate) struct Written {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// The configuration of a small model whose matrices have several blocks each way, and ends that do not fill one.
pub(crate) fn small_config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 10, "hidden_size": 136, "intermediate_size": 152,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 64,
        "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "tie_word_embeddings": true
    })
}

/// Its folder, with weights of f32.
pub(crate) fn small() -> TempDir {
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![10, 136]),
        ("model.norm.weight".to_owned(), vec![136]),
    ];
    for layer in 0..2 {
        for (module, shape) in [
            ("input_layernorm", vec![136]),
            ("post_attention_layernorm", vec![136]),
            ("self_attn.q_proj", vec![192, 136]),
            ("self_attn.k_proj", vec![64, 136]),
            ("self_attn.v_proj", vec![64, 136]),
            ("self_attn.o_proj", vec![136, 192]),
            ("mlp.gate_proj", vec![152, 136]),
            ("mlp.up_proj", vec![152, 136]),
            ("mlp.down_proj", vec![136, 152]),
        ] {
            shapes.push((format!("model.layers.{layer}.{module}.weight"), shape));
        }
    }
    let tensors = shapes.into_iter().map(|(name, shape)| {
        let value = |index: usize| ((index * 37 % 101) as f32 - 50.0) / 64.0;
        let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
        Written::floats(name, &shape, &values)
    });
    write(&small_config(), &tensors.collect::<Vec<_>>())
}

/// The tensors of a folder.
pub(crate) fn read(folder: &Path) -> Vec<Written> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let written = tensors.into_iter().map(|(name, view)| Written {
        name,
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        bytes: view.data().to_vec(),
    });
    written.collect()
}

impl Form {
    fn grain(self) -> Grain {
        match self {
            Self::Tensor => Grain::Tensor,
            Self::Blocks => Grain::Block,
            Self::Compressed(grain) => grain,
        }
    }

    fn scale(self) -> (&'static str, Dtype) {
        match self {
            Self::Tensor => ("weight_scale", Dtype::F32),
            Self::Blocks => ("weight_scale_inv", Dtype::F32),
            Self::Compressed(Grain::Block) => ("weight_scale", Dtype::F32),
            Self::Compressed(_) => ("weight_scale", Dtype::BF16),
        }
    }

    /// As scales of an `[n, k]` matrix are written.
    fn shape(self, matrix: [usize; 2]) -> Vec<usize> {
        match self {
            Self::Tensor => vec![],
            Self::Compressed(Grain::Tensor) => vec![1],
            _ => self.grain().shape(matrix).to_vec(),
        }
    }

    /// The `quantization_config`, abridged nowhere.
    pub(crate) fn config(self) -> Value {
        let strategy = match self {
            Self::Tensor => {
                return json!({
                    "quant_method": "fp8", "activation_scheme": "static", "ignored_layers": WIDE,
                });
            }
            Self::Blocks => {
                return json!({
                    "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                    "weight_block_size": [128, 128], "modules_to_not_convert": WIDE,
                });
            }
            Self::Compressed(Grain::Tensor) => "tensor",
            Self::Compressed(Grain::Row) => "channel",
            Self::Compressed(Grain::Block) => "block",
        };
        let structure = if strategy == "block" {
            json!([128, 128])
        } else {
            json!(null)
        };
        json!({
            "quant_method": "compressed-tensors", "format": "float-quantized",
            "quantization_status": "compressed", "version": "0.12.2", "global_compression_ratio": null,
            "ignore": ["lm_head", WIDE[0], r"re:.*\.1\.self_attn\.k_proj$"],
            "kv_cache_scheme": null, "sparsity_config": {}, "transform_config": {},
            "config_groups": {"group_0": {
                "format": "float-quantized", "targets": ["Linear"], "output_activations": null,
                "input_activations": {"dynamic": true, "num_bits": 8, "strategy": "token", "type": "float"},
                "weights": {
                    "actorder": null, "block_structure": structure, "dynamic": false, "group_size": null,
                    "num_bits": 8, "observer": "minmax", "observer_kwargs": {}, "strategy": strategy,
                    "symmetric": true, "type": "float"
                },
            }},
        })
    }
}

impl Checkpoints {
    /// The model of a folder with one safetensors file.
    pub(crate) fn of(folder: &Path, form: Form) -> Self {
        let config = std::fs::read(folder.join("config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&config).unwrap();
        let (mut narrow, mut wide) = (Vec::new(), Vec::new());
        let opened = Weights::open(folder).unwrap();
        for written in read(folder) {
            let tensor = opened.tensor(&written.name, &written.shape).unwrap();
            let module = written.name.strip_suffix(".weight").unwrap_or_default();
            if module.ends_with("_proj") && !WIDE.contains(&module) {
                let [weight, scales, widened] = quantise(&written.name, &tensor, form);
                narrow.extend([weight, scales]);
                wide.push(widened);
            } else {
                let name = written.name.clone();
                wide.push(Written::floats(name, &written.shape, &tensor.to_vec()));
                narrow.push(written);
            }
        }
        let wide = write(&config, &wide);
        config["quantization_config"] = form.config();
        let narrow = write(&config, &narrow);
        Self { narrow, wide }
    }

    /// The models of both.
    pub(crate) fn open(&self) -> [Model; 2] {
        [&self.narrow, &self.wide].map(|folder| Model::open(folder.path()).unwrap())
    }
}

impl Written {
    fn floats(name: String, shape: &[usize], values: &[f32]) -> Self {
        Self {
            name,
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            bytes: values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        }
    }
}

/// The matrix in e4m3, its scales, and what they are worth together.
fn quantise(name: &str, tensor: &Tensor<'_>, form: Form) -> [Written; 3] {
    let &[n, k] = tensor.shape else {
        panic!("{name} is no matrix");
    };
    let (suffix, dtype) = form.scale();
    let [rows, columns] = form.grain().each();
    let [down, across] = form.grain().shape([n, k]);
    let of = |index: usize| index / k / rows * across + index % k / columns;
    let values = tensor.to_vec();
    let mut scales = vec![0.0_f32; down * across];
    for (index, value) in values.iter().enumerate() {
        scales[of(index)] = scales[of(index)].max(value.abs());
    }
    for (index, scale) in scales.iter_mut().enumerate() {
        let factor = 1 + (index * 5 + name.len() * 3) % 7;
        *scale = (*scale / 448.0 * factor as f32).max(1e-6);
        if dtype == Dtype::BF16 {
            *scale = bf16::from_f32(*scale).to_f32();
        }
    }
    let bits = values.iter().enumerate();
    let bits: Vec<u8> = bits
        .map(|(index, value)| nearest(value / scales[of(index)]))
        .collect();
    let widened = bits.iter().enumerate();
    let widened: Vec<f32> = widened
        .map(|(index, bits)| e4m3(*bits) * scales[of(index)])
        .collect();
    let bytes = match dtype {
        Dtype::BF16 => scales
            .iter()
            .flat_map(|scale| bf16::from_f32(*scale).to_le_bytes())
            .collect(),
        _ => scales
            .iter()
            .flat_map(|scale| scale.to_le_bytes())
            .collect(),
    };
    let scales = Written {
        name: name.replace("weight", suffix),
        dtype,
        shape: form.shape([n, k]),
        bytes,
    };
    let weight = Written {
        name: name.to_owned(),
        dtype: Dtype::F8_E4M3,
        shape: vec![n, k],
        bytes: bits,
    };
    [
        weight,
        scales,
        Written::floats(name.to_owned(), &[n, k], &widened),
    ]
}

/// The e4m3 nearest to a value.
pub(crate) fn nearest(value: f32) -> u8 {
    let distance = |bits: &u8| (e4m3(*bits) - value.abs()).abs();
    let above = (0..0x7f_u8)
        .find(|bits| e4m3(*bits) >= value.abs())
        .unwrap_or(0x7e);
    let below = above.saturating_sub(1);
    let magnitude = if distance(&below) <= distance(&above) {
        below
    } else {
        above
    };
    magnitude | u8::from(value < 0.0) << 7
}

/// A folder of these tensors.
pub(crate) fn write(config: &Value, tensors: &[Written]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let views = tensors.iter().map(|tensor| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
        (&tensor.name, view.unwrap())
    });
    let bytes = safetensors::serialize(views, None::<HashMap<String, String>>).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder
}
