//! Token ids of segments.
//!
//! An id is a hash of the segment and the place in it. Equal segments give equal ids wherever they stand, and unequal
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
    out.extend(places.map(|index| vocabulary.id(root, index)));
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
        let mixed = mix(root ^ u64::from(index));
        // The upper half times the count, without division.
        self.first + (((mixed >> 32) * u64::from(self.count.max(1))) >> 32) as u32
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
        assert_eq!(id_at(7, 19, VOCABULARY), short[19]);
    }
}
