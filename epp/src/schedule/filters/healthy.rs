//! `healthy-endpoint-filter`: avoids endpoints that do not answer, as long as another one does.
//!
//! Ours; the field leaves this to Kubernetes readiness, which a static list or a file does not have
//! and which lags a crashed worker by seconds. Endpoints that were never read count as not
//! answering: a worker that is still loading its weights would otherwise look like the idlest of
//! all. When no candidate answers, all stay: epp may be wrong about every one of them (its own
//! network, a changed metrics path), and then a try is worth more to the client than a 503.

use serde::{Deserialize, Serialize};

use super::super::plugin::{Context, Filter, Maker};
use crate::config::plugins::{self, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "healthy-endpoint-filter";

/// The filter has no parameters.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameters {}

impl plugins::Parameters for Parameters {}

/// The plugin type.
pub const MAKER: Maker<dyn Filter> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Filter,
        stage: Stage::Beta,
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        Ok(Box::new(HealthyFilter::from(plugins::read::<Parameters>(
            given,
        )?)))
    },
};

/// See the module.
#[derive(Clone, Copy, Default, Debug)]
pub struct HealthyFilter {}

impl From<Parameters> for HealthyFilter {
    fn from(_: Parameters) -> Self {
        Self {}
    }
}

impl Filter for HealthyFilter {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn filter(&self, context: &Context<'_>, candidates: &mut Vec<usize>) {
        let answers = |position: &usize| context.live(*position).healthy;
        if candidates.iter().any(answers) {
            candidates.retain(answers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::fixtures::{request, snapshot};
    use super::*;
    use crate::fleet::{Live, Matches};

    fn filtered(healthy: &[bool]) -> Vec<usize> {
        let live: Vec<Live> = healthy
            .iter()
            .map(|healthy| Live {
                healthy: *healthy,
                ..Live::default()
            })
            .collect();
        let snapshot = snapshot(&live);
        let matches = Matches::default();
        let context = Context {
            snapshot: &snapshot,
            request: &request(0, &matches, 0),
            now_ms: 0,
        };
        let mut candidates = (0..live.len()).collect();
        HealthyFilter::default().filter(&context, &mut candidates);
        candidates
    }

    #[test]
    fn endpoints_that_do_not_answer_are_avoided_while_another_does() {
        assert_eq!(filtered(&[true, false, true]), vec![0, 2]);
        assert_eq!(filtered(&[false, false]), vec![0, 1]);
        assert_eq!(filtered(&[true]), vec![0]);
    }
}
