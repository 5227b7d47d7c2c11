//! What a workload adds up to, and how much of its prompts a cache could have held at best.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::tokens::mix;
use super::{PlannedRequest, Segment, Workload};

/// Sums over a workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    pub requests: usize,
    pub prompt_tokens: u64,
    pub answer_tokens: u64,
    /// From the start to the last request's time.
    pub seconds: f64,
}

/// What one cache without bounds would have found, were every answer whole before the next request: the most that any
/// routing to any number of workers can reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sharing {
    pub prompt_tokens: u64,
    /// Of those, tokens that stand behind the same beginning as in an earlier prompt or answer.
    pub shared_tokens: u64,
    pub segments: u64,
    /// Of those, segments that are shared whole. For a trace these are its blocks.
    pub shared_segments: u64,
}

impl Sharing {
    /// Shared tokens of all prompt tokens; 0 where there are none.
    pub fn token_share(&self) -> f64 {
        share(self.shared_tokens, self.prompt_tokens)
    }

    /// Shared segments of all segments; 0 where there are none.
    pub fn segment_share(&self) -> f64 {
        share(self.shared_segments, self.segments)
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

impl Workload {
    pub fn totals(&self) -> Totals {
        let last = self.requests.last();
        Totals {
            requests: self.requests.len(),
            prompt_tokens: self
                .requests
                .iter()
                .map(PlannedRequest::prompt_tokens)
                .sum(),
            answer_tokens: self
                .requests
                .iter()
                .map(|one| u64::from(one.answer.tokens))
                .sum(),
            seconds: last.map_or(0.0, |one| one.at.as_secs_f64()),
        }
    }

    /// Walks all prompts in their order, each along what the ones before have left.
    pub fn sharing(&self) -> Sharing {
        let mut seen = Seen::default();
        let mut sharing = Sharing::default();
        for request in &self.requests {
            seen.count(&request.prompt, &mut sharing);
            seen.insert(request.prompt.iter().chain([&request.answer]));
        }
        sharing
    }
}

/// For each chain of whole segments, by its hash, and the segment behind it: its longest form so far.
#[derive(Default)]
struct Seen(HashMap<(u64, u64), u32>);

impl Seen {
    fn count(&self, prompt: &[Segment], sharing: &mut Sharing) {
        let mut chain = 0;
        let mut is_shared = true;
        for segment in prompt {
            sharing.prompt_tokens += u64::from(segment.tokens);
            sharing.segments += 1;
            if !is_shared {
                continue;
            }
            let longest = self.0.get(&(chain, segment.id)).copied().unwrap_or(0);
            sharing.shared_tokens += u64::from(longest.min(segment.tokens));
            is_shared = longest >= segment.tokens;
            sharing.shared_segments += u64::from(is_shared);
            chain = extend(chain, *segment);
        }
    }

    fn insert<'a>(&mut self, segments: impl Iterator<Item = &'a Segment>) {
        let mut chain = 0;
        for segment in segments {
            let longest = self.0.entry((chain, segment.id)).or_insert(0);
            *longest = segment.tokens.max(*longest);
            chain = extend(chain, *segment);
        }
    }
}

fn extend(chain: u64, segment: Segment) -> u64 {
    mix(mix(chain ^ segment.id) ^ u64::from(segment.tokens))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn request(prompt: &[(u64, u32)], answer: u64) -> PlannedRequest {
        let of = |&(id, tokens): &(u64, u32)| Segment { id, tokens };
        PlannedRequest {
            at: Duration::from_secs(answer),
            prompt: prompt.iter().map(of).collect(),
            answer: of(&(answer, 10)),
            session: 0,
            tenant: 0,
            after: None,
        }
    }

    #[test]
    fn a_prompt_shares_up_to_the_first_difference() {
        let workload = Workload {
            name: String::new(),
            requests: vec![
                request(&[(1, 100), (2, 50)], 90),
                // The whole of the first, its answer, and 5 tokens of its own.
                request(&[(1, 100), (2, 50), (90, 10), (3, 5)], 91),
                // Another second segment, so that the third is not shared though its id has been seen.
                request(&[(1, 100), (4, 50), (90, 10)], 92),
                // The beginning of a segment, and then nothing that is known to follow it.
                request(&[(1, 60), (2, 50)], 93),
            ],
        };
        let sharing = workload.sharing();
        assert_eq!(sharing.prompt_tokens, 150 + 165 + 160 + 110);
        assert_eq!(sharing.shared_tokens, 160 + 100 + 60);
        assert_eq!((sharing.segments, sharing.shared_segments), (11, 3 + 1 + 1));
        let totals = workload.totals();
        assert_eq!((totals.requests, totals.answer_tokens), (4, 40));
        assert!((totals.seconds - 93.0).abs() < 1e-9);
    }

    #[test]
    fn nothing_shares_nothing() {
        assert!(Workload::default().sharing().token_share().abs() < f64::EPSILON);
    }
}
