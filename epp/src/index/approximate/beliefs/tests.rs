//! The beliefs against a plain model: one list of blocks for each endpoint.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

/// One block of one endpoint, as the plain model sees it.
#[derive(Clone, Debug)]
struct Block {
    key: RequestKey,
    touched: u64,
    created: u64,
}

/// The blocks of one endpoint, youngest first.
#[derive(Clone, Default, Debug)]
struct Plain(Vec<Block>);

impl Plain {
    fn touch(&mut self, keys: &[RequestKey], pick: u64) {
        let used = keys.iter().map(|key| {
            let before = self.0.iter().find(|block| block.key == *key);
            Block {
                key: *key,
                touched: pick,
                created: before.map_or(pick, |block| block.created),
            }
        });
        let mut next: Vec<Block> = used.collect();
        let others = self.0.iter().filter(|block| !keys.contains(&block.key));
        next.extend(others.cloned());
        self.0 = next;
    }

    fn held(&self, keys: &[RequestKey]) -> u32 {
        let holds = |key: &&RequestKey| self.0.iter().any(|block| block.key == **key);
        keys.iter().take_while(holds).count() as u32
    }
}

/// A prompt is a path through a small tree: its first blocks are those of few chats.
fn prompt(chat: u8, branch_at: u8, branch: u8, length: u8) -> Vec<RequestKey> {
    let mut key = RequestKey(u64::from(chat % 3));
    (0..length)
        .map(|block| {
            let word = if block < branch_at { 0 } else { branch % 3 };
            key = key.child(&[u32::from(word)], &[]);
            key
        })
        .collect()
}

#[derive(Clone, Debug)]
enum Action {
    Touch {
        endpoint: usize,
        keys: Vec<RequestKey>,
    },
    Shrink {
        endpoint: usize,
        blocks: u32,
    },
    DropUntil {
        endpoint: usize,
        back: u64,
    },
    Withdraw {
        endpoint: usize,
        back: u64,
    },
    Restart {
        endpoint: usize,
    },
    Reclaim {
        blocks: usize,
    },
}

const ENDPOINTS: usize = 3;

fn prompts() -> impl Strategy<Value = Vec<RequestKey>> {
    (any::<u8>(), 0_u8..12, any::<u8>(), 0_u8..16)
        .prop_map(|(chat, branch_at, branch, length)| prompt(chat, branch_at, branch, length))
}

fn actions() -> impl Strategy<Value = Action> {
    let endpoint = 0..ENDPOINTS;
    prop_oneof![
        6 => (endpoint.clone(), prompts())
            .prop_map(|(endpoint, keys)| Action::Touch { endpoint, keys }),
        2 => (endpoint.clone(), 0_u32..40)
            .prop_map(|(endpoint, blocks)| Action::Shrink { endpoint, blocks }),
        1 => (endpoint.clone(), 0_u64..6)
            .prop_map(|(endpoint, back)| Action::DropUntil { endpoint, back }),
        1 => (endpoint.clone(), 0_u64..6)
            .prop_map(|(endpoint, back)| Action::Withdraw { endpoint, back }),
        1 => endpoint.prop_map(|endpoint| Action::Restart { endpoint }),
        1 => (0_usize..20).prop_map(|blocks| Action::Reclaim { blocks }),
    ]
}

/// The beliefs and the model side by side.
struct Both {
    beliefs: Beliefs,
    holders: Vec<Place>,
    plain: Vec<Plain>,
    generation: u32,
    pick: u64,
}

impl Both {
    fn new() -> Self {
        let mut beliefs = Beliefs::default();
        let ids = 0..ENDPOINTS as u32;
        let holders = ids.map(|id| beliefs.join(EndpointId(id), Generation(1)));
        Self {
            holders: holders.collect(),
            beliefs,
            plain: vec![Plain::default(); ENDPOINTS],
            generation: 1,
            pick: 0,
        }
    }

    fn act(&mut self, action: &Action) {
        let beliefs = &mut self.beliefs;
        match action {
            Action::Touch { endpoint, keys } => {
                self.pick += 1;
                beliefs.touch(self.holders[*endpoint], keys, self.pick);
                self.plain[*endpoint].touch(keys, self.pick);
            }
            Action::Shrink { endpoint, blocks } => {
                let plain = &mut self.plain[*endpoint].0;
                let dropped = plain.len().saturating_sub(*blocks as usize);
                plain.truncate(*blocks as usize);
                let shrunk = beliefs.shrink(self.holders[*endpoint], *blocks);
                assert_eq!(shrunk as usize, dropped);
            }
            Action::DropUntil { endpoint, back } => {
                let until = self.pick.saturating_sub(*back);
                self.plain[*endpoint]
                    .0
                    .retain(|block| block.touched > until);
                beliefs.drop_until(self.holders[*endpoint], until);
            }
            Action::Withdraw { endpoint, back } => {
                let pick = self.pick.saturating_sub(*back);
                let plain = &mut self.plain[*endpoint].0;
                let before = plain.len();
                plain.retain(|block| (block.touched, block.created) != (pick, pick));
                let withdrawn = beliefs.withdraw(self.holders[*endpoint], pick);
                assert_eq!(withdrawn as usize, before - plain.len());
            }
            Action::Restart { endpoint } => {
                self.generation += 1;
                beliefs.leave(self.holders[*endpoint]);
                let id = EndpointId(*endpoint as u32);
                self.holders[*endpoint] = beliefs.join(id, Generation(self.generation));
                self.plain[*endpoint] = Plain::default();
            }
            Action::Reclaim { blocks } => {
                beliefs.reclaim(*blocks);
            }
        }
    }

    fn check(&self, keys: &[RequestKey]) {
        let mut found = [0; ENDPOINTS];
        self.beliefs.find(keys, &mut |id, _, step| {
            assert!(step.blocks > found[id.index()], "steps go deeper");
            found[id.index()] = step.blocks;
        });
        for (endpoint, plain) in self.plain.iter().enumerate() {
            assert_eq!(found[endpoint], plain.held(keys));
            self.check_trace(endpoint, keys);
            let holder = self.holders[endpoint];
            assert_eq!(self.beliefs.blocks_of(holder) as usize, plain.0.len());
            for pick in self.pick.saturating_sub(5)..=self.pick {
                let touched = plain.0.iter().filter(|block| block.touched == pick);
                let expected = touched.count() as u32;
                assert_eq!(self.beliefs.touched_at(holder, pick), expected);
            }
        }
    }

    /// The steps of a trace say of each block what the model knows of it.
    fn check_trace(&self, endpoint: usize, keys: &[RequestKey]) {
        let mut blocks = 0;
        let plain = &self.plain[endpoint];
        let check = &mut |step: Step| {
            for key in &keys[blocks as usize..step.blocks as usize] {
                let block = plain.0.iter().find(|block| block.key == *key).unwrap();
                assert_eq!((block.touched, block.created), (step.touched, step.created));
            }
            blocks = step.blocks;
        };
        self.beliefs.trace(self.holders[endpoint], keys, check);
        assert_eq!(blocks, plain.held(keys));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_block_is_where_a_plain_list_has_it(
        actions in prop::collection::vec(actions(), 1..60),
        asked in prop::collection::vec(prompts(), 1..6),
    ) {
        let mut both = Both::new();
        for action in &actions {
            both.act(action);
            for keys in &asked {
                both.check(keys);
            }
        }
        // All there is, whatever was asked: each endpoint's blocks are closed under prefixes, and
        // no key is kept that nobody holds.
        while both.beliefs.reclaim(1) {}
        let held: HashSet<_> = both.plain.iter().flat_map(|plain| &plain.0).map(|block| block.key).collect();
        prop_assert_eq!(both.beliefs.keys(), held.len());
        let blocks: usize = both.plain.iter().map(|plain| plain.0.len()).sum();
        prop_assert_eq!(both.beliefs.blocks(), blocks);
        for holder in both.holders.clone() {
            both.beliefs.shrink(holder, 0);
        }
        prop_assert_eq!((both.beliefs.keys(), both.beliefs.runs(), both.beliefs.blocks()), (0, 0, 0));
        prop_assert_eq!(both.beliefs.holdings.len(), 0);
    }
}

#[test]
fn an_old_chain_loses_its_tail_first() {
    let mut beliefs = Beliefs::default();
    let holder = beliefs.join(EndpointId(0), Generation(1));
    let (old, new) = (prompt(0, 9, 0, 8), prompt(1, 9, 0, 6));
    beliefs.touch(holder, &old, 1);
    beliefs.touch(holder, &new, 2);
    assert_eq!(beliefs.shrink(holder, 10), 4);
    let mut held = Vec::new();
    for keys in [&old, &new] {
        beliefs.find(keys, &mut |_, _, step| held.push(step.blocks));
    }
    assert_eq!(held, [4, 6]);
}

#[test]
fn who_left_is_not_found_before_it_is_reclaimed() {
    let mut beliefs = Beliefs::default();
    let holder = beliefs.join(EndpointId(0), Generation(1));
    let keys = prompt(0, 9, 0, 8);
    beliefs.touch(holder, &keys, 1);
    beliefs.leave(holder);
    beliefs.find(&keys, &mut |_, _, step| panic!("found {step:?}"));
    assert_eq!((beliefs.blocks(), beliefs.keys()), (8, 8));
    assert!(!beliefs.reclaim(100));
    assert_eq!((beliefs.blocks(), beliefs.keys()), (0, 0));
}

/// What the head of this module promises of memory, for a chat of twenty turns on one endpoint.
#[test]
fn a_block_costs_few_bytes() {
    let mut beliefs = Beliefs::default();
    let mut pick = 0;
    for endpoint in 0..64 {
        let holder = beliefs.join(EndpointId(endpoint), Generation(1));
        for chat in 0..40_u32 {
            let mut key = RequestKey(u64::from(endpoint * 40 + chat));
            let mut keys = Vec::new();
            for _ in 0..20 {
                keys.extend((0..25).map(|block| {
                    key = key.child(&[block], &[]);
                    key
                }));
                pick += 1;
                beliefs.touch(holder, &keys, pick);
            }
        }
    }
    let bytes = beliefs.bytes() as f64 / beliefs.blocks() as f64;
    assert!(bytes < 20.0, "{bytes} bytes a block");
}
