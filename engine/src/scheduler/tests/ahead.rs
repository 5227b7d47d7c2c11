//! Steps that are formed before the outcome of the one before is known, on a device that computes as late as it can.

use proptest::prelude::*;

use super::load::{check, incident, limits, load};
use super::*;

/// Sampled, so that a token depends on its place among the others, too.
fn sampled(max_tokens: u32) -> SamplingParams {
    SamplingParams {
        temperature: 1.0,
        seed: Some(u64::from(max_tokens)),
        ignore_eos: true,
        ..SamplingParams::greedy(max_tokens)
    }
}

fn prompt(first: u32, tokens: u32) -> Vec<u32> {
    (first..first + tokens).collect()
}

/// A rig with a step under way that brings each of `requests` its first token.
fn under_way(config: SchedulerConfig, requests: impl IntoIterator<Item = NewRequest>) -> Rig {
    let mut rig = Rig::ahead(config);
    for request in requests {
        rig.add(request);
    }
    assert!(rig.scheduler.schedule(rig.now(), &mut rig.step));
    rig.begin();
    rig
}

impl Rig {
    /// Forms and begins the step after the one under way; false if the scheduler will not have it.
    fn go_ahead(&mut self) -> bool {
        let formed = self.scheduler.schedule_ahead(self.now(), &mut self.step);
        if formed {
            self.begin();
        } else {
            assert!(self.step.sequences.is_empty());
        }
        formed
    }

    fn tokens_of(&self, number: SequenceNumber) -> &[u32] {
        self.tokens.get(&number).map_or(&[], Vec::as_slice)
    }
}

#[test]
fn every_step_but_the_first_goes_ahead_while_requests_only_generate() {
    let loads = [(1, 20), (30, 12), (60, 17)];
    let requests = loads.map(|(first, tokens)| request(prompt(first, 5), sampled(tokens)));
    let mut outcomes = Vec::new();
    for mut rig in [Rig::new(config()), Rig::ahead(config())] {
        for request in &requests {
            rig.add(request.clone());
        }
        rig.run();
        // All of the prompts are in the first step.
        let ahead = if rig.goes_ahead { 19 } else { 0 };
        assert_eq!((rig.backend.ahead, rig.turns), (ahead, 21));
        for (number, request) in (0..).zip(&requests) {
            assert_eq!(rig.tokens[&number], alone(request, &rig.config).0);
        }
        outcomes.push((rig.tokens, rig.finished, rig.events, rig.scheduler.stats()));
    }
    let (ahead, without) = (outcomes.pop().unwrap(), outcomes.pop().unwrap());
    assert_eq!((ahead.0, ahead.1), (without.0, without.1));
    assert_eq!(ahead.2, without.2, "events, and their order");
    assert_eq!(
        Stats {
            prefill_tokens_per_second: without.3.prefill_tokens_per_second,
            ..ahead.3
        },
        without.3
    );
}

#[test]
fn the_end_of_a_prompt_and_decodes_beside_it_are_followed_alike() {
    let mut rig = Rig::ahead(config());
    let chat = rig.add(request(prompt(1, 3), sampled(20)));
    for _ in 0..4 {
        rig.turn();
    }
    // Four steps are done and one is under way.
    assert_eq!(rig.backend.under_way(), 1);
    let long = rig.add(request(prompt(10, 40), sampled(9)));
    let mut ahead = Vec::new();
    while rig.tokens_of(long).len() < 2 {
        rig.turn();
        ahead.push(rig.backend.under_way());
    }
    // The one under way; 15, 15 and 10 tokens of the prompt beside the chat; then both go ahead.
    assert_eq!(ahead, [0, 0, 0, 1, 1]);
    rig.run();
    for (number, first, tokens, max) in [(chat, 1, 3, 20), (long, 10, 40, 9)] {
        let request = request(prompt(first, tokens), sampled(max));
        assert_eq!(rig.tokens[&number], alone(&request, &config()).0);
    }
}

/// Whether a step goes ahead of one that brings each of `requests` a token.
fn goes_ahead(config: SchedulerConfig, requests: impl IntoIterator<Item = NewRequest>) -> bool {
    let mut rig = under_way(config, requests);
    let formed = rig.go_ahead();
    rig.finish(rig.now());
    rig.run();
    formed
}

#[test]
fn whoever_wants_more_than_tokens_is_waited_for() {
    let plain = || request(prompt(1, 5), sampled(9));
    let with = |sampling| [plain(), request(prompt(20, 5), sampling)];
    let refused = [
        SamplingParams {
            logprobs: Some(0),
            ..sampled(9)
        },
        SamplingParams {
            logprob_token_ids: vec![4],
            ..sampled(9)
        },
        SamplingParams {
            prompt_logprobs: Some(0),
            ..sampled(9)
        },
        SamplingParams {
            repetition_penalty: 1.1,
            ..sampled(9)
        },
        SamplingParams {
            presence_penalty: 0.5,
            ..sampled(9)
        },
        SamplingParams {
            bad_words: vec![vec![3], vec![4, 5]],
            ..sampled(9)
        },
    ];
    for sampling in refused {
        assert!(
            !goes_ahead(config(), with(sampling.clone())),
            "{sampling:?}"
        );
    }
    let taken = [
        sampled(9),
        SamplingParams::greedy(9),
        SamplingParams {
            bad_words: vec![vec![3]],
            stop_token_ids: vec![8],
            min_tokens: 4,
            logit_bias: vec![(5, 1.0)],
            ..sampled(9)
        },
    ];
    for sampling in taken {
        assert!(goes_ahead(config(), with(sampling.clone())), "{sampling:?}");
    }
    let embed = NewRequest {
        task: Task::Embed,
        ..request(prompt(20, 5), sampled(9))
    };
    assert!(!goes_ahead(config(), [plain(), embed]));
}

#[test]
fn tokens_of_a_prompt_are_computed_first() {
    // 16 tokens fit into a step.
    let requests = [(1, 5), (30, 20)];
    let requests = requests.map(|(first, tokens)| request(prompt(first, tokens), sampled(9)));
    assert!(!goes_ahead(config(), requests));
}

#[test]
fn a_prompt_that_has_to_stand_aside_for_a_step_is_not_forgotten() {
    let limits = SchedulerConfig {
        max_decode_slowdown: Some(2.0),
        ..config()
    };
    let mut rig = Rig::ahead(limits);
    let long = rig.add(request(prompt(10, 40), sampled(5)));
    rig.turn();
    rig.add(request(prompt(60, 3), sampled(30)));
    let mut aside = 0;
    while rig.tokens_of(long).is_empty() {
        assert_eq!(rig.backend.under_way(), 0, "its prompt comes first");
        rig.turn();
        aside += u32::from(rig.outcome.report.prefill_tokens == 0);
    }
    // What decodes take by themselves is not known, so steps without prompts are made.
    assert!(aside > 0);
    rig.run();
}

#[test]
fn who_could_be_admitted_is_admitted_first() {
    let chats = |count| (0..count).map(|i| request(prompt(20 * i, 4), sampled(9)));
    let limits = SchedulerConfig {
        max_num_seqs: 3,
        ..config()
    };
    // All four are there, and three places.
    assert!(goes_ahead(limits.clone(), chats(4)), "there is no place");
    let mut rig = under_way(limits.clone(), chats(2));
    rig.add(request(prompt(70, 4), sampled(9)));
    assert!(!rig.go_ahead(), "there is a place");
    let few_blocks = SchedulerConfig {
        blocks: 7,
        ..limits.clone()
    };
    let mut rig = under_way(few_blocks, chats(2));
    rig.add(request(prompt(60, 20), sampled(9)));
    assert!(rig.go_ahead(), "there is a place, but no room");
    // One of the three is known to end.
    let mut rig = under_way(limits, chats(2).chain([request(prompt(70, 4), sampled(1))]));
    assert!(rig.scheduler.waiting.is_empty());
    rig.add(request(prompt(60, 4), sampled(9)));
    assert!(!rig.go_ahead(), "there will be a place");
}

#[test]
fn a_pause_is_not_overtaken() {
    for pause in [Pause::Admission, Pause::Everything] {
        let mut rig = under_way(config(), [request(prompt(1, 5), sampled(9))]);
        rig.scheduler.pause(pause);
        assert!(!rig.go_ahead());
        rig.scheduler.resume();
        assert!(rig.go_ahead());
    }
}

#[test]
fn nobody_loses_blocks_for_a_step_ahead() {
    let requests =
        || [(1, 8), (30, 8)].map(|(first, tokens)| request(prompt(first, tokens), sampled(9)));
    for (blocks, formed) in [(6, true), (5, false)] {
        let limits = SchedulerConfig {
            blocks: blocks + 1,
            ..config()
        };
        // Each has two full blocks, and needs another one for its next token.
        assert_eq!(goes_ahead(limits, requests()), formed, "{blocks} blocks");
    }
}

#[test]
fn blocks_that_have_to_be_saved_are_not_taken_ahead() {
    for (host_blocks, formed) in [(0, true), (8, false)] {
        let limits = SchedulerConfig {
            blocks: 4,
            host_blocks,
            ..config()
        };
        let mut rig = Rig::ahead(limits);
        rig.add(steady(1..12, 1));
        rig.run();
        // Two of the three blocks are cached. The next request holds the third, and then needs one of those.
        rig.add(steady(50..54, 4));
        rig.turn();
        assert_eq!(rig.backend.under_way() > 0, formed);
        rig.run();
        assert_eq!(rig.backend.copied > 0, !formed);
    }
}

#[test]
fn a_part_of_the_layers_is_not_overtaken() {
    let mut rig = under_way(config(), [request(prompt(1, 5), sampled(9))]);
    rig.scheduler.step.slice = Some(3..LAYERS);
    assert!(!rig.go_ahead());
    rig.scheduler.step.slice = None;
    assert!(rig.go_ahead());
}

#[test]
fn who_ends_by_its_length_is_left_out() {
    let mut rig = under_way(
        config(),
        [(1, 1), (20, 2), (40, 3)].map(|(first, max)| request(prompt(first, 4), sampled(max))),
    );
    assert!(rig.go_ahead());
    assert_eq!(rig.step.sources, [1, 2]);
    rig.finish(rig.now());
    assert!(rig.go_ahead());
    assert_eq!(rig.step.sources, [1]);
    rig.finish(rig.now());
    assert!(!rig.go_ahead(), "nobody is left");
    rig.finish(rig.now());
    assert_eq!(rig.backend.under_way(), 0);
    assert!(rig.scheduler.is_empty());
}

#[test]
fn a_token_of_a_request_that_has_ended_is_nobodys() {
    let stop = alone(&request(prompt(1, 5), sampled(9)), &config()).0[2];
    let stopping = SamplingParams {
        stop_token_ids: vec![stop],
        ..sampled(9)
    };
    let mut rig = Rig::ahead(config());
    let stops = rig.add(request(prompt(1, 5), stopping));
    let goes_on = rig.add(request(prompt(40, 5), sampled(7)));
    rig.turn();
    rig.turn();
    let held = rig.scheduler.stats().blocks_used;
    rig.turn();
    assert_eq!(rig.finished[&stops], Finish::Stop { token: Some(stop) });
    assert_eq!(rig.backend.slots_to_write().count(), 2, "it is on its way");
    assert_eq!(rig.scheduler.stats().blocks_used, held - 2);
    rig.turn();
    assert_eq!(rig.outcome.report.batched_requests, 1);
    rig.run();
    assert_eq!(rig.tokens_of(stops).len(), 3);
    assert_eq!(rig.tokens_of(goes_on).len(), 7);
}

/// Two steps are under way when requests end or lose their blocks.
#[test]
fn whoever_left_or_was_preempted_takes_nothing_of_what_is_under_way() {
    let loads = [(1, 9), (30, 5)];
    let requests = loads.map(|(first, tokens)| request(prompt(first, tokens), sampled(6)));
    for aborted in [false, true] {
        let mut rig = under_way(config(), requests.clone());
        rig.finish(rig.now());
        assert!(rig.scheduler.schedule(rig.now(), &mut rig.step));
        rig.begin();
        assert!(rig.go_ahead());
        if aborted {
            rig.abort(0, Finish::Abort);
        } else {
            rig.scheduler.preempt_all();
            assert!(rig.scheduler.reset_prefix_cache());
        }
        let left = u32::from(aborted);
        assert!(!rig.go_ahead(), "two are under way");
        for _ in 0..2 {
            rig.finish(rig.now());
            assert_eq!(rig.outcome.report.batched_requests, left);
        }
        assert_eq!(rig.tokens_of(0).len(), 1);
        rig.run();
        for (number, request) in (0..).zip(&requests).skip(usize::from(aborted)) {
            assert_eq!(rig.tokens_of(number), alone(request, &config()).0);
        }
    }
}

#[test]
fn a_step_ahead_begins_when_the_one_before_is_done() {
    let mut rig = under_way(config(), [request(prompt(1, 5), sampled(3))]);
    let at = Duration::from_secs;
    assert!(rig.scheduler.schedule_ahead(at(1), &mut rig.step));
    rig.begin();
    let mut reported = Vec::new();
    let mut finish = |rig: &mut Rig, now| {
        rig.backend.finish(&mut rig.output).unwrap();
        rig.scheduler
            .complete(&mut rig.output, now, &mut rig.outcome);
        let report = &rig.outcome.report;
        reported.push((report.started_at, report.finished_at));
    };
    finish(&mut rig, at(5));
    assert!(rig.scheduler.schedule_ahead(at(7), &mut rig.step));
    rig.begin();
    finish(&mut rig, at(8));
    finish(&mut rig, at(10));
    assert_eq!(
        reported,
        [(at(0), at(5)), (at(5), at(8)), (at(8), at(10))],
        "no second counts twice"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(384))]

    /// Going ahead changes nothing that a request can see, whatever comes, stops, leaves, waits or loses its blocks in
    /// the meantime.
    #[test]
    fn requests_get_their_own_tokens_however_far_ahead(
        loads in proptest::collection::vec((load(), any::<bool>(), 0_u64..1000), 1..14),
        incidents in proptest::collection::vec(incident(), 0..4),
        config in limits(),
        all_plain in prop::bool::weighted(0.8),
    ) {
        let loads: Vec<_> = loads
            .into_iter()
            .map(|(mut load, random, seed)| {
                if all_plain {
                    load.embed = false;
                    load.sampling.prompt_logprobs = None;
                    load.sampling.bad_words.retain(|word| word.len() < 2);
                }
                load.sampling.seed = Some(seed);
                load.sampling.temperature = if random { 1.0 } else { 0.0 };
                load
            })
            .collect();
        check(Rig::ahead(config), &loads, &incidents)?;
    }
}
