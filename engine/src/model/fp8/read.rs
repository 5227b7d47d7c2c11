//! `quantization_config`, of the two methods that leave weights in e4m3.
//!
//! Every field is either checked, or known to say nothing about what a weight is worth, or refused by its name when it is
//! set to anything.

use regex::RegexSet;
use serde_json::{Map, Value, json};

use super::super::ModelError;
use super::super::raw::File;
use super::{BLOCK, Fp8Config, Grain};

/// Characters of a value that an error shows.
const SHOWN: usize = 120;

/// What a configuration says about its weights; none when it says nothing.
///
/// # Errors
/// Names the field that is not supported, and what is.
pub(in crate::model) fn read(
    written: Option<&Value>,
    file: &File,
) -> Result<Option<Fp8Config>, ModelError> {
    let Some(written) = written.filter(|written| !written.is_null()) else {
        return Ok(None);
    };
    let mut fields = Fields::of(file, String::new(), written)?;
    let methods = [json!("fp8"), json!("compressed-tensors")];
    let method = fields.one_of("quant_method", &methods)?;
    let config = if method == methods[0] {
        fp8(&mut fields)?
    } else {
        compressed_tensors(&mut fields)?
    };
    fields.refuse_rest()?;
    Ok(Some(config))
}

/// As `transformers` and AutoFP8 write it.
fn fp8(fields: &mut Fields<'_>) -> Result<Fp8Config, ModelError> {
    fields.one_of("fmt", &[Value::Null, json!("e4m3")])?;
    fields.one_of(
        "activation_scheme",
        &[Value::Null, json!("dynamic"), json!("static")],
    )?;
    // How scales were rounded; what they are now is in their tensors.
    fields.one_of("scale_fmt", &[Value::Null, json!("float"), json!("ue8m0")])?;
    let blocks = fields.one_of("weight_block_size", &[Value::Null, json!([BLOCK, BLOCK])])?;
    let (grain, scale) = if blocks.is_null() {
        (Grain::Tensor, "weight_scale")
    } else {
        (Grain::Block, "weight_scale_inv")
    };
    let mut ignored = fields.names("ignored_layers")?;
    ignored.extend(fields.names("modules_to_not_convert")?);
    Ok(Fp8Config {
        grain,
        scale,
        ignored,
        ignored_patterns: RegexSet::empty(),
    })
}

fn compressed_tensors(fields: &mut Fields<'_>) -> Result<Fp8Config, ModelError> {
    const FORMAT: &str = "float-quantized";
    fields.one_of("format", &[json!(FORMAT)])?;
    fields.pass_over(&["version", "quantization_status", "global_compression_ratio"]);
    let sparsity = fields.take("sparsity_config");
    if !is_nothing(&sparsity) && sparsity.get("format") != Some(&json!("dense")) {
        return Err(fields.wrong("sparsity_config", &sparsity, "none, or of format dense"));
    }
    let (patterns, ignored): (Vec<String>, _) = fields
        .names("ignore")?
        .into_iter()
        .partition(|name| name.starts_with("re:"));
    let patterns = patterns.iter().map(|pattern| &pattern["re:".len()..]);
    let patterns = RegexSet::new(patterns.map(|pattern| format!("^(?:{pattern})")))
        .map_err(|error| fields.file.wrong(FIELD, format!("ignore: {error}")))?;
    let written = fields.take("config_groups");
    let mut grain = None;
    for (name, group) in written.as_object().into_iter().flatten() {
        let path = format!("config_groups.{name}.");
        let mut group = Fields::of(fields.file, path, group)?;
        group.one_of("format", &[Value::Null, json!(FORMAT)])?;
        group.pass_over(&["targets", "input_activations", "output_activations"]);
        let of_group = weights(&mut group)?;
        group.refuse_rest()?;
        if grain.is_some_and(|grain| grain != of_group) {
            let supported = "groups of one strategy";
            return Err(fields.wrong("config_groups", &written, supported));
        }
        grain = Some(of_group);
    }
    let Some(grain) = grain else {
        return Err(fields.wrong("config_groups", &written, "at least one group"));
    };
    Ok(Fp8Config {
        grain,
        scale: "weight_scale",
        ignored,
        ignored_patterns: patterns,
    })
}

/// What a group says about its weights.
fn weights(group: &mut Fields<'_>) -> Result<Grain, ModelError> {
    let written = group.take("weights");
    let path = format!("{}weights.", group.path);
    let mut fields = Fields::of(group.file, path, &written)?;
    fields.one_of("num_bits", &[json!(8)])?;
    fields.one_of("type", &[json!("float")])?;
    fields.one_of("symmetric", &[Value::Null, json!(true)])?;
    fields.one_of("dynamic", &[Value::Null, json!(false)])?;
    fields.pass_over(&["observer", "observer_kwargs", "scale_dtype", "zp_dtype"]);
    let strategies = [json!("tensor"), json!("channel"), json!("block")];
    let strategy = fields.one_of("strategy", &strategies)?;
    let grain = if strategy == strategies[0] {
        Grain::Tensor
    } else if strategy == strategies[1] {
        Grain::Row
    } else {
        fields.one_of("block_structure", &[json!([BLOCK, BLOCK])])?;
        Grain::Block
    };
    fields.refuse_rest()?;
    Ok(grain)
}

/// The field of `config.json` that all of this is.
const FIELD: &str = "quantization_config";

/// Fields that nobody looked at yet.
struct Fields<'a> {
    file: &'a File,
    /// Where they are within `quantization_config`, as it stands before their names.
    path: String,
    left: Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn of(file: &'a File, path: String, written: &Value) -> Result<Self, ModelError> {
        let Some(left) = written.as_object().cloned() else {
            let reason = format!(
                "{} is {}, and no object",
                path.trim_end_matches('.'),
                shown(written)
            );
            return Err(file.wrong(FIELD, reason.trim_start().to_owned()));
        };
        Ok(Self { file, path, left })
    }

    /// What is written there; null for nothing.
    fn take(&mut self, name: &str) -> Value {
        self.left.shift_remove(name).unwrap_or_default()
    }

    fn wrong(&self, name: &str, value: &Value, supported: &str) -> ModelError {
        let (path, value) = (&self.path, shown(value));
        let reason = format!("{path}{name} is {value}; supported: {supported}");
        self.file.wrong(FIELD, reason)
    }

    /// A field that must have one of these values.
    fn one_of(&mut self, name: &str, supported: &[Value]) -> Result<Value, ModelError> {
        let value = self.take(name);
        if supported.contains(&value) {
            return Ok(value);
        }
        let supported: Vec<String> = supported.iter().map(Value::to_string).collect();
        Err(self.wrong(name, &value, &supported.join(", ")))
    }

    /// A list of names, which may be missing.
    fn names(&mut self, name: &str) -> Result<Vec<String>, ModelError> {
        let value = self.take(name);
        if value.is_null() {
            return Ok(Vec::new());
        }
        let names = value.as_array().and_then(|names| {
            let names = names.iter().map(|name| Some(name.as_str()?.to_owned()));
            names.collect()
        });
        names.ok_or_else(|| self.wrong(name, &value, "a list of module names"))
    }

    /// Fields that say nothing about what a weight is worth.
    fn pass_over(&mut self, names: &[&str]) {
        for name in names {
            self.take(name);
        }
    }

    /// What is left would have to be known to be right.
    fn refuse_rest(&self) -> Result<(), ModelError> {
        match self.left.iter().find(|(_, value)| !is_nothing(value)) {
            Some((name, value)) => Err(self.wrong(name, value, "null")),
            None => Ok(()),
        }
    }
}

/// Whether a field that is not known may be there, because it says nothing.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// The beginning of a value.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
