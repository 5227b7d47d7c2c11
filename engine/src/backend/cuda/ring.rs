//! Where in a ring of memory bytes wait for the device to copy them.
//!
//! Runs are handed out one behind the other and come free in the same order, all up to a mark, once the device has come
//! past it. A run never goes over the end: what would is begun again at the front. Pure: offsets in, offsets out.

/// A ring of `bytes` bytes.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    bytes: u64,
    /// Bytes handed out or skipped since the beginning of time, and those of them that are free again.
    taken: u64,
    freed: u64,
}

/// Everything that was handed out until now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark(u64);

/// Runs begin at multiples of this.
const ALIGNMENT: u64 = 16;

impl Ring {
    /// A free ring; `bytes` is a multiple of 16.
    pub fn new(bytes: usize) -> Self {
        Self {
            bytes: bytes as u64,
            taken: 0,
            freed: 0,
        }
    }

    /// The offset of a run of so many bytes; none while there is no room for it.
    pub fn take(&mut self, bytes: usize) -> Option<usize> {
        let length = (bytes as u64).next_multiple_of(ALIGNMENT);
        if length > self.bytes {
            return None;
        }
        let at = self.taken % self.bytes;
        let skipped = if at + length > self.bytes {
            self.bytes - at
        } else {
            0
        };
        let taken = self.taken + skipped + length;
        if taken - self.freed > self.bytes {
            return None;
        }
        self.taken = taken;
        Some(((taken - length) % self.bytes) as usize)
    }

    /// What is handed out so far.
    pub fn mark(&self) -> Mark {
        Mark(self.taken)
    }

    /// Nobody needs what was handed out before `mark` any more.
    pub fn free(&mut self, mark: Mark) {
        self.freed = self.freed.max(mark.0);
        if self.freed == self.taken {
            // An empty ring goes on at its front, so that a run of its whole length fits. Older marks stay behind.
            self.taken = self.taken.next_multiple_of(self.bytes);
            self.freed = self.taken;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Against a list of what is out: no two runs overlap, none leaves the memory, and an empty ring takes any run
    /// that it is long enough for.
    #[test]
    fn runs_never_overlap() {
        const BYTES: usize = 256;
        let mut ring = Ring::new(BYTES);
        let mut out: VecDeque<(std::ops::Range<usize>, Mark)> = VecDeque::new();
        let mut state = 1_u64;
        let mut random = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut handed_out = 0;
        for _ in 0..20_000 {
            if random(3) > 0 {
                let most = if random(8) == 0 { 300 } else { 60 };
                let bytes = 1 + random(most) as usize;
                match ring.take(bytes) {
                    Some(first) => {
                        let run = first..first + bytes;
                        assert!(run.end <= BYTES && first % 16 == 0);
                        assert!(
                            out.iter()
                                .all(|(other, _)| other.end <= run.start || run.end <= other.start)
                        );
                        out.push_back((run, ring.mark()));
                        handed_out += 1;
                    }
                    None => assert!(!out.is_empty() || bytes > BYTES),
                }
            } else if let Some((_, mark)) = out.pop_front() {
                // A wait for everything frees what is behind the first as well, and may come before it.
                if random(4) == 0 {
                    out.clear();
                    ring.free(ring.mark());
                }
                ring.free(mark);
            }
        }
        assert!(handed_out > 5_000, "{handed_out}");
    }
}
