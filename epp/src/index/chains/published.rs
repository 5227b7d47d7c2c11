//! A place where a writer publishes a value and readers follow it without a lock.
//!
//! The value sits behind an `Arc`: the writer keeps a clone for itself, the place owns one count,
//! and that count is given back only after every reader that may have seen the value has unpinned
//! its epoch. This file is the whole of the unsafe code of the index. It is here because a lookup
//! follows some ten of these per request, and every safe alternative writes to shared memory at
//! each of them.

use std::marker::PhantomData;
use std::sync::Arc;

use crossbeam_epoch::Guard;

use super::sync::{AtomicPtr, Ordering};

/// A published value, or none. Published values must be `Send + Sync`, because whichever thread
/// comes last drops them.
#[derive(Debug)]
pub(super) struct Published<T: Send + Sync + 'static> {
    /// Null, or from `Arc::into_raw`, with one count owned by this place.
    value: AtomicPtr<T>,
    owns: PhantomData<Arc<T>>,
}

impl<T: Send + Sync + 'static> Published<T> {
    pub(super) fn empty() -> Self {
        Self {
            value: AtomicPtr::new(std::ptr::null_mut()),
            owns: PhantomData,
        }
    }

    pub(super) fn new(value: Arc<T>) -> Self {
        Self {
            value: AtomicPtr::new(Arc::into_raw(value).cast_mut()),
            owns: PhantomData,
        }
    }

    /// The value as it is now; it stays valid for as long as the guard lives.
    #[inline]
    #[expect(unsafe_code, reason = "followed once per run of every lookup")]
    pub(super) fn load<'guard>(&self, _guard: &'guard Guard) -> Option<&'guard T> {
        let value = self.value.load(Ordering::Acquire);
        // SAFETY: a pointer that is not null came from `Arc::into_raw` and its count is given back
        // by `swap` through the epoch only, that is, not before the guard that is borrowed here is
        // dropped. `Acquire` pairs with the `Release` in `swap`, so the value is seen whole.
        unsafe { value.as_ref() }
    }

    /// A count of its own on the value as it is now.
    #[expect(unsafe_code, reason = "the place holds a raw pointer")]
    pub(super) fn share(&self, guard: &Guard) -> Option<Arc<T>> {
        let value: *const T = self.load(guard)?;
        // SAFETY: the pointer came from `Arc::into_raw`, and the count that this place owned when
        // it was loaded is not given back before the guard is dropped.
        unsafe {
            Arc::increment_strong_count(value);
            Some(Arc::from_raw(value))
        }
    }

    /// Publishes another value, or none. What was there is dropped once no reader can see it.
    pub(super) fn swap(&self, value: Option<Arc<T>>, guard: &Guard) {
        let new = value.map_or(std::ptr::null_mut(), |value| {
            Arc::into_raw(value).cast_mut()
        });
        let old = self.value.swap(new, Ordering::AcqRel);
        if let Some(old) = Owned::new(old) {
            guard.defer(move || drop(old));
        }
    }
}

impl<T: Send + Sync + 'static> Drop for Published<T> {
    fn drop(&mut self) {
        // Nobody can read a place that is being dropped, so its count goes at once.
        drop(Owned::new(
            self.value.swap(std::ptr::null_mut(), Ordering::AcqRel),
        ));
    }
}

/// One count of a value, on its way out.
struct Owned<T: Send + Sync>(*const T);

// SAFETY: it stands for an `Arc<T>`, which is `Send` when `T` is `Send + Sync`.
#[expect(unsafe_code, reason = "a raw pointer hides that this is an Arc")]
unsafe impl<T: Send + Sync> Send for Owned<T> {}

impl<T: Send + Sync> Owned<T> {
    fn new(pointer: *const T) -> Option<Self> {
        (!pointer.is_null()).then(|| Self(pointer))
    }
}

impl<T: Send + Sync> Drop for Owned<T> {
    #[expect(unsafe_code, reason = "gives back the count that the place owned")]
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Arc::into_raw`, and the count that `swap` or `drop` took
        // out of the place is given back here once.
        drop(unsafe { Arc::from_raw(self.0) });
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::sync::Weak;

    use super::*;

    #[test]
    fn a_value_outlives_its_readers_and_no_longer() {
        let place = Published::new(Arc::new(1));
        let guard = crossbeam_epoch::pin();
        let seen = place.load(&guard).expect("a value");
        let second = Arc::new(2);
        let weak: Weak<i32> = Arc::downgrade(&second);
        place.swap(Some(second), &guard);
        assert_eq!((*seen, place.load(&guard)), (1, Some(&2)));
        place.swap(None, &guard);
        assert_eq!(place.load(&guard), None);
        drop(guard);
        // Other tests may hold epochs pinned, so the garbage goes within some rounds.
        while weak.strong_count() > 0 {
            crossbeam_epoch::pin().flush();
            std::thread::yield_now();
        }
        let third = Arc::new(3);
        drop(Published::new(Arc::clone(&third)));
        assert_eq!(Arc::strong_count(&third), 1);
    }
}
