//! The index against a plain model: sets of token prefixes, compared token by token.

use std::collections::BTreeMap;

use pointsman_proto::block_hash::KeyScope;
use pointsman_proto::kv_events::{BlockRemoved, BlockStored, EngineHash, Event, Medium};
use proptest::prelude::*;

use super::*;
use crate::fleet::kv_events::EventSource;
use crate::fleet::{EndpointId, Generation};

const MODEL: &str = "model";
const A: EventSource = source(0, 1);
const B: EventSource = source(1, 1);

const fn source(endpoint: u32, generation: u32) -> EventSource {
    EventSource {
        endpoint: EndpointId(endpoint),
        generation: Generation(generation),
        rank: 0,
    }
}

fn index() -> PrefixIndex {
    PrefixIndex::new(IndexLimits::default())
}

fn stored(hashes: &[u64], parent: Option<u64>, tokens: &[u32], block_size: u32) -> BlockStored {
    BlockStored {
        block_hashes: hashes.iter().copied().map(EngineHash).collect(),
        parent: parent.map(EngineHash),
        token_ids: tokens.to_vec(),
        block_size,
        lora_name: None,
        medium: Medium::Gpu,
        cache_salt: None,
        extras: Vec::new(),
    }
}

fn removed(hashes: &[u64]) -> Event {
    Event::BlockRemoved(BlockRemoved {
        block_hashes: hashes.iter().copied().map(EngineHash).collect(),
        medium: Medium::Gpu,
    })
}

fn scope<'a>() -> KeyScope<'a> {
    KeyScope {
        model: MODEL,
        adapter: None,
        cache_salt: None,
    }
}

fn lookup(index: &PrefixIndex, scope: &KeyScope<'_>, tokens: &[u32]) -> Matches {
    let mut out = Matches::default();
    index.matches(scope, tokens, &mut IndexScratch::default(), &mut out);
    out
}

fn tokens_at(index: &PrefixIndex, source: EventSource, tokens: &[u32]) -> u32 {
    lookup(index, &scope(), tokens).tokens(source.endpoint, source.generation)
}

#[test]
fn a_prefix_is_found_up_to_the_first_missing_block() {
    let index = index();
    let applied = index.apply(
        A,
        MODEL,
        &Event::BlockStored(stored(&[1, 2, 3], None, &[1, 2, 3, 4, 5, 6], 2)),
    );
    assert_eq!(applied, Applied::Stored { blocks: 3 });
    assert_eq!(tokens_at(&index, A, &[1, 2, 3, 4, 5, 6, 7]), 6);
    assert_eq!(tokens_at(&index, A, &[1, 2, 3, 9, 5, 6]), 2);
    assert_eq!(tokens_at(&index, A, &[9, 2]), 0);
    // Removing the head hides the rest; storing it again shows it.
    assert_eq!(
        index.apply(A, MODEL, &removed(&[1])),
        Applied::Removed { blocks: 1 }
    );
    assert_eq!(tokens_at(&index, A, &[1, 2, 3, 4]), 0);
    index.apply(
        A,
        MODEL,
        &Event::BlockStored(stored(&[7], None, &[1, 2], 2)),
    );
    assert_eq!(tokens_at(&index, A, &[1, 2, 3, 4, 5, 6]), 6);
}

#[test]
fn each_endpoint_is_out_at_its_own_first_miss() {
    let index = index();
    let event =
        |hashes: &[u64], tokens: &[u32]| Event::BlockStored(stored(hashes, None, tokens, 1));
    index.apply(A, MODEL, &event(&[1, 2, 3], &[5, 6, 7]));
    // The same hashes mean other content there, and other hashes the same content.
    index.apply(B, MODEL, &event(&[3, 1], &[5, 6]));
    let found = lookup(&index, &scope(), &[5, 6, 7, 8]);
    assert_eq!(found.tokens(A.endpoint, A.generation), 3);
    assert_eq!(found.tokens(B.endpoint, B.generation), 2);
    assert_eq!(found.longest(), 3);
    index.apply(B, MODEL, &removed(&[3]));
    let found = lookup(&index, &scope(), &[5, 6, 7, 8]);
    assert_eq!((found.tokens(A.endpoint, A.generation), found.tokens(B.endpoint, B.generation)), (3, 0));
}

#[test]
fn scopes_do_not_share_blocks() {
    let index = index();
    let mut salted = stored(&[1], None, &[1, 2], 2);
    salted.cache_salt = Some("salt".to_owned());
    let mut adapted = stored(&[2], None, &[1, 2], 2);
    adapted.lora_name = Some("adapter".to_owned());
    index.apply(A, MODEL, &Event::BlockStored(salted));
    index.apply(B, MODEL, &Event::BlockStored(adapted));
    assert_eq!(lookup(&index, &scope(), &[1, 2]).longest(), 0);
    let with_salt = KeyScope {
        cache_salt: Some("salt"),
        ..scope()
    };
    assert_eq!(lookup(&index, &with_salt, &[1, 2]).tokens(A.endpoint, A.generation), 2);
    let with_adapter = KeyScope {
        adapter: Some("adapter"),
        ..scope()
    };
    assert_eq!(lookup(&index, &with_adapter, &[1, 2]).tokens(B.endpoint, B.generation), 2);
    let other_model = KeyScope {
        model: "other",
        ..scope()
    };
    assert_eq!(lookup(&index, &other_model, &[1, 2]).longest(), 0);
}

#[test]
fn blocks_of_an_unnamed_model_are_found_under_any() {
    let index = index();
    index.apply(A, "", &Event::BlockStored(stored(&[1], None, &[1, 2], 2)));
    assert_eq!(tokens_at(&index, A, &[1, 2]), 2);
}

#[test]
fn orphans_are_adopted_through_any_number_of_generations() {
    let index = index();
    let child = |hash: u64, parent: u64, token: u32| {
        Event::BlockStored(stored(&[hash], Some(parent), &[token], 1))
    };
    for hash in (2..2_000).rev() {
        let applied = index.apply(A, MODEL, &child(hash, hash - 1, hash as u32));
        assert_eq!(applied, Applied::Orphaned { blocks: 1 });
    }
    assert_eq!(index.stats().orphans, 1_998);
    index.apply(A, MODEL, &Event::BlockStored(stored(&[1], None, &[1], 1)));
    let prompt: Vec<u32> = (1..2_000).collect();
    assert_eq!(tokens_at(&index, A, &prompt), 1_999);
    assert_eq!(index.stats().orphans, 0);
    assert_eq!(index.stats().stored, 1_999);
}

#[test]
fn events_that_do_not_fit_are_refused_and_counted() {
    let index = index();
    let applied = index.apply(
        A,
        MODEL,
        &Event::BlockStored(stored(&[1, 2], None, &[1, 2, 3], 2)),
    );
    let refusal = Refusal::TokenCount {
        tokens: 3,
        blocks: 2,
        block_size: 2,
    };
    assert_eq!(applied, Applied::Refused(refusal));
    assert_eq!(index.stats().refused_events, 1);
    assert_eq!(index.stats().blocks, 0);
}

#[test]
fn block_sizes_are_bounded() {
    let index = index();
    for size in 1..=BLOCK_SIZES_MAX as u32 {
        let tokens: Vec<u32> = (0..size).collect();
        let event = Event::BlockStored(stored(&[u64::from(size)], None, &tokens, size));
        assert_eq!(index.apply(A, MODEL, &event), Applied::Stored { blocks: 1 });
    }
    let tokens: Vec<u32> = (0..99).collect();
    let event = Event::BlockStored(stored(&[99], None, &tokens, 99));
    let refusal = Refusal::BlockSizes { block_size: 99 };
    assert_eq!(index.apply(A, MODEL, &event), Applied::Refused(refusal));
    // Of all sizes that match, the longest counts.
    assert_eq!(tokens_at(&index, A, &tokens), BLOCK_SIZES_MAX as u32);
}

#[test]
fn a_full_index_refuses_until_blocks_go() {
    let index = PrefixIndex::new(IndexLimits {
        max_bytes: index().stats().bytes + 20_000,
        max_orphans_per_endpoint: 8,
    });
    let event = |hash: u64| Event::BlockStored(stored(&[hash], None, &[hash as u32], 1));
    let refusal = Applied::Refused(Refusal::Full { refused: 1 });
    let stored = (0..10_000).take_while(|hash| index.apply(A, MODEL, &event(*hash)) != refusal);
    let stored = stored.count() as u64;
    assert!(stored > 50 && index.stats().refused_blocks == 1, "{stored}");
    assert!(index.stats().bytes < index_bytes_max(&index), "{}", index.stats().bytes);
    assert_eq!(tokens_at(&index, A, &[0]), 1);
    let half: Vec<u64> = (0..stored / 2).collect();
    index.apply(A, MODEL, &removed(&half));
    assert_eq!(index.apply(B, MODEL, &event(1)), Applied::Stored { blocks: 1 });
    assert_eq!(tokens_at(&index, B, &[1]), 1);
}

/// What an index may take that had 20,000 bytes to fill: one table may have grown past them.
fn index_bytes_max(index: &PrefixIndex) -> usize {
    let blocks = index.stats().blocks;
    30_000 + blocks * 100
}

#[test]
fn tiers_are_kept_apart() {
    let index = index();
    index.apply(
        A,
        MODEL,
        &Event::BlockStored(stored(&[1, 2, 3], None, &[1, 2, 3], 1)),
    );
    // A copy on the host, reported as offloading connectors do, without tokens.
    let mut copy = stored(&[2, 3, 77], None, &[], 1);
    copy.medium = Medium::Cpu;
    assert_eq!(
        index.apply(A, MODEL, &Event::BlockStored(copy)),
        Applied::Stored { blocks: 2 }
    );
    index.apply(A, MODEL, &removed(&[2]));
    let found = lookup(&index, &scope(), &[1, 2, 3]);
    assert_eq!(found.tokens(A.endpoint, A.generation), 3);
    assert_eq!(found.gpu_tokens(A.endpoint, A.generation), 1);
    // It left the GPU already.
    assert_eq!(
        index.apply(A, MODEL, &removed(&[2])),
        Applied::Removed { blocks: 0 }
    );
    assert_eq!(tokens_at(&index, A, &[1, 2, 3]), 3);
}

#[test]
fn two_names_for_one_content_are_lost_with_the_last() {
    let index = index();
    index.apply(A, MODEL, &Event::BlockStored(stored(&[1], None, &[1], 1)));
    index.apply(A, MODEL, &Event::BlockStored(stored(&[2], None, &[1], 1)));
    index.apply(A, MODEL, &removed(&[1]));
    assert_eq!(tokens_at(&index, A, &[1]), 1);
    index.apply(A, MODEL, &removed(&[2]));
    assert_eq!(tokens_at(&index, A, &[1]), 0);
    assert_eq!(index.stats().runs, 0);
}

#[test]
fn a_hash_reused_for_other_content_means_the_new_one() {
    let index = index();
    index.apply(A, MODEL, &Event::BlockStored(stored(&[1], None, &[1], 1)));
    index.apply(A, MODEL, &Event::BlockStored(stored(&[1], None, &[2], 1)));
    assert_eq!(tokens_at(&index, A, &[1]), 0);
    assert_eq!(tokens_at(&index, A, &[2]), 1);
    assert_eq!(index.stats().blocks, 1);
}

#[test]
fn clears_reach_their_own_generation_only() {
    let index = index();
    let event = Event::BlockStored(stored(&[1], None, &[1], 1));
    let next = source(0, 2);
    index.apply(A, MODEL, &event);
    index.apply(B, MODEL, &event);
    index.apply(next, MODEL, &event);
    assert_eq!(tokens_at(&index, A, &[1]), 0);
    assert_eq!(tokens_at(&index, next, &[1]), 1);
    // What is late of the earlier generation does nothing.
    index.clear(A);
    assert_eq!(index.apply(A, MODEL, &event), Applied::StaleGeneration);
    assert_eq!(tokens_at(&index, next, &[1]), 1);
    index.clear(next);
    assert_eq!(tokens_at(&index, next, &[1]), 0);
    assert_eq!(tokens_at(&index, B, &[1]), 1);
    assert_eq!(index.stats().blocks, 1);
}

#[test]
fn all_blocks_cleared_is_one_model_of_one_endpoint() {
    let index = index();
    let event = Event::BlockStored(stored(&[1], None, &[1], 1));
    index.apply(A, MODEL, &event);
    index.apply(A, "other", &event);
    index.apply(B, MODEL, &event);
    assert_eq!(
        index.apply(A, MODEL, &Event::AllBlocksCleared),
        Applied::Removed { blocks: 1 }
    );
    assert_eq!(tokens_at(&index, A, &[1]), 0);
    assert_eq!(tokens_at(&index, B, &[1]), 1);
    let other = KeyScope {
        model: "other",
        ..scope()
    };
    assert_eq!(lookup(&index, &other, &[1]).tokens(A.endpoint, A.generation), 1);
}

/// What may happen. Paths are token sequences of blocks of two; an engine names the block that ends
/// a path.
#[derive(Clone, Debug)]
enum Step {
    /// Blocks `from..path.len() / 2` of a path enter the cache under one of two names each.
    Store {
        endpoint: u32,
        path: Vec<u32>,
        from: usize,
        alias: bool,
        medium: Medium,
    },
    Remove {
        endpoint: u32,
        path: Vec<u32>,
        alias: bool,
        medium: Medium,
    },
    AllCleared {
        endpoint: u32,
    },
    Reset {
        endpoint: u32,
    },
    NextGeneration {
        endpoint: u32,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let path = || {
        proptest::collection::vec(0_u32..2, 1..5)
            .prop_map(|blocks| blocks.into_iter().flat_map(|token| [token, 7]).collect())
    };
    let medium = || prop_oneof![4 => Just(Medium::Gpu), 1 => Just(Medium::Cpu)];
    let endpoint = || 0_u32..2;
    let step = prop_oneof![
        30 => (endpoint(), path(), 0_usize..4, any::<bool>(), medium()).prop_map(
            |(endpoint, path, from, alias, medium)| {
                let path: Vec<u32> = path;
                let from = from.min(path.len() / 2 - 1);
                Step::Store { endpoint, path, from, alias, medium }
            }
        ),
        20 => (endpoint(), path(), any::<bool>(), medium()).prop_map(
            |(endpoint, path, alias, medium)| Step::Remove { endpoint, path, alias, medium }
        ),
        1 => endpoint().prop_map(|endpoint| Step::AllCleared { endpoint }),
        1 => endpoint().prop_map(|endpoint| Step::Reset { endpoint }),
        1 => endpoint().prop_map(|endpoint| Step::NextGeneration { endpoint }),
    ];
    proptest::collection::vec(step, 1..60)
}

/// A block's name: distinct per path and alias, and another one at each endpoint, where the same
/// number names other content.
fn name(endpoint: u32, path: &[u32], alias: bool) -> u64 {
    let bits = path
        .iter()
        .step_by(2)
        .fold(1_u64, |bits, token| bits << 1 | u64::from(*token));
    let number = bits << 1 | u64::from(alias);
    if endpoint == 0 { number } else { 64 - number }
}

/// One endpoint as a plain model: names to (path, media), and stored events that wait for their
/// parent's name.
#[derive(Clone, Default, Debug)]
struct Plain {
    held: BTreeMap<u64, (Vec<u32>, BTreeMap<u8, u32>)>,
    waiting: Vec<(u64, Vec<WaitingBlock>)>,
}

#[derive(Clone, Debug)]
struct WaitingBlock {
    name: Option<u64>,
    path: Vec<u32>,
    medium: u8,
}

impl Plain {
    fn store(&mut self, parent: Option<u64>, blocks: Vec<WaitingBlock>) {
        match parent {
            Some(parent) if !self.held.contains_key(&parent) => self.waiting.push((parent, blocks)),
            _ => self.take_in(blocks),
        }
        // Adopt to the fixed point by plain search.
        while let Some(place) = self
            .waiting
            .iter()
            .position(|(parent, _)| self.held.contains_key(parent))
        {
            let (_, blocks) = self.waiting.remove(place);
            self.take_in(blocks);
        }
    }

    fn take_in(&mut self, blocks: Vec<WaitingBlock>) {
        for block in blocks {
            if let Some(name) = block.name {
                let held = self.held.entry(name).or_default();
                held.0 = block.path;
                *held.1.entry(block.medium).or_default() += 1;
            }
        }
    }

    fn remove(&mut self, name: u64, medium: u8) {
        for block in self.waiting.iter_mut().flat_map(|(_, blocks)| blocks) {
            if block.name == Some(name) && block.medium == medium {
                block.name = None;
            }
        }
        if let Some((_, media)) = self.held.get_mut(&name) {
            if let Some(copies) = media.get_mut(&medium) {
                *copies -= 1;
            }
            media.retain(|_, copies| *copies > 0);
            if media.is_empty() {
                self.held.remove(&name);
            }
        }
    }

    fn matched(&self, prompt: &[u32], medium: Option<u8>) -> u32 {
        let holds = |path: &[u32]| {
            self.held.values().any(|(held, media)| {
                held == path && medium.is_none_or(|medium| media.contains_key(&medium))
            })
        };
        let blocks = (1..=prompt.len() / 2)
            .take_while(|blocks| holds(&prompt[..blocks * 2]))
            .count();
        blocks as u32 * 2
    }
}

fn medium_number(medium: Medium) -> u8 {
    u8::from(medium == Medium::Cpu)
}

fn play(
    index: &PrefixIndex,
    plain: &mut [Plain; 2],
    generations: &mut [Generation; 2],
    step: Step,
) {
    match step {
        Step::Store {
            endpoint,
            path,
            from,
            alias,
            medium,
        } => {
            let at = |blocks: usize| &path[..blocks * 2];
            let parent = (from > 0).then(|| name(endpoint, at(from), alias));
            let names: Vec<u64> = (from + 1..=path.len() / 2)
                .map(|blocks| name(endpoint, at(blocks), alias))
                .collect();
            let mut event = stored(&names, parent, &path[from * 2..], 2);
            event.medium = medium;
            let source = source(endpoint, generations[endpoint as usize].0);
            index.apply(source, MODEL, &Event::BlockStored(event));
            let blocks = (from + 1..=path.len() / 2)
                .zip(names)
                .map(|(blocks, name)| WaitingBlock {
                    name: Some(name),
                    path: at(blocks).to_vec(),
                    medium: medium_number(medium),
                })
                .collect();
            plain[endpoint as usize].store(parent, blocks);
        }
        Step::Remove {
            endpoint,
            path,
            alias,
            medium,
        } => {
            let name = name(endpoint, &path, alias);
            let event = Event::BlockRemoved(BlockRemoved {
                block_hashes: vec![EngineHash(name)],
                medium,
            });
            let source = source(endpoint, generations[endpoint as usize].0);
            index.apply(source, MODEL, &event);
            plain[endpoint as usize].remove(name, medium_number(medium));
        }
        Step::AllCleared { endpoint } => {
            let source = source(endpoint, generations[endpoint as usize].0);
            index.apply(source, MODEL, &Event::AllBlocksCleared);
            plain[endpoint as usize] = Plain::default();
        }
        Step::Reset { endpoint } => {
            index.clear(source(endpoint, generations[endpoint as usize].0));
            plain[endpoint as usize] = Plain::default();
        }
        Step::NextGeneration { endpoint } => {
            let generation = &mut generations[endpoint as usize];
            index.forget(EndpointId(endpoint), *generation);
            generation.0 += 1;
            plain[endpoint as usize] = Plain::default();
        }
    }
}

/// Every prompt of four blocks.
fn prompts() -> impl Iterator<Item = Vec<u32>> {
    (0_u32..16).map(|bits| (0..4).flat_map(|place| [bits >> place & 1, 7]).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_index_agrees_with_the_plain_model(steps in steps()) {
        let index = index();
        let mut plain = [Plain::default(), Plain::default()];
        let mut generations = [Generation(1); 2];
        let mut scratch = IndexScratch::default();
        let mut found = Matches::default();
        for step in steps {
            play(&index, &mut plain, &mut generations, step);
            for prompt in prompts() {
                index.matches(&scope(), &prompt, &mut scratch, &mut found);
                for (number, plain) in plain.iter().enumerate() {
                    let id = EndpointId(number as u32);
                    let generation = generations[number];
                    prop_assert_eq!(found.tokens(id, generation), plain.matched(&prompt, None));
                    prop_assert_eq!(
                        found.gpu_tokens(id, generation),
                        plain.matched(&prompt, Some(medium_number(Medium::Gpu)))
                    );
                }
            }
            let named = |plain: &Plain| plain.held.values().map(|(_, media)| media.len()).sum::<usize>();
            let held: usize = plain.iter().map(named).sum();
            prop_assert_eq!(index.stats().blocks, held);
        }
        // Nothing is left behind once everything is cleared.
        for (number, generation) in generations.iter().enumerate() {
            index.forget(EndpointId(number as u32), *generation);
        }
        while index.reclaim(100) {}
        let stats = index.stats();
        prop_assert_eq!((stats.blocks, stats.runs, stats.orphans), (0, 0, 0));
    }
}

#[test]
fn readers_and_writers_of_many_threads_agree_in_the_end() {
    let index = index();
    let prompt: Vec<u32> = (0..256).collect();
    let hashes: Vec<u64> = (1..=16).collect();
    let event = Event::BlockStored(stored(&hashes, None, &prompt, 16));
    std::thread::scope(|threads| {
        for writer in 0..4_u32 {
            let (index, event) = (&index, &event);
            let hashes = &hashes;
            threads.spawn(move || {
                let source = source(writer, 1);
                for _ in 0..200 {
                    index.apply(source, MODEL, event);
                    index.apply(source, MODEL, &removed(hashes));
                }
                index.apply(source, MODEL, event);
            });
        }
        for _ in 0..2 {
            threads.spawn(|| {
                for _ in 0..400 {
                    let found = lookup(&index, &scope(), &prompt);
                    assert!(found.longest() <= 256);
                }
            });
        }
    });
    let found = lookup(&index, &scope(), &prompt);
    for writer in 0..4 {
        assert_eq!(found.tokens(EndpointId(writer), Generation(1)), 256);
    }
    assert_eq!(index.stats().runs, 1);
}
