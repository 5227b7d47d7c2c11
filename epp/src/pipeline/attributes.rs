//! `request-attribute-reporter`: numbers computed from a response's usage, for the gateway to read.
//!
//! Each attribute is an expression in the Common Expression Language over `usage`, the worker's
//! usage object with `prompt_tokens`, `completion_tokens`, `total_tokens` and, where the worker says
//! so, `prompt_tokens_details.cached_tokens`. Its value becomes dynamic metadata on the last answer
//! of the response, which a rate limit of the gateway can charge. An expression that fails for one
//! response reports nothing for it: billing a made-up number would be worse.

use cel::{Context, Program, Value as CelValue};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::plugins::{self, ParameterError, Parameters, PluginKind, PluginType, Stage};
use crate::ext_proc::usage::TokenUsage;

/// The plugin's type name.
pub const TYPE_NAME: &str = "request-attribute-reporter";

/// The plugin type.
pub const PLUGIN_TYPE: PluginType = PluginType {
    name: TYPE_NAME,
    kind: PluginKind::RequestControl,
    stage: Stage::Beta,
    check: plugins::check::<Reporter>,
};

/// Longer expressions are refused.
const EXPRESSION_BYTES_MAX: usize = 4096;
/// More attributes are refused.
const ATTRIBUTES_MAX: usize = 32;

/// The field's parameters.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reporter {
    pub attributes: Vec<Attribute>,
}

/// One number.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attribute {
    pub key: AttributeKey,
    /// Gives a number.
    pub expression: String,
    /// Gives whether the number is reported; empty = always.
    #[serde(default)]
    pub condition: String,
}

/// Where the number goes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttributeKey {
    #[serde(default = "default_namespace")]
    pub namespace: String,
    pub name: String,
}

fn default_namespace() -> String {
    "envoy.lb".to_owned()
}

impl Parameters for Reporter {
    fn validate(&self) -> Result<(), ParameterError> {
        if self.attributes.len() > ATTRIBUTES_MAX {
            let reason = format!(
                "{} are given, of at most {ATTRIBUTES_MAX}",
                self.attributes.len()
            );
            return Err(ParameterError::new("attributes", reason));
        }
        AttributePrograms::compile(std::slice::from_ref(self)).map(drop)
    }
}

/// Compiled attributes of all reporters.
#[derive(Debug, Default)]
pub struct AttributePrograms {
    programs: Vec<Compiled>,
}

#[derive(Debug)]
struct Compiled {
    key: AttributeKey,
    expression: Program,
    condition: Option<Program>,
}

impl AttributePrograms {
    /// Compiles the attributes; an error names the one that it is about.
    pub fn compile(reporters: &[Reporter]) -> Result<Self, ParameterError> {
        let mut programs = Vec::new();
        for reporter in reporters {
            for (place, attribute) in reporter.attributes.iter().enumerate() {
                let path = |field: &str| format!("attributes[{place}].{field}");
                let condition = match attribute.condition.trim() {
                    "" => None,
                    text => Some(program(&path("condition"), text)?),
                };
                programs.push(Compiled {
                    key: attribute.key.clone(),
                    expression: program(&path("expression"), &attribute.expression)?,
                    condition,
                });
            }
        }
        Ok(Self { programs })
    }

    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty()
    }

    /// The numbers for one response, each with its namespace and name.
    pub fn evaluate(&self, usage: &TokenUsage) -> Vec<(String, String, f64)> {
        let mut context = Context::default();
        if context.add_variable("usage", usage_value(usage)).is_err() {
            return Vec::new();
        }
        let reported = self.programs.iter().filter_map(|compiled| {
            let holds =
                |program: &Program| matches!(program.execute(&context), Ok(CelValue::Bool(true)));
            if !compiled.condition.as_ref().is_none_or(holds) {
                return None;
            }
            let number = match compiled.expression.execute(&context).ok()? {
                CelValue::Int(number) => number as f64,
                CelValue::UInt(number) => number as f64,
                CelValue::Float(number) if number.is_finite() => number,
                _ => return None,
            };
            let AttributeKey { namespace, name } = compiled.key.clone();
            Some((namespace, name, number))
        });
        reported.collect()
    }
}

fn usage_value(usage: &TokenUsage) -> Value {
    let mut value = json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    });
    if let Some(cached) = usage.cached_tokens {
        value["prompt_tokens_details"] = json!({ "cached_tokens": cached });
    }
    value
}

fn program(path: &str, text: &str) -> Result<Program, ParameterError> {
    if text.len() > EXPRESSION_BYTES_MAX {
        let reason = format!("is longer than {EXPRESSION_BYTES_MAX} bytes");
        return Err(ParameterError::new(path, reason));
    }
    Program::compile(text).map_err(|error| ParameterError::new(path, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs(attributes: &Value) -> Result<AttributePrograms, ParameterError> {
        let reporter: Reporter = plugins::read(&json!({ "attributes": attributes }))?;
        AttributePrograms::compile(&[reporter])
    }

    const USAGE: TokenUsage = TokenUsage {
        prompt_tokens: 70,
        completion_tokens: 10,
        cached_tokens: Some(64),
    };

    #[test]
    fn numbers_are_computed_from_usage() {
        let programs = programs(&json!([
            {"key": {"name": "cost"}, "expression": "usage.prompt_tokens + usage.completion_tokens",
             "condition": "has(usage.prompt_tokens) && has(usage.completion_tokens)"},
            {"key": {"namespace": "billing", "name": "fresh"},
             "expression": "double(usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens) * 1.5"},
            {"key": {"name": "never"}, "expression": "1", "condition": "usage.prompt_tokens > 100"},
            {"key": {"name": "failing"}, "expression": "usage.nonsense"},
            {"key": {"name": "no number"}, "expression": "'text'"},
        ]))
        .unwrap();
        let expected = vec![
            ("envoy.lb".to_owned(), "cost".to_owned(), 80.0),
            ("billing".to_owned(), "fresh".to_owned(), 9.0),
        ];
        assert_eq!(programs.evaluate(&USAGE), expected);
        let without_cache = TokenUsage {
            cached_tokens: None,
            ..USAGE
        };
        assert_eq!(programs.evaluate(&without_cache).len(), 1);
    }

    #[test]
    fn bad_expressions_are_named() {
        let bad = |attribute: Value| programs(&json!([attribute])).unwrap_err().path;
        let key = json!({"name": "x"});
        assert_eq!(
            bad(json!({"key": key, "expression": "1 +"})),
            "attributes[0].expression"
        );
        assert_eq!(
            bad(json!({"key": key, "expression": "1", "condition": "&&"})),
            "attributes[0].condition"
        );
        let long = "1+".repeat(3000) + "1";
        assert_eq!(
            bad(json!({"key": key, "expression": long})),
            "attributes[0].expression"
        );
        assert_eq!(
            bad(json!({"key": {}, "expression": "1"})),
            "attributes[0].key"
        );
    }
}
