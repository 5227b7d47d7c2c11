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
    /// What may be done with it. OpenAI gave the field up; clients of the time still read it.
    #[serde(default)]
    pub permission: Vec<ModelPermission>,
}

/// What may be done with a model: always the same here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ModelPermission {
    /// `modelperm-` and the model's name.
    pub id: String,
    /// Always `model_permission`.
    pub object: String,
    /// Unix time in seconds at which the model was loaded.
    pub created: u64,
    /// No.
    pub allow_create_engine: bool,
    /// Yes.
    pub allow_sampling: bool,
    /// Yes.
    pub allow_logprobs: bool,
    /// No.
    pub allow_search_indices: bool,
    /// Yes.
    pub allow_view: bool,
    /// No.
    pub allow_fine_tuning: bool,
    /// Always `*`.
    pub organization: String,
    /// None.
    pub group: Option<String>,
    /// No.
    pub is_blocking: bool,
}

impl ModelPermission {
    /// The permissions on the model of this name.
    pub fn new(model: &str, created: u64) -> Self {
        Self {
            id: format!("modelperm-{model}"),
            object: "model_permission".to_owned(),
            created,
            allow_create_engine: false,
            allow_sampling: true,
            allow_logprobs: true,
            allow_search_indices: false,
            allow_view: true,
            allow_fine_tuning: false,
            organization: "*".to_owned(),
            group: None,
            is_blocking: false,
        }
    }
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
            permission: vec![ModelPermission::new(id, created)],
        }
    }
}
