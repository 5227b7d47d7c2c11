//! From a run's records to its numbers. Pure.
//!
//! Rates are of the window in which requests were due, not of the whole time: the last long answers, which come when
//! nothing is sent any more, say nothing about what the servers sustain. What came after the window does not count
//! towards them. Goodput counts requests by when they were due, so it is the offered rate times the share that met the
//! objective.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::record::{ErrorClass, Record, Slo};
use super::spread::{Latency, Spread};
use super::tally::Tally;
use crate::workload::Workload;

/// Parts that a run is cut into for plots over time.
const BINS: usize = 60;
/// Workers that are told apart; further ones count as one.
const WORKERS_MAX: usize = 256;
const OTHER_WORKERS: &str = "others";

/// One run in numbers. Latencies count from intended starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// What makes this run this one: `2 requests/s`, `8 at once`, `times × 2`.
    pub load: String,
    /// Requests a second that the plan asks for; of a closed loop what came of it.
    pub asked_rate: f64,
    pub planned: usize,
    pub sent: usize,
    pub succeeded: usize,
    pub failed: BTreeMap<ErrorClass, ErrorReport>,
    pub interrupted: bool,
    /// From the start to the last end.
    pub seconds: f64,
    /// From the start until the next request would have been due.
    pub window_seconds: f64,
    /// Whole answers within the window.
    pub requests_per_second: f64,
    pub prompt_tokens: u64,
    pub prompt_tokens_per_second: f64,
    pub answer_tokens: u64,
    pub answer_tokens_per_second: f64,
    /// Requests due that met the objective, a second of the window, and their share of all that were due.
    pub goodput: f64,
    pub good_share: f64,
    pub cached: CachedReport,
    /// To the first token.
    pub ttft: Option<Latency>,
    /// Between events with tokens, over all requests.
    pub itl: Option<Latency>,
    /// The mean between two tokens of each request.
    pub mean_itl: Option<Latency>,
    /// To the end.
    pub whole: Option<Latency>,
    /// How late the load generator itself sent: large values mean that this machine is the bottleneck.
    pub send_lag: Option<Latency>,
    pub workers: Vec<WorkerReport>,
    pub over_time: Vec<Bin>,
}

/// Failures of one class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ErrorReport {
    pub count: usize,
    pub examples: Vec<String>,
}

/// What was found in prefix caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CachedReport {
    /// Whether any answer said how much was cached.
    pub is_known: bool,
    /// Prompt tokens of the requests that said so, and how many of them were cached.
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub share: f64,
    /// What one cache without bounds would have found in the whole plan.
    pub bound_share: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerReport {
    pub name: String,
    pub requests: usize,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub answer_tokens: u64,
}

/// A stretch of time; requests belong to the one that they were due in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Its middle, in seconds.
    pub at: f64,
    pub requests_per_second: f64,
    pub failed_per_second: f64,
    pub ttft_p50_ms: Option<f64>,
    pub ttft_p99_ms: Option<f64>,
    pub cached_share: Option<f64>,
}

/// The report of one run.
pub(super) fn summarise(
    load: String,
    asked_rate: Option<f64>,
    workload: &Workload,
    tally: &Tally,
    slo: Slo,
) -> RunReport {
    let records = &tally.records;
    let seconds = records.iter().map(|one| one.end).fold(0.0, f64::max);
    let window = window(records, seconds);
    let ok = || records.iter().filter(|one| one.is_ok());
    let per_second = |count: f64| if window > 0.0 { count / window } else { 0.0 };
    // From 0 on: the sum of nothing would be -0.
    let within =
        |of: fn(&Record, f64) -> f64| per_second(ok().fold(0.0, |sum, one| sum + of(one, window)));
    let succeeded = ok().count();
    let good = records.iter().filter(|one| slo.is_met(one)).count();
    let prompt_tokens: u64 = ok().map(|one| one.prompt_tokens).sum();
    let answer_tokens: u64 = ok().map(|one| one.answer_tokens).sum();
    RunReport {
        load,
        asked_rate: asked_rate.unwrap_or_else(|| per_second(tally.sent as f64)),
        planned: workload.requests.len(),
        sent: tally.sent,
        succeeded,
        failed: failures(tally),
        interrupted: tally.interrupted,
        seconds,
        window_seconds: window,
        requests_per_second: within(|one, window| f64::from(u8::from(one.end <= window))),
        prompt_tokens,
        prompt_tokens_per_second: within(prompt_tokens_until),
        answer_tokens,
        answer_tokens_per_second: within(answer_tokens_until),
        goodput: per_second(good as f64),
        good_share: ratio(good as u64, records.len() as u64),
        cached: cached(ok(), workload.sharing().token_share()),
        ttft: Spread::of(ok().filter_map(Record::ttft)).summary(),
        itl: tally.gaps.summary(),
        mean_itl: Spread::of(ok().filter_map(Record::mean_itl)).summary(),
        whole: Spread::of(ok().map(Record::whole)).summary(),
        send_lag: Spread::of(records.iter().filter_map(Record::send_lag)).summary(),
        workers: workers(ok()),
        over_time: over_time(records, seconds),
    }
}

/// Until one mean gap after the last request was due; of a single request, until its end.
fn window(records: &[Record], seconds: f64) -> f64 {
    let last = records.iter().map(|one| one.intended).fold(0.0, f64::max);
    match records.len() {
        count if count > 1 && last > 0.0 => last * count as f64 / (count - 1) as f64,
        _ => seconds,
    }
}

/// A prompt has been computed when its first token comes.
fn prompt_tokens_until(record: &Record, time: f64) -> f64 {
    let is_computed = record.first_token.is_some_and(|first| first <= time);
    if is_computed {
        record.prompt_tokens as f64
    } else {
        0.0
    }
}

/// Tokens come evenly between the first and the last.
fn answer_tokens_until(record: &Record, time: f64) -> f64 {
    let (Some(first), Some(last)) = (record.first_token, record.last_token) else {
        return 0.0;
    };
    let tokens = record.answer_tokens as f64;
    if last <= time {
        tokens
    } else if first <= time && last > first {
        (tokens - 1.0).mul_add((time - first) / (last - first), 1.0)
    } else {
        0.0
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

fn failures(tally: &Tally) -> BTreeMap<ErrorClass, ErrorReport> {
    let mut failures: BTreeMap<ErrorClass, ErrorReport> = BTreeMap::new();
    for failure in tally.records.iter().filter_map(|one| one.failure.as_ref()) {
        failures.entry(failure.class).or_default().count += 1;
    }
    for (class, examples) in &tally.examples {
        failures
            .entry(*class)
            .or_default()
            .examples
            .clone_from(examples);
    }
    failures
}

fn cached<'a>(records: impl Iterator<Item = &'a Record>, bound_share: f64) -> CachedReport {
    let mut report = CachedReport {
        bound_share,
        ..CachedReport::default()
    };
    for record in records {
        if let Some(cached) = record.cached_tokens {
            report.is_known = true;
            report.prompt_tokens += record.prompt_tokens;
            report.cached_tokens += cached;
        }
    }
    report.share = ratio(report.cached_tokens, report.prompt_tokens);
    report
}

fn workers<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<WorkerReport> {
    let mut workers: BTreeMap<&str, WorkerReport> = BTreeMap::new();
    for record in records {
        let Some(name) = record.worker.as_deref() else {
            continue;
        };
        let is_known = workers.contains_key(name) || workers.len() < WORKERS_MAX;
        let name = if is_known { name } else { OTHER_WORKERS };
        let worker = workers.entry(name).or_default();
        worker.requests += 1;
        worker.prompt_tokens += record.prompt_tokens;
        worker.cached_tokens += record.cached_tokens.unwrap_or(0);
        worker.answer_tokens += record.answer_tokens;
    }
    let named = workers.into_iter().map(|(name, worker)| WorkerReport {
        name: name.to_owned(),
        ..worker
    });
    named.collect()
}

fn over_time(records: &[Record], seconds: f64) -> Vec<Bin> {
    let last = records.iter().map(|one| one.intended).fold(0.0, f64::max);
    // A second is the shortest that says something about a rate.
    let width = (last.min(seconds) / BINS as f64).max(1.0);
    let mut bins: BTreeMap<usize, Vec<&Record>> = BTreeMap::new();
    for record in records {
        bins.entry((record.intended / width) as usize)
            .or_default()
            .push(record);
    }
    let bin = |(index, records): (usize, Vec<&Record>)| {
        let ok = || records.iter().copied().filter(|one| one.is_ok());
        let ttft = Spread::of(ok().filter_map(Record::ttft)).summary();
        let cached = cached(ok(), 0.0);
        let failed = records.len() - ok().count();
        Bin {
            at: (index as f64 + 0.5) * width,
            requests_per_second: records.len() as f64 / width,
            failed_per_second: failed as f64 / width,
            ttft_p50_ms: ttft.as_ref().map(|ttft| ttft.p50_ms),
            ttft_p99_ms: ttft.as_ref().map(|ttft| ttft.p99_ms),
            cached_share: cached.is_known.then_some(cached.share),
        }
    };
    bins.into_iter().map(bin).collect()
}

#[cfg(test)]
mod tests {
    use super::super::record::Failure;
    use super::*;

    fn tally() -> Tally {
        let mut tally = Tally::new();
        tally.sent = 3;
        for second in 0..4 {
            let at = f64::from(second);
            tally.take(Record {
                request: second as usize,
                intended: at,
                sent: Some(at + 0.001),
                first_token: Some(at + 0.1 * (at + 1.0)),
                last_token: Some(at + 0.9),
                end: at + 1.0,
                prompt_tokens: 100,
                cached_tokens: Some(50),
                answer_tokens: 9,
                worker: Some(["a", "b"][second as usize % 2].to_owned()),
                failure: (second == 3).then(|| Failure::new(ErrorClass::Status4xx, "status 404")),
                gaps_us: vec![100_000; 8],
                ..Record::default()
            });
        }
        tally
    }

    fn summary(slo: Slo) -> RunReport {
        summarise(
            "1 requests/s".to_owned(),
            Some(1.0),
            &Workload::default(),
            &tally(),
            slo,
        )
    }

    #[test]
    fn numbers_are_of_what_succeeded_over_the_whole_time() {
        let report = summary(Slo::default());
        assert_eq!(
            (
                report.succeeded,
                report.failed[&ErrorClass::Status4xx].count
            ),
            (3, 1)
        );
        assert_eq!(
            report.failed[&ErrorClass::Status4xx].examples,
            ["status 404"]
        );
        assert!((report.seconds - 4.0).abs() < 1e-9);
        assert!((report.requests_per_second - 0.75).abs() < 1e-9);
        assert_eq!(
            (report.answer_tokens, report.cached.cached_tokens),
            (27, 150)
        );
        assert!((report.cached.share - 0.5).abs() < 1e-9);
        let ttft = report.ttft.unwrap();
        assert_eq!(ttft.count, 3);
        assert!((ttft.max_ms / 300.0 - 1.0).abs() < 0.002, "{}", ttft.max_ms);
        assert_eq!(report.itl.unwrap().count, 32);
        let requests: Vec<_> = report
            .workers
            .iter()
            .map(|one| (one.name.as_str(), one.requests))
            .collect();
        assert_eq!(requests, [("a", 2), ("b", 1)]);
        assert_eq!(report.over_time.len(), 4);
        assert!((report.over_time[3].failed_per_second - 1.0).abs() < 1e-9);
    }

    #[test]
    fn rates_of_nothing_are_0_and_not_less() {
        let mut tally = Tally::new();
        tally.sent = 1;
        tally.take(Record {
            end: 1.0,
            failure: Some(Failure::new(ErrorClass::Connect, "refused")),
            ..Record::default()
        });
        let none = &Workload::default();
        let report = summarise(String::new(), None, none, &tally, Slo::default());
        let rates = [
            report.requests_per_second,
            report.prompt_tokens_per_second,
            report.answer_tokens_per_second,
            report.goodput,
        ];
        assert!(rates.iter().all(|rate| rate.to_bits() == 0), "{rates:?}");
    }

    #[test]
    fn rates_leave_out_what_came_after_the_window() {
        let mut tally = Tally::new();
        for (intended, end) in [(0.0, 1.0), (1.0, 11.0)] {
            tally.take(Record {
                intended,
                first_token: Some(intended + 0.5),
                last_token: Some(end),
                end,
                prompt_tokens: 100,
                answer_tokens: 20,
                ..Record::default()
            });
        }
        let report = summarise(
            String::new(),
            None,
            &Workload::default(),
            &tally,
            Slo::default(),
        );
        // Two requests a second apart: the third would have been due after two seconds.
        assert!((report.window_seconds - 2.0).abs() < 1e-9);
        assert!((report.seconds - 11.0).abs() < 1e-9);
        assert!((report.requests_per_second - 0.5).abs() < 1e-9);
        assert!((report.goodput - 1.0).abs() < 1e-9);
        assert!((report.prompt_tokens_per_second - 100.0).abs() < 1e-9);
        // The second answer's first token, and one nineteenth of the rest for each half second of its 9.5.
        assert!((report.answer_tokens_per_second - 11.0).abs() < 1e-9);
    }

    #[test]
    fn goodput_counts_what_met_the_objective() {
        let slo = Slo {
            ttft: Some(0.25),
            itl: None,
        };
        let report = summary(slo);
        assert!((report.goodput - 0.5).abs() < 1e-9);
        assert!((report.good_share - 0.5).abs() < 1e-9);
        assert!((summary(Slo::default()).goodput - 0.75).abs() < 1e-9);
    }

    #[test]
    fn a_report_survives_its_file() {
        let report = summary(Slo::default());
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<RunReport>(&text).unwrap(), report);
        assert!(text.contains("\"status4xx\":{\"count\":1"));
    }
}
