//! The second tier: what is saved, what is loaded, in which order, and what readers are told.

use super::*;

/// A pool of two tiers, and what the memory of both holds once the transfers are made.
struct World {
    pool: BlockPool,
    device: Vec<Option<BlockDigest>>,
    host: Vec<Option<BlockDigest>>,
    replay: Replay,
    loads: usize,
}

impl World {
    fn new(blocks: u32, host_blocks: u32) -> Self {
        Self {
            pool: BlockPool::new(blocks, SIZE, true).with_host(host_blocks),
            device: vec![None; blocks as usize],
            host: vec![None; host_blocks as usize],
            replay: Replay::default(),
            loads: 0,
        }
    }

    /// A step: makes the transfers, then overwrites what the holders compute with something unfinished.
    fn step<'a>(&mut self, holders: impl IntoIterator<Item = &'a Holder>) -> Vec<Transfer> {
        let mut transfers = Vec::new();
        self.pool
            .take_transfers(|transfer| transfers.push(transfer));
        for transfer in &transfers {
            match *transfer {
                Transfer::Save { from, to } => {
                    assert!(self.device[from.index()].is_some(), "{transfer:?}");
                    self.host[to.0 as usize] = self.device[from.index()];
                }
                Transfer::Load { from, to } => {
                    assert!(self.host[from.0 as usize].is_some(), "{transfer:?}");
                    self.device[to.index()] = self.host[from.0 as usize];
                    self.loads += 1;
                }
            }
        }
        for holder in holders {
            for block in &holder.table[holder.found.max(holder.committed)..] {
                self.device[block.index()] = None;
            }
        }
        self.pool.transferred();
        transfers
    }

    /// Computes and commits the first `full` blocks of a holder after a step.
    fn commit(&mut self, holder: &mut Holder, full: usize) {
        for (index, (digest, block)) in holder.digests[..full].iter().zip(&holder.table).enumerate()
        {
            if index < holder.found {
                assert_eq!(
                    self.device[block.index()],
                    Some(*digest),
                    "a hit is what it should be"
                );
            } else if index >= holder.committed {
                self.device[block.index()] = Some(*digest);
            }
        }
        holder.commit(&mut self.pool, full);
    }

    /// What is cached is what the memory holds, and what readers of the events believe.
    fn check(&mut self) {
        for (index, (_, digest)) in self.pool.inspect().1.iter().enumerate() {
            if let Some(digest) = digest {
                assert_eq!(self.device[index], Some(*digest), "device block {index}");
            }
        }
        let host = self.pool.host().unwrap();
        for (index, digest) in host.contents().iter().enumerate() {
            if let Some(digest) = digest {
                assert_eq!(self.host[index], Some(*digest), "host block {index}");
            }
        }
        let held = host.digests();
        self.replay.apply(self.pool.take_events());
        let known = |tier: &BTreeSet<BlockDigest>| tier.iter().copied().collect::<Vec<_>>();
        assert_eq!(known(&self.replay.device), self.pool.cached_digests());
        assert_eq!(known(&self.replay.host), held);
        assert_eq!(self.pool.host_used() as usize, held.len());
    }

    /// Runs a prompt to its end.
    fn run(&mut self, tokens: std::ops::Range<u32>) -> (Holder, Vec<Transfer>) {
        let mut holder = Holder::new(tokens.collect());
        assert!(holder.admit(&mut self.pool));
        let transfers = self.step([&holder]);
        let full = holder.digests.len();
        self.commit(&mut holder, full);
        self.pool.release(&mut holder.table);
        (holder, transfers)
    }
}

#[test]
fn what_is_evicted_is_saved_and_comes_back() {
    let mut world = World::new(4, 8);
    let (first, transfers) = world.run(0..12);
    assert!(transfers.is_empty());
    world.check();
    let (second, saves) = world.run(100..112);
    assert_eq!(saves.len(), 3);
    let events = world.pool.take_events();
    let [
        Event::BlockStored(saved),
        Event::BlockRemoved(removed),
        Event::BlockStored(stored),
    ] = events.as_slice()
    else {
        panic!("{events:?}")
    };
    assert_eq!((saved.medium, saved.parent), (Medium::Cpu, None));
    assert_eq!(saved.block_hashes, first.digests, "one chain, one event");
    assert_eq!(saved.token_ids, first.tokens);
    let backwards: Vec<_> = first.digests.iter().rev().copied().collect();
    assert_eq!(
        (removed.medium, &removed.block_hashes),
        (Medium::Gpu, &backwards)
    );
    assert_eq!(
        (stored.medium, &stored.block_hashes),
        (Medium::Gpu, &second.digests)
    );
    world.replay.apply(events);
    let (again, transfers) = world.run(0..12);
    assert_eq!((again.found, world.loads), (3, 3));
    let kinds: Vec<_> = transfers
        .iter()
        .map(|t| matches!(t, Transfer::Load { .. }))
        .collect();
    assert_eq!(
        kinds,
        [false, false, false, true, true, true],
        "saves before loads"
    );
    world.check();
    // The copies of the first prompt are still in host memory.
    let (_, transfers) = world.run(200..212);
    assert!(
        transfers.is_empty(),
        "what was saved once is not saved again"
    );
    world.check();
}

#[test]
fn a_small_second_tier_keeps_the_beginnings_of_prefixes() {
    let mut world = World::new(5, 2);
    let (first, _) = world.run(0..16);
    world.run(100..116);
    world.check();
    let kept: BTreeSet<_> = first.digests[..2].iter().copied().collect();
    assert_eq!(world.replay.host, kept);
    let holder = Holder::new((0..16).collect());
    let mut hits = Vec::new();
    world.pool.lookup(&holder.digests, &mut hits);
    assert_eq!(hits.len(), 2);
}

#[test]
fn blocks_that_are_being_loaded_are_not_overwritten() {
    let mut world = World::new(3, 1);
    world.run(0..4);
    world.run(100..108);
    world.check();
    // Loading the one host block evicts a device block, which finds no place.
    let mut holder = Holder::new((0..4).chain(50..54).collect());
    assert!(holder.admit(&mut world.pool));
    assert_eq!(holder.found, 1);
    let transfers = world.step([&holder]);
    assert!(
        matches!(transfers[..], [Transfer::Load { .. }]),
        "{transfers:?}"
    );
    world.commit(&mut holder, 2);
    world.check();
    // After the step it may go.
    world.pool.release(&mut holder.table);
    world.run(200..208);
    world.check();
    assert_eq!(world.pool.host_used(), 1);
}

#[test]
fn a_reset_forgets_both_tiers_and_says_so_once() {
    let mut world = World::new(4, 8);
    let (first, _) = world.run(0..12);
    world.run(100..112);
    world.pool.take_events();
    assert!(world.pool.reset());
    assert_eq!(world.pool.take_events(), [Event::AllBlocksCleared]);
    let mut hits = Vec::new();
    world.pool.lookup(&first.digests, &mut hits);
    assert!(hits.is_empty());
    assert_eq!(world.pool.host_used(), 0);
}

#[test]
fn reused_blocks_are_announced_again_where_a_request_asks_for_it() {
    let mut world = World::new(5, 8);
    let (first, _) = world.run(0..16);
    // Two blocks of the first prompt go to the host, two stay.
    world.run(100..108);
    world.check();
    let mut hits = Vec::new();
    world.pool.lookup(&first.digests, &mut hits);
    let run = Run {
        digests: &first.digests,
        tokens: &first.tokens,
        first: 0,
        cache_salt: None,
    };
    world.pool.announce_again(&run, &hits);
    let events = world.pool.take_events();
    let [Event::BlockStored(device), Event::BlockStored(host)] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert_eq!(
        (device.medium, &device.block_hashes[..]),
        (Medium::Gpu, &first.digests[..2])
    );
    assert_eq!(
        (host.medium, &host.block_hashes[..]),
        (Medium::Cpu, &first.digests[2..])
    );
    assert_eq!(
        (host.parent, &host.token_ids[..]),
        (Some(first.digests[1]), &first.tokens[8..])
    );
}

#[test]
fn saved_blocks_carry_their_salt() {
    let mut pool = BlockPool::new(2, SIZE, true).with_host(2);
    let salt: Arc<str> = "salt".into();
    let (mut table, mut digests) = (Vec::new(), Vec::new());
    recipe().extend(&mut digests, &[1, 2, 3, 4], SIZE, Some(&salt));
    assert!(pool.allocate(1, &mut table));
    let run = Run {
        digests: &digests,
        tokens: &[1, 2, 3, 4],
        first: 0,
        cache_salt: Some(&salt),
    };
    pool.commit(&run, &mut table);
    pool.release(&mut table);
    pool.take_events();
    assert!(pool.allocate(1, &mut table));
    let events = pool.take_events();
    let Event::BlockStored(saved) = &events[0] else {
        panic!("{events:?}")
    };
    assert_eq!(saved.cache_salt.as_deref(), Some("salt"));
    assert_eq!(saved.token_ids, [1, 2, 3, 4]);
}

proptest! {
    /// Whatever is admitted, committed and released in whatever order: hits in either tier are the right contents,
    /// what is cached is what the memory holds, no block is lost, and events tell of both tiers exactly.
    #[test]
    fn two_tiers_hold_what_they_say(
        blocks in 2_u32..16,
        host_blocks in 1_u32..12,
        actions in proptest::collection::vec(action(), 1..80),
    ) {
        let mut world = World::new(blocks, host_blocks);
        let mut holders: Vec<Holder> = Vec::new();
        for action in actions {
            match action {
                Action::Admit { family, shared, tokens } => {
                    let token = |i| if i < shared { i } else { i + 1000 * (family + 1) };
                    let mut holder = Holder::new((0..tokens).map(token).collect());
                    // The last token is never found.
                    holder.digests.truncate((tokens as usize - 1) / SIZE as usize);
                    if holder.admit(&mut world.pool) {
                        holders.push(holder);
                    }
                    // Several admissions make one step.
                    continue;
                }
                Action::Commit { holder, blocks } => {
                    world.step(&holders);
                    if let Some(holder) = holders.get_mut(holder) {
                        let full = (holder.committed + blocks).max(holder.found);
                        let full = full.min(holder.digests.len());
                        world.commit(holder, full);
                    }
                }
                Action::Release { holder } => {
                    if holder < holders.len() {
                        let mut holder = holders.swap_remove(holder);
                        world.pool.release(&mut holder.table);
                    }
                    world.step(&holders);
                }
                Action::Reset => {
                    let idle = holders.is_empty();
                    prop_assert_eq!(world.pool.reset(), idle);
                    world.step(&holders);
                }
            }
            world.check();
            let held: BTreeSet<_> = holders.iter().flat_map(|holder| &holder.table).collect();
            prop_assert_eq!(world.pool.used() as usize, held.len());
        }
    }
}
