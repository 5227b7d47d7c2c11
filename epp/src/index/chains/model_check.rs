//! The chains under a model checker: random interleavings of their writers and readers, each access
//! to shared memory being a point where threads may switch.
//!
//! ```sh
//! RUSTFLAGS="--cfg shuttle" cargo test -p pointsman-epp --lib model_check --target-dir target/shuttle
//! ```
//!
//! What a reader must see while others write: a holder that nobody changes, exactly; of one that is
//! being changed, something that it held at some moment of the lookup.

use std::sync::Arc;

use pointsman_proto::block_hash::RequestKey;
use pointsman_proto::kv_events::{EngineHash, Medium};
use shuttle::thread;

use super::*;
use crate::fleet::{EndpointId, Generation};

/// Interleavings of each model.
const ITERATIONS: usize = 20_000;

fn holder(chains: &Chains, endpoint: u32) -> Holder {
    let tag = HolderTag {
        endpoint: EndpointId(endpoint),
        generation: Generation(1),
        rank: 0,
    };
    chains.holder(tag).expect("a number is free")
}

/// The keys of a prompt with these contents.
fn prompt(contents: &[u32]) -> Vec<RequestKey> {
    let mut keys = Vec::new();
    let mut key = RequestKey(1);
    for content in contents {
        key = key.child(&[*content], &[]);
        keys.push(key);
    }
    keys
}

fn names(keys: &[RequestKey]) -> Vec<EngineHash> {
    keys.iter().map(|key| EngineHash(key.0)).collect()
}

/// Stores the blocks of a prompt from `from` on.
fn store(chains: &Chains, holder: &mut Holder, keys: &[RequestKey], from: usize) {
    let parent = from.checked_sub(1).map(|parent| EngineHash(keys[parent].0));
    let (keys, names) = (&keys[from..], names(&keys[from..]));
    chains
        .store(holder, Medium::Gpu, parent, &names, |_, out| {
            out.extend(keys.iter().map(|key| key.0));
        })
        .expect("the parent is held");
}

fn remove(chains: &Chains, holder: &mut Holder, keys: &[RequestKey]) {
    let known = chains.remove(holder, Medium::Gpu, &names(keys));
    assert_eq!(known, keys.len());
}

/// Blocks of a prompt that a holder has, in the eyes of a reader.
fn reach(chains: &Chains, number: u32, keys: &[RequestKey]) -> u32 {
    let mut found = Found::default();
    let mut asked = keys;
    chains.find(&mut asked, &mut found);
    found.reach(number)
}

/// Runs a model under both of the checker's random schedulers.
fn check(model: impl Fn() + Clone + Send + Sync + 'static) {
    shuttle::check_random(model.clone(), ITERATIONS);
    shuttle::check_pct(model, ITERATIONS, 3);
}

#[test]
fn a_run_of_one_holder_grows_and_shrinks_under_readers() {
    check(|| {
        let chains = Arc::new(Chains::new(usize::MAX));
        let (first, second) = (prompt(&[1, 2, 3, 4]), prompt(&[1, 2, 5, 6]));
        let mut writer = holder(&chains, 0);
        let number = writer.number();
        store(&chains, &mut writer, &first[..3], 0);
        let changes = {
            let (chains, first, second) = (Arc::clone(&chains), first.clone(), second.clone());
            thread::spawn(move || {
                store(&chains, &mut writer, &first, 3);
                remove(&chains, &mut writer, &[first[3], first[2]]);
                store(&chains, &mut writer, &second, 2);
            })
        };
        for (keys, most) in [(&first, 4), (&second, 4), (&first, 4)] {
            let reach = reach(&chains, number, keys);
            assert!((2..=most).contains(&reach), "{reach}");
        }
        changes.join().expect("no panic");
        assert_eq!(reach(&chains, number, &first), 2);
        assert_eq!(reach(&chains, number, &second), 4);
    });
}

#[test]
fn who_is_not_changed_is_seen_whole_through_cuts_and_joins() {
    check(|| {
        let chains = Arc::new(Chains::new(usize::MAX));
        let keys = prompt(&[1, 2, 3, 4]);
        let mut steady = holder(&chains, 0);
        store(&chains, &mut steady, &keys, 0);
        let writers: Vec<_> = (1..3_u32)
            .map(|endpoint| {
                let (chains, keys) = (Arc::clone(&chains), keys.clone());
                let mut writer = holder(&chains, endpoint);
                thread::spawn(move || {
                    let some = endpoint as usize;
                    store(&chains, &mut writer, &keys[..some], 0);
                    store(&chains, &mut writer, &keys, some);
                    let gone: Vec<_> = keys[some..].iter().rev().copied().collect();
                    remove(&chains, &mut writer, &gone);
                    writer
                })
            })
            .collect();
        for _ in 0..3 {
            let mut found = Found::default();
            chains.find(&mut keys.as_slice(), &mut found);
            assert_eq!(found.reach(steady.number()), 4);
        }
        for (endpoint, writer) in (1..).zip(writers) {
            let writer = writer.join().expect("no panic");
            assert_eq!(reach(&chains, writer.number(), &keys), endpoint);
        }
        assert_eq!(reach(&chains, steady.number(), &keys), 4);
    });
}

#[test]
fn nobody_is_credited_with_what_another_stores() {
    check(|| {
        let chains = Arc::new(Chains::new(usize::MAX));
        let (one, other) = (prompt(&[1, 2, 3]), prompt(&[1, 4, 5]));
        let (mut left, mut right) = (holder(&chains, 0), holder(&chains, 1));
        let numbers = (left.number(), right.number());
        let lefts = {
            let (chains, one) = (Arc::clone(&chains), one.clone());
            thread::spawn(move || {
                store(&chains, &mut left, &one, 0);
                remove(&chains, &mut left, &[one[2], one[1]]);
                store(&chains, &mut left, &one, 1);
            })
        };
        let rights = {
            let (chains, other) = (Arc::clone(&chains), other.clone());
            thread::spawn(move || {
                store(&chains, &mut right, &other, 0);
                remove(&chains, &mut right, &[other[2], other[1], other[0]]);
                store(&chains, &mut right, &other, 0);
            })
        };
        for _ in 0..2 {
            assert!(reach(&chains, numbers.0, &other) <= 1);
            assert!(reach(&chains, numbers.1, &one) <= 1);
        }
        lefts.join().expect("no panic");
        rights.join().expect("no panic");
        assert_eq!(reach(&chains, numbers.0, &one), 3);
        assert_eq!(reach(&chains, numbers.1, &other), 3);
    });
}

#[test]
fn the_table_is_replaced_under_readers() {
    check(|| {
        let chains = Arc::new(Chains::new(usize::MAX));
        let keys = prompt(&[0, 1]);
        let mut steady = holder(&chains, 0);
        store(&chains, &mut steady, &keys, 0);
        let grows = {
            let chains = Arc::clone(&chains);
            let mut writer = holder(&chains, 1);
            thread::spawn(move || {
                for content in 1..7 {
                    let keys = prompt(&[content]);
                    store(&chains, &mut writer, &keys, 0);
                    if content % 2 == 0 {
                        remove(&chains, &mut writer, &keys);
                    }
                }
                chains.retire(writer);
                while chains.reclaim(1) {}
            })
        };
        for _ in 0..4 {
            assert_eq!(reach(&chains, steady.number(), &keys), 2);
        }
        grows.join().expect("no panic");
        assert_eq!(chains.runs(), 1);
    });
}
