//! `topology-affinity-filter`: keeps the endpoints that stand near enough to the request's peer.
//!
//! [`topology`](super::super::topology) says what the peer is. Where it is not known, or where no
//! candidate is near enough, all pass: a request must not fail for a preference.

use serde::{Deserialize, Serialize};

use super::super::plugin::{Context, Filter, Maker};
use super::super::topology::{Nearness, Places};
use crate::config::plugins::{self, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "topology-affinity-filter";

/// The field's parameters.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    pub min_affinity: Level,
    /// Whose topology to read. Labels are the one source, so any name means it.
    pub topology_producer_name: String,
}

/// The level on which an endpoint has to stand in the same place.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Level {
    #[default]
    Host,
    Rack,
    Zone,
    Region,
}

impl plugins::Parameters for Parameters {}

/// The plugin type.
pub const MAKER: Maker<dyn Filter> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Filter,
        stage: Stage::Alpha,
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        let parameters: Parameters = plugins::read(given)?;
        Ok(Box::new(TopologyAffinityFilter::from(&parameters)))
    },
};

/// See the module.
#[derive(Debug)]
pub struct TopologyAffinityFilter {
    farthest: Nearness,
    places: Places,
}

impl From<&Parameters> for TopologyAffinityFilter {
    fn from(parameters: &Parameters) -> Self {
        Self {
            farthest: match parameters.min_affinity {
                Level::Host => Nearness::SameHost,
                Level::Rack => Nearness::SameRack,
                Level::Zone => Nearness::SameZone,
                Level::Region => Nearness::SameRegion,
            },
            places: Places::default(),
        }
    }
}

impl Filter for TopologyAffinityFilter {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn filter(&self, context: &Context<'_>, candidates: &mut Vec<usize>) {
        self.places.near(context, |near| {
            let is_near = |position: &usize| near(*position) <= self.farthest;
            if candidates.iter().any(is_near) {
                candidates.retain(is_near);
            }
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
    fn endpoints_far_from_the_peer_are_dropped_while_a_near_one_is_left() {
        let (host, zone) = ("kubernetes.io/hostname", "topology.kubernetes.io/zone");
        let fleet = labelled(&[
            &[(host, "h1"), (zone, "z1")],
            &[(host, "h1"), (zone, "z1")],
            &[(host, "h2"), (zone, "z1")],
            &[(host, "h3"), (zone, "z2")],
            &[],
        ]);
        let of = |parameters: Value, peer| {
            let case = Case {
                peer,
                ..Case::default()
            };
            kept(&MAKER, &parameters, &fleet, &case)
        };
        let level = |name: &str| json!({"minAffinity": name});
        assert_eq!(of(Value::Null, Some(0)), [0, 1]);
        assert_eq!(of(level("rack"), Some(0)), [0, 1]);
        assert_eq!(of(level("zone"), Some(0)), [0, 1, 2]);
        assert_eq!(of(level("region"), Some(3)), [3]);
        // No peer, and a peer of which nothing is known.
        assert_eq!(of(Value::Null, None), [0, 1, 2, 3, 4]);
        assert_eq!(of(Value::Null, Some(4)), [0, 1, 2, 3, 4]);
        // Nobody else is near.
        let case = Case {
            peer: Some(3),
            candidates: Some(vec![0, 1, 2]),
            ..Case::default()
        };
        assert_eq!(kept(&MAKER, &level("region"), &fleet, &case), [0, 1, 2]);
        assert!((MAKER.plugin.check)(&level("planet")).is_err());
    }
}
