//! A model folder: its configuration, its weights, and what each family's layers are made of.
//!
//! Nothing here computes, and nothing depends on a device: a family's file names its tensors and their shapes and
//! hands out checked views into the mapped files, which a backend then packs or uploads as it likes. Everything that
//! can be wrong with a folder is found while it is opened, before anything listens, and is told with the file and the
//! field or tensor that is wrong. A new family is one new file.

mod config;
mod generation;
pub mod llama;
mod weights;

use std::path::{Path, PathBuf};

pub use config::{Llama3Scaling, ModelConfig, Rope};
pub use generation::GenerationDefaults;
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
}

impl Model {
    /// Opens a folder for its configuration alone; every tensor is missing.
    ///
    /// # Errors
    /// See [`ModelError`].
    pub fn open_without_weights(folder: &Path) -> Result<Self, ModelError> {
        let config = ModelConfig::load(folder)?;
        let generation = GenerationDefaults::load(folder, &config)?;
        let weights = Weights::none(folder);
        Ok(Self {
            config,
            generation,
            weights,
        })
    }

    /// Opens a Hugging Face model folder.
    ///
    /// # Errors
    /// See [`ModelError`].
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let config = ModelConfig::load(folder)?;
        let generation = GenerationDefaults::load(folder, &config)?;
        let weights = Weights::open(folder)?;
        llama::tensors(&config, &weights)?;
        Ok(Self {
            config,
            generation,
            weights,
        })
    }
}
