//! What the memory of this machine gives: the limit of every decode step that reads all weights.
//!
//! As the weights are read, so that the worker's share of it means something: as many bytes again and again (what of
//! them the last cache still holds from the last time counts for both), by as many threads, on huge pages (the hardware
//! reads ahead within a page, and no further), several streams in each thread. Nothing is written.

use std::hint::black_box;
use std::io;
use std::time::Instant;

use memmap2::MmapMut;

/// Runs of memory that a thread reads side by side: a single core has more reads on the way then.
const STREAMS: usize = 4;

/// What a stream reads at a time.
const LINE: usize = 64;

/// How often memory is read in a measurement; the first time does not count.
const PASSES: usize = 9;

/// Memory that was written once, so that its pages exist.
#[derive(Debug)]
pub(super) struct Bandwidth {
    memory: MmapMut,
    threads: usize,
}

impl Bandwidth {
    /// Measures with `bytes`, rounded up to whole lines of all streams.
    pub(super) fn new(threads: u32, bytes: usize) -> io::Result<Self> {
        let threads = threads.max(1) as usize;
        let mut memory = MmapMut::map_anon(bytes.next_multiple_of(threads * STREAMS * LINE))?;
        // A system without huge pages says no.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        memory.fill(1);
        Ok(Self { memory, threads })
    }

    /// Bytes read in a second, in the fastest pass: what else the machine does can only slow reading down.
    pub(super) fn measure(&self) -> f64 {
        let share = self.memory.len() / self.threads;
        let seconds = (0..PASSES).map(|_| {
            let started = Instant::now();
            std::thread::scope(|scope| {
                for part in self.memory.chunks_exact(share) {
                    scope.spawn(move || black_box(read(part)));
                }
            });
            started.elapsed().as_secs_f64()
        });
        let fastest = seconds.skip(1).fold(f64::INFINITY, f64::min);
        self.memory.len() as f64 / fastest
    }
}

/// All bytes of `part`, a line of each stream at a time; the bits that any of them has.
fn read(part: &[u8]) -> [u8; LINE] {
    let (lines, _) = part.as_chunks::<LINE>();
    let mut streams = lines.chunks_exact((lines.len() / STREAMS).max(1));
    let streams: [&[[u8; LINE]]; STREAMS] =
        std::array::from_fn(|_| streams.next().unwrap_or_default());
    let length = streams.map(<[_]>::len).into_iter().min().unwrap_or(0);
    let streams = streams.map(|stream| &stream[..length]);
    let mut bits = [[0; LINE]; STREAMS];
    for line in 0..length {
        for (bits, stream) in bits.iter_mut().zip(streams) {
            for (bits, byte) in bits.iter_mut().zip(&stream[line]) {
                *bits |= byte;
            }
        }
    }
    bits.into_iter().fold([0; LINE], |all, bits| {
        std::array::from_fn(|i| all[i] | bits[i])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_read() {
        let length = STREAMS * LINE * 5;
        assert_eq!(read(&vec![0; length]), [0; LINE]);
        for place in 0..length {
            let mut part = vec![0; length];
            part[place] = 1;
            assert_eq!(read(&part)[place % LINE], 1, "byte {place}");
        }
    }

    #[test]
    fn memory_is_cut_without_a_rest() {
        for (threads, bytes) in [(1, 0), (2, 1), (3, 1000), (2, 4096)] {
            let bandwidth = Bandwidth::new(threads, bytes.max(1)).unwrap();
            assert_eq!(
                bandwidth.memory.len() % (threads as usize * STREAMS * LINE),
                0
            );
            assert!(bandwidth.measure() > 0.0);
        }
    }
}
