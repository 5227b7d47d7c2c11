//! Rotary position encoding: which elements of a head are rotated, and how fast.
//!
//! Element `i` of a head and element `i + dim / 2` are turned by `position * frequency[i]`; elements from `dim` on are
//! left alone. The plain frequencies are `theta^(-2i / dim)`; what follows stretches the long waves so that a model
//! reads further than it was trained for:
//!
//! | type | long waves | source |
//! |---|---|---|
//! | `linear` | all divided by the factor | position interpolation, Chen et al. 2023 |
//! | `llama3` | divided by the factor, with a smooth crossing | Llama 3.1 |
//! | `yarn` | the same by a ramp over the dimensions, and sines times `0.1 ln(factor) + 1` | Peng et al. 2023 |
//! | `longrope` | each divided by a factor of its own, out of two lists | Ding et al. 2024 |
//!
//! Numbers are rounded to f32 where the reference implementation rounds them. At position 100,000 a frequency that is off
//! by one unit in the last place has turned a wave by a hundredth of a radian, and no two choices are equally good when
//! one of them is what the model was trained with.
//!
//! LongRoPE has one list of factors for short contexts and one for long ones. Which one holds is decided once, by the
//! longest context that the worker serves ([`super::ModelConfig::max_model_len`]), as vLLM does, and not by the
//! length of each sequence, as transformers does: keys that are cached under one list are wrong under the other, so a
//! sequence that crosses the border could neither go on nor share its prefix.

use serde::Deserialize;

use super::ModelError;
use super::raw::{File, Raw};

/// No context is longer, whatever a file says.
const MAX_CONTEXT: f64 = 16_777_216.0;

/// Rotary position encoding over halves (NeoX order).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rope {
    /// Base of the wave lengths.
    pub theta: f64,
    /// Leading elements of a head that are rotated; even.
    pub dim: usize,
    /// Sines and cosines are multiplied by this.
    pub amplitude: f32,
    /// How long waves are stretched.
    pub scaling: RopeScaling,
}

/// The value of `rope_type`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum RopeScaling {
    /// `default`: not at all.
    #[default]
    Default,
    /// `linear`: every frequency is divided by this.
    Linear(f64),
    /// `llama3`.
    Llama3(Llama3Scaling),
    /// `yarn`.
    Yarn(YarnScaling),
    /// `longrope`, formerly `su`.
    LongRope(LongRopeScaling),
}

/// `rope_type: llama3`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Llama3Scaling {
    /// Long waves are stretched by this.
    pub factor: f64,
    /// Waves longer than `original_context / low_freq_factor` are stretched in full.
    pub low_freq_factor: f64,
    /// Waves shorter than `original_context / high_freq_factor` are left alone.
    pub high_freq_factor: f64,
    /// Context length of the pre-training.
    pub original_context: f64,
}

/// `rope_type: yarn`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct YarnScaling {
    /// Long waves are stretched by this.
    pub factor: f64,
    /// Up to this frequency's index waves are left alone.
    pub low: f64,
    /// From this frequency's index on they are stretched in full.
    pub high: f64,
    /// Context length of the pre-training.
    pub original_context: f64,
}

/// `rope_type: longrope`.
#[derive(Clone, Debug, PartialEq)]
pub struct LongRopeScaling {
    /// What divides each frequency while no context is longer than `original_context`.
    pub short_factor: Vec<f64>,
    /// What divides each frequency otherwise.
    pub long_factor: Vec<f64>,
    /// Context length of the pre-training.
    pub original_context: f64,
}

impl Rope {
    /// Angular frequency of each of the `dim / 2` rotations, in radians per position, for contexts of up to
    /// `max_model_len` tokens.
    pub fn frequencies(&self, max_model_len: usize) -> Vec<f32> {
        let half = self.dim / 2;
        let wave = |index: usize| self.theta.powf(index as f64 / half as f64) as f32;
        let frequency = |index: usize| match &self.scaling {
            RopeScaling::Default => 1.0 / wave(index),
            RopeScaling::Linear(factor) => 1.0 / wave(index) / *factor as f32,
            RopeScaling::Llama3(scaling) => scaling.apply(1.0 / wave(index)),
            RopeScaling::Yarn(scaling) => scaling.apply(index, wave(index)),
            RopeScaling::LongRope(scaling) => {
                let factor = scaling.factors(max_model_len).get(index);
                1.0 / (factor.map_or(1.0, |factor| *factor as f32) * wave(index))
            }
        };
        (0..half).map(frequency).collect()
    }
}

impl Rope {
    /// The longest context of a model whose file says `written`: two scalings stretch it, as vLLM counts; the others
    /// have their stretch in that number already.
    pub(super) fn stretched_context(&self, written: usize) -> usize {
        let stretched = match &self.scaling {
            RopeScaling::Linear(factor) => written as f64 * factor,
            RopeScaling::Yarn(yarn) => yarn.original_context * yarn.factor,
            RopeScaling::Default | RopeScaling::Llama3(_) | RopeScaling::LongRope(_) => {
                return written;
            }
        };
        stretched.clamp(1.0, MAX_CONTEXT) as usize
    }
}

impl Llama3Scaling {
    fn apply(&self, frequency: f32) -> f32 {
        let wave_length = 2.0 * std::f64::consts::PI / f64::from(frequency);
        let stretched = frequency / self.factor as f32;
        if wave_length < self.original_context / self.high_freq_factor {
            return frequency;
        }
        if wave_length > self.original_context / self.low_freq_factor {
            return stretched;
        }
        let smooth = (self.original_context / wave_length - self.low_freq_factor)
            / (self.high_freq_factor - self.low_freq_factor);
        (1.0 - smooth as f32) * stretched + smooth as f32 * frequency
    }
}

impl YarnScaling {
    fn apply(&self, index: usize, wave: f32) -> f32 {
        // Where both ends fall on one index, the ramp is a step.
        let width = (self.high - self.low).max(0.001);
        let kept = 1.0 - ((index as f64 - self.low) / width).clamp(0.0, 1.0) as f32;
        let stretched = 1.0 / (self.factor as f32 * wave);
        stretched * (1.0 - kept) + 1.0 / wave * kept
    }
}

impl LongRopeScaling {
    fn factors(&self, max_model_len: usize) -> &[f64] {
        if max_model_len as f64 > self.original_context {
            &self.long_factor
        } else {
            &self.short_factor
        }
    }
}

/// `rope_scaling` or `rope_parameters` as written.
#[derive(Debug, Default, Deserialize)]
pub(super) struct RawRope {
    /// Older files call it `type`; some have both.
    rope_type: Option<String>,
    #[serde(rename = "type")]
    old_type: Option<String>,
    pub(super) rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    short_factor: Option<Vec<f64>>,
    long_factor: Option<Vec<f64>>,
    // What follows is of model families that are not supported, and would change the arithmetic.
    short_mscale: Option<f64>,
    long_mscale: Option<f64>,
    mrope_section: Option<serde_json::Value>,
    full_attention: Option<serde_json::Value>,
    sliding_attention: Option<serde_json::Value>,
}

/// What the parameters are read with.
struct Reader<'a> {
    field: &'static str,
    file: &'a File,
    raw: &'a RawRope,
    /// Context length of the pre-training.
    original_context: Option<f64>,
    max_position_embeddings: f64,
}

/// Reads the encoding of heads of `head_dim` elements.
///
/// # Errors
/// Names the field and what in it is missing, impossible or not supported.
pub(super) fn read(raw: &Raw, head_dim: usize, file: &File) -> Result<Rope, ModelError> {
    let none = RawRope::default();
    let (field, parameters) = match (&raw.rope_parameters, &raw.rope_scaling) {
        (Some(parameters), _) => ("rope_parameters", parameters),
        (None, parameters) => ("rope_scaling", parameters.as_ref().unwrap_or(&none)),
    };
    // Before it was written at all, the base was always this.
    let theta = parameters.rope_theta.or(raw.rope_theta);
    let theta = theta.unwrap_or(10_000.0);
    if !(theta.is_finite() && theta > 1.0) {
        return Err(file.wrong("rope_theta", format!("{theta} is not a number above 1")));
    }
    let part = parameters
        .partial_rotary_factor
        .or(raw.partial_rotary_factor)
        .unwrap_or(1.0);
    let dim = (head_dim as f64 * part) as usize;
    if !(part > 0.0 && part <= 1.0) || dim == 0 || !dim.is_multiple_of(2) {
        let reason = format!("{part} of {head_dim} elements is not a positive even number of them");
        return Err(file.wrong("partial_rotary_factor", reason));
    }
    let reader = Reader {
        field,
        file,
        raw: parameters,
        original_context: raw
            .original_max_position_embeddings
            .or(parameters.original_max_position_embeddings),
        max_position_embeddings: raw.max_position_embeddings.unwrap_or(0) as f64,
    };
    reader.refuse_unsupported()?;
    let (scaling, amplitude) = reader.scaling(theta, dim)?;
    Ok(Rope {
        theta,
        dim,
        amplitude: amplitude as f32,
        scaling,
    })
}

impl Reader<'_> {
    /// The scaling, and what it multiplies sines and cosines with.
    fn scaling(&self, theta: f64, dim: usize) -> Result<(RopeScaling, f64), ModelError> {
        let raw = self.raw;
        let name = raw.rope_type.as_deref().or(raw.old_type.as_deref());
        match name.unwrap_or("default") {
            "default" => Ok((RopeScaling::Default, 1.0)),
            "linear" => {
                let factor = self.need("factor", raw.factor)?;
                Ok((RopeScaling::Linear(factor), 1.0))
            }
            "llama3" => Ok((RopeScaling::Llama3(self.llama3()?), 1.0)),
            "yarn" => self.yarn(theta, dim),
            "longrope" | "su" => self.longrope(dim),
            other => Err(self.wrong(format!(
                "rope_type {other} is not supported; supported: default, linear, llama3, yarn, longrope"
            ))),
        }
    }

    fn refuse_unsupported(&self) -> Result<(), ModelError> {
        let raw = self.raw;
        let written = [
            ("short_mscale", raw.short_mscale.is_some()),
            ("long_mscale", raw.long_mscale.is_some()),
            ("mrope_section", raw.mrope_section.is_some()),
            ("full_attention", raw.full_attention.is_some()),
            ("sliding_attention", raw.sliding_attention.is_some()),
        ];
        match written.into_iter().find(|(_, written)| *written) {
            Some((name, _)) => Err(self.wrong(format!("{name} is set, and not supported"))),
            None => Ok(()),
        }
    }

    fn llama3(&self) -> Result<Llama3Scaling, ModelError> {
        let raw = self.raw;
        let scaling = Llama3Scaling {
            factor: self.need("factor", raw.factor)?,
            low_freq_factor: self.need("low_freq_factor", raw.low_freq_factor)?,
            high_freq_factor: self.need("high_freq_factor", raw.high_freq_factor)?,
            original_context: self
                .need("original_max_position_embeddings", self.original_context)?,
        };
        if scaling.high_freq_factor <= scaling.low_freq_factor {
            let reason = "high_freq_factor is not above low_freq_factor".to_owned();
            return Err(self.wrong(reason));
        }
        Ok(scaling)
    }

    /// The ramp goes from the frequency that turns `beta_fast` times over the original context to the one that turns
    /// `beta_slow` times; frequency `i` turns `context * theta^(-2i / dim) / 2π` times.
    fn yarn(&self, theta: f64, dim: usize) -> Result<(RopeScaling, f64), ModelError> {
        let raw = self.raw;
        let factor = self.need("factor", raw.factor)?;
        let context = self.need("original_max_position_embeddings", self.original_context)?;
        let index_of = |turns: f64| {
            let length = context / (turns * 2.0 * std::f64::consts::PI);
            dim as f64 * length.ln() / (2.0 * theta.ln())
        };
        let fast = self.need("beta_fast", raw.beta_fast.or(Some(32.0)))?;
        let slow = self.need("beta_slow", raw.beta_slow.or(Some(1.0)))?;
        let (mut low, mut high) = (index_of(fast), index_of(slow));
        if raw.truncate.unwrap_or(true) {
            (low, high) = (low.floor(), high.ceil());
        }
        let scaling = YarnScaling {
            factor,
            low: low.max(0.0),
            high: high.min(dim as f64 - 1.0),
            original_context: context,
        };
        let scale = |m: f64| {
            1.0 + if factor > 1.0 {
                0.1 * m * factor.ln()
            } else {
                0.0
            }
        };
        let by_default = match (raw.mscale, raw.mscale_all_dim) {
            (Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => scale(mscale) / scale(all),
            _ => scale(1.0),
        };
        let amplitude = self.need(
            "attention_factor",
            raw.attention_factor.or(Some(by_default)),
        )?;
        Ok((RopeScaling::Yarn(scaling), amplitude))
    }

    fn longrope(&self, dim: usize) -> Result<(RopeScaling, f64), ModelError> {
        let raw = self.raw;
        let original_context = self
            .original_context
            .unwrap_or(self.max_position_embeddings);
        let scaling = LongRopeScaling {
            short_factor: self.factors("short_factor", raw.short_factor.as_ref(), dim / 2)?,
            long_factor: self.factors("long_factor", raw.long_factor.as_ref(), dim / 2)?,
            original_context: self
                .need("original_max_position_embeddings", Some(original_context))?,
        };
        let factor = raw.factor;
        let factor = factor.unwrap_or(self.max_position_embeddings / original_context);
        let by_default = if factor > 1.0 {
            (1.0 + factor.ln() / original_context.ln()).sqrt()
        } else {
            1.0
        };
        let amplitude = self.need(
            "attention_factor",
            raw.attention_factor.or(Some(by_default)),
        )?;
        Ok((RopeScaling::LongRope(scaling), amplitude))
    }

    /// A list of `count` positive numbers.
    fn factors(
        &self,
        name: &str,
        value: Option<&Vec<f64>>,
        count: usize,
    ) -> Result<Vec<f64>, ModelError> {
        let Some(factors) = value else {
            return Err(self.wrong(format!("{name} is missing")));
        };
        if factors.len() != count {
            let reason = format!("{name} has {} numbers instead of {count}", factors.len());
            return Err(self.wrong(reason));
        }
        for factor in factors {
            self.need(name, Some(*factor))?;
        }
        Ok(factors.clone())
    }

    /// A positive number.
    fn need(&self, name: &str, value: Option<f64>) -> Result<f64, ModelError> {
        match value {
            Some(value) if value.is_finite() && value > 0.0 => Ok(value),
            Some(value) => Err(self.wrong(format!("{name} is {value}, not a positive number"))),
            None => Err(self.wrong(format!("{name} is missing"))),
        }
    }

    fn wrong(&self, reason: String) -> ModelError {
        self.file.wrong(self.field, reason)
    }
}

#[cfg(test)]
mod tests;
