//! What the memory of this machine gives: the limit of every decode step that reads all weights.
//!
//! Each thread sums its own part of a buffer that no cache holds. Reading is what decoding does; nothing is written.

use std::time::Instant;

/// Far larger than any cache that two cores share.
const BYTES: usize = 512 << 20;

/// A buffer that was written once, so that its pages exist.
#[derive(Debug)]
pub(super) struct Bandwidth {
    words: Vec<u64>,
    threads: usize,
}

impl Bandwidth {
    pub(super) fn new(threads: u32) -> Self {
        Self {
            words: (0..(BYTES / size_of::<u64>()) as u64).collect(),
            threads: threads.max(1) as usize,
        }
    }

    /// Bytes read in a second.
    pub(super) fn measure(&self) -> f64 {
        let share = self.words.len().div_ceil(self.threads);
        let started = Instant::now();
        let sum: u64 = std::thread::scope(|scope| {
            let sums: Vec<_> = self
                .words
                .chunks(share)
                .map(|words| scope.spawn(move || sum(words)))
                .collect();
            let sums = sums.into_iter().filter_map(|thread| thread.join().ok());
            sums.fold(0, u64::wrapping_add)
        });
        let seconds = started.elapsed().as_secs_f64();
        std::hint::black_box(sum);
        BYTES as f64 / seconds
    }
}

/// In 32 chains, so that additions never wait for one another.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0_u64; 32];
    for chunk in words.chunks_exact(32) {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().copied().fold(0, u64::wrapping_add)
}
