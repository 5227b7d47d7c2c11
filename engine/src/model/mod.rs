//! A model folder: its configuration, its weights, and what each family's layers are made of.
//!
//! Nothing here computes, and nothing depends on a device: a family's file names its tensors and their shapes and
//! hands out checked views into the mapped files, which a backend then packs or uploads as it likes. Everything that
//! can be wrong with a folder is found while it is opened, before anything listens, and is told with the file and the
//! field or tensor that is wrong. A new family is one new file and one line in `family`.

mod config;
mod family;
mod fp8;
mod generation;
mod llama;
mod manifest;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod raw;
mod rope;
mod shard;
mod tensors;
mod weights;
mod window;

use std::path::{Path, PathBuf};

pub use config::{ExpertsConfig, ModelConfig};
#[cfg(test)]
pub(crate) use fp8::checkpoints;
pub use fp8::{Fp8Config, Grain, Scales, e4m3};
pub use generation::GenerationDefaults;
pub use manifest::{Verification, Verified};
pub use rope::{Llama3Scaling, LongRopeScaling, Rope, RopeScaling, YarnScaling};
pub use shard::{LayerPart, Part, Shard, ShardError};
pub use tensors::{FeedForward, Layer, Mlp, Tensors};
pub use weights::{ElementType, Tensor, Weights};

/// Why a model folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A configuration field is missing, impossible or not supported.
    #[error("{}: field {field}: {reason}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor is missing or has another shape or type than the configuration says.
    #[error("{}: tensor {name}: {reason}", path.display())]
    Tensor {
        /// The file, or the folder when no file has the tensor.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file is not what the manifest says.
    #[error("{}: file {file}: expected {expected}, found {found}", path.display())]
    Unverified {
        /// The manifest.
        path: PathBuf,
        /// The file.
        file: String,
        /// What the manifest says.
        expected: String,
        /// What there is.
        found: String,
    },
}

/// An opened model folder whose tensors are known to be there and to have the right shapes.
#[derive(Debug)]
pub struct Model {
    /// From `config.json`.
    pub config: ModelConfig,
    /// From `generation_config.json`.
    pub generation: GenerationDefaults,
    /// The mapped files.
    pub weights: Weights,
    /// Present when the files were checked against a manifest.
    pub verified: Option<Verified>,
}

impl Model {
    /// Opens a folder for its configuration alone; every tensor is missing.
    ///
    /// # Errors
    /// See [`ModelError`].
    pub fn open_without_weights(folder: &Path) -> Result<Self, ModelError> {
        let config = ModelConfig::load(folder)?;
        let generation = GenerationDefaults::load(folder, &config)?;
        Ok(Self {
            config,
            generation,
            weights: Weights::none(folder),
            verified: None,
        })
    }

    /// Opens a Hugging Face model folder, and checks it against its manifest if it has one.
    ///
    /// # Errors
    /// See [`ModelError`].
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        Self::open_with(folder, Verification::WherePossible)
    }

    /// Opens a Hugging Face model folder.
    ///
    /// # Errors
    /// See [`ModelError`]; among others when `verification` asks for a manifest and there is none.
    pub fn open_with(folder: &Path, verification: Verification) -> Result<Self, ModelError> {
        let config = ModelConfig::load(folder)?;
        let generation = GenerationDefaults::load(folder, &config)?;
        let verified = manifest::verify(folder, verification)?;
        let weights = Weights::open(folder)?;
        tensors::find(&config, &weights)?;
        Ok(Self {
            config,
            generation,
            weights,
            verified,
        })
    }

    /// Views of all tensors, by what they are for.
    ///
    /// # Errors
    /// None that [`Model::open`] did not return already, unless the configuration was changed since.
    pub fn tensors(&self) -> Result<Tensors<'_>, ModelError> {
        tensors::find(&self.config, &self.weights)
    }
}

#[cfg(test)]
mod tests;
