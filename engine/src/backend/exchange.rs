//! Where the ranks of a tensor-parallel group meet: they add up what each has, or put their parts side by side.
//!
//! All ranks take part in the same meetings in the same order. Sums go by rank, so every rank has the same bits. Among
//! threads of one process the meeting is a barrier and shared memory; among GPUs it is NCCL's business (see
//! `cuda::nccl`).

use std::sync::{Arc, Barrier};

use parking_lot::Mutex;

/// One rank's side of a group.
pub trait Exchange: Send + Sync + std::fmt::Debug {
    /// This rank's number.
    fn rank(&self) -> usize;

    /// How many there are.
    fn ranks(&self) -> usize;

    /// Replaces `values` by the sum over all ranks, which must all have as many.
    fn add_up(&self, values: &mut [f32]);

    /// Calls `take` on rank 0 with what each rank has, in their order; the others only give.
    fn collect(&self, own: &[f32], take: &mut dyn FnMut(usize, &[f32]));
}

/// A group of one: it meets nobody.
#[derive(Clone, Copy, Debug)]
pub struct Alone;

impl Exchange for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn ranks(&self) -> usize {
        1
    }

    fn add_up(&self, _values: &mut [f32]) {}

    fn collect(&self, own: &[f32], take: &mut dyn FnMut(usize, &[f32])) {
        take(0, own);
    }
}

/// A rank that is a thread of this process.
#[derive(Debug)]
pub struct ThreadRank {
    rank: usize,
    group: Arc<Group>,
}

#[derive(Debug)]
struct Group {
    /// What each rank brought; they grow to the largest meeting and stay.
    brought: Vec<Mutex<Vec<f32>>>,
    barrier: Barrier,
}

impl ThreadRank {
    /// A group of `ranks`, which must each be given to a thread of its own.
    pub fn group(ranks: usize) -> Vec<Self> {
        let group = Arc::new(Group {
            brought: (0..ranks).map(|_| Mutex::default()).collect(),
            barrier: Barrier::new(ranks),
        });
        let member = |rank| Self {
            rank,
            group: Arc::clone(&group),
        };
        (0..ranks).map(member).collect()
    }

    /// Leaves what this rank has for the others, and waits for theirs.
    fn bring(&self, values: &[f32]) {
        if let Some(brought) = self.group.brought.get(self.rank) {
            let mut brought = brought.lock();
            brought.clear();
            brought.extend_from_slice(values);
        }
        self.group.barrier.wait();
    }
}

#[cfg(test)]
impl ThreadRank {
    /// Calls `take` on every rank with what each rank has, in their order.
    pub(super) fn share(&self, own: &[f32], take: &mut dyn FnMut(usize, &[f32])) {
        self.bring(own);
        for (rank, brought) in self.group.brought.iter().enumerate() {
            take(rank, &brought.lock());
        }
        self.group.barrier.wait();
    }
}

impl Exchange for ThreadRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.group.brought.len()
    }

    fn add_up(&self, values: &mut [f32]) {
        self.bring(values);
        values.fill(0.0);
        for brought in &self.group.brought {
            for (value, brought) in values.iter_mut().zip(brought.lock().iter()) {
                *value += brought;
            }
        }
        // Nobody brings something new before all have taken this.
        self.group.barrier.wait();
    }

    fn collect(&self, own: &[f32], take: &mut dyn FnMut(usize, &[f32])) {
        self.bring(own);
        if self.rank == 0 {
            for (rank, brought) in self.group.brought.iter().enumerate() {
                take(rank, &brought.lock());
            }
        }
        self.group.barrier.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_collections_over_threads() {
        let ranks = ThreadRank::group(3);
        std::thread::scope(|scope| {
            for rank in ranks {
                scope.spawn(move || {
                    for round in 0..20 {
                        let own = (rank.rank() * 10 + round) as f32;
                        let mut values = vec![own; round + 1];
                        rank.add_up(&mut values);
                        assert_eq!(values, vec![(30 + 3 * round) as f32; round + 1]);
                        let mut seen = Vec::new();
                        rank.collect(&[own], &mut |from, values| seen.push((from, values[0])));
                        let all = [0, 1, 2].map(|from| (from, (from * 10 + round) as f32));
                        assert_eq!(
                            seen,
                            if rank.rank() == 0 {
                                all.to_vec()
                            } else {
                                vec![]
                            }
                        );
                    }
                });
            }
        });
    }
}
