//! `no-hit-lru-scorer`: spreads prompts that nobody has cached, least recently used endpoint first.
//!
//! A cold prompt builds a new prefix wherever it goes, so cold prompts are dealt out in turn and
//! the caches fill evenly. When any candidate has a hit the scorer has no opinion: all score 0.5.
//! Otherwise candidates are ranked, those that had no cold prompt yet first, then from the longest
//! ago to the newest, and score `1 - rank / (candidates - 1)`; a single one scores 1. This is the
//! field's formula (`pkg/epp/framework/plugins/scheduling/scorer/nohitlru` of llm-d-router), with
//! two differences. Ranks count the candidates only, so endpoints that left the pool do not press
//! the others down. And endpoints that were never used are ranked by a draw of the request: there
//! the order of a list decides, which would send the first prompts of every replica one way.
//!
//! A pick counts as cold where the picked endpoint itself had no hit, since then it read the whole
//! prompt.

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::super::plugin::{Context, Maker, Scorer};
use super::super::recent::Recent;
use super::prefix_cache;
use crate::config::plugins::{self, PluginKind, PluginType, Stage};
use crate::fleet::{Endpoint, EndpointId, Generation};

/// The plugin's type name.
pub const TYPE_NAME: &str = "no-hit-lru-scorer";

/// The field's parameters.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    /// Never used in the field; without effect.
    pub prefix_plugin_type: String,
    /// Never used in the field; without effect.
    pub prefix_plugin_name: String,
    /// Endpoints that are remembered; 0 or less means the default. One that is forgotten counts as
    /// never used.
    pub lru_size: i64,
    /// Which data producer to read. There is one index, so any name means it.
    pub prefix_match_info_producer_name: String,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            prefix_plugin_type: prefix_cache::TYPE_NAME.to_owned(),
            prefix_plugin_name: prefix_cache::TYPE_NAME.to_owned(),
            lru_size: 1024,
            prefix_match_info_producer_name: String::new(),
        }
    }
}

impl plugins::Parameters for Parameters {}

/// The plugin type.
pub const MAKER: Maker<dyn Scorer> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Scorer,
        stage: Stage::Beta,
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        let parameters: Parameters = plugins::read(given)?;
        Ok(Box::new(NoHitLruScorer::from(&parameters)))
    },
};

/// See the module.
#[derive(Debug)]
pub struct NoHitLruScorer {
    picks: Mutex<Picks>,
}

#[derive(Debug)]
struct Picks {
    /// Number of the last cold pick of each endpoint.
    last: Recent<(EndpointId, Generation), u64>,
    /// Cold picks so far.
    count: u64,
    /// What the candidates are ranked by, and their places: a buffer.
    order: Vec<(u64, u64, usize)>,
}

impl From<&Parameters> for NoHitLruScorer {
    fn from(parameters: &Parameters) -> Self {
        let size = if parameters.lru_size > 0 {
            parameters.lru_size
        } else {
            Parameters::default().lru_size
        };
        Self {
            picks: Mutex::new(Picks {
                last: Recent::new(usize::try_from(size).unwrap_or(usize::MAX)),
                count: 0,
                order: Vec::new(),
            }),
        }
    }
}

impl Scorer for NoHitLruScorer {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn score(&self, context: &Context<'_>, candidates: &[usize], scores: &mut [f32]) {
        if candidates.iter().any(|at| has_hit(context, *at)) {
            scores.fill(0.5);
            return;
        }
        if candidates.len() <= 1 {
            scores.fill(1.0);
            return;
        }
        let Picks { last, order, .. } = &mut *self.picks.lock();
        order.clear();
        order.extend(candidates.iter().enumerate().map(|(place, at)| {
            let member = context.member(*at);
            // Picks count from 1, so 0 ranks those that were never used before all others.
            match last.get(&identity(member)) {
                Some(number) => (*number, 0, place),
                None => (0, draw(context, member), place),
            }
        }));
        order.sort_unstable();
        let steps = (candidates.len() - 1) as f64;
        for (rank, (_, _, place)) in order.iter().enumerate() {
            if let Some(score) = scores.get_mut(*place) {
                *score = (1.0 - rank as f64 / steps) as f32;
            }
        }
    }

    fn picked(&self, context: &Context<'_>, endpoints: &[usize]) {
        let Some(first) = endpoints.first() else {
            return;
        };
        if !has_hit(context, *first) {
            let picks = &mut *self.picks.lock();
            picks.count += 1;
            picks
                .last
                .put(identity(context.member(*first)), picks.count);
        }
    }
}

fn has_hit(context: &Context<'_>, at: usize) -> bool {
    let member = context.member(at);
    let matches = context.request.matches;
    matches.tokens(member.id, member.generation) > 0
}

fn identity(member: &Endpoint) -> (EndpointId, Generation) {
    (member.id, member.generation)
}

fn draw(context: &Context<'_>, member: &Endpoint) -> u64 {
    xxh3_64_with_seed(&member.id.0.to_le_bytes(), context.request.tie_seed)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::fixtures::{request, snapshot};
    use super::super::tests::rounded;
    use super::*;
    use crate::fleet::{Live, Matches, Snapshot};

    fn fleet() -> Snapshot {
        snapshot(&[Live::default(); 4])
    }

    fn with<R>(matches: &Matches, seed: u64, read: impl FnOnce(&Context<'_>) -> R) -> R {
        read(&Context {
            snapshot: &fleet(),
            request: &request(64, matches, seed),
            now_ms: 0,
        })
    }

    fn cold(scorer: &dyn Scorer, seed: u64, candidates: &[usize]) -> Vec<i32> {
        with(&Matches::default(), seed, |context| {
            let mut scores = vec![9.0; candidates.len()];
            scorer.score(context, candidates, &mut scores);
            rounded(&scores)
        })
    }

    fn pick(scorer: &dyn Scorer, endpoint: usize) {
        with(&Matches::default(), 0, |context| {
            scorer.picked(context, &[endpoint]);
        });
    }

    #[test]
    fn cold_prompts_go_to_the_least_recently_used() {
        let scorer = (MAKER.make)(&Value::Null).unwrap();
        for endpoint in [2, 0, 3, 2, 1] {
            pick(&*scorer, endpoint);
        }
        assert_eq!(cold(&*scorer, 0, &[0, 1, 2, 3]), [1000, 0, 333, 667]);
        assert_eq!(cold(&*scorer, 0, &[3, 1]), [1000, 0]);
        assert_eq!(cold(&*scorer, 0, &[1]), [1000]);
        assert!(cold(&*scorer, 0, &[]).is_empty());
    }

    #[test]
    fn the_never_used_come_first_in_an_order_that_is_drawn() {
        let scorer = (MAKER.make)(&Value::Null).unwrap();
        pick(&*scorer, 1);
        pick(&*scorer, 0);
        let mut orders = std::collections::BTreeSet::new();
        for seed in 0..20 {
            let scores = cold(&*scorer, seed, &[0, 1, 2, 3]);
            assert_eq!(scores[..2], [0, 333]);
            orders.insert(scores[2..].to_vec());
        }
        assert_eq!(
            orders.into_iter().collect::<Vec<_>>(),
            [[667, 1000], [1000, 667]]
        );
    }

    #[test]
    fn a_hit_leaves_the_choice_to_others_and_does_not_count_as_use() {
        let scorer = (MAKER.make)(&Value::Null).unwrap();
        for endpoint in [0, 1, 2, 3] {
            pick(&*scorer, endpoint);
        }
        let mut matches = Matches::default();
        matches.record(EndpointId(0), Generation(1), 16, 16);
        with(&matches, 0, |context| {
            let mut scores = [9.0; 4];
            scorer.score(context, &[0, 1, 2, 3], &mut scores);
            assert_eq!(rounded(&scores), [500; 4]);
            scorer.picked(context, &[0, 1]);
        });
        assert_eq!(cold(&*scorer, 0, &[0, 1, 2, 3]), [1000, 667, 333, 0]);
        // The one with the hit was not a candidate, and the one that was picked had none.
        with(&matches, 0, |context| scorer.picked(context, &[1]));
        assert_eq!(cold(&*scorer, 0, &[0, 1, 2, 3]), [1000, 0, 667, 333]);
    }

    #[test]
    fn no_more_endpoints_are_remembered_than_asked() {
        let scorer = (MAKER.make)(&json!({"lruSize": 1})).unwrap();
        pick(&*scorer, 0);
        pick(&*scorer, 1);
        // The first is forgotten, so it counts as never used.
        assert_eq!(cold(&*scorer, 0, &[0, 1]), [1000, 0]);
        let checked = (MAKER.plugin.check)(&Value::Null).unwrap();
        assert_eq!(checked["lruSize"], 1024);
        assert_eq!(checked["prefixPluginName"], "prefix-cache-scorer");
    }
}
