//! The atomics and locks of the chains: the standard ones, or a model checker's.
//!
//! Built with `--cfg shuttle`, every access becomes a point where the checker may switch threads,
//! so that `model_check` walks through interleavings that no stress test would hit.

#[cfg(shuttle)]
pub(super) use shuttle::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
#[cfg(not(shuttle))]
pub(super) use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

#[cfg(not(shuttle))]
pub(super) use parking_lot::{Mutex, MutexGuard};

/// The checker's lock behind the interface of the real one.
#[cfg(shuttle)]
#[derive(Debug, Default)]
pub(super) struct Mutex<T>(shuttle::sync::Mutex<T>);

#[cfg(shuttle)]
pub(super) type MutexGuard<'a, T> = shuttle::sync::MutexGuard<'a, T>;

#[cfg(shuttle)]
impl<T> Mutex<T> {
    pub(super) fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().expect("no thread of a model panics")
    }
}
