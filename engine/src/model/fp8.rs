//! Weights of 8 bits: which checkpoints have them, where their scales lie, and what a weight is worth.
//!
//! ```text
//! quant_method                                scales of M.weight    shape
//! fp8                                         M.weight_scale        one
//! fp8, weight_block_size [128, 128]           M.weight_scale_inv    [⌈out / 128⌉, ⌈in / 128⌉]
//! compressed-tensors, float-quantized
//!   strategy tensor | channel | block         M.weight_scale        one | [out, 1] | [⌈out / 128⌉, ⌈in / 128⌉]
//! ```
//!
//! A weight is its e4m3 times its scale, also where the scale's name says otherwise. Which modules are of 8 bits follows
//! from the type of each tensor; a list of modules that are not must agree with that. Activations are not made narrow:
//! what a configuration says about them (`activation_scheme`, `input_activations`, input scales) is passed over, for
//! wider ones only come nearer to the model that was quantised. Everything else that a configuration sets and that is
//! not known here is refused: it could change what a weight is worth.

mod read;
mod scales;

#[cfg(test)]
pub(crate) mod checkpoints;
#[cfg(test)]
mod tests;

use regex::RegexSet;

use super::ModelError;
use super::weights::{Tensor, Weights};

pub(super) use read::read;
use scales::BLOCK;
pub use scales::{Grain, Scales};

/// How a checkpoint scales its weights of 8 bits.
#[derive(Clone, Debug, Default)]
pub struct Fp8Config {
    /// Which weights share a scale.
    pub grain: Grain,
    /// What the tensor of scales is called beside the `weight`.
    pub(super) scale: &'static str,
    /// Modules that are not of 8 bits, by their names or the ends of these.
    pub(super) ignored: Vec<String>,
    /// And by what their names match from the start on.
    pub(super) ignored_patterns: RegexSet,
}

impl PartialEq for Fp8Config {
    fn eq(&self, other: &Self) -> bool {
        let all = |config: &Self| (config.grain, config.scale, config.ignored.clone());
        all(self) == all(other)
            && self.ignored_patterns.patterns() == other.ignored_patterns.patterns()
    }
}

impl Fp8Config {
    /// Whether the configuration says that this module is not of 8 bits.
    fn ignores(&self, module: &str) -> bool {
        let is = |name: &String| {
            let before = module.strip_suffix(name.as_str());
            before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        self.ignored.iter().any(is) || self.ignored_patterns.is_match(module)
    }
}

/// What an e4m3 is worth: a sign, four bits of exponent from 2^-7 on, three of fraction. There are no infinities, so
/// the largest is 448, and all ones are not a number.
pub fn e4m3(bits: u8) -> f32 {
    const NOT_A_NUMBER: u8 = 0x7f;
    let magnitude = bits & 0x7f;
    let sign = u32::from(bits & 0x80) << 24;
    if magnitude == NOT_A_NUMBER {
        return f32::NAN;
    }
    // Exponent and fraction at their places in an f32, whose exponents are 120 larger.
    let small = f32::from_bits(u32::from(magnitude) << 20) * f32::from_bits((120 + 127) << 23);
    f32::from_bits(small.to_bits() | sign)
}

impl Weights {
    /// The weight of a module, `[out, in]`, of any width; with its scales where it is of 8 bits.
    ///
    /// # Errors
    /// When there is no such tensor, or no scales to it, or a shape or type is not what it should be.
    pub(super) fn matrix(
        &self,
        module: &str,
        shape: [usize; 2],
        quantization: Option<&Fp8Config>,
    ) -> Result<Tensor<'_>, ModelError> {
        let name = format!("{module}.weight");
        let weight = self.find(&name)?;
        weight.check_shape(&[&shape])?;
        if !weight.is_e4m3() {
            return weight.tensor();
        }
        let unexpected = |why: &str| {
            let reason = format!("has elements of type F8_E4M3, and the configuration {why}");
            Err(weight.wrong(reason))
        };
        let Some(config) = quantization else {
            return unexpected("has no quantization_config");
        };
        if config.ignores(module) {
            return unexpected("lists its module among those that are not quantised");
        }
        let scales = self.scales(&format!("{module}.{}", config.scale), config.grain, shape)?;
        weight.scaled(scales)
    }

    fn scales(
        &self,
        name: &str,
        grain: Grain,
        weight: [usize; 2],
    ) -> Result<Scales<'_>, ModelError> {
        let found = self.find(name)?;
        let shape = grain.shape(weight);
        let flat = [shape[0]];
        match grain {
            Grain::Tensor => found.check_shape(&[&flat, &[], &shape])?,
            Grain::Row => found.check_shape(&[&shape, &flat])?,
            Grain::Block => found.check_shape(&[&shape])?,
        }
        let tensor = found.tensor()?;
        let scales = Scales {
            grain,
            element: tensor.element,
            shape,
            bytes: tensor.bytes,
        };
        let bad = scales.values().find(|scale| !scale.is_finite());
        match bad {
            Some(scale) => Err(found.wrong(format!("has a scale of {scale}"))),
            None => Ok(scales),
        }
    }
}
