//! Time and memory of one subject on one workload.
//!
//! Latency is read call by call from the monotonic clock, less what two readings in a row cost.
//! Throughput is read from the CPU clocks of the kernel, which leave out the time that other
//! processes took: of the thread where the caller does all the work, and of the whole process where
//! the subject has threads of its own.

mod find;
mod memory;
mod store;

pub use find::{Busy, Quiet, busy, quiet};
pub use memory::{Memory, memory};
pub use store::{LaneCost, hash_cost, load, load_with_two_lanes, unload};

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of single calls.
#[derive(Debug, Clone, Default)]
pub struct Latencies {
    nanoseconds: Vec<u32>,
}

impl Latencies {
    /// The smallest value that `share` of all are at or below; zero where there are none.
    pub fn quantile(&mut self, share: f64) -> f64 {
        if self.nanoseconds.is_empty() {
            return 0.0;
        }
        self.nanoseconds.sort_unstable();
        let rank = (self.nanoseconds.len() as f64 * share).ceil() as usize;
        f64::from(self.nanoseconds[rank.max(1) - 1])
    }

    pub fn append(&mut self, mut other: Self) {
        self.nanoseconds.append(&mut other.nanoseconds);
    }
}

/// Times single calls.
#[derive(Debug, Clone, Copy)]
pub struct Timer {
    overhead_ns: u32,
}

impl Timer {
    /// Measures what two readings of the clock in a row cost: the median of many.
    pub fn calibrated() -> Self {
        let mut empty = Latencies::default();
        let raw = Self { overhead_ns: 0 };
        for _ in 0..10_000 {
            raw.time(&mut empty, || {});
        }
        Self {
            overhead_ns: empty.quantile(0.5) as u32,
        }
    }

    pub fn overhead_ns(self) -> u32 {
        self.overhead_ns
    }

    /// Runs `call` and notes how long it took.
    #[inline]
    pub fn time(self, latencies: &mut Latencies, call: impl FnOnce()) {
        let start = Instant::now();
        call();
        let elapsed = start.elapsed().as_nanos() as u32;
        latencies
            .nanoseconds
            .push(elapsed.saturating_sub(self.overhead_ns));
    }
}

/// CPU time that the calling thread has had.
pub fn thread_cpu() -> Duration {
    cpu(ClockId::ThreadCPUTime)
}

/// CPU time that all threads of the process have had.
pub fn process_cpu() -> Duration {
    cpu(ClockId::ProcessCPUTime)
}

fn cpu(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
