//! `mm-embeddings-cache-scorer`: prefers endpoints that have encoded the request's images before.
//!
//! An engine keeps the embeddings of media it has encoded, and encoding an image again costs more
//! than most prompts. No engine says what it keeps, so each endpoint is believed to hold what was
//! sent there: the score is the share of the request's distinct media among it, 0 without media. As
//! in the field (`pkg/epp/framework/plugins/requestcontrol/dataproducer/multimodal` of
//! llm-d-router) an endpoint is believed to hold 2,048 items, which is 4 GiB at 2 MiB each, and
//! forgets the one sent longest ago.
//!
//! The memory has a bound for the fleet, too: a million items, so that each endpoint of a very
//! large one is believed to hold fewer. It is an index from items to endpoints, because an item is
//! held by one or two of them, and so a request costs what it matches, not media times candidates.

use std::sync::Arc;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::super::plugin::{Context, Maker, MediaItem, Scorer};
use super::super::recent::Recent;
use crate::config::plugins::{self, PluginKind, PluginType, Stage};
use crate::fleet::{Endpoint, EndpointId, Generation};

/// The plugin's type name.
pub const TYPE_NAME: &str = "mm-embeddings-cache-scorer";

/// Items that an endpoint is believed to hold.
const ITEMS_OF_ENDPOINT_MAX: usize = 2048;

/// Items of the whole fleet.
const ITEMS_MAX: usize = 1 << 20;

/// Distinct media of a request that count; later ones are ignored.
const ITEMS_OF_REQUEST_MAX: usize = 64;

/// The field's parameters.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    /// Which data producer to read. The scorer keeps the memory itself, so any name means that.
    pub producer_name: String,
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
        plugins::read::<Parameters>(given)?;
        Ok(Box::new(MmEmbeddingsCacheScorer::default()))
    },
};

/// See the module.
#[derive(Default, Debug)]
pub struct MmEmbeddingsCacheScorer {
    memory: Mutex<Memory>,
}

impl Scorer for MmEmbeddingsCacheScorer {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn score(&self, context: &Context<'_>, candidates: &[usize], scores: &mut [f32]) {
        scores.fill(0.0);
        let items = distinct(context.request.media);
        if items.is_empty() {
            return;
        }
        let memory = &mut *self.memory.lock();
        memory.count(&items);
        for (at, score) in candidates.iter().zip(scores) {
            let held = memory.counted(context.member(*at));
            *score = (f64::from(held) / items.len() as f64) as f32;
        }
    }

    fn picked(&self, context: &Context<'_>, endpoints: &[usize]) {
        let items = distinct(context.request.media);
        let Some(first) = endpoints.first().filter(|_| !items.is_empty()) else {
            return;
        };
        let memory = &mut *self.memory.lock();
        memory.follow(&context.snapshot.members);
        memory.record(context.member(*first), &items);
    }
}

/// The hashes of the media, each once.
fn distinct(media: &[MediaItem]) -> SmallVec<[u128; 8]> {
    let mut items = SmallVec::new();
    for item in media {
        if items.len() < ITEMS_OF_REQUEST_MAX && !items.contains(&item.hash) {
            items.push(item.hash);
        }
    }
    items
}

/// Which endpoint holds which items.
#[derive(Default, Debug)]
struct Memory {
    holders: FxHashMap<u128, SmallVec<[EndpointId; 2]>>,
    /// By endpoint number.
    endpoints: Vec<Held>,
    /// The membership that was last looked at, held so that it is told from any later one.
    members: Option<Arc<[Arc<Endpoint>]>>,
    /// Items that each endpoint may have.
    capacity: usize,
    /// Numbers of the endpoints whose `counted` is not 0.
    touched: Vec<EndpointId>,
}

/// The items of one endpoint.
#[derive(Default, Debug)]
struct Held {
    /// 0 where nothing is held; generations count from 1.
    generation: u32,
    items: Option<Recent<u128, ()>>,
    /// Items of the request at hand.
    counted: u32,
}

impl Memory {
    /// Counts, of these items, what each endpoint holds.
    fn count(&mut self, items: &[u128]) {
        for id in self.touched.drain(..) {
            if let Some(held) = self.endpoints.get_mut(id.index()) {
                held.counted = 0;
            }
        }
        for item in items {
            for id in self.holders.get(item).into_iter().flatten() {
                if let Some(held) = self.endpoints.get_mut(id.index()) {
                    if held.counted == 0 {
                        self.touched.push(*id);
                    }
                    held.counted += 1;
                }
            }
        }
    }

    fn counted(&self, member: &Endpoint) -> u32 {
        self.endpoints
            .get(member.id.index())
            .filter(|held| Generation(held.generation) == member.generation)
            .map_or(0, |held| held.counted)
    }

    /// Forgets the endpoints that are no longer members.
    fn follow(&mut self, members: &Arc<[Arc<Endpoint>]>) {
        let is_known = |known: &Arc<_>| Arc::ptr_eq(known, members);
        if self.members.as_ref().is_some_and(is_known) {
            return;
        }
        self.capacity = (ITEMS_MAX / members.len().max(1)).clamp(1, ITEMS_OF_ENDPOINT_MAX);
        let mut present = vec![0; self.endpoints.len()];
        for member in members.iter() {
            if let Some(generation) = present.get_mut(member.id.index()) {
                *generation = member.generation.0;
            }
        }
        for (number, generation) in present.into_iter().enumerate() {
            let left = |held: &Held| held.items.is_some() && held.generation != generation;
            if self.endpoints.get(number).is_some_and(left) {
                self.forget(EndpointId(number as u32), 0);
            }
        }
        // A larger fleet leaves less to each endpoint.
        for number in 0..self.endpoints.len() {
            self.shrink(EndpointId(number as u32), self.capacity);
        }
        self.members = Some(Arc::clone(members));
    }

    fn record(&mut self, member: &Endpoint, items: &[u128]) {
        let id = member.id;
        if self.endpoints.len() <= id.index() {
            self.endpoints.resize_with(id.index() + 1, Held::default);
        }
        if let Some(held) = self.endpoints.get(id.index())
            && held.generation != member.generation.0
        {
            self.forget(id, member.generation.0);
        }
        for item in items {
            let Some(held) = self.endpoints.get_mut(id.index()) else {
                return;
            };
            // The bound is kept here, since it moves with the fleet.
            let recent = held.items.get_or_insert_with(|| Recent::new(usize::MAX));
            recent.put(*item, ());
            let holders = self.holders.entry(*item).or_default();
            if !holders.contains(&id) {
                holders.push(id);
            }
            self.shrink(id, self.capacity);
        }
    }

    /// Forgets everything of an endpoint, whose number `generation` has from now on.
    fn forget(&mut self, id: EndpointId, generation: u32) {
        self.shrink(id, 0);
        if let Some(held) = self.endpoints.get_mut(id.index()) {
            held.generation = generation;
            held.items = None;
        }
    }

    /// Forgets the oldest items of an endpoint until it has at most `count`.
    fn shrink(&mut self, id: EndpointId, count: usize) {
        let held = self.endpoints.get_mut(id.index());
        let Some(items) = held.and_then(|held| held.items.as_mut()) else {
            return;
        };
        while items.len() > count {
            let Some((item, ())) = items.pop_oldest() else {
                return;
            };
            if let Some(holders) = self.holders.get_mut(&item) {
                holders.retain(|holder| *holder != id);
                if holders.is_empty() {
                    self.holders.remove(&item);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::super::super::fixtures::{image, request, snapshot};
    use super::super::tests::rounded;
    use super::*;
    use crate::fleet::{Live, Matches, Snapshot};

    fn with<R>(fleet: &Snapshot, media: &[u128], read: impl FnOnce(&Context<'_>) -> R) -> R {
        let media: Vec<MediaItem> = media.iter().map(|hash| image(*hash)).collect();
        let matches = Matches::default();
        let mut request = request(0, &matches, 0);
        request.media = &media;
        read(&Context {
            snapshot: fleet,
            request: &request,
            now_ms: 0,
        })
    }

    fn scores(scorer: &MmEmbeddingsCacheScorer, fleet: &Snapshot, media: &[u128]) -> Vec<i32> {
        with(fleet, media, |context| {
            let order: Vec<usize> = (0..fleet.members.len()).collect();
            let mut scores = vec![9.0; order.len()];
            scorer.score(context, &order, &mut scores);
            rounded(&scores)
        })
    }

    fn send(scorer: &MmEmbeddingsCacheScorer, fleet: &Snapshot, media: &[u128], to: usize) {
        with(fleet, media, |context| scorer.picked(context, &[to, 0]));
    }

    fn restarted(fleet: &Snapshot, at: usize) -> Snapshot {
        let mut members = fleet.members.to_vec();
        let mut member = Endpoint::clone(&members[at]);
        member.generation = Generation(member.generation.0 + 1);
        members[at] = Arc::new(member);
        Snapshot {
            members: members.into(),
            ..fleet.clone()
        }
    }

    #[test]
    fn the_share_of_the_media_that_was_sent_there_counts() {
        let scorer = MmEmbeddingsCacheScorer::default();
        let fleet = snapshot(&[Live::default(); 3]);
        assert_eq!(scores(&scorer, &fleet, &[1, 2]), [0, 0, 0]);
        send(&scorer, &fleet, &[1, 2], 1);
        send(&scorer, &fleet, &[2, 3, 4], 2);
        assert_eq!(scores(&scorer, &fleet, &[1, 2]), [0, 1000, 500]);
        // The same image twice is one item.
        assert_eq!(scores(&scorer, &fleet, &[1, 1, 2, 9]), [0, 667, 333]);
        assert_eq!(scores(&scorer, &fleet, &[]), [0, 0, 0]);
    }

    #[test]
    fn an_endpoint_that_left_or_came_back_holds_nothing() {
        let scorer = MmEmbeddingsCacheScorer::default();
        let fleet = snapshot(&[Live::default(); 3]);
        send(&scorer, &fleet, &[1], 1);
        send(&scorer, &fleet, &[1], 2);
        let again = restarted(&fleet, 1);
        assert_eq!(scores(&scorer, &again, &[1]), [0, 0, 1000]);
        send(&scorer, &again, &[2], 0);
        assert_eq!(scores(&scorer, &again, &[1]), [0, 0, 1000]);
        assert_eq!(scorer.memory.lock().holders[&1].as_slice(), [EndpointId(2)]);
        let smaller = snapshot(&[Live::default(); 1]);
        send(&scorer, &smaller, &[5], 0);
        let memory = scorer.memory.lock();
        assert_eq!(
            memory.holders.keys().copied().collect::<BTreeSet<_>>(),
            [2, 5].into()
        );
    }

    #[test]
    fn the_oldest_items_of_an_endpoint_make_room() {
        let scorer = MmEmbeddingsCacheScorer::default();
        let fleet = snapshot(&[Live::default(); 2]);
        for item in 0..=ITEMS_OF_ENDPOINT_MAX as u128 {
            send(&scorer, &fleet, &[item], 0);
        }
        assert_eq!(scores(&scorer, &fleet, &[0]), [0, 0]);
        assert_eq!(scores(&scorer, &fleet, &[1]), [1000, 0]);
        assert_eq!(scorer.memory.lock().holders.len(), ITEMS_OF_ENDPOINT_MAX);

        // In a large fleet every endpoint has less, those that filled up before, too.
        let large = snapshot(&vec![Live::default(); 1024]);
        send(&scorer, &large, &[7], 1);
        assert_eq!(scorer.memory.lock().holders.len(), ITEMS_MAX / 1024 + 1);
    }

    #[test]
    fn only_the_first_media_of_a_request_count() {
        let many: Vec<MediaItem> = (0..100).map(image).collect();
        assert_eq!(distinct(&many).len(), ITEMS_OF_REQUEST_MAX);
    }

    proptest! {
        /// The memory is the same as a list of what was sent where, whose endpoints restart.
        #[test]
        fn the_memory_is_what_was_sent(
            steps in proptest::collection::vec(
                (0_usize..3, proptest::collection::vec(0_u128..6, 0..4), any::<bool>()),
                0..40,
            ),
            asked in proptest::collection::btree_set(0_u128..6, 1..4),
        ) {
            let scorer = MmEmbeddingsCacheScorer::default();
            let mut fleet = snapshot(&[Live::default(); 3]);
            let mut model: BTreeMap<usize, BTreeSet<u128>> = BTreeMap::new();
            for (endpoint, media, restart) in steps {
                if restart {
                    fleet = restarted(&fleet, endpoint);
                    model.remove(&endpoint);
                }
                model.entry(endpoint).or_default().extend(&media);
                send(&scorer, &fleet, &media, endpoint);
            }
            let asked: Vec<u128> = asked.into_iter().collect();
            let expected: Vec<i32> = (0..3)
                .map(|endpoint| {
                    let held = model.get(&endpoint).cloned().unwrap_or_default();
                    let count = asked.iter().filter(|item| held.contains(item)).count();
                    (count as f64 / asked.len() as f64 * 1000.0).round() as i32
                })
                .collect();
            prop_assert_eq!(scores(&scorer, &fleet, &asked), expected);
        }
    }
}
