//! `topology-affinity-scorer`: the nearer an endpoint stands to the request's peer, the better.
//!
//! 1 on the same host, 0.2 in the same rack, 0.05 in the same zone, 0.02 in the same region, 0
//! elsewhere: the field's steps, which follow the bandwidth between two such places.
//! [`topology`](super::super::topology) says what the peer is; where it is not known all score 0.

use serde::{Deserialize, Serialize};

use super::super::plugin::{Context, Maker, Scorer};
use super::super::topology::{Nearness, Places};
use crate::config::plugins::{self, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "topology-affinity-scorer";

/// The field's parameters.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    /// Whose topology to read. Labels are the one source, so any name means it.
    pub topology_producer_name: String,
}

impl plugins::Parameters for Parameters {}

/// The plugin type.
pub const MAKER: Maker<dyn Scorer> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Scorer,
        stage: Stage::Alpha,
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        plugins::read::<Parameters>(given)?;
        Ok(Box::new(TopologyAffinityScorer::default()))
    },
};

/// See the module.
#[derive(Default, Debug)]
pub struct TopologyAffinityScorer {
    places: Places,
}

impl Scorer for TopologyAffinityScorer {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn score(&self, context: &Context<'_>, candidates: &[usize], scores: &mut [f32]) {
        scores.fill(0.0);
        self.places.near(context, |near| {
            for (at, score) in candidates.iter().zip(scores) {
                *score = match near(*at) {
                    Nearness::SameHost => 1.0,
                    Nearness::SameRack => 0.2,
                    Nearness::SameZone => 0.05,
                    Nearness::SameRegion => 0.02,
                    Nearness::Apart => 0.0,
                };
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::fixtures::{labelled, request};
    use super::super::tests::rounded;
    use super::*;
    use crate::fleet::Matches;

    #[test]
    fn endpoints_score_by_how_near_they_are_to_the_peer() {
        let host = "kubernetes.io/hostname";
        let rack = "topology.kubernetes.io/rack";
        let zone = "topology.kubernetes.io/zone";
        let region = "topology.kubernetes.io/region";
        let fleet = labelled(&[
            &[(host, "h1"), (rack, "r1"), (zone, "z1"), (region, "e")],
            &[(host, "h1"), (rack, "r1"), (zone, "z1"), (region, "e")],
            &[(host, "h2"), (rack, "r1"), (zone, "z1"), (region, "e")],
            &[(host, "h3"), (rack, "r2"), (zone, "z1"), (region, "e")],
            &[(host, "h4"), (rack, "r3"), (zone, "z2"), (region, "e")],
            &[(host, "h5"), (rack, "r4"), (zone, "z3"), (region, "w")],
        ]);
        let matches = Matches::default();
        let of = |peer| {
            let mut request = request(0, &matches, 0);
            request.peer = peer;
            let context = Context {
                snapshot: &fleet,
                request: &request,
                now_ms: 0,
            };
            let mut scores = [9.0; 5];
            TopologyAffinityScorer::default().score(&context, &[1, 2, 3, 4, 5], &mut scores);
            rounded(&scores)
        };
        assert_eq!(of(Some(0)), [1000, 200, 50, 20, 0]);
        assert_eq!(of(None), [0; 5]);
    }
}
