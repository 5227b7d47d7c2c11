//! `GET /v1/models`.

use serde::{Deserialize, Serialize};

/// The models that a worker serves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ModelList {
    /// Always `list`.
    pub object: String,
    /// The base model first, then its adapters.
    pub data: Vec<ModelCard>,
}

impl ModelList {
    /// A list of `data`.
    pub fn new(data: Vec<ModelCard>) -> Self {
        Self {
            object: "list".to_owned(),
            data,
        }
    }
}

/// One model.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ModelCard {
    /// The name that requests use.
    pub id: String,
    /// Always `model`.
    pub object: String,
    /// Unix time in seconds at which it was loaded.
    pub created: u64,
    /// Who runs it.
    pub owned_by: String,
    /// Where it was loaded from.
    #[serde(default)]
    pub root: Option<String>,
    /// The base model of an adapter.
    #[serde(default)]
    pub parent: Option<String>,
    /// Most tokens of a prompt and its answer together.
    #[serde(default)]
    pub max_model_len: Option<u32>,
}

impl ModelCard {
    /// The card of a base model.
    pub fn base(id: &str, created: u64, owned_by: &str, root: &str, max_model_len: u32) -> Self {
        Self {
            id: id.to_owned(),
            object: "model".to_owned(),
            created,
            owned_by: owned_by.to_owned(),
            root: Some(root.to_owned()),
            parent: None,
            max_model_len: Some(max_model_len),
        }
    }
}
