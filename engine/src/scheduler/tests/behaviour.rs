//! One behaviour a test, on loads made for it.

#![expect(clippy::float_cmp, reason = "the expected times are exact in binary")]

use super::*;

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
        policy: Policy::Priority,
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
        waiting_tokens: Some(100),
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
        waiting_tokens: None,
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
