//! `header-based-testing-filter`: lets a conformance test choose the endpoints itself.
//!
//! The header `test-epp-endpoint-selection` lists addresses: `ip` means every port of that host,
//! `ip:port` one endpoint. Addresses that the pool does not have are left out, as tests offer the
//! endpoints of several pools to each of them. When nothing is left, or the header is not there,
//! the whole pool stays: so does the light picker that the conformance suite is built around, while
//! the filter of llm-d-router gives up. Gateways are tested with it, and no client should be able
//! to send the header in production.

use pointsman_proto::headers::TEST_ENDPOINT_SELECTION;
use smallvec::SmallVec;

use super::super::plugin::{Context, Filter, Maker};
use super::super::subset::SubsetEntry;
use crate::config::plugins::{self, NoParameters, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "header-based-testing-filter";

/// Addresses that are read from the header at most; later ones are ignored.
const ADDRESSES_MAX: usize = 64;

/// The plugin type.
pub const MAKER: Maker<dyn Filter> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Filter,
        stage: Stage::Beta,
        check: plugins::check::<NoParameters>,
    },
    make: |given| {
        plugins::read::<NoParameters>(given)?;
        Ok(Box::new(HeaderBasedTestingFilter {}))
    },
};

/// See the module.
#[derive(Clone, Copy, Default, Debug)]
pub struct HeaderBasedTestingFilter {}

impl Filter for HeaderBasedTestingFilter {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn filter(&self, context: &Context<'_>, candidates: &mut Vec<usize>) {
        let listed = context.request.headers.get(TEST_ENDPOINT_SELECTION);
        let listed: SmallVec<[SubsetEntry; 8]> = listed
            .unwrap_or_default()
            .split(',')
            .take(ADDRESSES_MAX)
            .filter_map(SubsetEntry::parse)
            .collect();
        let is_listed = |position: &usize| {
            let address = context.member(*position).spec.address;
            listed.iter().any(|entry| entry.allows(address))
        };
        if candidates.iter().any(is_listed) {
            candidates.retain(is_listed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::Value;

    use super::super::super::fixtures::{HeaderList, snapshot};
    use super::super::tests::{Case, kept};
    use super::*;
    use crate::fleet::{Endpoint, Live};

    #[test]
    fn the_header_chooses_among_the_pools_own_addresses() {
        let addresses = [
            "10.0.0.1:3000",
            "10.0.0.1:3002",
            "10.0.0.2:3000",
            "[fd00::1]:3000",
        ];
        let mut fleet = snapshot(&[Live::default(); 4]);
        let moved = |(member, address): (&Arc<Endpoint>, &&str)| {
            let mut member = Endpoint::clone(member);
            member.spec.address = address.parse().unwrap();
            Arc::new(member)
        };
        fleet.members = fleet.members.iter().zip(&addresses).map(moved).collect();
        let table: [(&str, &[usize]); 12] = [
            ("10.0.0.1", &[0, 1]),
            ("10.0.0.1:3002", &[1]),
            ("10.0.0.2, 10.0.0.1:3000", &[0, 2]),
            ("10.0.0.2,10.9.9.9", &[2]),
            ("fd00::1", &[3]),
            ("[fd00::1]:3000", &[3]),
            ("10.9.9.9", &[0, 1, 2, 3]),
            ("10.0.0.1:9", &[0, 1, 2, 3]),
            ("", &[0, 1, 2, 3]),
            (" , ", &[0, 1, 2, 3]),
            ("worker-1", &[0, 1, 2, 3]),
            ("worker-1,10.0.0.2", &[2]),
        ];
        for (header, expected) in table {
            let case = Case {
                headers: HeaderList::one("test-epp-endpoint-selection", header),
                ..Case::default()
            };
            let kept = kept(&MAKER, &Value::Null, &fleet, &case);
            assert_eq!(kept, expected, "{header:?}");
        }
        assert_eq!(
            kept(&MAKER, &Value::Null, &fleet, &Case::default()),
            [0, 1, 2, 3]
        );
    }
}
