//! The chains against the plain reference, and what their memory does.

use pointsman_proto::block_hash::RequestKey;
use pointsman_proto::kv_events::{EngineHash, Medium};
use proptest::prelude::*;

use super::reference::Reference;
use super::*;
use crate::fleet::{EndpointId, Generation};

fn tag(endpoint: u32) -> HolderTag {
    HolderTag {
        endpoint: EndpointId(endpoint),
        generation: Generation(1),
        rank: 0,
    }
}

/// The key of a block whose content is a small number, after a parent.
fn child(parent: Option<RequestKey>, content: u8) -> RequestKey {
    parent
        .unwrap_or(RequestKey(77))
        .child(&[u32::from(content)], &[])
}

fn chain(parent: Option<RequestKey>, contents: &[u8]) -> Vec<RequestKey> {
    let mut key = parent;
    let keys = contents.iter().map(|content| {
        let next = child(key, *content);
        key = Some(next);
        next
    });
    keys.collect()
}

fn names(range: std::ops::Range<u64>) -> Vec<EngineHash> {
    range.map(EngineHash).collect()
}

/// Both structures side by side.
struct Pair {
    chains: Chains,
    holders: Vec<Option<Holder>>,
    reference: Reference,
    found: Found,
}

impl Pair {
    fn new(holders: u32) -> Self {
        let chains = Chains::new(usize::MAX);
        let holders = (0..holders)
            .map(|endpoint| chains.holder(tag(endpoint)))
            .collect();
        Self {
            chains,
            holders,
            reference: Reference::default(),
            found: Found::default(),
        }
    }

    fn store(
        &mut self,
        holder: usize,
        medium: Medium,
        parent: Option<EngineHash>,
        names: &[EngineHash],
        contents: &[u8],
    ) {
        let Some(side) = self.holders[holder].as_mut() else {
            return;
        };
        let number = side.number();
        let stored = self
            .chains
            .store(side, medium, parent, names, |parent, keys| {
                keys.extend(chain(parent, contents).iter().map(|key| key.0));
            });
        let expected = self
            .reference
            .store(number, medium, parent, names, |parent| {
                chain(parent, contents)
            });
        assert_eq!(stored.is_ok(), expected.is_some());
    }

    fn remove(&mut self, holder: usize, medium: Medium, name: EngineHash) {
        if let Some(side) = self.holders[holder].as_mut() {
            let number = side.number();
            assert_eq!(
                self.chains.remove(side, medium, &[name]) == 1,
                self.reference.remove(number, medium, name)
            );
        }
    }

    fn copy(&mut self, holder: usize, medium: Medium, names: &[EngineHash]) {
        if let Some(side) = self.holders[holder].as_mut() {
            let number = side.number();
            self.chains.copy(side, medium, names);
            self.reference.copy(number, medium, names);
        }
    }

    /// The holder leaves, and a new one comes in its place.
    fn replace(&mut self, holder: usize) {
        if let Some(side) = self.holders[holder].take() {
            self.reference.retire(side.number());
            self.chains.retire(side);
        }
        self.holders[holder] = self.chains.holder(tag(holder as u32));
    }

    fn check(&mut self, contents: &[u8]) {
        let keys = chain(None, contents);
        self.chains.find(&mut keys.as_slice(), &mut self.found);
        let mut found = Vec::new();
        self.chains.report(&self.found, |tag, blocks, gpu_blocks| {
            let holder = self.holders[tag.endpoint.0 as usize].as_ref();
            let number = holder.expect("a holder that is here").number();
            found.push((number, blocks, gpu_blocks));
        });
        found.sort_unstable();
        assert_eq!(found, self.reference.find(&keys), "{contents:?}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Store {
        holder: usize,
        medium: Medium,
        parent: Option<u64>,
        first_name: u64,
        contents: Vec<u8>,
    },
    /// Stores a whole prompt again under the names that its contents suggest, as engines do.
    Prompt {
        holder: usize,
        contents: Vec<u8>,
    },
    Remove {
        holder: usize,
        medium: Medium,
        name: u64,
    },
    /// Evicts a prompt's blocks from its end.
    Evict {
        holder: usize,
        contents: Vec<u8>,
        count: usize,
    },
    Copy {
        holder: usize,
        medium: Medium,
        first_name: u64,
        count: u64,
    },
    Replace {
        holder: usize,
    },
    Reclaim {
        blocks: usize,
    },
}

const HOLDERS: usize = 40;

/// The name that a holder gives to the block at the end of these contents.
fn own_name(holder: usize, contents: &[u8]) -> EngineHash {
    let key = chain(None, contents).pop().map_or(0, |key| key.0);
    EngineHash(key.rotate_left(holder as u32 % 7 + 1))
}

fn own_names(holder: usize, contents: &[u8]) -> Vec<EngineHash> {
    (1..=contents.len())
        .map(|end| own_name(holder, &contents[..end]))
        .collect()
}

fn medium() -> impl Strategy<Value = Medium> {
    prop_oneof![4 => Just(Medium::Gpu), 1 => Just(Medium::Cpu), 1 => Just(Medium::Disk)]
}

/// Prompts out of so few contents that they share beginnings all the time.
fn contents() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(0_u8..2, 1..6),
        (0_u8..2, 1_usize..40).prop_map(|(content, length)| vec![content; length]),
        (1_usize..20, proptest::collection::vec(0_u8..3, 1..20)).prop_map(|(shared, own)| {
            let mut contents = vec![0; shared];
            contents.extend(own);
            contents
        }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let holder = 0..HOLDERS;
    let few = 0..3_usize;
    prop_oneof![
        6 => (holder.clone(), contents())
            .prop_map(|(holder, contents)| Step::Prompt { holder, contents }),
        4 => (few.clone(), medium(), proptest::option::of(0_u64..20), 0_u64..20, contents())
            .prop_map(|(holder, medium, parent, first_name, contents)| Step::Store {
                holder, medium, parent, first_name, contents,
            }),
        4 => (holder.clone(), contents(), 1_usize..20)
            .prop_map(|(holder, contents, count)| Step::Evict { holder, contents, count }),
        4 => (few.clone(), medium(), 0_u64..30)
            .prop_map(|(holder, medium, name)| Step::Remove { holder, medium, name }),
        1 => (few, medium(), 0_u64..20, 1_u64..8)
            .prop_map(|(holder, medium, first_name, count)| Step::Copy {
                holder, medium, first_name, count,
            }),
        1 => holder.prop_map(|holder| Step::Replace { holder }),
        1 => (0_usize..30).prop_map(|blocks| Step::Reclaim { blocks }),
    ]
}

fn apply(pair: &mut Pair, step: Step) {
    match step {
        Step::Store {
            holder,
            medium,
            parent,
            first_name,
            contents,
        } => {
            let names = names(first_name..first_name + contents.len() as u64);
            pair.store(holder, medium, parent.map(EngineHash), &names, &contents);
        }
        Step::Prompt { holder, contents } => {
            let names = own_names(holder, &contents);
            pair.store(holder, Medium::Gpu, None, &names, &contents);
        }
        Step::Remove {
            holder,
            medium,
            name,
        } => pair.remove(holder, medium, EngineHash(name)),
        Step::Evict {
            holder,
            contents,
            count,
        } => {
            for name in own_names(holder, &contents).iter().rev().take(count) {
                pair.remove(holder, Medium::Gpu, *name);
            }
        }
        Step::Copy {
            holder,
            medium,
            first_name,
            count,
        } => pair.copy(holder, medium, &names(first_name..first_name + count)),
        Step::Replace { holder } => pair.replace(holder),
        Step::Reclaim { blocks } => {
            pair.chains.reclaim(blocks);
        }
    }
}

/// A block outlives its parent, and the parent comes back in one event with it.
#[test]
fn a_block_whose_parent_was_gone_stays_in_its_run() {
    let mut pair = Pair::new(1);
    pair.store(0, Medium::Gpu, None, &names(1..3), &[1, 1]);
    pair.store(0, Medium::Cpu, Some(EngineHash(2)), &names(3..5), &[2, 2]);
    pair.remove(0, Medium::Gpu, EngineHash(2));
    pair.store(0, Medium::Gpu, None, &names(11..14), &[1, 1, 2]);
    pair.check(&[1, 1, 2, 2]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_lookup_is_what_the_reference_says(
        steps in proptest::collection::vec((step(), contents()), 1..150)
    ) {
        let mut pair = Pair::new(HOLDERS as u32);
        let empty = pair.chains.bytes();
        for (step, asked) in steps {
            apply(&mut pair, step);
            pair.check(&asked);
            pair.check(&[0; 30]);
        }
        // Everything goes when everybody has gone.
        for holder in 0..HOLDERS {
            if let Some(side) = pair.holders[holder].take() {
                pair.chains.retire(side);
            }
        }
        while pair.chains.reclaim(1_000) {}
        prop_assert_eq!(pair.chains.runs(), 0);
        for shard in &pair.chains.shards {
            prop_assert!(shard.writer.lock().numbers().is_empty());
        }
        prop_assert!(pair.chains.bytes() < empty + 40_000, "{} left", pair.chains.bytes());
    }
}
