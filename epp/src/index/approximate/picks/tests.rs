//! The index of picks against engines that are simulated block by block.

use proptest::prelude::*;

use super::*;

const ID: EndpointId = EndpointId(0);
const FIRST: Generation = Generation(1);

fn live(blocks: u32) -> Live {
    Live {
        blocks,
        block_size: BLOCK_TOKENS,
        ..Live::default()
    }
}

fn prompt(topic: u64, blocks: u32) -> Vec<RequestKey> {
    let mut key = RequestKey(topic);
    let keys = (0..blocks).map(|block| {
        key = key.child(&[block], &[]);
        key
    });
    keys.collect()
}

fn held(picks: &Picks, keys: &[RequestKey]) -> u32 {
    let mut most = 0;
    picks.find(keys, 0, |_, _| false, |_, _, blocks, _| most = blocks);
    most
}

fn promised(picks: &Picks, keys: &[RequestKey], now_ms: u64) -> u32 {
    let mut most = 0;
    picks.find(keys, now_ms, |_, _| true, |_, _, blocks, _| most = blocks);
    most
}

/// Blocks that are known to be computed.
fn confirmed(picks: &Picks, keys: &[RequestKey]) -> u32 {
    let mut most = 0;
    picks.find(
        keys,
        0,
        |_, _| false,
        |_, _, blocks, is_confirmed| {
            most = most.max(if is_confirmed { blocks } else { 0 });
        },
    );
    most
}

#[test]
fn blocks_are_confirmed_by_the_start_of_the_response_that_brings_them() {
    let mut picks = Picks::new(PickLimits::default());
    let (short, long) = (prompt(1, 4), prompt(1, 10));
    let first = picks.record(ID, FIRST, &live(100), &short, 0);
    assert_eq!((held(&picks, &short), confirmed(&picks, &short)), (4, 0));
    picks.started(&first, 0);
    assert_eq!(confirmed(&picks, &short), 4);
    // Those that a second one uses again stay confirmed, those that it brings are not.
    let second = picks.record(ID, FIRST, &live(100), &long, 0);
    assert_eq!((held(&picks, &long), confirmed(&picks, &long)), (10, 4));
    picks.started(&second, 0);
    assert_eq!(confirmed(&picks, &long), 10);
}

fn cached(prompt_blocks: usize, cached_blocks: u32) -> Reported {
    Reported {
        prompt_tokens: prompt_blocks as u64 * u64::from(BLOCK_TOKENS),
        cached_tokens: u64::from(cached_blocks) * u64::from(BLOCK_TOKENS),
        block_size: BLOCK_TOKENS,
    }
}

/// Picks, starts and reports one request as an engine answers it that has `cached_blocks` of it.
fn served(picks: &mut Picks, keys: &[RequestKey], exported: u32, cached_blocks: u32) -> Corrected {
    let belief = picks.record(ID, FIRST, &live(exported), keys, 0);
    picks.started(&belief, 0);
    picks.reported(&belief, &cached(keys.len(), cached_blocks))
}

/// An engine's prefix cache, block by block.
#[derive(Default)]
struct Engine {
    /// Youngest first.
    blocks: Vec<RequestKey>,
    capacity: usize,
}

impl Engine {
    fn with_capacity(capacity: usize) -> Self {
        Self {
            blocks: Vec::new(),
            capacity,
        }
    }

    /// Computes a prompt; returns the blocks of it that were there.
    fn compute(&mut self, keys: &[RequestKey]) -> u32 {
        let hit = keys
            .iter()
            .take_while(|key| self.blocks.contains(key))
            .count();
        self.blocks.retain(|block| !keys.contains(block));
        self.blocks.splice(0..0, keys.iter().copied());
        self.blocks.truncate(self.capacity);
        hit as u32
    }
}

#[test]
fn the_second_turn_finds_the_first() {
    let mut picks = Picks::new(PickLimits::default());
    let first = picks.record(ID, FIRST, &live(1000), &prompt(1, 10), 0);
    assert_eq!(first.blocks(), 0);
    assert_eq!(held(&picks, &prompt(1, 30)), 10);
    let second = picks.record(ID, FIRST, &live(1000), &prompt(1, 30), 0);
    assert_eq!(
        (second.blocks(), second.settled),
        (10, 0),
        "nothing started yet"
    );
    picks.started(&first, 0);
    let third = picks.record(ID, FIRST, &live(1000), &prompt(1, 30), 0);
    assert_eq!((third.blocks(), third.settled), (30, 10));
}

#[test]
fn an_engine_without_a_cache_is_found_out_by_its_second_answer() {
    let mut picks = Picks::new(PickLimits::default());
    served(&mut picks, &prompt(1, 10), 1000, 0);
    let doubt = served(&mut picks, &prompt(1, 20), 1000, 0);
    assert_eq!((doubt.is_shortfall, doubt.dropped), (true, 0));
    assert_eq!(held(&picks, &prompt(1, 20)), 20, "one report drops nothing");
    assert!(served(&mut picks, &prompt(1, 30), 1000, 0).dropped > 0);
    assert_eq!(held(&picks, &prompt(1, 30)), 0);
    assert_eq!(picks.stats().blocks, 0);
    served(&mut picks, &prompt(1, 40), 1000, 0);
    assert_eq!(held(&picks, &prompt(1, 40)), 0, "and stays so");
    served(&mut picks, &prompt(1, 40), 1000, 39);
    served(&mut picks, &prompt(1, 40), 1000, 39);
    assert!(held(&picks, &prompt(1, 40)) > 30, "until it shows one");
}

#[test]
fn requests_side_by_side_say_nothing_of_one_another() {
    let mut picks = Picks::new(PickLimits::default());
    let keys = prompt(1, 20);
    let beliefs: Vec<_> = (0..8)
        .map(|_| picks.record(ID, FIRST, &live(1000), &keys, 0))
        .collect();
    for belief in &beliefs {
        picks.started(belief, 0);
        assert_eq!(picks.reported(belief, &cached(20, 0)), Corrected::default());
    }
    assert_eq!(held(&picks, &keys), 20);
}

#[test]
fn one_odd_report_among_good_ones_costs_nothing() {
    let mut picks = Picks::new(PickLimits::default());
    for topic in 0..10 {
        served(&mut picks, &prompt(topic, 20), 1000, 0);
    }
    for topic in 0..10 {
        // Every other request asks for the log probabilities of its prompt.
        let there = if topic % 2 == 0 { 0 } else { 19 };
        assert_eq!(
            served(&mut picks, &prompt(9 - topic, 20), 1000, there).dropped,
            0
        );
    }
    assert_eq!(picks.stats().blocks, 200);
}

#[test]
fn a_failed_pick_is_taken_back_as_far_as_nobody_used_it_since() {
    let mut picks = Picks::new(PickLimits::default());
    served(&mut picks, &prompt(1, 10), 1000, 0);
    let failed = picks.record(ID, FIRST, &live(1000), &prompt(1, 30), 0);
    picks.started(&failed, 0);
    assert_eq!(held(&picks, &prompt(1, 30)), 30);
    let used = picks.record(ID, FIRST, &live(1000), &prompt(1, 20), 0);
    picks.failed(&failed);
    assert_eq!(held(&picks, &prompt(1, 30)), 20);
    assert_eq!(promised(&picks, &prompt(1, 30), 9_000), 20);
    picks.failed(&used);
    assert_eq!(promised(&picks, &prompt(1, 30), 9_000), 0);
}

#[test]
fn a_pick_is_promised_until_it_should_be_confirmed() {
    use super::super::super::speculative::CONFIRM_MS;
    let mut picks = Picks::new(PickLimits::default());
    let keys = prompt(1, 10);
    let belief = picks.record(ID, FIRST, &live(1000), &keys, 50);
    assert_eq!(promised(&picks, &prompt(1, 30), 9_000), 10);
    picks.started(&belief, 9_000);
    assert_eq!(promised(&picks, &keys, 9_000 + CONFIRM_MS - 1), 10);
    assert_eq!(promised(&picks, &keys, 9_000 + CONFIRM_MS), 0);
    assert_eq!(held(&picks, &keys), 10, "it is still believed");
}

#[test]
fn a_promise_outlives_a_later_pick_that_failed() {
    let mut picks = Picks::new(PickLimits::default());
    let keys = prompt(1, 10);
    picks.record(ID, FIRST, &live(1000), &keys, 0);
    let failed = picks.record(ID, FIRST, &live(1000), &prompt(1, 20), 0);
    picks.failed(&failed);
    assert_eq!(promised(&picks, &prompt(1, 20), 1_000), 10);
}

#[test]
fn a_new_generation_starts_from_nothing_and_an_old_one_is_not_noted() {
    let mut picks = Picks::new(PickLimits::default());
    let keys = prompt(1, 10);
    let old = picks.record(ID, FIRST, &live(1000), &keys, 0);
    let new = picks.record(ID, Generation(2), &live(1000), &prompt(2, 10), 0);
    assert_eq!((new.blocks(), held(&picks, &keys)), (0, 0));
    picks.record(ID, FIRST, &live(1000), &keys, 0);
    picks.started(&old, 0);
    picks.failed(&old);
    picks.reported(&old, &cached(10, 0));
    assert_eq!((held(&picks, &keys), held(&picks, &prompt(2, 10))), (0, 10));
    picks.forget(ID, FIRST);
    assert_eq!(held(&picks, &prompt(2, 10)), 10, "a late farewell");
    picks.retain(|_, _| false);
    assert_eq!(held(&picks, &prompt(2, 10)), 0);
    while picks.reclaim(1) {}
    assert_eq!((picks.stats().blocks, picks.stats().endpoints), (0, 0));
}

#[test]
fn the_bound_is_shared_equally() {
    let mut picks = Picks::new(PickLimits { blocks_max: 100 });
    picks.record(ID, FIRST, &live(1000), &prompt(1, 90), 0);
    assert_eq!(held(&picks, &prompt(1, 90)), 90);
    picks.record(EndpointId(1), FIRST, &live(1000), &prompt(2, 90), 0);
    assert_eq!(
        (held(&picks, &prompt(1, 90)), held(&picks, &prompt(2, 90))),
        (50, 50)
    );
    assert_eq!(picks.stats().blocks, 100);
}

#[test]
fn room_is_what_the_endpoint_says() {
    assert_eq!(blocks_of(&Live::default()), ENDPOINT_BLOCKS_DEFAULT);
    assert_eq!(blocks_of(&live(7)), 7);
    let large = Live {
        block_size: 64,
        ..live(7)
    };
    assert_eq!(blocks_of(&large), 28);
    let silent = Live {
        block_size: 0,
        ..live(7)
    };
    assert_eq!(blocks_of(&silent), 7);
}

/// The blocks by which the beliefs are wrong over 500 requests for one of 40 prompts of 20 blocks, at
/// an engine that has room for a third of what it says, because others use it, too.
fn blocks_wrong(is_corrected: bool) -> u32 {
    let mut engine = Engine::with_capacity(200);
    let mut picks = Picks::new(PickLimits::default());
    let mut wrong = 0;
    let mut state = 1_u64;
    for _ in 0..500 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let keys = prompt((state >> 33) % 40, 20);
        let there = engine.compute(&keys);
        wrong += held(&picks, &keys).abs_diff(there);
        let belief = picks.record(ID, FIRST, &live(600), &keys, 0);
        picks.started(&belief, 0);
        if is_corrected {
            picks.reported(&belief, &cached(keys.len(), there));
        }
    }
    wrong
}

#[test]
fn corrections_find_the_room_there_is() {
    let (uncorrected, corrected) = (blocks_wrong(false), blocks_wrong(true));
    assert!(
        corrected * 5 < uncorrected,
        "{uncorrected} blocks wrong without corrections, {corrected} with them"
    );
}

proptest! {
    /// An engine that works as it says is never doubted, and believed to the block.
    #[test]
    fn an_honest_engine_is_believed(
        capacity in 1_u32..60,
        requests in prop::collection::vec((0_u64..4, 1_u32..24), 1..60),
    ) {
        let mut engine = Engine::with_capacity(capacity as usize);
        let mut picks = Picks::new(PickLimits::default());
        for (topic, blocks) in requests {
            let keys = prompt(topic, blocks);
            let expected = held(&picks, &keys);
            let there = engine.compute(&keys);
            prop_assert_eq!(expected, there);
            let corrected = served(&mut picks, &keys, capacity, there);
            prop_assert_eq!(corrected, Corrected::default());
        }
    }

    /// Whatever engines answer, nothing breaks a bound.
    #[test]
    fn bounds_hold_under_any_reports(
        exported in 0_u32..50,
        steps in prop::collection::vec((0_u32..3, 1_u32..3, 0_u64..4, 0_u32..24, 0_u32..30, 0_u8..4), 1..80),
    ) {
        let limits = PickLimits { blocks_max: 90 };
        let mut picks = Picks::new(limits);
        for (endpoint, generation, topic, blocks, there, end) in steps {
            let keys = prompt(topic, blocks);
            let id = EndpointId(endpoint);
            let belief = picks.record(id, Generation(generation), &live(exported), &keys, 0);
            prop_assert!(belief.settled <= belief.blocks);
            prop_assert!(belief.blocks <= belief.prompt_blocks);
            match end {
                0 => picks.failed(&belief),
                1 => picks.started(&belief, 0),
                _ => {
                    picks.started(&belief, 0);
                    picks.reported(&belief, &cached(keys.len(), there));
                }
            }
            let room = if exported == 0 { ENDPOINT_BLOCKS_DEFAULT } else { exported };
            for known in picks.endpoints.iter().flatten() {
                let held = picks.beliefs.blocks_of(known.holder);
                prop_assert!(held <= room && held <= picks.share());
            }
        }
        while picks.reclaim(usize::MAX) {}
        prop_assert!(picks.stats().blocks <= limits.blocks_max);
    }
}
