//! Numbers of holders, and what each stands for.
//!
//! Runs know holders by small dense numbers, so that a set of them is a few words. Readers look a
//! number's tag up here without a lock. Retiring a holder wipes its tag, and from then on every
//! bit and stretch that still bears its number means nobody: that is how an endpoint is cleared at
//! once, however much it held. Its number is given to another only when no run bears it any more
//! and no reader can hold a run that did.

use std::sync::{Arc, OnceLock};

use super::run::HOLDERS_MAX;
use super::sync::{AtomicU32, AtomicU64, Mutex, Ordering};
use crate::fleet::{EndpointId, Generation};

/// Tags in the first segment; each further one is twice as long.
const FIRST_SEGMENT: u32 = 256;
const SEGMENTS: usize = 23;

/// What a holder's number stands for: one cache that changes by itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HolderTag {
    pub endpoint: EndpointId,
    pub generation: Generation,
    /// The data-parallel rank, up to 65,535.
    pub rank: u16,
}

/// See the module.
#[derive(Debug)]
pub(super) struct HolderNumbers {
    segments: [OnceLock<Box<[Tag]>>; SEGMENTS],
    /// Numbers given out so far, those that are free again included.
    used: AtomicU32,
    free: Arc<Mutex<Vec<u32>>>,
}

#[derive(Debug)]
pub(super) struct Tag {
    /// Endpoint and generation; 0 = nobody, for generations count from 1.
    identity: AtomicU64,
    /// Written before the identity, and only while that is 0.
    rank: AtomicU32,
}

impl HolderNumbers {
    pub(super) fn new() -> Self {
        Self {
            segments: std::array::from_fn(|_| OnceLock::new()),
            used: AtomicU32::new(0),
            free: Arc::new(Mutex::new(Vec::new())),
        }
    }

    /// One more than the greatest number.
    #[inline]
    pub(super) fn used(&self) -> u32 {
        self.used.load(Ordering::Acquire)
    }

    /// Gives a holder a number; `None` when all 2^30 are taken.
    pub(super) fn register(&self, tag: HolderTag) -> Option<u32> {
        let mut free = self.free.lock();
        let number = match free.pop() {
            Some(number) => number,
            None => self.used.load(Ordering::Relaxed),
        };
        if number >= HOLDERS_MAX {
            return None;
        }
        let place = self.made(number)?;
        place.rank.store(u32::from(tag.rank), Ordering::Relaxed);
        let identity = u64::from(tag.endpoint.0) << 32 | u64::from(tag.generation.0);
        place.identity.store(identity, Ordering::Release);
        self.used.fetch_max(number + 1, Ordering::AcqRel);
        Some(number)
    }

    /// The tags of one word of numbers, 64 of them; none where nobody was given any.
    #[inline]
    pub(super) fn word(&self, word: usize) -> &[Tag] {
        let (segment, place) = segment_of(word as u32 * 64);
        let segment = self.segments.get(segment).and_then(OnceLock::get);
        segment
            .and_then(|tags| tags.get(place..place + 64))
            .unwrap_or_default()
    }

    /// From here on the number means nobody.
    pub(super) fn retire(&self, number: u32) {
        if let Some(tag) = self.at(number) {
            tag.identity.store(0, Ordering::Release);
        }
    }

    /// Gives the number to another, once every reader of this moment is done.
    ///
    /// In a checked model numbers stay retired: what is deferred to the end of an epoch may run
    /// outside of the model's threads.
    #[cfg_attr(
        shuttle,
        expect(unused_variables, clippy::unused_self, reason = "see above")
    )]
    pub(super) fn release(&self, number: u32) {
        #[cfg(not(shuttle))]
        self.release_later(number);
    }

    #[cfg(not(shuttle))]
    fn release_later(&self, number: u32) {
        let free = Arc::clone(&self.free);
        crossbeam_epoch::pin().defer(move || free.lock().push(number));
    }

    #[inline]
    fn at(&self, number: u32) -> Option<&Tag> {
        let (segment, place) = segment_of(number);
        self.segments.get(segment)?.get()?.get(place)
    }

    fn made(&self, number: u32) -> Option<&Tag> {
        let (segment, place) = segment_of(number);
        let tags = self.segments.get(segment)?.get_or_init(|| {
            let tag = || Tag {
                identity: AtomicU64::new(0),
                rank: AtomicU32::new(0),
            };
            (0..FIRST_SEGMENT << segment).map(|_| tag()).collect()
        });
        tags.get(place)
    }
}

impl Tag {
    /// What the number stands for now.
    #[inline]
    pub(super) fn get(&self) -> Option<HolderTag> {
        let identity = self.identity.load(Ordering::Acquire);
        (identity != 0).then(|| HolderTag {
            endpoint: EndpointId((identity >> 32) as u32),
            generation: Generation(identity as u32),
            rank: self.rank.load(Ordering::Relaxed) as u16,
        })
    }
}

/// Segment `s` holds `FIRST_SEGMENT << s` tags, from number `FIRST_SEGMENT * (2^s - 1)` on.
#[inline]
fn segment_of(number: u32) -> (usize, usize) {
    let shifted = number + FIRST_SEGMENT;
    let segment = (shifted / FIRST_SEGMENT).ilog2();
    let start = (FIRST_SEGMENT << segment) - FIRST_SEGMENT;
    (segment as usize, (number - start) as usize)
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    fn tag(endpoint: u32) -> HolderTag {
        HolderTag {
            endpoint: EndpointId(endpoint),
            generation: Generation(1),
            rank: 3,
        }
    }

    fn tag_of(numbers: &HolderNumbers, number: u32) -> Option<HolderTag> {
        numbers.at(number).and_then(Tag::get)
    }

    #[test]
    fn segments_follow_one_another() {
        let mut expected = (0, 0);
        for number in 0..10_000 {
            assert_eq!(segment_of(number), expected);
            expected.1 += 1;
            if expected.1 == (FIRST_SEGMENT as usize) << expected.0 {
                expected = (expected.0 + 1, 0);
            }
        }
        let (segment, place) = segment_of(HOLDERS_MAX - 1);
        assert!(segment < SEGMENTS && place < (FIRST_SEGMENT as usize) << segment);
    }

    #[test]
    fn a_number_means_its_holder_until_it_retires() {
        let numbers = HolderNumbers::new();
        for endpoint in 0..600 {
            assert_eq!(numbers.register(tag(endpoint)), Some(endpoint));
        }
        assert_eq!(tag_of(&numbers, 599), Some(tag(599)));
        numbers.retire(5);
        assert_eq!(tag_of(&numbers, 5), None);
        assert_eq!(numbers.register(tag(600)), Some(600));
        numbers.release(5);
        // The number comes back when the epochs of other tests' readers have passed.
        while numbers.free.lock().is_empty() {
            crossbeam_epoch::pin().flush();
            std::thread::yield_now();
        }
        assert_eq!(numbers.register(tag(7)), Some(5));
        assert_eq!(tag_of(&numbers, 5), Some(tag(7)));
        assert_eq!(tag_of(&numbers, 100_000), None);
    }
}
