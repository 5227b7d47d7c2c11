//! What is measured of requests, for one set of the field's request labels.
//!
//! The pipeline finds a set once a request and keeps it; recording then touches atomics only. The
//! histograms of a set are made when it is, for the first [`HISTOGRAM_SETS_MAX`] sets; later ones
//! record into those of `other`, so that neither memory nor the page grows with what clients send.

use std::sync::Arc;

use parking_lot::Mutex;

use super::catalogue as names;
use super::cells::{Counter, Gauge, Histogram, Last};
use super::exposition::{Labels, Page, Sample};
use super::family::Family;
use super::groups::{Group, Names, OTHER, Series};

/// Sets of request labels with series of their own; the rest share `other`.
pub const REQUEST_SETS_MAX: usize = 10_000;

/// Sets of request labels with histograms of their own.
pub const HISTOGRAM_SETS_MAX: usize = 1000;

/// Error codes with a series of their own in one set; the rest are `other`. The picker has a dozen.
const ERROR_CODES_MAX: usize = 32;

/// The labels of a request, as the field has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestLabels<'a> {
    /// The model that the client asked for.
    pub model: &'a str,
    /// The model that it gets.
    pub target_model: &'a str,
    pub fairness_id: &'a str,
    pub priority: i32,
}

impl<'a> RequestLabels<'a> {
    /// A request for a model of which nothing else is known.
    pub fn of_model(model: &'a str) -> Self {
        Self {
            model,
            target_model: model,
            fairness_id: DEFAULT_FAIRNESS_ID,
            priority: 0,
        }
    }
}

/// The fairness id of requests that name none.
pub const DEFAULT_FAIRNESS_ID: &str = "default-flow";

/// The kinds of target that a client may set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slo {
    Ttft,
    Tpot,
}

/// What the latest request of a set measured, or what was predicted for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Latest {
    Ttft,
    Tpot,
    PredictedTtft,
    PredictedTpot,
}

const SLO_TYPES: [&str; 2] = ["ttft", "tpot"];
const LATEST_TYPES: [&str; 4] = ["ttft", "tpot", "predicted_ttft", "predicted_tpot"];

/// The measurements of one set of labels.
#[derive(Debug)]
pub struct RequestSeries {
    pub total: Counter,
    pub running: Gauge,
    pub aborted_total: Counter,
    histograms: Arc<Histograms>,
    slo_violations: [Counter; 2],
    latest: [Last; 4],
    errors: Mutex<Vec<(&'static str, u64)>>,
}

/// Histograms of one set of labels, or of several past the bound.
#[derive(Debug)]
pub struct Histograms {
    /// Seconds.
    pub duration: Histogram,
    /// Bytes.
    pub request_size: Histogram,
    /// Bytes.
    pub response_size: Histogram,
    pub input_tokens: Histogram,
    pub output_tokens: Histogram,
    pub cached_tokens: Histogram,
    pub predicted_cached_tokens: Histogram,
    /// Seconds.
    pub tpot: Histogram,
    /// Seconds.
    pub itl: Histogram,
    /// Seconds.
    pub predicted_ttft: Histogram,
    /// Seconds.
    pub predicted_tpot: Histogram,
    /// Seconds.
    pub ttft_prediction: Histogram,
    /// Seconds.
    pub tpot_prediction: Histogram,
    ntpot: Histogram,
    /// Of whole responses, and of streamed ones.
    ttft: [Histogram; 2],
    labels: Labels,
    ttft_labels: [Labels; 2],
}

impl std::ops::Deref for RequestSeries {
    type Target = Histograms;

    fn deref(&self) -> &Histograms {
        &self.histograms
    }
}

impl RequestSeries {
    /// Counts a request that ended in an error: the picker's own refusal, or a status of 400 and up
    /// from the worker.
    pub fn error(&self, code: &'static str) {
        let mut errors = self.errors.lock();
        let is_known = errors.iter().any(|(known, _)| *known == code);
        let code = if is_known || errors.len() < ERROR_CODES_MAX {
            code
        } else {
            OTHER
        };
        match errors.iter_mut().find(|(known, _)| *known == code) {
            Some((_, count)) => *count += 1,
            None => errors.push((code, 1)),
        }
    }

    /// Seconds from a complete request to the first byte of its response.
    pub fn first_token(&self, seconds: f64, is_streaming: bool) {
        let [whole, streamed] = &self.histograms.ttft;
        let ttft = if is_streaming { streamed } else { whole };
        ttft.record(seconds);
        self.latest(Latest::Ttft, seconds);
    }

    /// A finished response: its duration in seconds, and its tokens where they are known.
    pub fn finished(&self, seconds: f64, output_tokens: Option<u64>) {
        self.duration.record(seconds);
        if let Some(tokens) = output_tokens.filter(|tokens| *tokens > 0) {
            self.histograms.ntpot.record(seconds / tokens as f64);
        }
    }

    /// Counts a missed target.
    pub fn slo_violated(&self, slo: Slo) {
        let [ttft, tpot] = &self.slo_violations;
        let violations = match slo {
            Slo::Ttft => ttft,
            Slo::Tpot => tpot,
        };
        violations.increment(1);
    }

    /// Keeps the latest value in seconds.
    pub fn latest(&self, of: Latest, seconds: f64) {
        let [ttft, tpot, predicted_ttft, predicted_tpot] = &self.latest;
        let last = match of {
            Latest::Ttft => ttft,
            Latest::Tpot => tpot,
            Latest::PredictedTtft => predicted_ttft,
            Latest::PredictedTpot => predicted_tpot,
        };
        last.set(seconds);
    }

    fn new(histograms: Arc<Histograms>) -> Self {
        Self {
            total: Counter::default(),
            running: Gauge::default(),
            aborted_total: Counter::default(),
            histograms,
            slo_violations: Default::default(),
            latest: Default::default(),
            errors: Mutex::default(),
        }
    }
}

impl Histograms {
    fn new(labels: Labels) -> Self {
        let of = |family: &Family| Histogram::new(family.buckets);
        Self {
            duration: of(&names::REQUEST_SECONDS),
            request_size: of(&names::REQUEST_SIZE),
            response_size: of(&names::RESPONSE_SIZE),
            input_tokens: of(&names::REQUEST_INPUT_TOKENS),
            output_tokens: of(&names::REQUEST_OUTPUT_TOKENS),
            cached_tokens: of(&names::REQUEST_CACHED_TOKENS),
            predicted_cached_tokens: of(&names::PREDICTED_CACHED_TOKENS),
            tpot: of(&names::REQUEST_TPOT),
            itl: of(&names::REQUEST_ITL),
            predicted_ttft: of(&names::PREDICTED_TTFT),
            predicted_tpot: of(&names::PREDICTED_TPOT),
            ttft_prediction: of(&names::TTFT_PREDICTION_SECONDS),
            tpot_prediction: of(&names::TPOT_PREDICTION_SECONDS),
            ntpot: of(&names::REQUEST_NTPOT),
            ttft: [of(&names::REQUEST_TTFT), of(&names::REQUEST_TTFT)],
            ttft_labels: ["false", "true"].map(|streaming| labels.with("streaming", streaming)),
            labels,
        }
    }
}

/// The measurements of all requests.
#[derive(Debug)]
pub struct Requests {
    sets: Group<RequestSeries>,
    /// Of the sets past [`HISTOGRAM_SETS_MAX`].
    shared: Arc<Histograms>,
}

impl Default for Requests {
    fn default() -> Self {
        let shared = Arc::new(Histograms::new(Labels::new(names::OF_REQUEST, &[OTHER; 4])));
        let beyond = Arc::clone(&shared);
        let make = move |position, labels: &Labels| {
            let histograms = if position < HISTOGRAM_SETS_MAX {
                Arc::new(Histograms::new(labels.clone()))
            } else {
                Arc::clone(&beyond)
            };
            RequestSeries::new(histograms)
        };
        Self {
            sets: Group::numbered(names::OF_REQUEST, REQUEST_SETS_MAX, make),
            shared,
        }
    }
}

impl Requests {
    /// The set of these labels, whose names are admitted first where the set is new.
    pub(super) fn of(
        &self,
        labels: &RequestLabels<'_>,
        models: &Names,
        fairness_ids: &Names,
    ) -> Arc<Series<RequestSeries>> {
        let priority = priority_text(labels.priority);
        let given = [
            labels.model,
            labels.target_model,
            labels.fairness_id,
            &priority,
        ];
        self.sets.find(&given).unwrap_or_else(|| {
            self.sets.with(&[
                models.admit(labels.model),
                models.admit(labels.target_model),
                fairness_ids.admit(labels.fairness_id),
                &priority,
            ])
        })
    }

    pub(super) fn write(&self, page: &mut Page) {
        let sets = &self.sets;
        sets.write(&names::REQUEST_TOTAL, page, |set| {
            Some(Sample::Count(set.total.get()))
        });
        write_errors(&sets.all(), page);
        sets.write(&names::REQUEST_RUNNING, page, |set| {
            Some(Sample::Number(set.running.get() as f64))
        });
        sets.write(&names::REQUEST_ABORTED_TOTAL, page, |set| {
            Some(Sample::Count(set.aborted_total.get()))
        });
        write_typed(&sets.all(), page);
        self.write_histograms(page);
    }

    fn write_histograms(&self, page: &mut Page) {
        let own = self.sets.all();
        let own = own.iter().take(HISTOGRAM_SETS_MAX);
        let mut all: Vec<Arc<Histograms>> = own.map(|set| Arc::clone(&set.histograms)).collect();
        all.push(Arc::clone(&self.shared));
        for (family, histogram) in OF_SET {
            let series = all.iter().map(|set| (&set.labels, histogram(set)));
            page.write(family, series.filter(is_used).map(as_sample));
        }
        let ttft = all
            .iter()
            .flat_map(|set| set.ttft_labels.iter().zip(&set.ttft));
        page.write(&names::REQUEST_TTFT, ttft.filter(is_used).map(as_sample));
    }
}

/// A histogram that took nothing in has no series: most requests fill half of them, and each is some
/// forty lines.
fn is_used(series: &(&Labels, &Histogram)) -> bool {
    series.1.count() > 0
}

fn as_sample<'a>((labels, histogram): (&'a Labels, &'a Histogram)) -> (&'a Labels, Sample<'a>) {
    (labels, Sample::Histogram(histogram))
}

type Pick = fn(&Histograms) -> &Histogram;

const OF_SET: [(&Family, Pick); 14] = [
    (&names::REQUEST_SECONDS, |set| &set.duration),
    (&names::REQUEST_SIZE, |set| &set.request_size),
    (&names::RESPONSE_SIZE, |set| &set.response_size),
    (&names::REQUEST_INPUT_TOKENS, |set| &set.input_tokens),
    (&names::REQUEST_OUTPUT_TOKENS, |set| &set.output_tokens),
    (&names::REQUEST_CACHED_TOKENS, |set| &set.cached_tokens),
    (&names::PREDICTED_CACHED_TOKENS, |set| {
        &set.predicted_cached_tokens
    }),
    (&names::REQUEST_NTPOT, |set| &set.ntpot),
    (&names::REQUEST_TPOT, |set| &set.tpot),
    (&names::REQUEST_ITL, |set| &set.itl),
    (&names::PREDICTED_TTFT, |set| &set.predicted_ttft),
    (&names::PREDICTED_TPOT, |set| &set.predicted_tpot),
    (&names::TTFT_PREDICTION_SECONDS, |set| &set.ttft_prediction),
    (&names::TPOT_PREDICTION_SECONDS, |set| &set.tpot_prediction),
];

fn write_errors(sets: &[Arc<Series<RequestSeries>>], page: &mut Page) {
    let mut counts = Vec::new();
    for set in sets {
        for (code, count) in set.errors.lock().iter() {
            counts.push((set.labels.with("error_code", code), *count));
        }
    }
    let series = counts
        .iter()
        .map(|(labels, count)| (labels, Sample::Count(*count)));
    page.write(&names::REQUEST_ERROR_TOTAL, series);
}

fn write_typed(sets: &[Arc<Series<RequestSeries>>], page: &mut Page) {
    let (mut violations, mut latest) = (Vec::new(), Vec::new());
    for set in sets {
        for (name, count) in SLO_TYPES.iter().zip(&set.slo_violations) {
            if count.get() > 0 {
                violations.push((set.labels.with("type", name), count.get()));
            }
        }
        for (name, last) in LATEST_TYPES.iter().zip(&set.latest) {
            if let Some(value) = last.get() {
                latest.push((set.labels.with("type", name), value));
            }
        }
    }
    let counts = violations
        .iter()
        .map(|(labels, count)| (labels, Sample::Count(*count)));
    page.write(&names::SLO_VIOLATION_TOTAL, counts);
    let numbers = latest
        .iter()
        .map(|(labels, value)| (labels, Sample::Number(*value)));
    page.write(&names::REQUEST_METRIC, numbers);
}

/// Nearly every request has the default priority.
pub(super) fn priority_text(priority: i32) -> std::borrow::Cow<'static, str> {
    match priority {
        0 => "0".into(),
        other => other.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> (Names, Names) {
        (Names::new(5000), Names::new(5000))
    }

    #[test]
    fn sets_past_the_bound_share_histograms_and_keep_their_counts() {
        let requests = Requests::default();
        let (models, ids) = names();
        for number in 0..HISTOGRAM_SETS_MAX + 3 {
            let model = format!("m{number}");
            let set = requests.of(&RequestLabels::of_model(&model), &models, &ids);
            set.total.increment(1);
            set.finished(1.0, Some(10));
        }
        let mut page = Page::new();
        requests.write(&mut page);
        let lines = |start: &str| {
            page.text()
                .lines()
                .filter(|line| line.starts_with(start))
                .count()
        };
        assert_eq!(lines("llm_d_epp_request_total{"), HISTOGRAM_SETS_MAX + 3);
        assert_eq!(
            lines("llm_d_epp_request_duration_seconds_count{"),
            HISTOGRAM_SETS_MAX + 1
        );
        let other = r#"llm_d_epp_request_ntpot_seconds_count{model_name="other",target_model_name="other",fairness_id="other",priority="other"} 3"#;
        assert!(page.text().contains(other));
    }

    /// The earlier names know no fairness id, and the running gauge no target model either.
    #[test]
    fn earlier_names_have_their_own_labels() {
        let requests = Requests::default();
        let (models, ids) = names();
        for (fairness_id, target_model) in [("a", "x"), ("b", "x"), ("b", "y")] {
            let labels = RequestLabels {
                model: "m",
                target_model,
                fairness_id,
                priority: -1,
            };
            let set = requests.of(&labels, &models, &ids);
            set.total.increment(1);
            set.running.increment();
            set.error("BadRequest");
            set.first_token(0.3, fairness_id == "a");
        }
        let mut page = Page::new();
        requests.write(&mut page);
        for line in [
            r#"inference_objective_request_total{model_name="m",target_model_name="x",priority="-1"} 2"#,
            r#"inference_objective_running_requests{model_name="m"} 3"#,
            r#"inference_objective_request_error_total{model_name="m",target_model_name="x",error_code="BadRequest"} 2"#,
            r#"inference_objective_request_ttft_seconds_bucket{model_name="m",target_model_name="x",le="0.4"} 2"#,
            r#"llm_d_epp_request_ttft_seconds_count{model_name="m",target_model_name="x",fairness_id="a",priority="-1",streaming="true"} 1"#,
        ] {
            assert!(
                page.text().lines().any(|written| written == line),
                "{line}
is missing from
{}",
                page.text()
            );
        }
    }

    #[test]
    fn error_codes_are_bounded() {
        let requests = Requests::default();
        let (models, ids) = names();
        let set = requests.of(&RequestLabels::of_model("m"), &models, &ids);
        for number in 0..ERROR_CODES_MAX + 5 {
            set.error(Box::leak(format!("e{number}").into_boxed_str()));
        }
        set.error("e0");
        assert_eq!(set.errors.lock().len(), ERROR_CODES_MAX + 1);
        assert_eq!(set.errors.lock().last(), Some(&(OTHER, 5)));
        assert_eq!(set.errors.lock().first(), Some(&("e0", 2)));
    }
}
