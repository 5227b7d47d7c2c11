//! `by-label`: keeps the endpoints with certain values of one label. Deprecated for
//! `label-selector-filter`; the filters by role are made of it.

use serde::{Deserialize, Serialize};

use super::super::by_member::ByMember;
use super::super::plugin::{Context, Filter, Maker};
use super::label_selector;
use crate::config::plugins::{self, ParameterError, PluginKind, PluginType, Stage};
use crate::fleet::Endpoint;

/// The plugin's type name.
pub const TYPE_NAME: &str = "by-label";

/// The field's parameters. Without any, all endpoints pass.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    pub label: String,
    pub valid_values: Vec<String>,
    /// Whether endpoints without the label pass.
    pub allows_no_label: bool,
}

impl plugins::Parameters for Parameters {
    fn validate(&self) -> Result<(), ParameterError> {
        let asks = !self.valid_values.is_empty() || self.allows_no_label;
        if self.label.is_empty() && asks {
            return Err(ParameterError::new("label", "must not be empty"));
        }
        if !self.label.is_empty() && !asks {
            let reason = "must name a value, or allowsNoLabel be true: nothing would pass";
            return Err(ParameterError::new("validValues", reason));
        }
        Ok(())
    }
}

/// The plugin type.
pub const MAKER: Maker<dyn Filter> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Filter,
        stage: Stage::Deprecated {
            instead: label_selector::TYPE_NAME,
        },
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        Ok(Box::new(ByLabelFilter::new(
            TYPE_NAME,
            plugins::read(given)?,
        )))
    },
};

/// See the module.
#[derive(Debug)]
pub struct ByLabelFilter {
    type_name: &'static str,
    parameters: Parameters,
    allowed: ByMember<bool>,
}

impl ByLabelFilter {
    pub(super) fn new(type_name: &'static str, parameters: Parameters) -> Self {
        Self {
            type_name,
            parameters,
            allowed: ByMember::default(),
        }
    }

    /// As in the field, an absent label also counts as an empty value.
    fn allows(&self, member: &Endpoint) -> bool {
        let Parameters {
            label,
            valid_values,
            allows_no_label,
        } = &self.parameters;
        let value = member.spec.labels.get(label);
        let named = value.map_or("", String::as_str);
        (value.is_none() && *allows_no_label) || valid_values.iter().any(|valid| valid == named)
    }
}

impl Filter for ByLabelFilter {
    fn type_name(&self) -> &'static str {
        self.type_name
    }

    fn filter(&self, context: &Context<'_>, candidates: &mut Vec<usize>) {
        if !self.parameters.label.is_empty() {
            self.allowed
                .retain(context, candidates, |member| self.allows(member));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::fixtures::labelled;
    use super::super::tests::{Case, kept};
    use super::*;

    #[test]
    fn endpoints_with_a_valid_value_pass() {
        let fleet = labelled(&[&[("kind", "a")], &[("kind", "b")], &[("kind", "")], &[]]);
        let table: &[(Value, &[usize])] = &[
            (Value::Null, &[0, 1, 2, 3]),
            (json!({"label": "kind", "validValues": ["a", "c"]}), &[0]),
            (json!({"label": "kind", "allowsNoLabel": true}), &[3]),
            (
                json!({"label": "kind", "validValues": ["b"], "allowsNoLabel": true}),
                &[1, 3],
            ),
            (json!({"label": "kind", "validValues": [""]}), &[2, 3]),
        ];
        for (parameters, expected) in table {
            let kept = kept(&MAKER, parameters, &fleet, &Case::default());
            assert_eq!(kept, *expected, "{parameters}");
        }
    }

    #[test]
    fn half_a_condition_is_refused() {
        let path = |parameters: Value| (MAKER.plugin.check)(&parameters).unwrap_err().path;
        assert_eq!(path(json!({"label": "kind"})), "validValues");
        assert_eq!(path(json!({"validValues": ["a"]})), "label");
        assert_eq!(path(json!({"allowsNoLabel": true})), "label");
    }
}
