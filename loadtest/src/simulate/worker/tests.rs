//! The worker against itself: looked at often or seldom, with runs of decodes or step by step, it does the same.

mod cost;

use pointsman_engine::backend::sim::{Gpu, ModelShape, TimeModel};
use proptest::prelude::*;

use super::*;
use crate::workload::tokens::{Vocabulary, write_ids};

const VOCABULARY: Vocabulary = Vocabulary {
    first: 100,
    count: 30_000,
};

fn options(block_size: u32) -> WorkerOptions {
    let model = ModelShape::named("llama-3.1-8b").unwrap();
    let time = TimeModel::new(model, Gpu::named("h100").unwrap(), 1).unwrap();
    WorkerOptions::new(time, VOCABULARY, block_size)
}

/// A prompt that shares its beginning with those of its family.
fn request(key: u32, family: u64, shared: u32, own: u32, answer: u32) -> WorkerRequest {
    let segment = |id, tokens| Segment { id, tokens };
    let prompt = [
        segment(family, shared),
        segment(1_000 + u64::from(key), own),
    ];
    let mut ids = Vec::new();
    write_ids(&prompt, VOCABULARY, &mut ids);
    WorkerRequest {
        key,
        prompt: ids,
        digests: Vec::new(),
        answer: segment(1_000_000 + u64::from(key), answer),
    }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Calls the worker whenever it says that something is to be seen, and gets nothing but at those times.
fn follow(worker: &mut SimWorker, until: Duration, out: &mut Vec<Seen>) {
    while let Some(next) = worker.next_at(true).filter(|next| *next <= until) {
        let before = out.len();
        worker.advance(next, out);
        assert!(out[before..].iter().all(|seen| seen.at == next), "late");
    }
}

#[derive(Clone, Debug)]
struct Asked {
    at: u64,
    family: u64,
    shared: u32,
    own: u32,
    answer: u32,
}

fn asked() -> impl Strategy<Value = Asked> {
    (0_u64..4_000, 0_u64..3, 0_u32..600, 1_u32..600, 1_u32..150).prop_map(
        |(at, family, shared, own, answer)| Asked {
            at,
            family,
            shared,
            own,
            answer,
        },
    )
}

/// What is seen of one worker whose caller follows it, or calls it only when a request arrives.
fn play(options: WorkerOptions, load: &[Asked], follows: bool) -> (Vec<Seen>, Stats) {
    let mut worker = SimWorker::new(options).unwrap();
    let mut out = Vec::new();
    for (key, asked) in load.iter().enumerate() {
        let at = millis(asked.at);
        if follows {
            follow(&mut worker, at, &mut out);
        }
        worker.advance(at, &mut out);
        let (shared, own) = (asked.shared, asked.own);
        let request = request(key as u32, asked.family, shared, own, asked.answer);
        worker.add(request, at).unwrap();
    }
    if follows {
        follow(&mut worker, millis(100_000), &mut out);
    }
    worker.advance(millis(100_000), &mut out);
    assert_eq!((worker.next_at(true), worker.live()), (None, 0));
    (out, worker.stats())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn it_does_the_same_however_it_is_called(
        mut load in proptest::collection::vec(asked(), 1..20),
        block_size in prop_oneof![Just(16_u32), Just(64)],
        blocks in prop_oneof![Just(100_000_u32), 100..200_u32],
        seqs in prop_oneof![Just(128_u32), 1..6_u32],
    ) {
        load.sort_by_key(|asked| asked.at);
        let mut options = options(block_size);
        options.scheduler.blocks = blocks * 16 / block_size;
        options.scheduler.max_num_seqs = seqs;
        let by_steps = WorkerOptions { skip: false, ..options.clone() };
        let reference = play(by_steps, &load, false);
        prop_assert!(reference.0.is_sorted_by_key(|seen| seen.at));
        let ends = reference.0.iter().filter(|seen| matches!(seen.what, What::Ended { .. }));
        prop_assert_eq!(ends.count(), load.len());
        prop_assert_eq!(&reference, &play(options.clone(), &load, false));
        prop_assert_eq!(&reference, &play(options, &load, true));
    }
}

#[test]
fn the_second_of_two_like_prompts_comes_out_of_the_cache() {
    let mut worker = SimWorker::new(options(16)).unwrap();
    let mut out = Vec::new();
    worker
        .add(request(0, 1, 1_600, 10, 5), Duration::ZERO)
        .unwrap();
    worker.advance(millis(1_000), &mut out);
    let first = out[0].clone();
    assert_eq!(first.what, What::Kv(vec![Event::AllBlocksCleared]));
    let again = request(1, 1, 1_600, 10, 5);
    let mut digests = Vec::new();
    worker.options().digests(&again.prompt, &mut digests);
    assert_eq!(worker.cached_tokens(&digests), 1_600);
    out.clear();
    worker.add(again, millis(1_000)).unwrap();
    worker.advance(millis(2_000), &mut out);
    let first_token = out.iter().find_map(|seen| match seen.what {
        What::FirstToken {
            cached_tokens,
            prompt_tokens,
            ..
        } => Some((cached_tokens, prompt_tokens)),
        _ => None,
    });
    assert_eq!(first_token, Some((1_600, 1_610)));
    assert_eq!(worker.abort_all(millis(2_000)), Ok(Vec::new()));
    assert_eq!(
        worker.cached_tokens(&digests),
        0,
        "a new process has an empty cache"
    );
}

#[test]
fn who_comes_during_a_step_is_part_of_the_next() {
    let mut worker = SimWorker::new(options(16)).unwrap();
    let mut out = Vec::new();
    worker
        .add(request(0, 1, 0, 2_000, 5), Duration::ZERO)
        .unwrap();
    worker.advance(Duration::ZERO, &mut out);
    let step_end = worker.next_at(true).unwrap();
    assert!(
        step_end > millis(20),
        "2,000 tokens take a while: {step_end:?}"
    );
    worker.add(request(1, 2, 0, 10, 5), millis(1)).unwrap();
    // The worker looks at it between two steps; its page tells of it at once, as a real one's does.
    let stats = worker.stats();
    assert_eq!((stats.waiting, stats.queued_tokens), (1, 10));
    worker.advance(step_end, &mut out);
    let stats = worker.stats();
    assert_eq!(stats.running + stats.waiting, 2);
}

#[test]
fn a_full_queue_and_impossible_prompts_are_refused() {
    let mut options = options(16);
    options.scheduler.max_num_seqs = 1;
    options.scheduler.max_num_queued = 1;
    let mut worker = SimWorker::new(options).unwrap();
    let too_long = worker.add(request(0, 1, 0, 140_000, 5), Duration::ZERO);
    assert!(matches!(
        too_long,
        Err(NotTaken::Refused(Refused::PromptTooLong { .. }))
    ));
    worker
        .add(request(1, 1, 0, 100, 5), Duration::ZERO)
        .unwrap();
    worker
        .add(request(2, 1, 0, 100, 5), Duration::ZERO)
        .unwrap();
    let third = worker.add(request(3, 1, 0, 100, 5), Duration::ZERO);
    assert_eq!(third, Err(NotTaken::QueueFull(QueueBound::Requests)));
    assert_eq!(worker.abort_all(millis(1)).unwrap().len(), 2);
}

/// The estimate is held against what comes true, where nobody else comes meanwhile.
#[test]
fn first_tokens_come_about_when_they_are_foreseen() {
    for (load, own) in [(0, 8_000), (1, 8_000), (4, 8_000), (12, 3_000), (4, 300)] {
        let mut worker = SimWorker::new(options(16)).unwrap();
        let mut out = Vec::new();
        for key in 0..load {
            let at = millis(200 * u64::from(key));
            worker.advance(at, &mut out);
            worker
                .add(request(key, 1, 2_000, 6_000, 2_000), at)
                .unwrap();
        }
        let now = millis(200 * u64::from(load) + 3);
        worker.advance(now, &mut out);
        let asked = request(1_000, 1, 2_000, own, 10);
        let mut digests = Vec::new();
        worker.options().digests(&asked.prompt, &mut digests);
        let foreseen = worker.estimate_first_token(asked.prompt.len(), &digests, now);
        worker.add(asked, now).unwrap();
        worker.advance(millis(60_000), &mut out);
        let came = out.iter().find_map(|seen| match seen.what {
            What::FirstToken { key: 1_000, .. } => seen.at.checked_sub(now),
            _ => None,
        });
        let ratio = foreseen.as_secs_f64() / came.unwrap().as_secs_f64();
        assert!(
            (0.6..1.6).contains(&ratio),
            "{load} {own}: {foreseen:?} for {came:?}"
        );
    }
}
