//! The scheduler with a made-up backend: budgets hold, every request ends, no block leaks, and batching changes no token.

#![expect(clippy::float_cmp, reason = "the expected times are exact in binary")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pointsman_proto::block_hash::BlockDigest;
use pointsman_proto::kv_events::Event;
use proptest::prelude::*;

use super::*;
use crate::backend::testing::{HashBackend, next_token};
use crate::backend::{Backend, KvLayout, Step, StepOutput};
use crate::kv::HashRecipe;
use crate::sample::SamplingParams;

const VOCAB: u32 = 97;

fn config() -> SchedulerConfig {
    SchedulerConfig {
        block_size: 4,
        blocks: 65,
        max_num_seqs: 4,
        max_num_batched_tokens: 16,
        max_num_queued: 100,
        max_model_len: 64,
        vocab_size: VOCAB,
        prefix_cache: Some(HashRecipe::sha256_cbor("vllm-none-hash")),
        kv_events: true,
        eos_token_ids: vec![0],
        seed: 1,
        ..SchedulerConfig::default()
    }
}

fn request(prompt: Vec<u32>, sampling: SamplingParams) -> NewRequest {
    NewRequest::new("test", prompt, sampling)
}

/// A request that runs for exactly `max_tokens` tokens.
fn steady(prompt: std::ops::Range<u32>, max_tokens: u32) -> NewRequest {
    let sampling = SamplingParams {
        ignore_eos: true,
        ..SamplingParams::greedy(max_tokens)
    };
    request(prompt.collect(), sampling)
}

/// Scheduler and backend together; one call of `turn` is one step.
struct Rig {
    config: SchedulerConfig,
    scheduler: Scheduler,
    backend: HashBackend,
    step: Step,
    output: StepOutput,
    outcome: Outcome,
    turns: u32,
    tokens: BTreeMap<SequenceNumber, Vec<u32>>,
    finished: BTreeMap<SequenceNumber, Finish>,
    cached: BTreeMap<SequenceNumber, u32>,
    events: Vec<Event<BlockDigest>>,
}

impl Rig {
    fn new(config: SchedulerConfig) -> Self {
        let mut backend = HashBackend::new(config.vocab_size);
        let layout = KvLayout {
            host_blocks: config.host_blocks,
            block_size: config.block_size,
            blocks: config.blocks,
        };
        backend.allocate(&layout).unwrap();
        Self {
            scheduler: Scheduler::new(config.clone()).unwrap(),
            config,
            backend,
            step: Step::default(),
            output: StepOutput::default(),
            outcome: Outcome::default(),
            turns: 0,
            tokens: BTreeMap::new(),
            finished: BTreeMap::new(),
            cached: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    fn add(&mut self, request: NewRequest) -> SequenceNumber {
        let prepared = self.scheduler.intake().prepare(request).unwrap();
        self.scheduler
            .add(prepared, Duration::from_secs(self.turns.into()))
    }

    /// One step, with everything that must hold for any step.
    fn turn(&mut self) -> bool {
        let now = Duration::from_secs(self.turns.into());
        self.turns += 1;
        if !self.scheduler.schedule(now, &mut self.step) {
            return false;
        }
        assert!(self.step.tokens.len() <= self.config.max_num_batched_tokens as usize);
        assert!(self.step.sequences.len() <= self.config.max_num_seqs as usize);
        assert!(
            self.step
                .sequences
                .iter()
                .all(|sequence| !sequence.tokens.is_empty())
        );
        assert_eq!(
            self.step.sequences.last().unwrap().tokens.end as usize,
            self.step.tokens.len()
        );
        let stats = self.scheduler.stats();
        assert!(stats.running <= self.config.max_num_seqs);
        self.backend.forward(&self.step, &mut self.output).unwrap();
        let later = now + Duration::from_millis(500);
        self.scheduler
            .complete(&mut self.output, later, &mut self.outcome);
        let mut seen = BTreeSet::new();
        for (number, update) in self.outcome.updates.drain(..) {
            assert!(
                seen.insert(number),
                "two updates for one request in one step"
            );
            assert!(
                !self.finished.contains_key(&number),
                "an update after the end"
            );
            self.tokens.entry(number).or_default().extend(update.token);
            let cached = *self.cached.entry(number).or_insert(update.cached_tokens);
            assert_eq!(
                cached, update.cached_tokens,
                "cached tokens are fixed at admission"
            );
            if let Some(finish) = update.finish {
                self.finished.insert(number, finish);
            }
        }
        self.events.extend(self.scheduler.take_events());
        true
    }

    fn run(&mut self) {
        while self.turn() {
            assert!(self.turns < 20_000, "some request never ends");
        }
        assert!(self.scheduler.is_empty());
        assert_eq!(self.scheduler.pool().used(), 0, "blocks leaked");
    }
}

/// What a request generates, worked out without scheduler, blocks or backend.
fn alone(request: &NewRequest, config: &SchedulerConfig) -> (Vec<u32>, Finish) {
    let sampling = &request.sampling;
    let mut tokens = request.prompt.clone();
    let pool = (config.blocks - 1) * config.block_size + 1;
    let room = config.max_model_len.min(pool) as usize;
    let mut output = Vec::new();
    loop {
        let stops = |token: u32| {
            !sampling.ignore_eos && config.eos_token_ids.contains(&token)
                || sampling.stop_token_ids.contains(&token)
        };
        let early = output.len() < sampling.min_tokens as usize;
        let start = next_token(tokens.iter().copied(), config.vocab_size);
        let candidates = (0..config.vocab_size).map(|i| (start + i) % config.vocab_size);
        let token = candidates
            .into_iter()
            .find(|token| !(early && stops(*token)))
            .unwrap();
        tokens.push(token);
        output.push(token);
        if !early && stops(token) && output.len() >= sampling.min_tokens as usize {
            let eos = !sampling.ignore_eos && config.eos_token_ids.contains(&token);
            return (
                output,
                Finish::Stop {
                    token: (!eos).then_some(token),
                },
            );
        }
        if output.len() >= sampling.max_tokens as usize || tokens.len() >= room {
            return (output, Finish::Length);
        }
    }
}

#[test]
fn decodes_go_on_beside_a_long_prompt() {
    let mut rig = Rig::new(config());
    let short = rig.add(steady(1..4, 20));
    rig.turn();
    let long = rig.add(steady(10..60, 2));
    for step in 1..=3 {
        rig.turn();
        assert_eq!(rig.step.tokens.len(), 16, "the budget is used up");
        assert_eq!(rig.tokens[&short].len(), step + 1, "one token a step");
        assert!(!rig.tokens.contains_key(&long));
    }
    // 50 prompt tokens at 15 a step: the fourth step brings the first token.
    rig.turn();
    assert_eq!(rig.tokens[&long].len(), 1);
    rig.run();
}

#[test]
fn hits_are_whole_blocks_and_never_the_last_token() {
    let mut rig = Rig::new(config());
    let first = rig.add(steady(1..9, 1));
    rig.run();
    // The same 8 tokens are two full blocks; the last token must be computed, so one block can be reused.
    let same = rig.add(steady(1..9, 1));
    let longer = rig.add(steady(1..10, 1));
    let other = rig.add(steady(2..10, 1));
    rig.run();
    assert_eq!(
        [first, same, longer, other].map(|number| rig.cached[&number]),
        [0, 4, 8, 0]
    );
    let stats = rig.scheduler.stats();
    assert_eq!(
        (stats.prefix_queries, stats.prefix_hits),
        (8 + 8 + 9 + 8, 12)
    );
    assert_eq!((stats.prompt_tokens, stats.prompt_tokens_cached), (33, 12));
}

#[test]
fn salts_keep_prefixes_apart() {
    let mut rig = Rig::new(config());
    let salted = |salt: &str| NewRequest {
        cache_salt: Some(salt.into()),
        ..steady(1..10, 1)
    };
    let numbers = [salted("a"), salted("b"), salted("a")].map(|request| {
        let number = rig.add(request);
        rig.run();
        number
    });
    assert_eq!(numbers.map(|number| rig.cached[&number]), [0, 0, 8]);
}

#[test]
fn blocks_are_announced_only_once_they_are_computed() {
    let mut rig = Rig::new(config());
    rig.add(steady(1..41, 1));
    assert_eq!(rig.scheduler.take_events(), [Event::AllBlocksCleared]);
    rig.scheduler.schedule(Duration::ZERO, &mut rig.step);
    assert!(
        rig.scheduler.take_events().is_empty(),
        "planned is not computed"
    );
    rig.backend.forward(&rig.step, &mut rig.output).unwrap();
    rig.scheduler
        .complete(&mut rig.output, Duration::ZERO, &mut rig.outcome);
    let events = rig.scheduler.take_events();
    let [Event::BlockStored(stored)] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert_eq!(
        stored.token_ids,
        (1..17).collect::<Vec<u32>>(),
        "16 of 40 tokens fit the budget"
    );
}

#[test]
fn without_prefix_cache_nothing_is_looked_up_or_announced() {
    let mut rig = Rig::new(SchedulerConfig {
        prefix_cache: None,
        ..config()
    });
    let numbers = [0, 1].map(|_| {
        let number = rig.add(steady(1..20, 3));
        rig.run();
        number
    });
    assert_eq!(numbers.map(|number| rig.cached[&number]), [0, 0]);
    assert_eq!(rig.scheduler.stats().prefix_queries, 0);
    assert_eq!(rig.events, [Event::AllBlocksCleared]);
}

#[test]
fn the_newest_is_preempted_and_still_gets_the_same_tokens() {
    // Two requests of 16 + 24 tokens need 20 blocks in the end; there are 12.
    let config = SchedulerConfig {
        blocks: 13,
        max_num_batched_tokens: 64,
        ..config()
    };
    let mut rig = Rig::new(config.clone());
    let requests = [steady(1..17, 24), steady(30..46, 24)];
    let expected = requests.each_ref().map(|request| alone(request, &config).0);
    let numbers = requests.map(|request| rig.add(request));
    rig.run();
    assert!(rig.scheduler.stats().preemptions > 0);
    assert_eq!(numbers.map(|number| rig.tokens[&number].clone()), expected);
    assert!(rig.finished[&0] == Finish::Length);
}

#[test]
fn lower_priority_values_run_first() {
    let mut rig = Rig::new(SchedulerConfig {
        max_num_seqs: 1,
        ..config()
    });
    let with = |priority| NewRequest {
        priority,
        ..steady(1..4, 2)
    };
    let numbers = [5, 0, -1, 0].map(|priority| rig.add(with(priority)));
    let mut order = Vec::new();
    while rig.turn() {
        let done = numbers
            .iter()
            .filter(|number| rig.finished.contains_key(number));
        let new: Vec<_> = done
            .filter(|number| !order.contains(*number))
            .copied()
            .collect();
        order.extend(new);
    }
    assert_eq!(order, [numbers[2], numbers[1], numbers[3], numbers[0]]);
}

#[test]
fn a_prompt_waits_until_the_whole_of_it_fits() {
    let config = SchedulerConfig {
        blocks: 9,
        max_num_batched_tokens: 64,
        ..config()
    };
    let mut rig = Rig::new(config);
    rig.add(steady(1..13, 6));
    let large = rig.add(steady(20..44, 1));
    let small = rig.add(steady(60..62, 1));
    rig.turn();
    let stats = rig.scheduler.stats();
    assert_eq!(
        (stats.running, stats.waiting),
        (1, 2),
        "nobody overtakes the one that waits"
    );
    rig.run();
    assert_eq!(
        (&rig.finished[&large], &rig.finished[&small]),
        (&Finish::Length, &Finish::Length)
    );
}

#[test]
fn stop_tokens_do_not_count_before_min_tokens() {
    let config = config();
    let prompt = vec![5, 6, 7];
    let plain = request(prompt.clone(), SamplingParams::greedy(10));
    let free = alone(&plain, &config).0;
    // The first token is made a stop token: without a minimum the request ends with it, with one it cannot come.
    let stopping = |min_tokens| {
        let stop_token_ids = vec![free[0]];
        let sampling = SamplingParams {
            min_tokens,
            stop_token_ids,
            ..SamplingParams::greedy(10)
        };
        request(prompt.clone(), sampling)
    };
    let mut rig = Rig::new(config.clone());
    let at_once = rig.add(stopping(0));
    let later = rig.add(stopping(4));
    rig.run();
    assert_eq!(rig.tokens[&at_once], [free[0]]);
    assert_eq!(
        rig.finished[&at_once],
        Finish::Stop {
            token: Some(free[0])
        }
    );
    assert!(rig.tokens[&later].len() > 4);
    assert!(!rig.tokens[&later][..4].contains(&free[0]));
    assert_eq!(rig.tokens[&later], alone(&stopping(4), &config).0);
}

#[test]
fn aborts_free_blocks_at_once_wherever_the_request_is() {
    let mut rig = Rig::new(SchedulerConfig {
        max_num_seqs: 1,
        ..config()
    });
    let running = rig.add(steady(1..30, 5));
    let waiting = rig.add(steady(1..30, 5));
    rig.turn();
    assert!(rig.scheduler.stats().blocks_used > 0);
    for number in [waiting, running] {
        let (update, report) = rig
            .scheduler
            .abort(number, Finish::Abort, Duration::ZERO)
            .unwrap();
        assert_eq!((update.token, update.finish), (None, Some(Finish::Abort)));
        assert_eq!((report.generated_tokens, report.finish), (0, Finish::Abort));
    }
    assert_eq!(rig.scheduler.stats().blocks_used, 0);
    assert!(
        rig.scheduler
            .abort(running, Finish::Abort, Duration::ZERO)
            .is_none()
    );
    assert!(!rig.turn());
}

#[test]
fn a_request_aborted_during_its_step_does_not_shift_the_others_tokens() {
    let mut rig = Rig::new(config());
    let requests = [steady(1..5, 3), steady(11..15, 3), steady(21..25, 3)];
    let expected = alone(&requests[2], &rig.config).0;
    let numbers = requests.map(|request| rig.add(request));
    rig.scheduler.schedule(Duration::ZERO, &mut rig.step);
    rig.backend.forward(&rig.step, &mut rig.output).unwrap();
    rig.scheduler
        .abort(numbers[1], Finish::Abort, Duration::ZERO)
        .unwrap();
    rig.scheduler
        .complete(&mut rig.output, Duration::ZERO, &mut rig.outcome);
    let last = rig
        .outcome
        .updates
        .iter()
        .find(|(number, _)| *number == numbers[2])
        .unwrap();
    assert_eq!(last.1.token, Some(expected[0]));
    assert_eq!(rig.outcome.updates.len(), 2);
}

#[test]
fn requests_that_can_never_run_are_refused() {
    let config = SchedulerConfig {
        blocks: 9,
        ..config()
    };
    let intake = Scheduler::new(config).unwrap().intake();
    let refuse = |prompt: Vec<u32>| {
        intake
            .prepare(request(prompt, SamplingParams::greedy(1)))
            .unwrap_err()
    };
    assert_eq!(refuse(vec![]), Refused::PromptEmpty);
    assert_eq!(
        refuse(vec![1; 64]),
        Refused::PromptTooLong {
            tokens: 64,
            max: 63
        }
    );
    assert_eq!(
        refuse(vec![1; 33]),
        Refused::CannotFit {
            blocks: 9,
            total: 8
        }
    );
    assert_eq!(
        refuse(vec![1, VOCAB]),
        Refused::UnknownToken {
            token: VOCAB,
            vocab_size: VOCAB
        }
    );
    // A prompt that fills the pool leaves room for the one token that is never computed.
    let full = request(vec![1; 32], SamplingParams::greedy(9));
    assert_eq!(intake.prepare(full).unwrap().max_tokens(), 1);
    let none = request(vec![1; 4], SamplingParams::greedy(0));
    assert_eq!(intake.prepare(none).unwrap().max_tokens(), 1);
}

#[test]
fn limits_that_make_no_sense_are_errors() {
    let wrong = SchedulerConfig {
        max_num_batched_tokens: 3,
        ..config()
    };
    let error = Scheduler::new(wrong).unwrap_err();
    assert_eq!(
        error.to_string(),
        "max-num-batched-tokens is 3; it must be at least 4"
    );
}

#[test]
fn queue_limits_bound_bursts_and_backlogs() {
    let limits = QueueLimits {
        running: 2,
        waiting: 3,
    };
    assert!(
        limits.admit(0, 0) && limits.admit(4, 0),
        "a burst may fill places that are still empty"
    );
    assert!(!limits.admit(5, 0));
    assert!(
        limits.admit(3, 2) && !limits.admit(3, 3),
        "a backlog counts even if places are free"
    );
    let none = QueueLimits {
        running: 1,
        waiting: 0,
    };
    assert!(none.admit(0, 0) && !none.admit(1, 0));
}

#[test]
fn reports_tell_a_requests_life() {
    let mut rig = Rig::new(SchedulerConfig {
        max_num_seqs: 1,
        ..config()
    });
    rig.add(steady(1..4, 3));
    rig.add(steady(5..9, 1));
    for _ in 0..4 {
        rig.turn();
    }
    let report = &rig.outcome.finished[0];
    let seconds = |time: Option<Duration>| time.unwrap().as_secs_f32();
    // Three steps of the first request go before it; each step takes half of its second.
    assert_eq!(report.arrived_at, Duration::ZERO);
    assert_eq!(seconds(report.scheduled_at), 3.0);
    assert_eq!(seconds(report.first_token_at), 3.5);
    assert_eq!(report.finished_at.as_secs_f32(), 3.5);
    assert_eq!(
        (
            report.prompt_tokens,
            report.generated_tokens,
            report.max_tokens
        ),
        (4, 1, 1)
    );
    assert_eq!(
        rig.outcome.report.first_token_waits,
        [Duration::from_millis(3500)]
    );
    assert!(rig.outcome.report.inter_token_gaps.is_empty());
}

#[test]
fn evicted_prefixes_come_back_from_host_memory() {
    let config = SchedulerConfig {
        blocks: 9,
        host_blocks: 16,
        max_num_batched_tokens: 64,
        ..config()
    };
    let mut rig = Rig::new(config.clone());
    let [first, other] = [steady(1..30, 3), steady(40..70, 3)];
    let expected = alone(&first, &config).0;
    let numbers = [first.clone(), other, first.clone()].map(|request| {
        let number = rig.add(request);
        rig.run();
        number
    });
    assert_eq!(numbers.map(|number| rig.cached[&number]), [0, 0, 28]);
    assert_eq!(rig.tokens[&numbers[0]], expected);
    assert_eq!(rig.tokens[&numbers[2]], expected);
    let stats = rig.scheduler.stats();
    assert_eq!(
        (stats.prompt_tokens_cached, stats.prompt_tokens_cached_host),
        (28, 28)
    );
    assert!(
        rig.backend.copied >= 14,
        "seven blocks to the host and back"
    );
    // A part on the device, the rest in host memory.
    rig.add(steady(80..90, 1));
    rig.run();
    let again = rig.add(first);
    rig.run();
    assert_eq!(rig.cached[&again], 28);
    let loaded = rig.scheduler.stats().prompt_tokens_cached_host - 28;
    assert!(
        loaded > 0 && loaded < 28,
        "{loaded} tokens came from the host"
    );
}

#[test]
fn a_request_can_ask_to_hear_of_the_blocks_it_reuses() {
    let mut rig = Rig::new(config());
    rig.add(steady(1..10, 1));
    rig.run();
    rig.events.clear();
    rig.add(steady(1..10, 1));
    rig.run();
    assert!(rig.events.is_empty(), "{:?}", rig.events);
    rig.add(NewRequest {
        report_reused_blocks: true,
        ..steady(1..10, 1)
    });
    rig.run();
    let [Event::BlockStored(stored)] = rig.events.as_slice() else {
        panic!("{:?}", rig.events)
    };
    assert_eq!(stored.token_ids, (1..9).collect::<Vec<u32>>());
}

/// One request of a random load.
#[derive(Clone, Debug)]
struct Load {
    family: u32,
    shared: u32,
    prompt: u32,
    sampling: SamplingParams,
    priority: i32,
    arrives: u32,
    aborted: Option<u32>,
}

impl Load {
    fn request(&self) -> NewRequest {
        let token = |i| {
            if i < self.shared {
                i + 1
            } else {
                (i * 7 + self.family * 31) % VOCAB
            }
        };
        let prompt = (0..self.prompt).map(token).collect();
        NewRequest {
            priority: self.priority,
            ..request(prompt, self.sampling.clone())
        }
    }
}

fn load() -> impl Strategy<Value = Load> {
    let sampling = (
        1_u32..30,
        0_u32..6,
        any::<bool>(),
        proptest::collection::vec(0..VOCAB, 0..4),
    )
        .prop_map(
            |(max_tokens, min_tokens, ignore_eos, stop_token_ids)| SamplingParams {
                min_tokens,
                stop_token_ids,
                ignore_eos,
                ..SamplingParams::greedy(max_tokens)
            },
        );
    let aborted = proptest::option::weighted(0.15, 0_u32..20);
    (
        0_u32..3,
        0_u32..24,
        1_u32..32,
        sampling,
        -1_i32..2,
        0_u32..12,
        aborted,
    )
        .prop_map(
            |(family, shared, prompt, sampling, priority, arrives, aborted)| Load {
                family,
                shared,
                prompt,
                sampling,
                priority,
                arrives,
                aborted,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// Whatever shares the engine with it, a request gets the tokens it gets alone; budgets hold in every step; every
    /// request ends; no block is lost.
    #[test]
    fn requests_get_their_own_tokens_under_any_load(
        loads in proptest::collection::vec(load(), 1..14),
        block_size in 1_u32..7,
        extra_blocks in 0_u32..20,
        max_num_seqs in 1_u32..6,
        extra_budget in 0_u32..20,
        caching: bool,
        host_blocks in prop_oneof![Just(0), 1_u32..20],
    ) {
        let config = SchedulerConfig {
            block_size,
            // The largest prompt has 31 tokens.
            blocks: 1 + 31_u32.div_ceil(block_size) + extra_blocks,
            max_num_seqs,
            max_num_batched_tokens: max_num_seqs + extra_budget,
            host_blocks,
            prefix_cache: caching.then(|| HashRecipe::sha256_cbor("vllm-none-hash")),
            ..config()
        };
        let mut rig = Rig::new(config.clone());
        let mut numbers: Vec<Option<SequenceNumber>> = vec![None; loads.len()];
        let last_arrival = loads.iter().map(|load| load.arrives).max().unwrap_or(0);
        loop {
            for (load, number) in loads.iter().zip(&mut numbers) {
                if load.arrives == rig.turns {
                    *number = Some(rig.add(load.request()));
                }
                if let (Some(number), Some(after)) = (*number, load.aborted)
                    && load.arrives + after == rig.turns
                {
                    rig.scheduler.abort(number, Finish::Abort, Duration::ZERO);
                }
            }
            if !rig.turn() && rig.turns > last_arrival {
                break;
            }
            prop_assert!(rig.turns < 20_000, "some request never ends");
        }
        // When all requests were aborted before their first step, nobody has taken the events yet.
        rig.events.extend(rig.scheduler.take_events());
        prop_assert!(rig.scheduler.is_empty());
        prop_assert_eq!(rig.scheduler.pool().used(), 0, "blocks leaked");
        prop_assert!(rig.backend.largest_step <= config.max_num_batched_tokens as usize);
        for (load, number) in loads.iter().zip(numbers) {
            let number = number.unwrap();
            let (tokens, finish) = alone(&load.request(), &config);
            let got = rig.tokens.get(&number).cloned().unwrap_or_default();
            if let Some(got_finish) = rig.finished.get(&number) {
                prop_assert_eq!(&got, &tokens);
                prop_assert_eq!(got_finish, &finish);
            } else {
                prop_assert!(load.aborted.is_some());
                prop_assert!(tokens.starts_with(&got));
            }
        }
        let stats = rig.scheduler.stats();
        prop_assert_eq!((stats.running, stats.waiting, stats.blocks_used), (0, 0, 0));
        if !caching {
            prop_assert_eq!(rig.events, [Event::AllBlocksCleared]);
        }
    }
}
