//! A catalogue with every type of the field. Few have parameters of their own here; the others take
//! any.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::super::{Catalogue, FIELD_TYPES, LoadOptions, load};
use crate::config::plugins::{self, NoParameters, ParameterError, Parameters, PluginType};
use crate::config::problems::ConfigErrors;
use crate::config::resolved::ResolvedConfig;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(in crate::config) struct Detector {
    queue_depth_threshold: u32,
    kv_cache_util_threshold: f64,
    nested: Vec<Limits>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(in crate::config) struct Limits {
    max_value: u32,
}

impl Default for Detector {
    fn default() -> Self {
        Self {
            queue_depth_threshold: 5,
            kv_cache_util_threshold: 0.8,
            nested: Vec::new(),
        }
    }
}

impl Parameters for Detector {
    fn validate(&self) -> Result<(), ParameterError> {
        if self.queue_depth_threshold == 0 {
            return Err(ParameterError::new(
                "queueDepthThreshold",
                "must be more than 0",
            ));
        }
        Ok(())
    }
}

fn any(given: &Value) -> Value {
    match given {
        Value::Null => Value::Object(Map::new()),
        given => given.clone(),
    }
}

fn prefix(given: &Value) -> Value {
    let name = given.get("prefixMatchInfoProducerName");
    json!({"prefixMatchInfoProducerName": name.cloned().unwrap_or(json!(""))})
}

pub(in crate::config) fn catalogue() -> Catalogue {
    Catalogue::new(FIELD_TYPES.iter().map(|(name, kind, stage)| PluginType {
        name,
        kind: *kind,
        stage: *stage,
        check: match *name {
            "utilization-detector" => plugins::check::<Detector>,
            "queue-scorer" | "max-score-picker" => plugins::check::<NoParameters>,
            "prefix-cache-scorer" => |given| Ok(prefix(given)),
            _ => |given| Ok(any(given)),
        },
    }))
}

/// Loads below a good header, which is lines 1 and 2.
pub(in crate::config) fn body(text: &str) -> Result<ResolvedConfig, ConfigErrors> {
    let text = format!("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n{text}");
    load("c.yaml", &text, &catalogue(), &LoadOptions::default())
}
