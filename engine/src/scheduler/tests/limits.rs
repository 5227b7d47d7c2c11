//! Order, deadlines, pauses, and how prompts share a step.

use super::*;

#[test]
fn a_priority_needs_the_priority_policy() {
    let with = |priority| NewRequest {
        priority,
        ..steady(1..4, 1)
    };
    let fcfs = Scheduler::new(config()).unwrap().intake();
    assert!(fcfs.prepare(with(0)).is_ok());
    assert_eq!(
        fcfs.prepare(with(-1)).unwrap_err().to_string(),
        "Got priority -1 but Priority scheduling is not enabled."
    );
    let config = SchedulerConfig {
        policy: Policy::Priority,
        ..config()
    };
    let priority = Scheduler::new(config).unwrap().intake();
    assert!(priority.prepare(with(-1)).is_ok());
}

#[test]
fn a_slowdown_of_one_is_an_error() {
    for value in [1.0, 0.5, -1.0, f64::NAN, f64::INFINITY] {
        let config = SchedulerConfig {
            max_decode_slowdown: Some(value),
            ..config()
        };
        assert!(matches!(
            Scheduler::new(config),
            Err(ConfigError::Slowdown { .. })
        ));
    }
}

#[test]
fn a_prompt_goes_beyond_the_bound_on_tokens_but_none_follows_it() {
    let limits = QueueLimits {
        running: 1,
        waiting: 1,
        waiting_tokens: Some(100),
    };
    assert!(limits.admit_tokens(0) && limits.admit_tokens(99));
    assert!(!limits.admit_tokens(100) && !limits.admit_tokens(5000));
}

#[test]
fn a_deadline_ends_a_request_that_waits_and_one_that_runs() {
    let mut rig = Rig::new(SchedulerConfig {
        max_num_seqs: 1,
        ..config()
    });
    let until = |seconds| NewRequest {
        deadline: Some(Duration::from_secs(seconds)),
        ..steady(1..4, 10)
    };
    let runs = rig.add(until(5));
    let waits = rig.add(until(3));
    let free = rig.add(steady(1..4, 10));
    let in_time = rig.add(until(100));
    for _ in 0..3 {
        rig.turn();
    }
    assert!(rig.finished.is_empty());
    rig.turn();
    assert_eq!(rig.finished[&waits], Finish::Deadline);
    assert!(rig.tokens[&waits].is_empty());
    rig.run();
    assert_eq!(rig.finished[&runs], Finish::Deadline);
    assert_eq!(rig.tokens[&runs].len(), 5, "a step each second until then");
    assert_eq!(rig.finished[&free], Finish::Length);
    assert_eq!(rig.finished[&in_time], Finish::Length);
    assert!(rig.scheduler.deadlines.is_empty());
}

#[test]
fn nothing_is_computed_while_everything_is_paused() {
    let mut rig = Rig::new(config());
    let number = rig.add(steady(1..4, 5));
    rig.turn();
    rig.scheduler.pause(Pause::Everything);
    let later = rig.add(steady(1..4, 5));
    assert!(!rig.scheduler.has_work());
    assert!(!rig.turn());
    let stats = rig.scheduler.stats();
    assert_eq!((stats.waiting, stats.waiting_deferred), (1, 1));
    assert_eq!(rig.tokens[&number].len(), 1);
    rig.scheduler.resume();
    assert!(rig.scheduler.has_work());
    rig.run();
    assert_eq!(rig.tokens[&number], alone(&steady(1..4, 5), &config()).0);
    assert_eq!(rig.tokens[&later].len(), 5);
}

#[test]
fn a_pause_of_admission_lets_running_requests_end() {
    let mut rig = Rig::new(config());
    let running = rig.add(steady(1..4, 5));
    rig.turn();
    rig.scheduler.pause(Pause::Admission);
    let later = rig.add(steady(1..4, 5));
    while rig.scheduler.has_work() {
        assert!(rig.turn());
    }
    assert_eq!(rig.finished[&running], Finish::Length);
    assert!(!rig.tokens.contains_key(&later));
    rig.scheduler.resume();
    rig.run();
    assert_eq!(rig.finished[&later], Finish::Length);
}

#[test]
fn preempting_all_frees_every_block_and_changes_no_token() {
    let mut rig = Rig::new(config());
    let requests = [steady(1..20, 9), steady(30..40, 9)];
    let expected = requests
        .each_ref()
        .map(|request| alone(request, &rig.config).0);
    let numbers = requests.map(|request| rig.add(request));
    for _ in 0..5 {
        rig.turn();
    }
    rig.scheduler.preempt_all();
    assert!(rig.scheduler.reset_prefix_cache());
    rig.run();
    assert_eq!(numbers.map(|number| rig.tokens[&number].clone()), expected);
}

/// Turns until `number` has its first token.
fn turns_to_first_token(rig: &mut Rig, number: SequenceNumber) -> u32 {
    let before = rig.turns;
    while !rig.tokens.contains_key(&number) {
        assert!(rig.turn());
    }
    rig.turns - before
}

#[test]
fn a_short_prompt_shares_the_steps_of_a_long_one() {
    let config = SchedulerConfig {
        blocks: 200,
        max_model_len: 600,
        ..config()
    };
    let mut rig = Rig::new(config.clone());
    let long = NewRequest::new("long", vec![3; 480], SamplingParams::greedy(1));
    let long = rig.add(long);
    rig.turn();
    rig.turn();
    assert_eq!(rig.step.tokens.len(), 16, "alone it has all of the step");
    let short = rig.add(steady(10..30, 1));
    assert_eq!(
        turns_to_first_token(&mut rig, short),
        3,
        "20 tokens, 8 a step"
    );
    // 32 tokens in two steps alone, 8 + 8 + 12 beside the other.
    let computed = rig.scheduler.sequences[&long].computed;
    assert_eq!(computed, 32 + 8 + 8 + 12);
    // One that is as long as what the first lacks comes after it.
    let equal = rig.add(request(vec![5; 400], SamplingParams::greedy(1)));
    turns_to_first_token(&mut rig, long);
    assert!(
        !rig.scheduler
            .running
            .iter()
            .any(|key| key.number == equal && rig.scheduler.sequences[&equal].computed > 16)
    );
    rig.run();
}

#[test]
fn a_lower_priority_shares_no_step() {
    let config = SchedulerConfig {
        blocks: 200,
        max_model_len: 600,
        policy: Policy::Priority,
        ..config()
    };
    let mut rig = Rig::new(config);
    let long = rig.add(request(vec![3; 160], SamplingParams::greedy(1)));
    rig.turn();
    let lower = rig.add(NewRequest {
        priority: 1,
        ..steady(10..20, 1)
    });
    turns_to_first_token(&mut rig, long);
    assert!(!rig.tokens.contains_key(&lower));
    rig.run();
}

#[test]
fn the_threshold_bounds_the_chunks_of_one_prompt_among_others() {
    let config = SchedulerConfig {
        long_prefill_token_threshold: Some(5),
        ..config()
    };
    let mut rig = Rig::new(config);
    rig.add(steady(1..41, 3));
    rig.turn();
    assert_eq!(rig.step.tokens.len(), 16, "alone it has no such bound");
    rig.add(steady(42..52, 3));
    rig.turn();
    let lens = rig.step.sequences.iter();
    let lens: Vec<u32> = lens.map(|s| s.tokens.end - s.tokens.start).collect();
    assert_eq!(lens, [5, 5]);
    rig.run();
}
