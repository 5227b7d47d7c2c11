//! Token ids of segments.
//!
//! An id is half of a hash of the segment and the pair of places that it is in. Equal segments give equal ids wherever they stand, and unequal
//! ones differ from the first token on but by accident.

use std::ops::Range;

use super::Segment;

/// Writes the ids of `prompt` behind each other into `out`, which is cleared. All are in `first..first + count`.
pub fn write_ids(prompt: &[Segment], vocabulary: Vocabulary, out: &mut Vec<u32>) {
    out.clear();
    for segment in prompt {
        push_ids(segment.id, 0..segment.tokens, vocabulary, out);
    }
}

/// Appends the ids at `places` of the segment with this id to `out`.
pub fn push_ids(segment: u64, places: Range<u32>, vocabulary: Vocabulary, out: &mut Vec<u32>) {
    let root = mix(segment);
    let (mut start, end) = (places.start, places.end);
    if start % 2 == 1 && start < end {
        out.push(vocabulary.id(root, start));
        start += 1;
    }
    let pairs = (start / 2)..(end.max(start) / 2);
    out.extend(pairs.flat_map(|pair| vocabulary.pair(root, pair)));
    if end % 2 == 1 && start < end {
        out.push(vocabulary.id(root, end - 1));
    }
}

/// The id at `index` of the segment with this id.
pub fn id_at(segment: u64, index: u32, vocabulary: Vocabulary) -> u32 {
    vocabulary.id(mix(segment), index)
}

/// The ids that prompts are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    pub first: u32,
    /// How many; 0 counts as 1.
    pub count: u32,
}

impl Vocabulary {
    fn id(self, root: u64, index: u32) -> u32 {
        let [even, odd] = self.pair(root, index / 2);
        if index.is_multiple_of(2) { even } else { odd }
    }

    /// The ids at an even place and the one after it: one hash serves two.
    fn pair(self, root: u64, pair: u32) -> [u32; 2] {
        let mixed = mix(root ^ u64::from(pair));
        // The half times the count, without division.
        let id = |half: u64| self.first + ((half * u64::from(self.count.max(1))) >> 32) as u32;
        [id(mixed >> 32), id(mixed & u64::from(u32::MAX))]
    }
}

/// SplitMix64's output function (Steele, Lea, Flood 2014).
pub fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCABULARY: Vocabulary = Vocabulary {
        first: 100,
        count: 1000,
    };

    fn ids(prompt: &[Segment]) -> Vec<u32> {
        let mut out = vec![1, 2, 3];
        write_ids(prompt, VOCABULARY, &mut out);
        out
    }

    #[test]
    fn equal_segments_are_equal_tokens_and_prefixes_of_longer_ones() {
        let of = |id, tokens| Segment { id, tokens };
        let short = ids(&[of(7, 20)]);
        let long = ids(&[of(7, 50)]);
        assert_eq!(short[..], long[..20]);
        assert_eq!(ids(&[of(9, 5), of(7, 20)])[5..], short[..]);
        assert_ne!(ids(&[of(8, 20)]), short);
        assert!(long.iter().all(|id| (100..1100).contains(id)));
        let mut part = Vec::new();
        for (start, end) in [(0, 50), (3, 20), (4, 9), (7, 8), (8, 9), (9, 9)] {
            part.clear();
            push_ids(7, start..end, VOCABULARY, &mut part);
            assert_eq!(part[..], long[start as usize..end as usize]);
        }
        for place in 0..50 {
            assert_eq!(id_at(7, place, VOCABULARY), long[place as usize]);
        }
    }
}
