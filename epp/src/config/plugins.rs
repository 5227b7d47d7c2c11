//! What a plugin type is to the configuration: a name, a kind, how mature it is, and how its
//! parameters are checked.
//!
//! The rooms that own the plugins list their types as constants of [`PluginType`]; the
//! configuration is checked against all lists together, so that it knows every name and every
//! default without knowing a single plugin.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Where a plugin type may be referred to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PluginKind {
    Filter,
    Scorer,
    Picker,
    ProfileHandler,
    /// Whether a request is split into prefill and decode.
    Decider,
    DataProducer,
    /// Runs before scheduling and may refuse the request.
    Admitter,
    /// Writes about the request where the gateway can read it.
    RequestControl,
    Fairness,
    Ordering,
    UsageLimit,
    SaturationDetector,
    EvictionFilter,
    EvictionOrder,
    DataSource,
    Extractor,
    Discovery,
    Parser,
}

/// How far the field has come with a plugin type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    Beta,
    /// Only with `--allow-experimental-plugins`.
    Alpha,
    /// Works, with a warning that names what to use instead.
    Deprecated {
        instead: &'static str,
    },
}

/// One plugin type.
#[derive(Clone, Copy, Debug)]
pub struct PluginType {
    /// As written in a configuration's `type`.
    pub name: &'static str,
    pub kind: PluginKind,
    pub stage: Stage,
    /// Reads parameters (an object, or null for none) strictly and gives them back with every
    /// default filled in.
    pub check: fn(&Value) -> Result<Value, ParameterError>,
}

/// Parameters of one plugin type.
pub trait Parameters: DeserializeOwned + Serialize {
    /// Refuses values that have the right type and make no sense.
    fn validate(&self) -> Result<(), ParameterError> {
        Ok(())
    }
}

/// For plugin types without parameters.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoParameters {}

impl Parameters for NoParameters {}

/// What is wrong with parameters, and where in them.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct ParameterError {
    /// Relative to the parameters, such as `matchExpressions[0].operator`; empty for the whole.
    pub path: String,
    pub reason: String,
}

impl ParameterError {
    pub fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            reason: reason.into(),
        }
    }
}

impl fmt::Display for ParameterError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            return formatter.write_str(&self.reason);
        }
        write!(formatter, "{}: {}", self.path, self.reason)
    }
}

/// Reads and validates parameters.
pub fn read<P: Parameters>(parameters: &Value) -> Result<P, ParameterError> {
    let empty = Value::Object(serde_json::Map::new());
    let given = if parameters.is_null() {
        &empty
    } else {
        parameters
    };
    let read: P = serde_path_to_error::deserialize(given).map_err(|error| {
        let path = match error.path().to_string() {
            whole if whole == "." => String::new(),
            path => path,
        };
        ParameterError::new(path, error.into_inner().to_string())
    })?;
    read.validate()?;
    Ok(read)
}

/// The `check` of a plugin type whose parameters are `P`.
pub fn check<P: Parameters>(parameters: &Value) -> Result<Value, ParameterError> {
    let read: P = read(parameters)?;
    serde_json::to_value(&read).map_err(|error| ParameterError::new("", error.to_string()))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default, rename_all = "camelCase")]
    struct Sample {
        queue_depth: u32,
        list: Vec<u8>,
    }

    impl Default for Sample {
        fn default() -> Self {
            Self {
                queue_depth: 5,
                list: Vec::new(),
            }
        }
    }

    impl Parameters for Sample {
        fn validate(&self) -> Result<(), ParameterError> {
            if self.queue_depth == 0 {
                return Err(ParameterError::new("queueDepth", "must be more than 0"));
            }
            Ok(())
        }
    }

    #[test]
    fn defaults_are_filled_in() {
        assert_eq!(
            check::<Sample>(&Value::Null).unwrap(),
            json!({"queueDepth": 5, "list": []})
        );
    }

    #[test]
    fn errors_name_their_place() {
        let of = |value| check::<Sample>(&value).unwrap_err();
        assert_eq!(of(json!({"list": [1, "x"]})).path, "list[1]");
        assert_eq!(of(json!({"queueDepth": 0})).path, "queueDepth");
        assert!(of(json!({"nonsense": 1})).to_string().contains("nonsense"));
    }
}
