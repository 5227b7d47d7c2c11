//! The system allocator with a count of live bytes.
//!
//! Counting costs an atomic addition per call, which would slow the subject that allocates most, so
//! it is off while time is measured and on in the passes that measure memory. A pass switches it on
//! before its subject exists and off after the subject is gone, so every byte it sees leave it has
//! also seen arrive.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering::Relaxed};

static ON: AtomicBool = AtomicBool::new(false);
static LIVE: AtomicIsize = AtomicIsize::new(0);

/// See the module.
#[derive(Debug)]
pub struct Counting;

/// Counts from zero from here on.
pub fn start() {
    LIVE.store(0, Relaxed);
    ON.store(true, Relaxed);
}

/// Ends counting.
pub fn stop() {
    ON.store(false, Relaxed);
}

/// Bytes asked of the allocator and not given back since [`start`]. The allocator's own headers are
/// not in it.
pub fn live_bytes() -> usize {
    LIVE.load(Relaxed).max(0) as usize
}

/// Gives free pages back to the kernel, so that what is resident next is new.
#[expect(unsafe_code, reason = "the allocator has no safe interface for this")]
pub fn trim() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> i32;
    }
    // SAFETY: glibc's `malloc_trim` takes any number and may be called at any time.
    unsafe {
        malloc_trim(0);
    }
}

fn count(bytes: isize) {
    if ON.load(Relaxed) {
        LIVE.fetch_add(bytes, Relaxed);
    }
}

#[expect(
    unsafe_code,
    reason = "a global allocator is an unsafe trait; every call goes to System unchanged"
)]
// SAFETY: each method hands its arguments to `System` and returns what `System` returned.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above; `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}
