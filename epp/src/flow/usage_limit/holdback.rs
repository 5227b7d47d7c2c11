//! `priority-holdback-policy`: the lower the priority, the lower its ceiling.
//!
//! The highest band gets `maxCeiling`, the lowest `minCeiling`, and those between lie on a line: by
//! their rank, or by the value of their priority. Bands that exist without a waiting request count
//! as well, so the room kept for them is there when they need it.

use serde::{Deserialize, Serialize};

use crate::config::plugins::{self, ParameterError, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "priority-holdback-policy";

/// The plugin type.
pub const PLUGIN: PluginType = PluginType {
    name: TYPE_NAME,
    kind: PluginKind::UsageLimit,
    stage: Stage::Alpha,
    check: plugins::check::<Parameters>,
};

/// What places a band on the line.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Domain {
    #[default]
    Rank,
    Value,
}

/// Parameters of the plugin.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    /// Ceiling of the lowest priority. It must be given: no value suits everybody.
    pub min_ceiling: Option<f64>,
    /// Ceiling of the highest priority.
    pub max_ceiling: f64,
    pub domain: Domain,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            min_ceiling: None,
            max_ceiling: 1.0,
            domain: Domain::Rank,
        }
    }
}

impl plugins::Parameters for Parameters {
    fn validate(&self) -> Result<(), ParameterError> {
        let Some(min) = self.min_ceiling else {
            return Err(ParameterError::new("minCeiling", "must be given"));
        };
        if !(0.0..1.0).contains(&min) {
            let reason = "must be at least 0 and less than 1";
            return Err(ParameterError::new("minCeiling", reason));
        }
        if !(self.max_ceiling > 0.0 && self.max_ceiling <= 1.0) {
            let reason = "must be more than 0 and at most 1";
            return Err(ParameterError::new("maxCeiling", reason));
        }
        if min > self.max_ceiling {
            return Err(ParameterError::new("minCeiling", "is above maxCeiling"));
        }
        Ok(())
    }
}

impl Parameters {
    pub(super) fn ceilings(&self, priorities: &[i32], ceilings: &mut Vec<f64>) {
        let min = self.min_ceiling.unwrap_or(self.max_ceiling);
        let lowest = priorities.last().copied().map_or(0.0, f64::from);
        let span = priorities.first().copied().map_or(0.0, f64::from) - lowest;
        let last = priorities.len().saturating_sub(1) as f64;
        ceilings.extend(priorities.iter().enumerate().map(|(rank, priority)| {
            // 1 for the highest, 0 for the lowest; a band on its own is the highest.
            let height = match self.domain {
                Domain::Rank if last > 0.0 => 1.0 - rank as f64 / last,
                Domain::Value if span > 0.0 => (f64::from(*priority) - lowest) / span,
                Domain::Rank | Domain::Value => 1.0,
            };
            min + height * (self.max_ceiling - min)
        }));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::UsageLimit;
    use super::*;

    fn ceilings(domain: &str, priorities: &[i32]) -> Vec<f64> {
        let parameters = json!({"minCeiling": 0.4, "maxCeiling": 0.9, "domain": domain});
        let mut policy = UsageLimit::make(TYPE_NAME, &parameters).unwrap();
        let mut ceilings = Vec::new();
        policy.ceilings(0.5, priorities, &mut ceilings);
        ceilings
            .iter()
            .map(|ceiling| (ceiling * 1_000.0).round() / 1_000.0)
            .collect()
    }

    #[test]
    fn ceilings_fall_with_rank_or_with_value() {
        assert_eq!(ceilings("rank", &[100, 0, -1]), [0.9, 0.65, 0.4]);
        assert_eq!(ceilings("value", &[100, 80, 0]), [0.9, 0.8, 0.4]);
        assert_eq!(ceilings("rank", &[-5]), [0.9]);
        assert_eq!(ceilings("value", &[-5]), [0.9]);
        assert_eq!(ceilings("value", &[i32::MAX, i32::MIN]), [0.9, 0.4]);
    }

    #[test]
    fn the_lowest_ceiling_must_be_given_and_make_sense() {
        let path = |given| (PLUGIN.check)(&given).unwrap_err().path;
        assert_eq!(path(json!({})), "minCeiling");
        assert_eq!(path(json!({"minCeiling": 1.0})), "minCeiling");
        assert_eq!(
            path(json!({"minCeiling": 0.8, "maxCeiling": 0.5})),
            "minCeiling"
        );
        assert_eq!(
            path(json!({"minCeiling": 0.1, "maxCeiling": 1.5})),
            "maxCeiling"
        );
    }
}
