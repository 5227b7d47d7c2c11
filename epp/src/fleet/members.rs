//! The pure membership table: what discovery wants in, what was added and removed out.
//!
//! Discovery always hands over the whole desired list, never a difference: a full list can be
//! compared, repeated and replayed, and a lost update heals with the next one. Two entries are the
//! same endpoint when name, address and KV addresses agree; then its number, generation and live
//! state stay. Changed labels alone update the entry in place.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use super::endpoint::{Endpoint, EndpointId, EndpointSpec, Generation};

/// Most endpoints of one fleet. A longer desired list is refused whole: numbers are dense, so this
/// bounds every array that is indexed by them.
pub const ENDPOINTS_MAX: usize = 16_384;

/// What one [`Members::apply`] changed.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Change {
    pub added: Vec<Arc<Endpoint>>,
    pub removed: Vec<Arc<Endpoint>>,
    /// Endpoints that stayed and whose labels changed.
    pub relabelled: Vec<Arc<Endpoint>>,
}

impl Change {
    /// Whether the fleet is as it was.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.relabelled.is_empty()
    }
}

/// Why a desired list was refused. The table is as it was.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MembershipError {
    #[error("two endpoints are named {name:?}: {first} and {second}")]
    SameName {
        name: String,
        first: SocketAddr,
        second: SocketAddr,
    },
    #[error("endpoints {first:?} and {second:?} have the same address {address}")]
    SameAddress {
        address: SocketAddr,
        first: String,
        second: String,
    },
    #[error("{count} endpoints are desired; a fleet holds at most {ENDPOINTS_MAX}")]
    TooMany { count: usize },
}

/// Checks that no name and no address occurs twice.
pub fn check_unique(desired: &[EndpointSpec]) -> Result<(), MembershipError> {
    if desired.len() > ENDPOINTS_MAX {
        return Err(MembershipError::TooMany {
            count: desired.len(),
        });
    }
    let mut by_name = HashMap::with_capacity(desired.len());
    let mut by_address = HashMap::with_capacity(desired.len());
    for spec in desired {
        if let Some(first) = by_name.insert(spec.name.as_str(), spec.address) {
            return Err(MembershipError::SameName {
                name: spec.name.clone(),
                first,
                second: spec.address,
            });
        }
        if let Some(first) = by_address.insert(spec.address, spec.name.as_str()) {
            return Err(MembershipError::SameAddress {
                address: spec.address,
                first: first.to_owned(),
                second: spec.name.clone(),
            });
        }
    }
    Ok(())
}

/// The table. Numbers are dense: the lowest free one is handed out first.
#[derive(Debug)]
pub struct Members {
    list: Arc<[Arc<Endpoint>]>,
    /// The generation last handed out for each number.
    generations: Vec<u32>,
    free: BTreeSet<u32>,
}

impl Default for Members {
    fn default() -> Self {
        Self {
            list: Arc::from(Vec::new()),
            generations: Vec::new(),
            free: BTreeSet::new(),
        }
    }
}

impl Members {
    /// The members in the order in which discovery listed them.
    pub fn list(&self) -> &Arc<[Arc<Endpoint>]> {
        &self.list
    }

    /// Numbers handed out so far, in use or free: the length of an array indexed by endpoint.
    pub fn id_count(&self) -> usize {
        self.generations.len()
    }

    /// Makes the table hold exactly `desired`.
    pub fn apply(&mut self, desired: Vec<EndpointSpec>) -> Result<Change, MembershipError> {
        check_unique(&desired)?;
        let present: HashMap<&str, &Arc<Endpoint>> = self
            .list
            .iter()
            .map(|endpoint| (endpoint.spec.name.as_str(), endpoint))
            .collect();
        let stays: Vec<Option<Arc<Endpoint>>> = desired
            .iter()
            .map(|spec| {
                let old = present.get(spec.name.as_str())?;
                old.spec.same_worker(spec).then(|| Arc::clone(old))
            })
            .collect();

        let mut change = Change {
            removed: self.leaving(&stays),
            ..Change::default()
        };
        // Numbers come free before new ones are handed out, so a replaced endpoint does not widen
        // the arrays.
        self.free
            .extend(change.removed.iter().map(|endpoint| endpoint.id.0));
        let list: Vec<Arc<Endpoint>> = desired
            .into_iter()
            .zip(stays)
            .map(|(spec, old)| self.place(spec, old, &mut change))
            .collect();
        self.list = Arc::from(list);
        Ok(change)
    }

    fn leaving(&self, stays: &[Option<Arc<Endpoint>>]) -> Vec<Arc<Endpoint>> {
        let kept: HashSet<EndpointId> = stays.iter().flatten().map(|old| old.id).collect();
        self.list
            .iter()
            .filter(|endpoint| !kept.contains(&endpoint.id))
            .cloned()
            .collect()
    }

    fn place(
        &mut self,
        spec: EndpointSpec,
        old: Option<Arc<Endpoint>>,
        change: &mut Change,
    ) -> Arc<Endpoint> {
        match old {
            Some(old) if old.spec == spec => old,
            Some(old) => {
                let endpoint = Arc::new(Endpoint {
                    id: old.id,
                    generation: old.generation,
                    spec,
                });
                change.relabelled.push(Arc::clone(&endpoint));
                endpoint
            }
            None => {
                let (id, generation) = self.hand_out();
                let endpoint = Arc::new(Endpoint {
                    id,
                    generation,
                    spec,
                });
                change.added.push(Arc::clone(&endpoint));
                endpoint
            }
        }
    }

    fn hand_out(&mut self) -> (EndpointId, Generation) {
        let number = self.free.pop_first().unwrap_or_else(|| {
            self.generations.push(0);
            self.generations.len() as u32 - 1
        });
        let generation = &mut self.generations[number as usize];
        *generation += 1;
        (EndpointId(number), Generation(*generation))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn spec(name: u8, port: u16) -> EndpointSpec {
        EndpointSpec::new(format!("worker-{name}"), ([127, 0, 0, 1], port).into())
    }

    #[test]
    fn a_returning_endpoint_has_the_same_number_and_a_higher_generation() {
        let mut members = Members::default();
        members.apply(vec![spec(1, 1), spec(2, 2)]).unwrap();
        let first = Arc::clone(&members.list()[0]);
        members.apply(vec![spec(2, 2)]).unwrap();
        let change = members.apply(vec![spec(1, 1), spec(2, 2)]).unwrap();
        assert_eq!(change.added[0].id, first.id);
        assert!(change.added[0].generation > first.generation);
    }

    #[test]
    fn changed_labels_keep_the_endpoint_and_a_changed_address_does_not() {
        let mut members = Members::default();
        members.apply(vec![spec(1, 1)]).unwrap();
        let mut relabelled = spec(1, 1);
        relabelled.labels = BTreeMap::from([("role".to_owned(), "decode".to_owned())]);
        let change = members.apply(vec![relabelled.clone()]).unwrap();
        assert_eq!(change.relabelled.len(), 1);
        assert!(change.added.is_empty() && change.removed.is_empty());
        assert_eq!(members.list()[0].generation, Generation(1));

        relabelled.address = ([127, 0, 0, 1], 2).into();
        let change = members.apply(vec![relabelled]).unwrap();
        assert_eq!((change.added.len(), change.removed.len()), (1, 1));
        assert_eq!(members.list()[0].generation, Generation(2));
    }

    #[test]
    fn duplicates_are_refused_by_name_and_the_table_stays() {
        let mut members = Members::default();
        members.apply(vec![spec(1, 1)]).unwrap();
        let same_name = members.apply(vec![spec(7, 1), spec(7, 2)]).unwrap_err();
        assert_eq!(
            same_name.to_string(),
            "two endpoints are named \"worker-7\": 127.0.0.1:1 and 127.0.0.1:2"
        );
        let same_address = members.apply(vec![spec(7, 1), spec(8, 1)]).unwrap_err();
        assert_eq!(
            same_address.to_string(),
            "endpoints \"worker-7\" and \"worker-8\" have the same address 127.0.0.1:1"
        );
        assert_eq!(members.list().len(), 1);
        assert_eq!(members.list()[0].spec, spec(1, 1));
    }

    /// Desired lists over six names, each of which may move between two addresses of its own.
    fn desired_lists() -> impl Strategy<Value = Vec<Vec<EndpointSpec>>> {
        let one = proptest::collection::btree_map(0_u8..6, 0_u16..2, 0..6).prop_map(|chosen| {
            chosen
                .into_iter()
                .map(|(name, move_by)| spec(name, 1000 + u16::from(name) * 2 + move_by))
                .collect()
        });
        proptest::collection::vec(one, 1..20)
    }

    proptest! {
        #[test]
        fn the_table_follows_any_history(history in desired_lists()) {
            let mut members = Members::default();
            let mut seen: HashMap<EndpointId, Generation> = HashMap::new();
            let mut largest = 0;
            for desired in history {
                let before = Arc::clone(members.list());
                largest = largest.max(desired.len());
                let change = members.apply(desired.clone()).unwrap();

                let specs: Vec<_> = members.list().iter().map(|e| e.spec.clone()).collect();
                prop_assert_eq!(&specs, &desired);
                let ids: HashSet<_> = members.list().iter().map(|e| e.id).collect();
                prop_assert_eq!(ids.len(), desired.len(), "a number is used twice");
                // Lists alternate, so never more numbers than the longest list: they are reused
                // before widening.
                prop_assert!(members.id_count() <= largest);
                for added in &change.added {
                    let last = seen.insert(added.id, added.generation);
                    prop_assert!(last.is_none_or(|last| last < added.generation));
                }
                // Old minus removed plus added is new.
                let mut expected: HashSet<_> =
                    before.iter().map(|e| (e.id, e.generation)).collect();
                for removed in &change.removed {
                    prop_assert!(expected.remove(&(removed.id, removed.generation)));
                }
                for added in &change.added {
                    prop_assert!(expected.insert((added.id, added.generation)));
                }
                let after: HashSet<_> =
                    members.list().iter().map(|e| (e.id, e.generation)).collect();
                prop_assert_eq!(expected, after);
            }
        }
    }
}
