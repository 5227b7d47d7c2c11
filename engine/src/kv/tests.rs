//! The block pool and the prefix cache against a plain model of both, over random sequences of calls.

mod tiers;

use std::collections::BTreeSet;
use std::sync::Arc;

use pointsman_proto::block_hash::{BlockDigest, none_hash, sha256_cbor};
use pointsman_proto::kv_events::{BlockStored, EngineHash, Event, Medium};
use proptest::prelude::*;

use super::*;

const SIZE: u32 = 4;

fn recipe() -> HashRecipe {
    HashRecipe::sha256_cbor("vllm-none-hash")
}

/// A sequence as the scheduler would keep it.
#[derive(Default)]
struct Holder {
    tokens: Vec<u32>,
    digests: Vec<BlockDigest>,
    table: Vec<BlockId>,
    committed: usize,
    /// Leading blocks that were found in either tier.
    found: usize,
}

impl Holder {
    fn new(tokens: Vec<u32>) -> Self {
        let mut digests = Vec::new();
        recipe().extend(&mut digests, &tokens, SIZE, None);
        Self {
            tokens,
            digests,
            ..Self::default()
        }
    }

    /// Takes cached blocks and allocates the rest; false when they do not fit.
    fn admit(&mut self, pool: &mut BlockPool) -> bool {
        let mut hits = Vec::new();
        pool.lookup(&self.digests, &mut hits);
        let blocks = self.tokens.len().div_ceil(SIZE as usize);
        if !pool.admit(&hits, blocks, &mut self.table) {
            return false;
        }
        assert_eq!(self.table.len(), blocks);
        let on_device = |hit: &&Hit| matches!(hit, Hit::Device(_));
        self.committed = hits.iter().take_while(on_device).count();
        self.found = hits.len();
        true
    }

    fn commit(&mut self, pool: &mut BlockPool, full: usize) {
        let run = Run {
            digests: &self.digests[..full],
            tokens: &self.tokens,
            first: self.committed,
            cache_salt: None,
        };
        pool.commit(&run, &mut self.table);
        self.committed = full;
    }
}

/// A pool that has run one sequence of `tokens` tokens to its end.
fn pool_after(blocks: u32, tokens: u32) -> (BlockPool, Holder) {
    let mut pool = BlockPool::new(blocks, SIZE, true);
    let mut holder = Holder::new((0..tokens).collect());
    assert!(holder.admit(&mut pool));
    holder.commit(&mut pool, (tokens / SIZE) as usize);
    (pool, holder)
}

fn removed(events: &[Event<BlockDigest>]) -> Vec<BlockDigest> {
    let removed = events.iter().filter_map(|event| match event {
        Event::BlockRemoved(removed) => Some(removed.block_hashes.clone()),
        _ => None,
    });
    removed.flatten().collect()
}

#[test]
fn the_null_block_is_never_handed_out() {
    let mut pool = BlockPool::new(5, SIZE, false);
    let mut table = Vec::new();
    assert!(!pool.allocate(5, &mut table));
    assert!(table.is_empty(), "all or nothing");
    assert!(pool.allocate(4, &mut table));
    assert_eq!(table, [1, 2, 3, 4].map(BlockId));
    assert_eq!((pool.total(), pool.used(), pool.free()), (4, 4, 0));
}

#[test]
fn a_cache_announces_itself_when_it_is_made_and_when_it_is_reset() {
    let (mut pool, mut holder) = pool_after(8, 8);
    let events = pool.take_events();
    assert_eq!(events[0], Event::AllBlocksCleared);
    assert!(!pool.reset(), "blocks are in use");
    pool.release(&mut holder.table);
    assert!(pool.reset());
    assert_eq!(pool.take_events(), [Event::AllBlocksCleared]);
    let mut hits = Vec::new();
    pool.lookup(&holder.digests, &mut hits);
    assert!(hits.is_empty());
}

#[test]
fn stored_blocks_carry_tokens_parent_and_salt() {
    let mut pool = BlockPool::new(8, SIZE, true);
    pool.take_events();
    let tokens: Vec<u32> = (100..112).collect();
    let mut digests = Vec::new();
    recipe().extend(&mut digests, &tokens, SIZE, Some("salt"));
    let salt: Arc<str> = "salt".into();
    let mut table = Vec::new();
    assert!(pool.allocate(3, &mut table));
    for (first, full) in [(0, 1), (1, 3)] {
        let digests = &digests[..full];
        let run = Run {
            digests,
            tokens: &tokens,
            first,
            cache_salt: Some(&salt),
        };
        pool.commit(&run, &mut table);
    }
    let stored =
        |hashes: &[BlockDigest], parent: Option<usize>, tokens: &[u32], salt: Option<&str>| {
            Event::BlockStored(BlockStored {
                block_hashes: hashes.to_vec(),
                parent: parent.map(|index| digests[index]),
                token_ids: tokens.to_vec(),
                block_size: SIZE,
                lora_name: None,
                medium: Medium::Gpu,
                cache_salt: salt.map(str::to_owned),
                extras: Vec::new(),
            })
        };
    assert_eq!(
        pool.take_events(),
        [
            stored(&digests[..1], None, &tokens[..4], Some("salt")),
            stored(&digests[1..], Some(0), &tokens[4..], None),
        ]
    );
}

#[test]
fn the_tail_of_a_prefix_goes_first_and_hits_keep_blocks_alive() {
    let (mut pool, mut first) = pool_after(6, 12);
    pool.release(&mut first.table);
    pool.take_events();
    let mut table = Vec::new();
    // Two blocks were never used; the third to go is the tail of the released prefix.
    assert!(pool.allocate(3, &mut table));
    assert_eq!(removed(&pool.take_events()), [first.digests[2]]);
    let mut hits = Vec::new();
    pool.lookup(&first.digests, &mut hits);
    assert_eq!(hits.len(), 2);
    assert_eq!(pool.left_after(&hits, 2), Some(0));
    assert_eq!(pool.left_after(&hits, 3), None);
    let mut held = Vec::new();
    assert!(!pool.admit(&hits, 3, &mut held) && held.is_empty());
    assert!(pool.admit(&hits, 2, &mut held));
    assert_eq!(pool.free(), 0);
    assert!(!pool.allocate(1, &mut table));
    pool.release(&mut held);
    pool.release(&mut table);
    // Blocks without a digest are reused before cached ones.
    assert!(pool.allocate(3, &mut table));
    assert!(removed(&pool.take_events()).is_empty());
}

#[test]
fn the_same_prefix_computed_twice_ends_in_one_block() {
    let (mut pool, first) = pool_after(8, 8);
    let mut second = Holder::new((0..8).chain([77; 4]).collect());
    assert!(pool.allocate(3, &mut second.table));
    assert_eq!(pool.used(), 5);
    pool.take_events();
    second.commit(&mut pool, 3);
    assert_eq!(second.table[..2], first.table[..2]);
    assert_eq!(pool.used(), 3, "the copies are free again");
    let events = pool.take_events();
    let [Event::BlockStored(stored)] = events.as_slice() else {
        panic!("{events:?}");
    };
    assert_eq!(stored.token_ids, [77; 4]);
    assert_eq!(stored.parent, Some(first.digests[1]));
}

#[test]
fn digests_are_those_of_the_field() {
    let tokens: Vec<u32> = (1..=16).collect();
    let mut digests = Vec::new();
    recipe().extend(&mut digests, &tokens, 16, None);
    let hash = EngineHash::from(&digests[0]);
    assert_eq!(hash, EngineHash(8_866_452_693_264_111_234));
    recipe().extend(&mut digests, &tokens, 16, None);
    assert_eq!(digests.len(), 1, "what is there is not computed again");
}

#[test]
fn recipes_of_all_algorithms_chain_and_tell_salts_and_seeds_apart() {
    let tokens: Vec<u32> = (1..=40).collect();
    let digests = |recipe: &HashRecipe, salt| {
        let mut digests = Vec::new();
        recipe.extend(&mut digests, &tokens, 16, salt);
        // What is there is kept, and gone on from.
        let mut in_two = digests[..1].to_vec();
        recipe.extend(&mut in_two, &tokens, 16, salt);
        assert_eq!(in_two, digests);
        digests
    };
    let mut seen = BTreeSet::new();
    let mut expected = 0;
    for algorithm in HashAlgorithm::ALL {
        for seed in ["0", "1"] {
            let recipe = HashRecipe::new(algorithm, seed);
            assert_eq!(recipe.name(), algorithm.name());
            assert_eq!(recipe, HashRecipe::new(algorithm, seed));
            for salt in [None, Some("a"), Some("b")] {
                seen.extend(digests(&recipe, salt));
                expected += 2;
            }
        }
    }
    assert_eq!(seen.len(), expected, "no two digests are equal");
}

#[test]
fn algorithms_are_vllms_of_the_same_name() {
    let tokens: Vec<u32> = (1..=16).collect();
    let low = |algorithm| {
        let mut digests = Vec::new();
        HashRecipe::new(algorithm, "vllm-none-hash").extend(&mut digests, &tokens, 16, None);
        EngineHash::from(&digests[0]).0
    };
    assert_eq!(low(HashAlgorithm::Sha256Cbor), 0x7b0b_f7bf_7fd0_1682);
    assert_eq!(low(HashAlgorithm::Sha256), 0x137b_b037_547f_4caf);
    assert_eq!(low(HashAlgorithm::XxhashCbor), 0x5626_71ef_4f8c_323f);
    assert_eq!(low(HashAlgorithm::Xxhash), 0xb7d1_0298_670c_dfde);
}

/// The pool as one would write it without a thought for speed.
struct Plain {
    references: Vec<u32>,
    digests: Vec<Option<BlockDigest>>,
    free: Vec<BlockId>,
}

impl Plain {
    fn new(blocks: u32) -> Self {
        Self {
            references: vec![0; blocks as usize],
            digests: vec![None; blocks as usize],
            free: (1..blocks).map(BlockId).collect(),
        }
    }

    fn find(&self, digest: &BlockDigest) -> Option<BlockId> {
        let index = self
            .digests
            .iter()
            .position(|own| own.as_ref() == Some(digest))?;
        Some(BlockId(index as u32))
    }

    fn hold(&mut self, block: BlockId) {
        self.free.retain(|free| *free != block);
        self.references[block.index()] += 1;
    }

    fn release(&mut self, block: BlockId) {
        self.references[block.index()] -= 1;
        if self.references[block.index()] == 0 {
            let place = if self.digests[block.index()].is_some() {
                self.free.len()
            } else {
                0
            };
            self.free.insert(place, block);
        }
    }

    fn admit(&mut self, holder: &Holder) -> Option<Vec<BlockId>> {
        let hits: Vec<_> = holder
            .digests
            .iter()
            .map_while(|digest| self.find(digest))
            .collect();
        let missing = holder.tokens.len().div_ceil(SIZE as usize) - hits.len();
        let left = self
            .free
            .iter()
            .filter(|block| !hits.contains(block))
            .count();
        if left < missing {
            return None;
        }
        for block in &hits {
            self.hold(*block);
        }
        let fresh: Vec<_> = self.free.drain(..missing).collect();
        for block in &fresh {
            self.references[block.index()] = 1;
            self.digests[block.index()] = None;
        }
        Some([hits, fresh].concat())
    }

    fn commit(&mut self, digests: &[BlockDigest], table: &mut [BlockId]) {
        for (digest, block) in digests.iter().zip(table) {
            match self.find(digest) {
                None => self.digests[block.index()] = Some(*digest),
                Some(same) if same != *block => {
                    self.hold(same);
                    self.release(std::mem::replace(block, same));
                }
                Some(_) => {}
            }
        }
    }

    fn state(&self) -> (Vec<BlockId>, Vec<(u32, Option<BlockDigest>)>) {
        let blocks = self
            .references
            .iter()
            .copied()
            .zip(self.digests.iter().copied());
        (self.free.clone(), blocks.collect())
    }
}

/// What a subscriber knows of each tier after replaying the events, checked against the tokens as it goes.
#[derive(Default)]
struct Replay {
    device: BTreeSet<BlockDigest>,
    host: BTreeSet<BlockDigest>,
}

impl Replay {
    fn tier(&mut self, medium: Medium) -> &mut BTreeSet<BlockDigest> {
        match medium {
            Medium::Gpu => &mut self.device,
            Medium::Cpu => &mut self.host,
            Medium::Disk => panic!("no such tier"),
        }
    }

    fn apply(&mut self, events: Vec<Event<BlockDigest>>) {
        for event in events {
            match event {
                Event::AllBlocksCleared => *self = Self::default(),
                Event::BlockRemoved(removed) => {
                    for digest in removed.block_hashes {
                        assert!(
                            self.tier(removed.medium).remove(&digest),
                            "removed and never stored"
                        );
                    }
                }
                Event::BlockStored(stored) => {
                    let mut parent = none_hash("vllm-none-hash");
                    if let Some(digest) = stored.parent {
                        assert!(
                            self.device.contains(&digest) || self.host.contains(&digest),
                            "the parent is cached"
                        );
                        parent = digest;
                    }
                    let blocks = stored.token_ids.chunks_exact(SIZE as usize);
                    assert_eq!(blocks.len(), stored.block_hashes.len());
                    for (tokens, digest) in blocks.zip(stored.block_hashes) {
                        parent = sha256_cbor(&parent, tokens, &[]);
                        assert_eq!(parent, digest);
                        assert!(self.tier(stored.medium).insert(digest), "stored twice");
                    }
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Action {
    /// A prompt whose tokens differ from the other families' only behind `shared` tokens.
    Admit {
        family: u32,
        shared: u32,
        tokens: u32,
    },
    Commit {
        holder: usize,
        blocks: usize,
    },
    Release {
        holder: usize,
    },
    Reset,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (0_u32..3, 0_u32..20, 1_u32..28)
            .prop_map(|(family, shared, tokens)| Action::Admit { family, shared, tokens }),
        4 => (0_usize..8, 0_usize..8).prop_map(|(holder, blocks)| Action::Commit { holder, blocks }),
        3 => (0_usize..8).prop_map(|holder| Action::Release { holder }),
        1 => Just(Action::Reset),
    ]
}

proptest! {
    /// The pool does what the plain one does, block for block; references add up; events replay to the cache.
    #[test]
    fn pool_matches_the_plain_one(
        blocks in 2_u32..24,
        actions in proptest::collection::vec(action(), 1..60),
    ) {
        let mut pool = BlockPool::new(blocks, SIZE, true);
        let mut plain = Plain::new(blocks);
        let mut replay = Replay::default();
        let mut holders: Vec<Holder> = Vec::new();
        for action in actions {
            match action {
                Action::Admit { family, shared, tokens } => {
                    let token = |i| if i < shared { i } else { i + 1000 * (family + 1) };
                    let mut holder = Holder::new((0..tokens).map(token).collect());
                    let table = plain.admit(&holder);
                    prop_assert_eq!(holder.admit(&mut pool), table.is_some());
                    if let Some(table) = table {
                        prop_assert_eq!(&holder.table, &table);
                        holders.push(holder);
                    }
                }
                Action::Commit { holder, blocks } => {
                    let Some(holder) = holders.get_mut(holder) else { continue };
                    let full = holder.digests.len().min(holder.committed + blocks);
                    let mut table = holder.table.clone();
                    let from = holder.committed;
                    plain.commit(&holder.digests[from..full], &mut table[from..]);
                    holder.commit(&mut pool, full);
                    prop_assert_eq!(&holder.table, &table);
                }
                Action::Release { holder } => {
                    if holder < holders.len() {
                        let mut holder = holders.swap_remove(holder);
                        holder.table.iter().rev().for_each(|block| plain.release(*block));
                        pool.release(&mut holder.table);
                        prop_assert!(holder.table.is_empty());
                    }
                }
                Action::Reset => {
                    let idle = holders.is_empty();
                    prop_assert_eq!(pool.reset(), idle);
                    if idle {
                        plain = Plain::new(blocks);
                    }
                }
            }
            prop_assert_eq!(pool.inspect(), plain.state());
            let held = |block: u32| {
                let tables = holders.iter().flat_map(|holder| &holder.table);
                tables.filter(|held| held.0 == block).count() as u32
            };
            for (block, (references, _)) in pool.inspect().1.iter().enumerate() {
                prop_assert_eq!(*references, held(block as u32), "block {}", block);
            }
            replay.apply(pool.take_events());
            let known: Vec<_> = replay.device.iter().copied().collect();
            prop_assert_eq!(known, pool.cached_digests());
            prop_assert!(replay.host.is_empty());
        }
    }
}
