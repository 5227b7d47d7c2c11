//! What a plugin derives from the members' names and labels, computed once per membership.
//!
//! Labels are maps of strings, and a pick that looked one up in each candidate would spend more on
//! that than on everything else it does. Members change seldom, so a plugin's view of them (does
//! the selector match, which range does the label name) is an array in snapshot order, and a pick
//! reads one element of it per candidate.
//!
//! A membership is recognised by the identity of its list. The cache holds the list it was computed
//! from, so that the address of a list can never be one that was freed and handed out again.
//! Readers take no lock; after a change the picks that come first each compute the array, and the
//! last one's stays. The array of the list before lives until then, which is the bound: two
//! memberships at a time. A plugin serves one pool: one that two pools shared would compute anew at
//! every turn from one to the other.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::plugin::Context;
use crate::fleet::Endpoint;

type Members = Arc<[Arc<Endpoint>]>;

/// One value per member of the newest membership seen.
pub struct ByMember<T> {
    newest: ArcSwapOption<Derived<T>>,
}

struct Derived<T> {
    of: Members,
    values: Box<[T]>,
}

impl<T> Default for ByMember<T> {
    fn default() -> Self {
        Self {
            newest: ArcSwapOption::empty(),
        }
    }
}

impl<T> fmt::Debug for ByMember<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members = self
            .newest
            .load()
            .as_ref()
            .map_or(0, |known| known.of.len());
        formatter
            .debug_struct("ByMember")
            .field("members", &members)
            .finish()
    }
}

impl<T> ByMember<T> {
    /// Gives `read` one value per member, in the order of the members. `derive` must be the same
    /// function at every call and depend on nothing but the member.
    pub fn with<R>(
        &self,
        members: &Members,
        derive: impl Fn(&Endpoint) -> T,
        read: impl FnOnce(&[T]) -> R,
    ) -> R {
        if let Some(known) = self.newest.load().as_ref()
            && Arc::ptr_eq(&known.of, members)
        {
            return read(&known.values);
        }
        let derived = Arc::new(Derived {
            of: Arc::clone(members),
            values: members.iter().map(|member| derive(member)).collect(),
        });
        self.newest.store(Some(Arc::clone(&derived)));
        read(&derived.values)
    }
}

impl ByMember<bool> {
    /// Keeps the candidates that `allowed` allows.
    pub fn retain(
        &self,
        context: &Context<'_>,
        candidates: &mut Vec<usize>,
        allowed: impl Fn(&Endpoint) -> bool,
    ) {
        self.with(&context.snapshot.members, allowed, |allowed| {
            candidates.retain(|position| allowed.get(*position).copied().unwrap_or(false));
        });
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::fixtures::{labelled, request};
    use super::*;
    use crate::fleet::Matches;

    #[test]
    fn a_membership_is_derived_once() {
        let fleet = labelled(&[&[("a", "1")], &[("a", "22")]]);
        let calls = Cell::new(0);
        let lengths = ByMember::default();
        let read = |members: &Members| {
            let derive = |member: &Endpoint| {
                calls.set(calls.get() + 1);
                member.spec.labels.get("a").map_or(0, String::len)
            };
            lengths.with(members, derive, <[usize]>::to_vec)
        };
        assert_eq!(read(&fleet.members), [1, 2]);
        assert_eq!(read(&Arc::clone(&fleet.members)), [1, 2]);
        assert_eq!(calls.get(), 2);

        let relabelled = labelled(&[&[("a", "333")]]);
        assert_eq!(read(&relabelled.members), [3]);
        assert_eq!(calls.get(), 3);
        assert!(format!("{lengths:?}").contains('1'));
    }

    /// A list that is as long and lies where the old one lay is still another list.
    #[test]
    fn a_list_at_a_freed_address_is_not_taken_for_the_old_one() {
        let lengths = ByMember::default();
        for round in 0..100 {
            let label = "x".repeat(round);
            let fleet = labelled(&[&[("a", &label)]]);
            let derive = |member: &Endpoint| member.spec.labels["a"].len();
            let seen = lengths.with(&fleet.members, derive, <[usize]>::to_vec);
            assert_eq!(seen, [round]);
        }
    }

    #[test]
    fn candidates_outside_of_the_membership_are_dropped() {
        let fleet = labelled(&[&[], &[("a", "1")], &[("a", "2")]]);
        let matches = Matches::default();
        let context = Context {
            snapshot: &fleet,
            request: &request(0, &matches, 0),
            now_ms: 0,
        };
        let mut candidates = vec![2, 7, 0, 1];
        let has = |member: &Endpoint| member.spec.labels.contains_key("a");
        ByMember::default().retain(&context, &mut candidates, has);
        assert_eq!(candidates, [2, 1]);
    }
}
