//! `label-selector-filter`: keeps the endpoints whose labels a Kubernetes selector selects.
//!
//! The semantics are those of a Kubernetes label selector: every entry of `matchLabels` and every
//! expression must hold; `NotIn` and `DoesNotExist` hold for an endpoint without the label; a
//! selector without requirements selects everything. `by-label-selector` is its name of before.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::by_member::ByMember;
use super::super::plugin::{Context, Filter, Maker};
use crate::config::plugins::{self, ParameterError, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "label-selector-filter";

/// The plugin's deprecated type name.
pub const DEPRECATED_TYPE_NAME: &str = "by-label-selector";

/// A Kubernetes label selector.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    pub match_labels: BTreeMap<String, String>,
    pub match_expressions: Vec<Expression>,
}

/// One requirement of a selector.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Expression {
    pub key: String,
    pub operator: Operator,
    #[serde(default)]
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl plugins::Parameters for Parameters {
    fn validate(&self) -> Result<(), ParameterError> {
        if self.match_labels.contains_key("") {
            return Err(ParameterError::new("matchLabels", "a key is empty"));
        }
        for (at, expression) in self.match_expressions.iter().enumerate() {
            let refuse = |field: &str, reason: &str| {
                let path = format!("matchExpressions[{at}].{field}");
                Err(ParameterError::new(path, reason))
            };
            if expression.key.is_empty() {
                return refuse("key", "must not be empty");
            }
            let compares = matches!(expression.operator, Operator::In | Operator::NotIn);
            if compares && expression.values.is_empty() {
                return refuse("values", "In and NotIn need at least one value");
            }
            if !compares && !expression.values.is_empty() {
                return refuse("values", "Exists and DoesNotExist take no values");
            }
        }
        Ok(())
    }
}

impl Parameters {
    /// Whether the selector selects these labels.
    fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && self
                .match_expressions
                .iter()
                .all(|expression| expression.holds(labels.get(&expression.key)))
    }
}

impl Expression {
    fn holds(&self, label: Option<&String>) -> bool {
        match self.operator {
            Operator::In => label.is_some_and(|value| self.values.contains(value)),
            Operator::NotIn => label.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => label.is_some(),
            Operator::DoesNotExist => label.is_none(),
        }
    }
}

/// The plugin type.
pub const MAKER: Maker<dyn Filter> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Filter,
        stage: Stage::Beta,
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        Ok(Box::new(LabelSelectorFilter::new(
            TYPE_NAME,
            plugins::read(given)?,
        )))
    },
};

/// The plugin type under its deprecated name.
pub const DEPRECATED_MAKER: Maker<dyn Filter> = Maker {
    plugin: PluginType {
        name: DEPRECATED_TYPE_NAME,
        kind: PluginKind::Filter,
        stage: Stage::Deprecated { instead: TYPE_NAME },
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        let parameters = plugins::read(given)?;
        Ok(Box::new(LabelSelectorFilter::new(
            DEPRECATED_TYPE_NAME,
            parameters,
        )))
    },
};

/// See the module.
#[derive(Debug)]
pub struct LabelSelectorFilter {
    type_name: &'static str,
    selector: Parameters,
    selected: ByMember<bool>,
}

impl LabelSelectorFilter {
    fn new(type_name: &'static str, selector: Parameters) -> Self {
        Self {
            type_name,
            selector,
            selected: ByMember::default(),
        }
    }
}

impl Filter for LabelSelectorFilter {
    fn type_name(&self) -> &'static str {
        self.type_name
    }

    fn filter(&self, context: &Context<'_>, candidates: &mut Vec<usize>) {
        self.selected.retain(context, candidates, |member| {
            self.selector.selects(&member.spec.labels)
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::fixtures::labelled;
    use super::super::tests::{Case, kept};
    use super::*;

    #[test]
    fn selectors_select_as_in_kubernetes() {
        let fleet = labelled(&[
            &[("app", "a"), ("tier", "gold")],
            &[("app", "b")],
            &[("app", ""), ("tier", "iron")],
            &[],
        ]);
        let expression = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        let table: &[(Value, &[usize])] = &[
            (Value::Null, &[0, 1, 2, 3]),
            (json!({"matchLabels": {"app": "a"}}), &[0]),
            (json!({"matchLabels": {"app": ""}}), &[2]),
            (json!({"matchLabels": {"app": "a", "tier": "iron"}}), &[]),
            (expression("app", "In", &["a", "b"]), &[0, 1]),
            (expression("app", "NotIn", &["a", "b"]), &[2, 3]),
            (expression("tier", "Exists", &[]), &[0, 2]),
            (expression("tier", "DoesNotExist", &[]), &[1, 3]),
            (
                json!({
                    "matchLabels": {"app": "a"},
                    "matchExpressions": [{"key": "tier", "operator": "Exists"}],
                }),
                &[0],
            ),
        ];
        for (parameters, expected) in table {
            for maker in [&MAKER, &DEPRECATED_MAKER] {
                let kept = kept(maker, parameters, &fleet, &Case::default());
                assert_eq!(kept, *expected, "{parameters}");
            }
        }
    }

    #[test]
    fn requirements_that_cannot_hold_are_refused() {
        let path = |parameters: Value| (MAKER.plugin.check)(&parameters).unwrap_err().path;
        let expression = |value: Value| json!({"matchExpressions": [value]});
        assert_eq!(
            path(expression(json!({"key": "a", "operator": "In"}))),
            "matchExpressions[0].values"
        );
        assert_eq!(
            path(expression(
                json!({"key": "a", "operator": "Exists", "values": ["b"]})
            )),
            "matchExpressions[0].values"
        );
        assert_eq!(
            path(expression(json!({"key": "", "operator": "Exists"}))),
            "matchExpressions[0].key"
        );
        assert_eq!(
            path(expression(json!({"key": "a", "operator": "Gt"}))),
            "matchExpressions[0].operator"
        );
        assert_eq!(path(json!({"matchLabels": {"": "a"}})), "matchLabels");
    }
}
