//! A request's priority: the one of the InferenceObjective that its header names.
//!
//! A request without the header, or with a name that nobody has defined, has priority 0, which is
//! served in any case; only what is declared to be below may be shed.

use pointsman_proto::headers;
use rustc_hash::FxHashMap;

use crate::config::resources::Objective;

/// The priority of a request without an objective.
pub const DEFAULT_PRIORITY: i32 = 0;

/// The objectives of one pool.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Objectives {
    priorities: FxHashMap<String, i32>,
}

impl Objectives {
    /// The objectives of a pool's resources. Of two with one name the first counts.
    pub fn new<'a>(objectives: impl IntoIterator<Item = &'a Objective>) -> Self {
        let mut priorities = FxHashMap::default();
        for objective in objectives {
            priorities
                .entry(objective.name.clone())
                .or_insert(objective.priority);
        }
        Self { priorities }
    }

    /// The priority of a request. `header` looks a header up by its lower-case name.
    pub fn priority<'a>(&self, header: impl Fn(&str) -> Option<&'a str>) -> i32 {
        requested_objective(header)
            .and_then(|name| self.priorities.get(name).copied())
            .unwrap_or(DEFAULT_PRIORITY)
    }

    /// Every priority that an objective has, some of them twice: flow control has a band for each.
    pub fn priorities(&self) -> impl Iterator<Item = i32> {
        self.priorities.values().copied()
    }
}

/// The objective that a request's headers name; the canonical header wins over its older name.
pub fn requested_objective<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Option<&'a str> {
    [headers::OBJECTIVE, headers::OBJECTIVE_ALIAS]
        .into_iter()
        .find_map(|name| header(name).filter(|objective| !objective.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objective(name: &str, priority: i32) -> Objective {
        Objective {
            name: name.to_owned(),
            pool: "pool".to_owned(),
            priority,
        }
    }

    #[test]
    fn the_named_objective_gives_the_priority() {
        let all = [objective("batch", -10), objective("chat", 5)];
        let objectives = Objectives::new(&all);
        let of = |given: &[(&str, &'static str)]| {
            objectives.priority(|name| {
                let found = given.iter().find(|(header, _)| *header == name);
                found.map(|(_, value)| *value)
            })
        };
        let (canonical, alias) = (headers::OBJECTIVE, headers::OBJECTIVE_ALIAS);
        assert_eq!(of(&[(alias, "batch")]), -10);
        assert_eq!(of(&[(alias, "batch"), (canonical, "chat")]), 5);
        assert_eq!(of(&[(alias, "batch"), (canonical, "")]), -10);
        assert_eq!(of(&[(canonical, "nobody's")]), 0);
        assert_eq!(of(&[]), 0);
        let mut priorities: Vec<i32> = objectives.priorities().collect();
        priorities.sort_unstable();
        assert_eq!(priorities, [-10, 5]);
    }
}
