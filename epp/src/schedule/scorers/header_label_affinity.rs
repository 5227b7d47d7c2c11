//! `header-label-affinity-scorer`: 1 for the endpoints on which a label has the value of a header
//! of the request, 0 for the others, and for all when the header is not there or empty.

use serde::{Deserialize, Serialize};

use super::super::by_member::ByMember;
use super::super::plugin::{Context, Maker, Scorer};
use crate::config::plugins::{self, ParameterError, PluginKind, PluginType, Stage};
use crate::fleet::Endpoint;

/// The plugin's type name.
pub const TYPE_NAME: &str = "header-label-affinity-scorer";

/// The field's parameters. Without any, all endpoints score 0.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    pub header_name: String,
    pub label_key: String,
}

impl plugins::Parameters for Parameters {
    fn validate(&self) -> Result<(), ParameterError> {
        match (self.header_name.is_empty(), self.label_key.is_empty()) {
            (true, false) => Err(ParameterError::new("headerName", "must not be empty")),
            (false, true) => Err(ParameterError::new("labelKey", "must not be empty")),
            _ => Ok(()),
        }
    }
}

/// The plugin type.
pub const MAKER: Maker<dyn Scorer> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Scorer,
        stage: Stage::Alpha,
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        let parameters: Parameters = plugins::read(given)?;
        Ok(Box::new(HeaderLabelAffinityScorer::from(parameters)))
    },
};

/// See the module.
#[derive(Debug)]
pub struct HeaderLabelAffinityScorer {
    /// Lower case.
    header: String,
    label: String,
    values: ByMember<Option<Box<str>>>,
}

impl From<Parameters> for HeaderLabelAffinityScorer {
    fn from(parameters: Parameters) -> Self {
        Self {
            header: parameters.header_name.to_ascii_lowercase(),
            label: parameters.label_key,
            values: ByMember::default(),
        }
    }
}

impl Scorer for HeaderLabelAffinityScorer {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn score(&self, context: &Context<'_>, candidates: &[usize], scores: &mut [f32]) {
        scores.fill(0.0);
        let wanted = context.request.headers.get(&self.header);
        let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else {
            return;
        };
        let members = &context.snapshot.members;
        let of = |member: &Endpoint| {
            let value = member.spec.labels.get(&self.label)?;
            Some(value.as_str().into())
        };
        self.values.with(members, of, |values| {
            for (at, score) in candidates.iter().zip(scores) {
                let value = values.get(*at).and_then(Option::as_deref);
                *score = f32::from(value == Some(wanted));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::fixtures::{HeaderList, labelled, request};
    use super::*;
    use crate::fleet::Matches;

    #[test]
    fn endpoints_with_the_headers_value_score_one() {
        let fleet = labelled(&[&[("zone", "a")], &[("zone", "b")], &[("zone", "")], &[]]);
        let of = |parameters: &Value, header: &'static str, value: &str| {
            let matches = Matches::default();
            let headers = HeaderList::one(header, value);
            let mut request = request(0, &matches, 0);
            request.headers = &headers;
            let context = Context {
                snapshot: &fleet,
                request: &request,
                now_ms: 0,
            };
            let mut scores = [9.0; 4];
            let scorer = (MAKER.make)(parameters).unwrap();
            scorer.score(&context, &[0, 1, 2, 3], &mut scores);
            scores.map(|score| score as u32)
        };
        let parameters = json!({"headerName": "X-Wanted", "labelKey": "zone"});
        assert_eq!(of(&parameters, "x-wanted", "b"), [0, 1, 0, 0]);
        assert_eq!(of(&parameters, "x-wanted", "c"), [0; 4]);
        assert_eq!(of(&parameters, "x-wanted", ""), [0; 4]);
        assert_eq!(of(&parameters, "x-other", "b"), [0; 4]);
        assert_eq!(of(&Value::Null, "x-wanted", "b"), [0; 4]);
    }

    #[test]
    fn half_a_comparison_is_refused() {
        let path = |parameters: Value| (MAKER.plugin.check)(&parameters).unwrap_err().path;
        assert_eq!(path(json!({"headerName": "x"})), "labelKey");
        assert_eq!(path(json!({"labelKey": "x"})), "headerName");
    }
}
