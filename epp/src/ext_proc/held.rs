//! How many bytes of request bodies the whole process holds.
//!
//! Each stream has its own limit, but a thousand streams below it can still exhaust the memory. So
//! every byte held for a decision is taken from one allowance, and given back when it is sent on or
//! its stream ends. A request that finds the allowance spent is answered 503.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The allowance of a process that is told nothing else: 2 GiB.
pub const DEFAULT_HELD_BYTES: usize = 2 << 30;

/// The allowance.
#[derive(Debug)]
pub struct HeldBytes {
    limit: usize,
    held: AtomicUsize,
}

impl HeldBytes {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            held: AtomicUsize::new(0),
        })
    }

    /// Bytes held now.
    pub fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// A share that holds nothing yet.
    pub fn share(self: &Arc<Self>) -> Share {
        Share {
            of: Arc::clone(self),
            bytes: 0,
        }
    }
}

/// What one stream holds; given back when dropped.
#[derive(Debug)]
pub struct Share {
    of: Arc<HeldBytes>,
    bytes: usize,
}

impl Share {
    /// Takes more; `false` and no change where the allowance does not have it.
    pub fn grow(&mut self, bytes: usize) -> bool {
        let taken = self.of.held.try_update(Relaxed, Relaxed, |held| {
            held.checked_add(bytes).filter(|sum| *sum <= self.of.limit)
        });
        if taken.is_ok() {
            self.bytes += bytes;
        }
        taken.is_ok()
    }

    /// Gives everything back.
    pub fn release(&mut self) {
        if self.bytes > 0 {
            self.of.held.fetch_sub(self.bytes, Relaxed);
            self.bytes = 0;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_draw_on_one_allowance_and_give_back() {
        let held = HeldBytes::new(100);
        let (mut one, mut other) = (held.share(), held.share());
        assert!(one.grow(60));
        assert!(!other.grow(41), "the allowance is spent");
        assert_eq!(held.held(), 60, "a refused share takes nothing");
        assert!(other.grow(40));
        one.release();
        one.release();
        assert_eq!(held.held(), 40);
        drop(other);
        assert_eq!(held.held(), 0);
    }
}
