//! `context-length-aware`: sends a prompt to the endpoints that are set up for its length.
//!
//! A label of the endpoint names the lengths, in tokens and with both ends included: `0-8192`, or
//! several ranges with commas between them, of which the best one counts. The formula is the
//! field's (`pkg/epp/framework/plugins/scheduling/scorer/contextlengthaware` of llm-d-router):
//!
//! ```text
//! within a range    0.3 + 0.7 * (0.7 / (1 + width / 10000) + 0.3 * (max - length) / width)
//! outside of all    0.3 / (1 + distance / 1000)
//! no label          0.5
//! unreadable label  0
//! ```
//!
//! So a narrow range that fits beats a wide one, room above the prompt counts, and an endpoint that
//! does not fit never beats one that does. With `enableFiltering` the type is a filter as well:
//! what does not fit is dropped before the scoring, and scores 0 where it is asked about anyway.
//!
//! A label that cannot be read is worth a warning to its operator; a plugin has no one to tell, so
//! such an endpoint is treated as one that fits nothing.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::super::by_member::ByMember;
use super::super::plugin::{Context, Filter, Maker, Scorer};
use crate::config::plugins::{self, ParameterError, PluginKind, PluginType, Stage};
use crate::fleet::Endpoint;

/// The plugin's type name.
pub const TYPE_NAME: &str = "context-length-aware";

/// Ranges that a label may name; one with more cannot be read.
const RANGES_MAX: usize = 16;

/// Best score of an endpoint outside of whose ranges the prompt lies.
const FALLBACK: f64 = 0.3;

/// The field's parameters.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    /// The label that names the ranges.
    pub label: String,
    /// Whether endpoints that do not fit are dropped.
    pub enable_filtering: bool,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            label: "llm-d.ai/context-length-range".to_owned(),
            enable_filtering: false,
        }
    }
}

impl plugins::Parameters for Parameters {
    fn validate(&self) -> Result<(), ParameterError> {
        if self.label.is_empty() {
            return Err(ParameterError::new("label", "must not be empty"));
        }
        Ok(())
    }
}

/// The plugin type.
pub const MAKER: Maker<dyn Scorer> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Scorer,
        stage: Stage::Beta,
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        Ok(Box::new(ContextLengthAware::from(plugins::read::<
            Parameters,
        >(given)?)))
    },
};

/// See the module.
#[derive(Debug)]
pub struct ContextLengthAware {
    parameters: Parameters,
    lengths: ByMember<Lengths>,
}

/// What an endpoint's label says.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Lengths {
    Unlabelled,
    Unreadable,
    Ranges(SmallVec<[Range; 2]>),
}

/// Lengths from `min` to `max`, both included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Range {
    min: u32,
    max: u32,
}

impl From<Parameters> for ContextLengthAware {
    fn from(parameters: Parameters) -> Self {
        Self {
            parameters,
            lengths: ByMember::default(),
        }
    }
}

impl ContextLengthAware {
    fn with<R>(&self, context: &Context<'_>, read: impl FnOnce(&[Lengths]) -> R) -> R {
        let of = |member: &Endpoint| {
            let label = member.spec.labels.get(&self.parameters.label);
            label.map_or(Lengths::Unlabelled, |label| Lengths::parse(label))
        };
        self.lengths.with(&context.snapshot.members, of, read)
    }
}

impl Scorer for ContextLengthAware {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn score(&self, context: &Context<'_>, candidates: &[usize], scores: &mut [f32]) {
        let length = context.request.prompt_tokens;
        let strict = self.parameters.enable_filtering;
        self.with(context, |lengths| {
            for (at, score) in candidates.iter().zip(scores) {
                let value = lengths
                    .get(*at)
                    .map_or(0.0, |known| known.value(length, strict));
                *score = value as f32;
            }
        });
    }

    fn as_filter(&self) -> Option<&dyn Filter> {
        self.parameters.enable_filtering.then_some(self)
    }
}

impl Filter for ContextLengthAware {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn filter(&self, context: &Context<'_>, candidates: &mut Vec<usize>) {
        if !self.parameters.enable_filtering {
            return;
        }
        let length = context.request.prompt_tokens;
        self.with(context, |lengths| {
            candidates.retain(|at| lengths.get(*at).is_some_and(|known| known.fit(length)));
        });
    }
}

impl Lengths {
    fn parse(label: &str) -> Self {
        let mut ranges = SmallVec::new();
        for part in label.split(',') {
            match Range::parse(part) {
                Some(range) if ranges.len() < RANGES_MAX => ranges.push(range),
                _ => return Self::Unreadable,
            }
        }
        Self::Ranges(ranges)
    }

    fn fit(&self, length: u32) -> bool {
        match self {
            Self::Unlabelled => true,
            Self::Unreadable => false,
            Self::Ranges(ranges) => ranges.iter().any(|range| range.holds(length)),
        }
    }

    fn value(&self, length: u32, strict: bool) -> f64 {
        match self {
            Self::Unlabelled => 0.5,
            Self::Unreadable => 0.0,
            Self::Ranges(_) if strict && !self.fit(length) => 0.0,
            Self::Ranges(ranges) => ranges
                .iter()
                .map(|range| range.value(length))
                .fold(0.0, f64::max),
        }
    }
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let (min, max) = text.split_once('-')?;
        let (min, max) = (min.trim().parse().ok()?, max.trim().parse().ok()?);
        (min <= max).then_some(Self { min, max })
    }

    fn holds(self, length: u32) -> bool {
        (self.min..=self.max).contains(&length)
    }

    fn value(self, length: u32) -> f64 {
        let distance = self.min.saturating_sub(length) + length.saturating_sub(self.max);
        if distance > 0 {
            return FALLBACK / (1.0 + f64::from(distance) / 1000.0);
        }
        let width = f64::from(self.max - self.min);
        if width == 0.0 {
            return 1.0;
        }
        let narrow = 1.0 / (1.0 + width / 10_000.0);
        let room = f64::from(self.max - length) / width;
        FALLBACK + (1.0 - FALLBACK) * (0.7 * narrow + 0.3 * room)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::fixtures::{labelled, request};
    use super::super::tests::{rounded, scored};
    use super::*;
    use crate::fleet::{Matches, Snapshot};

    const LABEL: &str = "llm-d.ai/context-length-range";

    fn fleet() -> Snapshot {
        labelled(&[
            &[(LABEL, "0-2048")],
            &[(LABEL, " 2000 - 10000 ")],
            &[(LABEL, "0-100,4000-4000")],
            &[(LABEL, "10-1")],
            &[(LABEL, "0-100,x")],
            &[],
        ])
    }

    fn of(parameters: &Value, length: u32) -> Vec<i32> {
        rounded(&scored(
            &MAKER,
            parameters,
            &fleet(),
            &Matches::default(),
            length,
        ))
    }

    #[test]
    fn ranges_are_rated_by_their_width_and_their_room() {
        // 0.3 + 0.7 * (0.7 / 1.2048 + 0.3 * 1024 / 2048); 0.3 / (1 + 976 / 1000); 924 from 100.
        assert_eq!(of(&Value::Null, 1024), [812, 152, 156, 0, 0, 500]);
        // 1952 beyond the first; 0.3 + 0.7 * (0.7 / 1.8 + 0.3 * 6000 / 8000); exactly the third's.
        assert_eq!(of(&Value::Null, 4000), [102, 730, 1000, 0, 0, 500]);
        assert_eq!(of(&Value::Null, 2048)[0], 707);
        assert_eq!(of(&Value::Null, 2049)[0], 300);
    }

    fn filtered(parameters: &Value, length: u32) -> Option<Vec<usize>> {
        let scorer = (MAKER.make)(parameters).unwrap();
        let filter = scorer.as_filter()?;
        assert_eq!(filter.type_name(), TYPE_NAME);
        let (fleet, matches) = (fleet(), Matches::default());
        let context = Context {
            snapshot: &fleet,
            request: &request(length, &matches, 0),
            now_ms: 0,
        };
        let mut candidates = vec![5, 4, 3, 2, 1, 0];
        filter.filter(&context, &mut candidates);
        Some(candidates)
    }

    #[test]
    fn with_filtering_what_does_not_fit_is_dropped() {
        let filtering = json!({"enableFiltering": true});
        assert_eq!(filtered(&filtering, 2048), Some(vec![5, 1, 0]));
        assert_eq!(filtered(&filtering, 4000), Some(vec![5, 2, 1]));
        assert_eq!(filtered(&filtering, 20_000), Some(vec![5]));
        assert_eq!(filtered(&Value::Null, 2048), None);
        assert_eq!(of(&filtering, 1024), [812, 0, 0, 0, 0, 500]);
    }

    #[test]
    fn the_label_is_the_operators() {
        assert_eq!(of(&json!({"label": "other"}), 1024), [500; 6]);
        let error = (MAKER.plugin.check)(&json!({"label": ""})).unwrap_err();
        assert_eq!(error.path, "label");
        let many = vec!["1-2"; RANGES_MAX].join(",");
        assert!(matches!(Lengths::parse(&many), Lengths::Ranges(_)));
        assert_eq!(Lengths::parse(&(many + ",1-2")), Lengths::Unreadable);
        assert_eq!(Lengths::parse("0-4294967296"), Lengths::Unreadable);
        assert_eq!(Lengths::parse(""), Lengths::Unreadable);
    }
}
