//! `generation_config.json`: what a request gets that does not say how it wants to be sampled.

use std::path::Path;

use serde::Deserialize;

use super::raw::{OneOrMore, read_json};
use super::{ModelConfig, ModelError};

/// The model authors' defaults; absent ones are OpenAI's (temperature 1, nothing cut off).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Sampling temperature.
    pub temperature: Option<f32>,
    /// Nucleus size.
    pub top_p: Option<f32>,
    /// Number of candidates.
    pub top_k: Option<u32>,
    /// Relative probability floor.
    pub min_p: Option<f32>,
    /// Penalty on repeated tokens.
    pub repetition_penalty: Option<f32>,
    /// End-of-sequence tokens of this file and of `config.json`, without duplicates, in that order.
    pub eos_token_ids: Vec<u32>,
}

#[derive(Debug, Default, Deserialize)]
struct Raw {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    eos_token_id: Option<OneOrMore>,
}

impl GenerationDefaults {
    /// Reads the file; a folder without one has no defaults of its own.
    ///
    /// # Errors
    /// When the file is there and is not valid.
    pub fn load(folder: &Path, config: &ModelConfig) -> Result<Self, ModelError> {
        let raw: Raw = match read_json(&folder.join("generation_config.json")) {
            Err(ModelError::Read { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Raw::default()
            }
            read => read?,
        };
        let mut eos_token_ids = raw
            .eos_token_id
            .map(OneOrMore::into_vec)
            .unwrap_or_default();
        eos_token_ids.extend_from_slice(&config.eos_token_ids);
        let mut distinct = Vec::with_capacity(eos_token_ids.len());
        for id in eos_token_ids {
            if !distinct.contains(&id) {
                distinct.push(id);
            }
        }
        Ok(Self {
            temperature: raw.temperature,
            top_p: raw.top_p,
            top_k: raw.top_k,
            min_p: raw.min_p,
            repetition_penalty: raw.repetition_penalty,
            eos_token_ids: distinct,
        })
    }
}
