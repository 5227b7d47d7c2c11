//! The registry of model families.
//!
//! A family is one file: what its configuration means beyond what all have in common, and how its tensors are named.
//! Adding one touches that file and one line here.

use super::raw::{File, Raw};
use super::tensors::{Layer, LayerTensors};
use super::{ModelConfig, ModelError, llama, mistral, phi3, qwen2, qwen3, qwen3_moe};

/// All families.
static FAMILIES: [&dyn Family; 6] = [
    &llama::Llama,
    &mistral::Mistral,
    &phi3::Phi3,
    &qwen2::Qwen2,
    &qwen3::Qwen3,
    &qwen3_moe::Qwen3Moe,
];

/// What one family does in its own way.
pub(super) trait Family: Sync {
    /// The name in `architectures`.
    fn architecture(&self) -> &'static str;

    /// Width of a head when `head_dim` is not written; none for `hidden_size / heads`.
    fn head_dim(&self) -> Option<usize> {
        None
    }

    /// Sets the family's options in a configuration that is checked but for them.
    ///
    /// # Errors
    /// Names the field that is missing, impossible or not supported.
    fn configure(&self, raw: &Raw, config: &mut ModelConfig, file: &File)
    -> Result<(), ModelError>;

    /// Finds the tensors of a layer.
    ///
    /// # Errors
    /// Names the file and the tensor that is missing or has another shape.
    fn layer<'a>(
        &self,
        config: &ModelConfig,
        tensors: &LayerTensors<'a>,
    ) -> Result<Layer<'a>, ModelError>;
}

/// The family that the configuration names.
pub(super) fn named(raw: &Raw, file: &File) -> Result<&'static dyn Family, ModelError> {
    let names = file.need("architectures", raw.architectures.as_ref())?;
    let found = names.iter().find_map(|name| by_architecture(name));
    found.ok_or_else(|| {
        let supported = FAMILIES.map(Family::architecture);
        let reason = format!("{names:?} is not supported; supported: {supported:?}");
        file.wrong("architectures", reason)
    })
}

/// The family of this name.
pub(super) fn by_architecture(name: &str) -> Option<&'static dyn Family> {
    let mut families = FAMILIES.iter().copied();
    families.find(|family| family.architecture() == name)
}
