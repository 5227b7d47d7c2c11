//! The second tier of KV memory.

use std::slice::from_mut;

use super::*;
use crate::backend::{BlockCopy, BlockPlace};

fn copies(pairs: [(BlockPlace, BlockPlace); 2]) -> Vec<BlockCopy> {
    pairs.map(|(from, to)| BlockCopy { from, to }).to_vec()
}

/// Saved, overwritten by the step that saved it, and loaded into other blocks by the step that reads it.
#[test]
fn a_context_that_went_through_host_memory_gives_the_same_bits() {
    use BlockPlace::{Device, Host};
    let mut rig = Rig::new(&small(), 1, 4);
    let layout = KvLayout {
        host_blocks: 3,
        block_size: 4,
        blocks: 64,
    };
    rig.backend.allocate(&layout).unwrap();
    let mut sequence = rig.sequences(&[11], 1).remove(0);
    rig.step(from_mut(&mut sequence), &[8]);
    let expected = rig.step(from_mut(&mut sequence), &[3]);
    let [first, second] = [sequence.table[0], sequence.table[1]];
    let mut other = Sequence {
        table: vec![first, second],
        ..rig.sequences(&[8], 2).remove(0)
    };
    let mut save = step(from_mut(&mut other), &[8], 4);
    save.copies = copies([(Device(first), Host(2)), (Device(second), Host(0))]);
    let mut out = StepOutput::default();
    rig.backend.forward(&save, &mut out).unwrap();
    let mut again = Sequence {
        tokens: sequence.tokens.clone(),
        computed: 8,
        table: vec![60, 61, 62],
    };
    let mut load = step(from_mut(&mut again), &[3], 4);
    load.copies = copies([(Host(2), Device(60)), (Host(0), Device(61))]);
    rig.backend.forward(&load, &mut out).unwrap();
    assert_eq!(logits(&out.sampled[0], 61), expected[0]);
}
