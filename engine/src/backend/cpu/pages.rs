//! Large zeroed buffers, on huge pages where the system gives some.
//!
//! Weights and KV memory are read from end to end each step; with pages of 4 KiB the walk through the page tables is a
//! good part of that. Small buffers share a region, so that they lie on huge pages too.

#![expect(
    unsafe_code,
    reason = "buffers of one region are cut out of it by pointer"
)]

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use bytemuck::Pod;
use memmap2::MmapMut;
use parking_lot::Mutex;

/// Buffers of at most this size share regions of `REGION` bytes.
const SMALL: usize = 8 << 20;

/// Bytes of a shared region, a multiple of a huge page's 2 MiB.
const REGION: usize = 64 << 20;

/// Where a buffer begins within its region, in bytes: its own cache lines, and those fetched with them.
const ALIGN: usize = 128;

/// The region that small buffers are cut from. Asked only while weights are loaded.
static SHARED: Mutex<Option<Shared>> = Mutex::new(None);

struct Shared {
    region: Arc<Region>,
    used: usize,
}

/// Pages of the system, given back with the last buffer in them.
struct Region {
    start: *mut u8,
    /// Owns the pages; never looked at, so that no reference to all of them exists beside those to their parts.
    _map: MmapMut,
}

// SAFETY: the pointer is used only through buffers, each of which owns its own bytes of the region.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// A fixed number of elements, zero at first.
pub(super) struct Pages<T> {
    /// None when there are no elements.
    region: Option<Arc<Region>>,
    start: *mut T,
    length: usize,
    owns: PhantomData<T>,
}

// SAFETY: a buffer owns its elements, like a vector.
unsafe impl<T: Send> Send for Pages<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Pages<T> {}

impl<T: Pod> Pages<T> {
    /// No elements.
    pub(super) fn empty() -> Self {
        Self {
            region: None,
            start: std::ptr::dangling_mut(),
            length: 0,
            owns: PhantomData,
        }
    }

    /// `length` zeros. The system backs them when they are first written.
    ///
    /// # Errors
    /// When the system does not give that much.
    pub(super) fn zeroed(length: usize) -> std::io::Result<Self> {
        let bytes = length.saturating_mul(size_of::<T>());
        let (region, offset) = if bytes == 0 {
            (None, 0)
        } else if bytes > SMALL {
            (Some(Arc::new(Region::new(bytes)?)), 0)
        } else {
            let (region, offset) = cut(bytes)?;
            (Some(region), offset)
        };
        let start = region.as_ref().map_or(std::ptr::dangling_mut(), |region| {
            region.start.wrapping_add(offset).cast()
        });
        Ok(Self {
            region,
            start,
            length,
            owns: PhantomData,
        })
    }
}

/// Cuts `bytes`, at most `SMALL`, from the shared region.
fn cut(bytes: usize) -> std::io::Result<(Arc<Region>, usize)> {
    let mut shared = SHARED.lock();
    let room = shared.as_ref().is_some_and(|shared| {
        // Once its buffers are gone, a region begins anew with fresh zeros: nobody clears this one.
        shared.used + bytes <= REGION && Arc::strong_count(&shared.region) > 1
    });
    if !room {
        *shared = None;
    }
    if shared.is_none() {
        *shared = Some(Shared {
            region: Arc::new(Region::new(REGION)?),
            used: 0,
        });
    }
    let shared = shared.as_mut().ok_or(std::io::ErrorKind::OutOfMemory)?;
    let offset = shared.used;
    shared.used = (offset + bytes).next_multiple_of(ALIGN);
    Ok((Arc::clone(&shared.region), offset))
}

impl Region {
    fn new(bytes: usize) -> std::io::Result<Self> {
        let mut map = MmapMut::map_anon(bytes)?;
        // A system without huge pages says no; the buffer works the same.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self {
            start: map.as_mut_ptr(),
            _map: map,
        })
    }
}

impl<T> Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `start` is dangling for no elements, else it points to `length` elements within the region that
        // `self` keeps mapped, aligned (pages, or ALIGN bytes), which no other buffer has. They began as zeros, which
        // are values of T, for T was Pod when this was made.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

impl<T> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.length) }
    }
}

impl<T> fmt::Debug for Pages<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mapped = self.region.is_some();
        write!(f, "Pages({} elements, mapped: {mapped})", self.length)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::float_cmp, reason = "values that are only stored are exact")]

    use super::*;

    #[test]
    fn buffers_begin_as_zeros_and_keep_to_themselves() {
        let mut buffers: Vec<Pages<[f32; 16]>> = [1, 3, 40_000, 0, 200_000, 7]
            .into_iter()
            .map(|length| Pages::zeroed(length).unwrap())
            .collect();
        for (index, buffer) in buffers.iter_mut().enumerate() {
            assert!(buffer.iter().all(|lanes| *lanes == [0.0; 16]));
            assert!(buffer.is_empty() || buffer.as_ptr().addr() % 64 == 0);
            buffer.fill([index as f32; 16]);
        }
        for (index, buffer) in buffers.iter().enumerate() {
            assert!(buffer.iter().all(|lanes| *lanes == [index as f32; 16]));
        }
    }

    #[test]
    fn more_than_there_is_is_an_error() {
        assert!(Pages::<u64>::zeroed(usize::MAX / 16).is_err());
        assert!(Pages::<u64>::zeroed(usize::MAX).is_err());
    }
}
