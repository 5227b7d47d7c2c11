//! The fleet as a whole: same seed, same result; deaths, late comers and slow workers cost what they must and no request.

use pointsman_engine::backend::sim::{Gpu, ModelShape, TimeModel};

use super::*;
use crate::simulate::outcome::{Slo, Summary, summarize};
use crate::workload::generate::{GenerateOptions, Kind, generate};

fn workload(kind: Kind, requests: usize, rate: f64) -> Workload {
    let options = GenerateOptions {
        seed: 7,
        rate,
        requests: Some(requests),
        duration: None,
    };
    generate(&kind.shape(None).unwrap(), options).unwrap()
}

fn fleet(workers: usize) -> WorldOptions {
    let model = ModelShape::named("llama-3.1-8b").unwrap();
    let time = TimeModel::new(model, Gpu::named("h100").unwrap(), 1).unwrap();
    WorldOptions {
        workers,
        replicas: 1,
        worker: WorkerOptions::new(time, VOCABULARY, 64),
        delays: Delays::default(),
        happenings: Vec::new(),
        seed: 1,
    }
}

fn summary(workload: &Workload, policy: &str, options: &WorldOptions) -> Summary {
    let run = run(workload, policy, options).unwrap();
    let end = workload.requests.last().unwrap().at;
    summarize(policy, &run.records, &run.queues, &Slo::default(), end)
}

#[test]
fn every_policy_serves_every_request_and_a_seed_means_the_same_twice() {
    let workload = workload(Kind::Agents, 60, 2.0);
    for policy in super::super::policies::NAMES {
        let figures = || serde_json::to_string(&summary(&workload, policy, &fleet(3))).unwrap();
        let first = figures();
        assert!(first.contains("\"failed\":0"), "{policy}: {first}");
        assert_eq!(first, figures(), "{policy}");
    }
}

#[test]
fn first_tokens_told_at_the_end_change_what_is_picked_and_lose_nothing() {
    let workload = workload(Kind::Agents, 60, 2.0);
    let mut late = fleet(3);
    late.delays.first_tokens_at_end = true;
    let both = |policy: &str| {
        let [now, late] = [&fleet(3), &late].map(|fleet| {
            let mut summary = summary(&workload, policy, fleet);
            summary.cpu_s = 0.0;
            assert_eq!((summary.requests, summary.failed), (60, 0), "{policy}");
            serde_json::to_string(&summary).unwrap()
        });
        (now, late)
    };
    // Who does not listen is not disturbed.
    let (now, late) = both("round-robin");
    assert_eq!(now, late);
    let (now, late) = both("expected-ttft");
    assert_ne!(now, late);
}

#[test]
fn a_picker_that_knows_prefixes_finds_more_of_them_than_one_that_does_not() {
    let workload = workload(Kind::Agents, 300, 3.0);
    let cached = |policy: &str| summary(&workload, policy, &fleet(4)).cached_share;
    let (ours, bound) = (cached("expected-ttft"), cached("bound"));
    assert!(ours > cached("round-robin"), "{ours}");
    assert!(bound > ours * 0.98, "{bound} {ours}");
}

#[test]
fn a_worker_that_dies_costs_no_request_that_had_no_token_and_a_late_one_is_used() {
    let workload = workload(Kind::SharedPrompts, 200, 4.0);
    let mut options = fleet(3);
    let at = Duration::from_secs;
    options.happenings = vec![
        Happening {
            at: at(10),
            worker: 0,
            what: Fate::Dies,
        },
        Happening {
            at: at(15),
            worker: 2,
            what: Fate::Joins,
        },
    ];
    let run = run(&workload, "expected-ttft", &options).unwrap();
    for record in &run.records {
        let is_lost = record.ended.is_none();
        assert!(
            !is_lost || record.first_token.is_some_and(|first| first < at(11)),
            "{record:?}"
        );
        if record.arrived > at(10) {
            assert_ne!(record.worker, Some(0), "{record:?}");
        }
    }
    assert!(run.records.iter().any(|record| record.worker == Some(2)));
}

#[test]
fn a_slow_worker_gets_less() {
    let workload = workload(Kind::Unique, 300, 6.0);
    let mut options = fleet(4);
    options.happenings = vec![Happening {
        at: Duration::ZERO,
        worker: 1,
        what: Fate::Slows(10.0),
    }];
    let run = run(&workload, "expected-ttft", &options).unwrap();
    let of = |worker| {
        run.records
            .iter()
            .filter(|record| record.worker == Some(worker))
            .count()
    };
    assert!(of(1) * 3 < of(0), "{} {}", of(1), of(0));
}

#[test]
fn replicas_share_the_requests_and_nonsense_is_refused() {
    let workload = workload(Kind::Unique, 50, 5.0);
    let mut options = fleet(2);
    options.replicas = 3;
    assert_eq!(summary(&workload, "expected-ttft", &options).failed, 0);
    options.happenings = vec![Happening {
        at: Duration::ZERO,
        worker: 9,
        what: Fate::Dies,
    }];
    assert!(run(&workload, "random", &options).is_err());
    options.workers = 0;
    assert!(run(&workload, "random", &options).is_err());
}

#[test]
fn a_worker_that_goes_idle_and_busy_again_has_one_reader_a_replica() {
    let workload = workload(Kind::Unique, 400, 2.0);
    let mut options = fleet(2);
    options.replicas = 2;
    let run = run(&workload, "expected-ttft", &options).unwrap();
    let end = run.records.iter().filter_map(|record| record.ended).max();
    let seconds = end.unwrap().as_secs_f64();
    // Busy pages come every 45 to 55 ms, and each request may wake a reader once.
    let most = 4.0 * seconds / 0.045 + workload.requests.len() as f64;
    assert!((run.pages as f64) < most, "{} of {most}", run.pages);
}

const AT_MOST_TWO_EACH: &str = "\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
featureGates: [flowControl]
plugins:
- type: expected-ttft-scorer
- type: concurrency-detector
  parameters: {concurrencyMode: requests, maxConcurrency: 2}
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: expected-ttft-scorer
    weight: 1
saturationDetector:
  pluginRef: concurrency-detector
";

#[test]
fn requests_wait_at_the_gate_that_a_configuration_asks_for() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), AT_MOST_TWO_EACH).unwrap();
    let policy = format!("file:{}", file.path().display());
    let workload = workload(Kind::Unique, 200, 8.0);
    let most_at_once = |policy: &str| {
        let run = run(&workload, policy, &fleet(3)).unwrap();
        assert!(run.records.iter().all(|record| record.ended.is_some()));
        let sent = run.records.iter().map(|record| (record.sent, 1));
        let ended = run
            .records
            .iter()
            .filter_map(|record| Some((record.ended?, -1)));
        let mut changes: Vec<(Duration, i32)> = sent.chain(ended).collect();
        changes.sort_unstable();
        let mut there = 0;
        let counts = changes.iter().map(|(_, change)| {
            there += change;
            there
        });
        counts.max().unwrap()
    };
    assert_eq!(most_at_once(&policy), 6);
    assert!(most_at_once("expected-ttft") > 6);
}
