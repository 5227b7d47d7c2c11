//! Which model a request is really sent to: the rules of InferenceModelRewrite.
//!
//! Among all rules of a pool, one that names the request's model beats one that matches every
//! request; among equals the oldest resource wins, and in one resource the first rule. The rule's
//! targets then share the traffic by their weights: a canary, a split, an alias.
//!
//! A target that the request itself asks for by header counts where no rule speaks: what the pool's
//! operator has decided is not for a client to undo.

use pointsman_proto::headers;
use rustc_hash::FxHashMap;

use crate::config::resources::{ModelRewrite, RewriteRule, RewriteTarget};

/// The model that the request's headers ask for in place of the body's; the canonical header wins
/// over its older name. `header` looks a header up by its lower-case name.
pub fn requested_model<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Option<&'a str> {
    [
        headers::MODEL_NAME_REWRITE,
        headers::MODEL_NAME_REWRITE_ALIAS,
    ]
    .into_iter()
    .find_map(|name| header(name).filter(|model| !model.is_empty()))
}

/// The rules of one pool, ready to be asked.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct ModelRewrites {
    rules: Vec<Rule>,
    /// The rule that is first for a model, by its place in `rules`.
    exact: FxHashMap<String, usize>,
    /// The first rule that matches every request.
    generic: Option<usize>,
}

/// Where a request goes, and who says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chosen<'a> {
    /// The InferenceModelRewrite that the rule is from.
    pub rewrite_name: &'a str,
    pub target_model: &'a str,
}

#[derive(Clone, PartialEq, Debug)]
struct Rule {
    rewrite_name: String,
    targets: Vec<Target>,
}

#[derive(Clone, PartialEq, Debug)]
struct Target {
    model: String,
    /// Sum of the weights up to and including this one.
    weights: u64,
}

impl ModelRewrites {
    /// The rules of a pool's resources, in the order in which they were read: among resources of one
    /// age the earlier one counts as the older, and one without an age as the youngest.
    pub fn new<'a>(rewrites: impl IntoIterator<Item = &'a ModelRewrite>) -> Self {
        let mut by_age: Vec<&ModelRewrite> = rewrites.into_iter().collect();
        by_age.sort_by_key(|rewrite| rewrite.created_s.unwrap_or(i64::MAX));
        let mut all = Self::default();
        for rewrite in by_age {
            for rule in &rewrite.rules {
                all.add(&rewrite.name, rule);
            }
        }
        all
    }

    /// The target for a model, or nothing where no rule matches, or the rule that does has no
    /// targets. Of equal `seed`s equal targets come; seeds spread the traffic even if they are
    /// consecutive.
    pub fn choose(&self, model: &str, seed: u64) -> Option<Chosen<'_>> {
        let place = self.exact.get(model).copied().or(self.generic)?;
        let rule = self.rules.get(place)?;
        let total = rule.targets.last()?.weights;
        let point = u128::from(mixed(seed)) * u128::from(total);
        let point = (point >> 64) as u64;
        let target = rule.targets.iter().find(|target| point < target.weights)?;
        Some(Chosen {
            rewrite_name: &rule.rewrite_name,
            target_model: &target.model,
        })
    }

    /// Every model that a rule names, as source or as target, some of them twice: the names that
    /// labels of metrics may always carry.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        let targets = self.rules.iter().flat_map(|rule| &rule.targets);
        let targets = targets.map(|target| target.model.as_str());
        self.exact.keys().map(String::as_str).chain(targets)
    }

    fn add(&mut self, rewrite_name: &str, rule: &RewriteRule) {
        let place = self.rules.len();
        self.rules.push(Rule {
            rewrite_name: rewrite_name.to_owned(),
            targets: targets(&rule.targets),
        });
        if rule.models.is_empty() {
            self.generic.get_or_insert(place);
        }
        for model in &rule.models {
            self.exact.entry(model.clone()).or_insert(place);
        }
    }
}

/// Targets without a weight share equally where none has one, and get nothing where others have.
fn targets(given: &[RewriteTarget]) -> Vec<Target> {
    let is_weighted = given.iter().any(|target| target.weight.is_some());
    let mut weights = 0;
    let summed = given.iter().map(|target| {
        let weight = if is_weighted {
            target.weight.unwrap_or(0)
        } else {
            1
        };
        weights += u64::from(weight);
        Target {
            model: target.model.clone(),
            weights,
        }
    });
    summed.collect()
}

/// SplitMix64: neighbouring numbers become unrelated ones.
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rewrite(name: &str, created_s: Option<i64>, rules: &[(&[&str], &[&str])]) -> ModelRewrite {
        let rules = rules.iter().map(|(models, targets)| RewriteRule {
            models: models.iter().map(|model| (*model).to_owned()).collect(),
            targets: targets.iter().map(|model| target(model, None)).collect(),
        });
        ModelRewrite {
            name: name.to_owned(),
            pool: "pool".to_owned(),
            created_s,
            rules: rules.collect(),
        }
    }

    fn target(model: &str, weight: Option<u32>) -> RewriteTarget {
        RewriteTarget {
            model: model.to_owned(),
            weight,
        }
    }

    fn weighted(targets: Vec<RewriteTarget>) -> ModelRewrites {
        let mut rewrite = rewrite("split", None, &[(&["m"], &[])]);
        rewrite.rules[0].targets = targets;
        ModelRewrites::new([&rewrite])
    }

    fn chosen<'a>(rewrites: &'a ModelRewrites, model: &str) -> Option<(&'a str, &'a str)> {
        let chosen = rewrites.choose(model, 7)?;
        Some((chosen.rewrite_name, chosen.target_model))
    }

    #[test]
    fn exact_beats_generic_then_the_oldest_then_the_first() {
        let resources = [
            rewrite("generic", Some(1), &[(&[], &["any"])]),
            rewrite("undated", None, &[(&["a", "c"], &["undated"])]),
            rewrite(
                "younger",
                Some(20),
                &[
                    (&["a"], &["younger"]),
                    (&["b"], &["first"]),
                    (&["b"], &["second"]),
                ],
            ),
            rewrite("older", Some(10), &[(&["x", "a"], &["older"])]),
            rewrite("generic-too", Some(1), &[(&[], &["never"])]),
        ];
        let rewrites = ModelRewrites::new(&resources);
        assert_eq!(chosen(&rewrites, "a"), Some(("older", "older")));
        assert_eq!(chosen(&rewrites, "b"), Some(("younger", "first")));
        assert_eq!(chosen(&rewrites, "c"), Some(("undated", "undated")));
        assert_eq!(chosen(&rewrites, "else"), Some(("generic", "any")));
        let without_generic = ModelRewrites::new(&resources[1..4]);
        assert_eq!(chosen(&without_generic, "else"), None);
        assert_eq!(chosen(&ModelRewrites::default(), "a"), None);
    }

    #[test]
    fn traffic_is_split_by_weight() {
        let rewrites = weighted(vec![
            target("stable", Some(900_000)),
            target("canary", Some(100_000)),
        ]);
        let canaries = (0..10_000).filter(|seed| {
            rewrites
                .choose("m", *seed)
                .is_some_and(|chosen| chosen.target_model == "canary")
        });
        let canaries = canaries.count();
        assert!((850..1150).contains(&canaries), "{canaries} of 10000");
    }

    #[test]
    fn weights_are_all_or_none() {
        let equal = weighted(vec![target("a", None), target("b", None)]);
        let first = (0..10_000).filter(|seed| {
            equal
                .choose("m", *seed)
                .is_some_and(|chosen| chosen.target_model == "a")
        });
        assert!((4_700..5_300).contains(&first.count()));
        let mixed = weighted(vec![target("unweighted", None), target("b", Some(1))]);
        for seed in 0..1_000 {
            assert_eq!(mixed.choose("m", seed).unwrap().target_model, "b");
        }
        assert_eq!(weighted(Vec::new()).choose("m", 1), None, "no targets");
    }

    #[test]
    fn the_header_names_a_model_and_the_canonical_one_wins() {
        let of = |given: &[(&str, &'static str)]| {
            requested_model(|name| {
                let found = given.iter().find(|(header, _)| *header == name);
                found.map(|(_, value)| *value)
            })
        };
        let (canonical, alias) = (
            headers::MODEL_NAME_REWRITE,
            headers::MODEL_NAME_REWRITE_ALIAS,
        );
        assert_eq!(of(&[(alias, "old"), (canonical, "new")]), Some("new"));
        assert_eq!(of(&[(alias, "old"), (canonical, "")]), Some("old"));
        assert_eq!(of(&[]), None);
    }

    proptest! {
        #[test]
        fn every_choice_is_one_of_the_rules_targets(
            weights in prop::collection::vec(prop::option::of(1_u32..=1_000_000), 1..6),
            seed in any::<u64>(),
        ) {
            let targets = weights
                .iter()
                .enumerate()
                .map(|(place, weight)| target(&place.to_string(), *weight));
            let rewrites = weighted(targets.collect());
            let chosen = rewrites.choose("m", seed).unwrap();
            let place: usize = chosen.target_model.parse().unwrap();
            let is_weighted = weights.iter().any(Option::is_some);
            prop_assert_eq!(weights[place].is_some(), is_weighted);
            prop_assert_eq!(rewrites.choose("m", seed), Some(chosen));
        }
    }
}
