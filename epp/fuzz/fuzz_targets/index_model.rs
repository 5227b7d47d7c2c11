//! Any sequence of events by several holders leaves the chains answering as the plain reference does.
//!
//! The universe is small, so that names collide, contents repeat and prompts share beginnings all
//! the time: 70 holders (two words of a set), 64 names and three contents. After each step both are
//! asked for the prompts last stored, and at the end everybody leaves and nothing may be left.
//!
//! Run it with `-detect_leaks=0`: what waits for readers to pass is freed in a later run, which the
//! leak check at the end of each would spend all of its time on.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use pointsman_epp::fleet::{EndpointId, Generation};
use pointsman_epp::index::chains::reference::Reference;
use pointsman_epp::index::chains::{Chains, Found, Holder, HolderTag};
use pointsman_proto::block_hash::RequestKey;
use pointsman_proto::kv_events::{EngineHash, Medium};

const HOLDERS: u8 = 70;
const NAMES: u64 = 64;
const CONTENTS: u8 = 3;
/// Blocks of a prompt, and steps of a run, at most: what is slow finds little more.
const PROMPT_BLOCKS_MAX: usize = 48;
const STEPS_MAX: usize = 200;
/// Prompts that are asked after each step.
const ASKED: usize = 4;

#[derive(Arbitrary, Debug)]
enum Step {
    /// Blocks under arbitrary names, after an arbitrary one.
    Store {
        holder: u8,
        tier: u8,
        parent: Option<u8>,
        first_name: u8,
        contents: Contents,
    },
    /// A whole prompt under the names that an engine of this holder's seed gives it.
    Prompt {
        holder: u8,
        contents: Contents,
    },
    /// The end of such a prompt goes.
    Evict {
        holder: u8,
        contents: Contents,
        blocks: u8,
    },
    Remove {
        holder: u8,
        tier: u8,
        name: u8,
    },
    Copy {
        holder: u8,
        tier: u8,
        name: u8,
    },
    Replace {
        holder: u8,
    },
    Reclaim {
        blocks: u8,
    },
    Ask {
        contents: Contents,
    },
}

/// A prompt: a stretch of one content, and then others.
#[derive(Arbitrary, Debug)]
struct Contents {
    same: u8,
    others: Vec<u8>,
}

impl Contents {
    fn blocks(&self) -> Vec<u8> {
        let same = (0..self.same % 32).map(|_| 0);
        let others = self.others.iter().map(|content| content % CONTENTS);
        same.chain(others).take(PROMPT_BLOCKS_MAX).collect()
    }
}

/// The chains, the reference, and who writes to both.
struct Pair {
    chains: Chains,
    holders: Vec<Option<Holder>>,
    reference: Reference,
    found: Found,
    asked: Vec<Vec<u8>>,
}

impl Pair {
    fn new() -> Self {
        let chains = Chains::new(usize::MAX);
        let holders = (0..HOLDERS).map(|holder| chains.holder(tag(holder)));
        Self {
            holders: holders.collect(),
            chains,
            reference: Reference::default(),
            found: Found::default(),
            asked: Vec::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Store {
                holder,
                tier,
                parent,
                first_name,
                contents,
            } => {
                let contents = contents.blocks();
                let first = u64::from(*first_name);
                let names = (first..).take(contents.len());
                let names: Vec<_> = names.map(|name| EngineHash(name % NAMES)).collect();
                let parent = parent.map(name);
                self.store((*holder, medium(*tier)), parent, &names, contents);
            }
            Step::Prompt { holder, contents } => {
                let contents = contents.blocks();
                let names = own_names(*holder, &contents);
                self.store((*holder, Medium::Gpu), None, &names, contents);
            }
            Step::Evict {
                holder,
                contents,
                blocks,
            } => {
                let mut names = own_names(*holder, &contents.blocks());
                names.reverse();
                names.truncate(usize::from(*blocks));
                self.remove((*holder, Medium::Gpu), &names);
            }
            Step::Remove {
                holder,
                tier,
                name: removed,
            } => self.remove((*holder, medium(*tier)), &[name(*removed)]),
            Step::Copy {
                holder,
                tier,
                name: copied,
            } => self.copy((*holder, medium(*tier)), name(*copied)),
            Step::Replace { holder } => self.replace(holder % HOLDERS),
            Step::Reclaim { blocks } => {
                self.chains.reclaim(usize::from(*blocks));
            }
            Step::Ask { contents } => self.ask_from_now_on(contents.blocks()),
        }
    }

    fn store(
        &mut self,
        (holder, medium): (u8, Medium),
        parent: Option<EngineHash>,
        names: &[EngineHash],
        contents: Vec<u8>,
    ) {
        let side = self.holders[usize::from(holder % HOLDERS)].as_mut();
        let side = side.expect("a holder is replaced at once");
        let number = side.number();
        let stored = self
            .chains
            .store(side, medium, parent, names, |parent, keys| {
                keys.extend(chain(parent, &contents).iter().map(|key| key.0));
            });
        let expected = self
            .reference
            .store(number, medium, parent, names, |parent| {
                chain(parent, &contents)
            });
        assert_eq!(stored.is_ok(), expected.is_some());
        self.ask_from_now_on(contents);
    }

    fn remove(&mut self, (holder, medium): (u8, Medium), names: &[EngineHash]) {
        let side = self.holders[usize::from(holder % HOLDERS)].as_mut();
        let side = side.expect("a holder is replaced at once");
        let number = side.number();
        let reference = &mut self.reference;
        let known = names
            .iter()
            .filter(|name| reference.remove(number, medium, **name))
            .count();
        assert_eq!(self.chains.remove(side, medium, names), known);
    }

    fn copy(&mut self, (holder, medium): (u8, Medium), name: EngineHash) {
        let side = self.holders[usize::from(holder % HOLDERS)].as_mut();
        let side = side.expect("a holder is replaced at once");
        self.reference.copy(side.number(), medium, &[name]);
        self.chains.copy(side, medium, &[name]);
        assert_eq!(
            self.chains.key_of(side, medium, name),
            self.reference.key_of(side.number(), medium, name)
        );
    }

    fn replace(&mut self, holder: u8) {
        let place = &mut self.holders[usize::from(holder)];
        if let Some(side) = place.take() {
            self.reference.retire(side.number());
            self.chains.retire(side);
        }
        *place = self.chains.holder(tag(holder));
    }

    fn ask_from_now_on(&mut self, contents: Vec<u8>) {
        if self.asked.len() == ASKED {
            self.asked.remove(0);
        }
        self.asked.push(contents);
    }

    fn check(&mut self) {
        for contents in &self.asked {
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

    fn end(mut self) {
        for side in self.holders.drain(..).flatten() {
            self.chains.retire(side);
        }
        while self.chains.reclaim(1_000) {}
        assert_eq!(self.chains.runs(), 0, "runs that nobody holds");
    }
}

fn tag(holder: u8) -> HolderTag {
    HolderTag {
        endpoint: EndpointId(u32::from(holder)),
        generation: Generation(1),
        rank: 0,
    }
}

fn medium(tier: u8) -> Medium {
    // The GPU twice: most blocks are there.
    match tier % 4 {
        0 | 1 => Medium::Gpu,
        2 => Medium::Cpu,
        _ => Medium::Disk,
    }
}

fn name(name: u8) -> EngineHash {
    EngineHash(u64::from(name) % NAMES)
}

/// The keys of contents after a parent, each block one token.
fn chain(parent: Option<RequestKey>, contents: &[u8]) -> Vec<RequestKey> {
    let mut key = parent.unwrap_or(RequestKey(77));
    let keys = contents.iter().map(|content| {
        key = key.child(&[u32::from(*content)], &[]);
        key
    });
    keys.collect()
}

/// Names that stand for all before them, other ones with every seventh holder.
fn own_names(holder: u8, contents: &[u8]) -> Vec<EngineHash> {
    let keys = chain(None, contents).into_iter();
    keys.map(|key| EngineHash(key.0.rotate_left(u32::from(holder % 7) + 1)))
        .collect()
}

fuzz_target!(|steps: Vec<Step>| {
    let mut pair = Pair::new();
    for step in steps.iter().take(STEPS_MAX) {
        pair.step(step);
        pair.check();
    }
    pair.end();
});
