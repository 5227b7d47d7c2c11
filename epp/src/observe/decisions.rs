//! The decision log: what was picked lately, for which request, and why.
//!
//! Every pick leaves a record of plain values in a ring: each profile's candidates with every
//! scorer's value, what the pick cost, and, once the response has gone by, how it ended. The ring
//! and each record are bounded: at most [`CANDIDATES_MAX`] candidates of a profile are kept, best
//! first, with a count of those left out, so that a record costs the same in a fleet of a thousand.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

/// Records that are kept; the oldest goes when one more comes.
pub const RECORDS_MAX: usize = 256;

/// The most records that may be asked for. One with 64 candidates takes some 16 KB.
pub const RECORDS_LIMIT: usize = 16_384;

/// Candidates of one profile in a record.
pub const CANDIDATES_MAX: usize = 64;

/// The longest text of [`header_value`] in bytes.
pub const HEADER_BYTES_MAX: usize = 4096;

/// One decision.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct DecisionRecord {
    /// Milliseconds since 1970.
    pub at_unix_ms: u64,
    pub request_id: String,
    pub pool: String,
    /// The model that the client asked for.
    pub model: String,
    /// The model that it gets.
    pub target_model: String,
    pub fairness_id: String,
    pub priority: i32,
    /// 0 where the length of the prompt is not known.
    pub prompt_tokens: u32,
    /// In the order in which they ran.
    pub profiles: Vec<ProfileRecord>,
    /// Why nobody was picked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Microseconds from the complete request to the pick.
    pub pick_us: u64,
    /// How the request ended, once it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<OutcomeRecord>,
}

/// What one profile picked.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct ProfileRecord {
    pub profile: String,
    /// Names, best first.
    pub endpoints: Vec<String>,
    /// Why the first one won.
    pub reason: String,
    /// Best first.
    pub candidates: Vec<CandidateRecord>,
    /// Candidates beyond [`CANDIDATES_MAX`].
    #[serde(skip_serializing_if = "is_zero")]
    pub left_out: usize,
}

/// One candidate.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct CandidateRecord {
    pub endpoint: String,
    /// The weighted sum.
    pub total: f32,
    /// Tokens of the prompt that it was expected to have cached.
    pub cached_tokens: u32,
    pub scores: Vec<ScoreRecord>,
}

/// One scorer's value for one candidate.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct ScoreRecord {
    pub scorer: &'static str,
    pub weight: f32,
    /// 0 to 1, before the weight.
    pub value: f32,
}

/// How a request ended.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct OutcomeRecord {
    /// HTTP status of the response; 0 where none was seen.
    pub status: u16,
    pub ttft_ms: Option<f64>,
    pub duration_ms: f64,
    /// The address that served it, where the gateway says so.
    pub served: Option<String>,
    /// Prompt tokens that the worker says it had cached.
    pub cached_tokens: Option<u64>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes what it asks about by reference"
)]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// The places of the candidates that a record keeps, best total first, and how many it leaves out.
/// Those in `picked` are always kept. A caller builds only the candidates that are kept.
pub fn kept_candidates(totals: &[f32], picked: &[usize]) -> (Vec<usize>, usize) {
    let better = |one: &usize, other: &usize| {
        let total = |place: usize| totals.get(place).copied().unwrap_or(f32::MIN);
        let is_picked = |place: &usize| picked.contains(place);
        is_picked(other)
            .cmp(&is_picked(one))
            .then(total(*other).total_cmp(&total(*one)))
            .then(one.cmp(other))
    };
    let mut places: Vec<usize> = (0..totals.len()).collect();
    if places.len() > CANDIDATES_MAX {
        places.select_nth_unstable_by(CANDIDATES_MAX, better);
        places.truncate(CANDIDATES_MAX);
    }
    places.sort_unstable_by(better);
    let left_out = totals.len() - places.len();
    (places, left_out)
}

/// A record with its number.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Numbered {
    /// Counts from 1 over the life of the process.
    pub id: u64,
    #[serde(flatten)]
    pub record: Arc<DecisionRecord>,
}

/// See the module.
#[derive(Debug)]
pub struct DecisionLog {
    ring: Mutex<Ring>,
    records_max: usize,
}

impl Default for DecisionLog {
    fn default() -> Self {
        Self::new(RECORDS_MAX)
    }
}

#[derive(Debug, Default)]
struct Ring {
    records: VecDeque<Arc<DecisionRecord>>,
    /// How many came before the first of `records`.
    gone: u64,
}

impl DecisionLog {
    /// A log of the latest `records_max` records, at most [`RECORDS_LIMIT`].
    pub fn new(records_max: usize) -> Self {
        Self {
            ring: Mutex::default(),
            records_max: records_max.clamp(1, RECORDS_LIMIT),
        }
    }

    /// How many records are kept.
    pub fn capacity(&self) -> usize {
        self.records_max
    }

    /// Keeps a record and gives its number.
    pub fn push(&self, record: DecisionRecord) -> u64 {
        let record = Arc::new(record);
        let mut ring = self.ring.lock();
        let oldest = if ring.records.len() >= self.records_max {
            ring.gone += 1;
            ring.records.pop_front()
        } else {
            None
        };
        ring.records.push_back(record);
        let id = ring.gone + ring.records.len() as u64;
        drop(ring);
        // Freeing a record takes longer than keeping one.
        drop(oldest);
        id
    }

    /// Adds how a request ended, if its record is still kept.
    pub fn complete(&self, id: u64, outcome: OutcomeRecord) {
        let mut ring = self.ring.lock();
        let place = id.checked_sub(ring.gone + 1);
        let record = place.and_then(|place| ring.records.get_mut(place as usize));
        if let Some(record) = record {
            Arc::make_mut(record).outcome = Some(outcome);
        }
    }

    /// The newest first: at most `limit`, and only of this model where one is named.
    pub fn latest(&self, limit: usize, model: Option<&str>) -> Vec<Numbered> {
        let ring = self.ring.lock();
        let newest_first = ring.records.iter().enumerate().rev();
        let wanted = newest_first.filter(|(_, record)| {
            model.is_none_or(|model| record.model == model || record.target_model == model)
        });
        let numbered = wanted.take(limit).map(|(place, record)| Numbered {
            id: ring.gone + 1 + place as u64,
            record: Arc::clone(record),
        });
        numbered.collect()
    }
}

/// A decision as the value of a header: JSON in one line of printable ASCII, at most
/// [`HEADER_BYTES_MAX`] bytes. One that would be longer has fewer candidates, the worst left out
/// first, and says how many.
pub fn header_value(record: &DecisionRecord) -> String {
    let mut keep = CANDIDATES_MAX;
    loop {
        let text = one_line(&shortened(record, keep));
        if text.len() <= HEADER_BYTES_MAX {
            return text;
        }
        if keep == 0 {
            break;
        }
        keep /= 2;
    }
    // Only names that no operator gives are that long.
    one_line(&DecisionRecord {
        at_unix_ms: record.at_unix_ms,
        priority: record.priority,
        prompt_tokens: record.prompt_tokens,
        pick_us: record.pick_us,
        refused: Some("the decision is too long for a header".to_owned()),
        ..DecisionRecord::default()
    })
}

fn shortened(record: &DecisionRecord, keep: usize) -> DecisionRecord {
    let mut record = record.clone();
    for profile in &mut record.profiles {
        profile.left_out += profile.candidates.len().saturating_sub(keep);
        profile.candidates.truncate(keep);
    }
    record
}

/// JSON whose letters beyond ASCII are escaped.
fn one_line(record: &DecisionRecord) -> String {
    // A record has no map with keys that JSON lacks, which is all that could fail.
    let json = serde_json::to_string(record).unwrap_or_default();
    let mut text = String::with_capacity(json.len());
    for letter in json.chars() {
        if matches!(letter, ' '..='~') {
            text.push(letter);
            continue;
        }
        let mut halves = [0; 2];
        for half in letter.encode_utf16(&mut halves) {
            let _ = write!(text, "\\u{half:04x}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn record(model: &str) -> DecisionRecord {
        DecisionRecord {
            model: model.to_owned(),
            ..DecisionRecord::default()
        }
    }

    fn wide(candidates: usize, name: &str) -> DecisionRecord {
        let candidate = |number: usize| CandidateRecord {
            endpoint: format!("{name}-{number}"),
            total: number as f32,
            cached_tokens: 16,
            scores: vec![ScoreRecord {
                scorer: "queue-scorer",
                weight: 2.0,
                value: 0.5,
            }],
        };
        DecisionRecord {
            profiles: vec![ProfileRecord {
                profile: "default".to_owned(),
                endpoints: vec![format!("{name}-0")],
                reason: "highest score".to_owned(),
                candidates: (0..candidates).map(candidate).collect(),
                left_out: 0,
            }],
            ..DecisionRecord::default()
        }
    }

    #[test]
    fn the_ring_keeps_the_newest_and_their_numbers() {
        let log = DecisionLog::default();
        for number in 1..=RECORDS_MAX as u64 + 10 {
            assert_eq!(log.push(record(&format!("m{}", number % 2))), number);
        }
        let all = log.latest(usize::MAX, None);
        assert_eq!(all.len(), RECORDS_MAX);
        assert_eq!(all.first().map(|one| one.id), Some(266));
        assert_eq!(all.last().map(|one| one.id), Some(11));
        let of_model = log.latest(3, Some("m1"));
        let ids: Vec<u64> = of_model.iter().map(|one| one.id).collect();
        assert_eq!(ids, [265, 263, 261]);
    }

    #[test]
    fn an_outcome_finds_its_record_or_nothing() {
        let log = DecisionLog::default();
        let first = log.push(record("a"));
        let outcome = OutcomeRecord {
            status: 200,
            ..OutcomeRecord::default()
        };
        log.complete(first, outcome.clone());
        log.complete(0, outcome.clone());
        log.complete(99, outcome.clone());
        let all = log.latest(9, None);
        assert_eq!(all[0].record.outcome.as_ref(), Some(&outcome));
        for _ in 0..RECORDS_MAX {
            log.push(record("b"));
        }
        log.complete(first, outcome);
        let is_untouched = |one: &Numbered| one.record.outcome.is_none();
        assert!(log.latest(usize::MAX, None).iter().all(is_untouched));
    }

    #[test]
    fn a_record_reads_as_the_documented_json() {
        let log = DecisionLog::default();
        log.push(DecisionRecord {
            at_unix_ms: 7,
            request_id: "r".to_owned(),
            outcome: Some(OutcomeRecord {
                status: 200,
                ..OutcomeRecord::default()
            }),
            ..wide(1, "e")
        });
        let json = serde_json::to_value(log.latest(1, None)).unwrap();
        assert_eq!(
            json,
            json!([{
                "id": 1, "at_unix_ms": 7, "request_id": "r", "pool": "", "model": "",
                "target_model": "", "fairness_id": "", "priority": 0, "prompt_tokens": 0,
                "profiles": [{
                    "profile": "default", "endpoints": ["e-0"], "reason": "highest score",
                    "candidates": [{
                        "endpoint": "e-0", "total": 0.0, "cached_tokens": 16,
                        "scores": [{"scorer": "queue-scorer", "weight": 2.0, "value": 0.5}]
                    }]
                }],
                "pick_us": 0,
                "outcome": {"status": 200, "ttft_ms": null, "duration_ms": 0.0, "served": null,
                    "cached_tokens": null}
            }])
        );
    }

    #[test]
    fn a_wide_decision_fits_a_header_and_says_what_it_left_out() {
        let text = header_value(&wide(64, "pod"));
        assert!(text.len() <= HEADER_BYTES_MAX, "{}", text.len());
        let json: Value = serde_json::from_str(&text).unwrap();
        let profile = &json["profiles"][0];
        let kept = profile["candidates"].as_array().unwrap().len();
        assert!(kept > 8);
        assert_eq!(profile["left_out"], 64 - kept);
        assert_eq!(profile["candidates"][0]["endpoint"], "pod-0");
    }

    #[test]
    fn names_of_any_length_fit_a_header() {
        let text = header_value(&wide(1, &"x".repeat(5000)));
        assert!(text.len() <= HEADER_BYTES_MAX && text.contains("too long"));
    }

    proptest! {
        #[test]
        fn a_header_is_printable_ascii_and_the_same_json(model in ".{0,40}") {
            let text = header_value(&record(&model));
            prop_assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            let json: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(json["model"].as_str(), Some(model.as_str()));
        }

        #[test]
        fn the_best_candidates_are_kept_and_the_picked_come_first(
            totals in prop::collection::vec(-5.0_f32..5.0, 1..200),
            picked: prop::sample::Index,
        ) {
            let picked = picked.index(totals.len());
            let (places, left_out) = kept_candidates(&totals, &[picked]);
            prop_assert_eq!(places.len(), totals.len().min(CANDIDATES_MAX));
            prop_assert_eq!(places.len() + left_out, totals.len());
            prop_assert_eq!(places[0], picked);
            let rest: Vec<f32> = places[1..].iter().map(|place| totals[*place]).collect();
            prop_assert!(rest.is_sorted_by(|one, next| one >= next));
            let worst = rest.last().copied().unwrap_or(f32::MAX);
            let beaten = |place: &usize| totals[*place] <= worst;
            prop_assert!((0..totals.len()).filter(|at| !places.contains(at)).all(|at| beaten(&at)));
        }
    }
}
