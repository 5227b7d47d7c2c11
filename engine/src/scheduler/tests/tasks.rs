//! What requests ask for besides tokens: embeddings, prompt log probabilities, words that must not come.

#![expect(clippy::float_cmp, reason = "the made-up backend's numbers are whole")]

use super::*;

fn embed(prompt: std::ops::Range<u32>) -> NewRequest {
    NewRequest {
        task: Task::Embed,
        ..request(prompt.collect(), SamplingParams::greedy(1))
    }
}

fn with_prompt_logprobs(prompt: std::ops::Range<u32>, max_tokens: u32) -> NewRequest {
    let mut request = steady(prompt, max_tokens);
    request.sampling.prompt_logprobs = Some(2);
    request
}

fn logprobs(rig: &Rig, number: SequenceNumber) -> Vec<f32> {
    let rows = rig.prompt_logprobs[&number].iter();
    rows.map(|row| row.logprob).collect()
}

#[test]
fn an_embedding_is_the_end_of_its_request() {
    let mut rig = Rig::new(config());
    let long = rig.add(embed(1..41));
    let beside = rig.add(steady(1..5, 6));
    let one = rig.add(embed(7..8));
    rig.run();
    for (number, prompt) in [(long, 1..41), (one, 7..8)] {
        assert_eq!(rig.finished[&number], Finish::Stop { token: None });
        assert!(rig.tokens[&number].is_empty());
        let len = prompt.len() as f32;
        let state = next_token(prompt, VOCAB) as f32;
        assert_eq!(rig.embeddings[&number], [state, len]);
    }
    assert_eq!(rig.tokens[&beside], alone(&steady(1..5, 6), &config()).0);
    let stats = rig.scheduler.stats();
    assert_eq!((stats.prompt_tokens, stats.generated_tokens), (45, 6));
}

#[test]
fn an_embedding_may_fill_the_whole_context() {
    let intake = Scheduler::new(config()).unwrap().intake();
    let full = embed(0..64);
    let longer = embed(0..65);
    assert_eq!(intake.prepare(full).unwrap().max_tokens(), 0);
    assert_eq!(
        intake.prepare(longer).unwrap_err(),
        Refused::PromptTooLong {
            tokens: 65,
            max: 64
        }
    );
}

#[test]
fn embeddings_share_prefixes() {
    let mut rig = Rig::new(config());
    rig.add(steady(1..20, 1));
    rig.run();
    let number = rig.add(embed(1..20));
    rig.run();
    assert_eq!(rig.cached[&number], 16);
    assert_eq!(rig.embeddings[&number][0], next_token(1..20, VOCAB) as f32);
}

#[test]
fn a_backend_without_embeddings_ends_the_request_and_no_other() {
    let mut rig = Rig::new(config());
    let number = rig.add(embed(1..5));
    let other = rig.add(steady(1..5, 1));
    rig.scheduler.schedule(Duration::ZERO, &mut rig.step);
    rig.backend.forward(&rig.step, &mut rig.output).unwrap();
    rig.output.embeddings.clear();
    rig.scheduler
        .complete(&mut rig.output, Duration::ZERO, &mut rig.outcome);
    let finish = |wanted| {
        let mut updates = rig.outcome.updates.iter();
        let update = updates.find(|(number, _)| *number == wanted).unwrap();
        update.1.finish.clone()
    };
    assert!(matches!(finish(number), Some(Finish::Error(_))));
    assert_eq!(finish(other), Some(Finish::Length));
}

#[test]
fn prompt_log_probabilities_come_with_the_first_token_across_chunks() {
    let mut rig = Rig::new(config());
    // The prefix is cached, and must not be read: its rows would be missing.
    rig.add(steady(1..41, 1));
    rig.run();
    let number = rig.add(with_prompt_logprobs(1..41, 3));
    rig.run();
    assert_eq!(rig.cached[&number], 0);
    let prompt: Vec<u32> = (1..41).collect();
    assert_eq!(logprobs(&rig, number), prompt_rows_of(&prompt));
    assert!(
        rig.prompt_logprobs[&number]
            .iter()
            .zip(&prompt[1..])
            .all(|(row, next)| row.rank == *next && row.top.len() == 2)
    );
    assert_eq!(
        rig.scheduler.stats().prefix_queries,
        40,
        "what is not looked up is no query"
    );
}

#[test]
fn a_prompt_of_one_token_has_no_prompt_log_probabilities() {
    let mut rig = Rig::new(config());
    let number = rig.add(with_prompt_logprobs(5..6, 2));
    rig.run();
    assert_eq!(rig.finished[&number], Finish::Length);
    assert!(!rig.prompt_logprobs.contains_key(&number));
}

#[test]
fn a_preemption_in_the_middle_of_a_prompt_loses_no_row() {
    let mut rig = Rig::new(config());
    let number = rig.add(with_prompt_logprobs(1..41, 2));
    rig.turn();
    rig.turn();
    rig.scheduler.preempt_all();
    assert_eq!(rig.scheduler.stats().blocks_used, 0);
    rig.turn();
    // 32 rows are known, so their 8 blocks may come from the cache; 8 tokens are left.
    assert_eq!(rig.step.tokens.len(), 8);
    rig.run();
    let prompt: Vec<u32> = (1..41).collect();
    assert_eq!(logprobs(&rig, number), prompt_rows_of(&prompt));
    assert_eq!(rig.tokens[&number].len(), 2);
}

#[test]
fn an_aborted_request_takes_its_rows_along() {
    let mut rig = Rig::new(config());
    let gone = rig.add(with_prompt_logprobs(1..6, 2));
    let stays = rig.add(with_prompt_logprobs(21..26, 2));
    rig.scheduler.schedule(Duration::ZERO, &mut rig.step);
    rig.backend.forward(&rig.step, &mut rig.output).unwrap();
    rig.abort(gone, Finish::Abort);
    rig.scheduler
        .complete(&mut rig.output, Duration::ZERO, &mut rig.outcome);
    for (number, update) in std::mem::take(&mut rig.outcome.updates) {
        rig.take(number, update);
    }
    let prompt: Vec<u32> = (21..26).collect();
    assert_eq!(logprobs(&rig, stays), prompt_rows_of(&prompt));
}

#[test]
fn bad_words_are_banned_where_they_would_end_in_the_output() {
    let config = config();
    let prompt = 5..9;
    let free = alone(&steady(prompt.clone(), 8), &config).0;
    let with_words = |bad_words: Vec<Vec<u32>>| {
        let mut request = steady(prompt.clone(), 8);
        request.sampling.bad_words = bad_words;
        request
    };
    let mut rig = Rig::new(config.clone());
    // One token; two tokens of the output; the prompt's last token and the output's first, which do not count; a
    // word whose beginning does not come.
    let words = [
        vec![vec![free[0]]],
        vec![vec![free[2], free[3]]],
        vec![vec![8, free[0]]],
        vec![vec![(free[0] + 1) % VOCAB, free[1]]],
    ];
    let numbers = words.clone().map(|words| rig.add(with_words(words)));
    rig.run();
    for (number, words) in numbers.iter().zip(words) {
        let expected = alone(&with_words(words), &config).0;
        assert_eq!(rig.tokens[number], expected);
    }
    assert_ne!(rig.tokens[&numbers[0]][0], free[0]);
    assert_eq!(rig.tokens[&numbers[1]][..3], free[..3]);
    assert_ne!(rig.tokens[&numbers[1]][3], free[3]);
    assert_eq!(rig.tokens[&numbers[2]], free);
    assert_eq!(rig.tokens[&numbers[3]], free);
}

#[test]
fn each_sample_has_its_own_part_of_the_arrays() {
    let mut rig = Rig::new(config());
    for shift in 0..3 {
        let mut request = steady(1 + shift..4 + shift, 2);
        request.sampling.logit_bias = vec![(shift, 1.5)];
        request.sampling.allowed_token_ids = vec![shift, shift + 10];
        request.sampling.logprob_token_ids = vec![shift + 20; shift as usize];
        rig.add(request);
    }
    rig.turn();
    assert_eq!(rig.step.samples.len(), 3);
    for (shift, spec) in (0..).zip(&rig.step.samples) {
        let range = |range: &std::ops::Range<u32>| range.start as usize..range.end as usize;
        assert_eq!(rig.step.biases[range(&spec.biases)], [(shift, 1.5)]);
        assert_eq!(rig.step.allowed[range(&spec.allowed)], [shift, shift + 10]);
        assert_eq!(
            rig.step.asked[range(&spec.asked)],
            vec![shift + 20; shift as usize]
        );
    }
}
