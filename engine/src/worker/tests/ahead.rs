//! The engine thread with a device that computes behind it.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::pausing::{Sleeper, finish_of, soon};
use super::*;
use crate::backend::SleepLevel;
use crate::backend::testing::next_token;

/// What follows `prompt`.
fn tokens_after(prompt: std::ops::Range<u32>, count: usize) -> Vec<u32> {
    let mut tokens: Vec<u32> = prompt.collect();
    let prompt_len = tokens.len();
    while tokens.len() < prompt_len + count {
        tokens.push(next_token(tokens.iter().copied(), 97));
    }
    tokens.split_off(prompt_len)
}

/// Ends as many steps as there are until `done`.
fn let_run(gate: &Gate, done: impl Fn() -> bool) {
    while !done() {
        if gate.began.recv_timeout(Duration::from_millis(1)).is_ok() {
            gate.end_step(Verdict::Compute);
        }
    }
}

#[test]
fn tokens_come_as_they_would_without() {
    let rig = Rig::start(Box::new(Behind::new(HashBackend::new(97))));
    let updates = all(rig.engine.submit(request(1..10, 5)).unwrap());
    let tokens: Vec<u32> = updates.iter().filter_map(|update| update.token).collect();
    assert_eq!(tokens, tokens_after(1..10, 5));
    assert_eq!(updates[4].finish, Some(Finish::Length));
    let stats = rig.engine.stats();
    assert_eq!(
        (stats.generated_tokens, stats.running, stats.blocks_used),
        (5, 0, 0)
    );
    let log = rig.stop();
    let seen = log.0.lock().unwrap();
    assert_eq!((seen.finished.len(), seen.steps), (1, 5));
}

/// Counts the steps that are begun before the one before them is finished.
struct Counted {
    inner: Behind<HashBackend>,
    ahead: Arc<AtomicUsize>,
    /// Which of them the device does not take, from 1.
    fails_at: usize,
}

impl Backend for Counted {
    fn info(&self) -> &BackendInfo {
        self.inner.info()
    }

    fn allocate(&mut self, layout: &KvLayout) -> Result<(), BackendError> {
        self.inner.allocate(layout)
    }

    fn begin(&mut self, step: &Step) -> Result<(), BackendError> {
        self.inner.begin(step)?;
        self.ahead.store(self.inner.ahead, Ordering::Release);
        if self.inner.under_way() == 2 && self.inner.ahead == self.fails_at {
            return Err(BackendError::Step("the device fell off".to_owned()));
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut StepOutput) -> Result<(), BackendError> {
        self.inner.finish(out)
    }
}

#[test]
fn the_device_always_has_a_step_to_go_on_with() {
    let ahead = Arc::new(AtomicUsize::new(0));
    let rig = Rig::start(Box::new(Counted {
        inner: Behind::new(HashBackend::new(97)),
        ahead: Arc::clone(&ahead),
        fails_at: 0,
    }));
    assert_eq!(all(rig.engine.submit(request(1..5, 40)).unwrap()).len(), 40);
    rig.stop();
    assert_eq!(ahead.load(Ordering::Acquire), 39);
}

#[test]
fn a_step_ahead_that_cannot_be_begun_ends_requests_and_not_the_process() {
    let ahead = Arc::new(AtomicUsize::new(0));
    let rig = Rig::start(Box::new(Counted {
        inner: Behind::new(HashBackend::new(97)),
        ahead,
        fails_at: 3,
    }));
    let updates = all(rig.engine.submit(request(1..5, 40)).unwrap());
    // The step that was under way is lost as well.
    assert_eq!(updates.len(), 3);
    let error = Finish::Error("step: the device fell off".to_owned());
    assert_eq!(updates[2].finish, Some(error));
    assert!(!rig.engine.is_healthy() && rig.engine.is_idle());
    assert_eq!(rig.engine.stats().blocks_used, 0);
    rig.stop();
}

#[test]
fn a_reader_that_leaves_takes_its_blocks_along_and_the_step_ahead_ends_alone() {
    let (rig, gate) = Rig::gated_behind();
    let gone = rig.engine.submit(request(1..30, 10)).unwrap();
    gate.wait_for_step();
    drop(gone);
    gate.end_step(Verdict::Compute);
    // The step ahead is waited for although nobody is left.
    gate.wait_for_step();
    let stats = rig.engine.stats();
    assert_eq!((stats.running, stats.blocks_used), (0, 0));
    assert!(rig.engine.is_idle());
    let next = rig.engine.submit(request(40..50, 2)).unwrap();
    gate.end_step(Verdict::Compute);
    gate.one_step();
    gate.one_step();
    let tokens: Vec<u32> = all(next).iter().filter_map(|update| update.token).collect();
    assert_eq!(tokens, tokens_after(40..50, 2));
    let log = rig.stop();
    let seen = log.0.lock().unwrap();
    let finishes: Vec<_> = seen.finished.iter().map(|r| r.finish.clone()).collect();
    assert_eq!(finishes, [Finish::Abort, Finish::Length]);
    assert_eq!(seen.steps, 4);
}

#[test]
fn a_stop_token_ends_a_request_with_its_next_token_under_way() {
    let rig = Rig::start(Box::new(Behind::new(HashBackend::new(97))));
    let expected = tokens_after(1..6, 3);
    let stops = SamplingParams {
        stop_token_ids: vec![expected[2]],
        ..SamplingParams::greedy(20)
    };
    let other = rig.engine.submit(request(40..50, 30)).unwrap();
    let stopped = NewRequest::new("test", (1..6).collect(), stops);
    let updates = all(rig.engine.submit(stopped).unwrap());
    let tokens: Vec<u32> = updates.iter().filter_map(|update| update.token).collect();
    assert_eq!(tokens, expected);
    let token = Some(expected[2]);
    assert_eq!(updates[2].finish, Some(Finish::Stop { token }));
    let tokens: Vec<u32> = all(other)
        .iter()
        .filter_map(|update| update.token)
        .collect();
    assert_eq!(tokens, tokens_after(40..50, 30));
    assert_eq!(rig.engine.stats().blocks_used, 0);
    rig.stop();
}

#[test]
fn what_is_under_way_for_nobody_is_waited_for_before_the_engine_rests() {
    let (rig, gate) = Rig::gated_behind();
    let expected = tokens_after(1..6, 1);
    let stops = SamplingParams {
        stop_token_ids: expected.clone(),
        ..SamplingParams::greedy(20)
    };
    let request = NewRequest::new("test", (1..6).collect(), stops);
    let stream = rig.engine.submit(request).unwrap();
    gate.one_step();
    let updates = all(stream);
    assert_eq!(updates.len(), 1);
    assert_eq!(updates[0].token, Some(expected[0]));
    gate.one_step();
    let log = rig.stop();
    assert_eq!(log.0.lock().unwrap().steps, 2);
}

#[test]
fn draining_and_aborting_end_with_nothing_under_way() {
    let (rig, gate) = Rig::gated_behind();
    let finishes = rig.engine.submit(request(1..5, 3)).unwrap();
    gate.wait_for_step();
    rig.engine.drain();
    gate.end_step(Verdict::Compute);
    gate.one_step();
    gate.one_step();
    assert_eq!(all(finishes).last().unwrap().finish, Some(Finish::Length));
    assert!(rig.engine.is_idle());
    rig.stop();
    let (rig, gate) = Rig::gated_behind();
    let streams = [(); 3].map(|()| rig.engine.submit(request(1..5, 20)).unwrap());
    gate.wait_for_step();
    rig.engine.abort_all();
    gate.end_step(Verdict::Compute);
    let engine = rig.engine.clone();
    let_run(&gate, || engine.is_idle());
    for stream in streams {
        assert_eq!(all(stream).last().unwrap().finish, Some(Finish::Abort));
    }
    drop(engine);
    let Rig { engine, thread, .. } = rig;
    drop(engine);
    let_run(&gate, || thread.is_finished());
    thread.join().unwrap();
}

#[tokio::test]
async fn commands_find_nothing_under_way() {
    for (mode, expected, then) in [
        (PauseMode::Abort, Finish::Abort, 0),
        (PauseMode::Keep, Finish::Length, 3),
        (PauseMode::Wait, Finish::Length, 3),
    ] {
        let (rig, gate) = Rig::gated_behind();
        let stream = rig.engine.submit(request(1..10, 5)).unwrap();
        gate.wait_for_step();
        let engine = rig.engine.clone();
        let level = Some(SleepLevel::KeepWeights);
        let asleep = tokio::spawn(async move { engine.sleep(level, mode).await });
        // Once its command is in the channel, the next turn takes it.
        tokio::task::yield_now().await;
        gate.end_step(Verdict::Compute);
        // The step that is begun ahead.
        gate.one_step();
        for _ in 0..then {
            gate.one_step();
        }
        // It has looked whether a step is under way; it cannot sleep, and goes on.
        let error = soon(asleep).await.unwrap().unwrap_err();
        let text = "the hash backend cannot sleep at level 1";
        assert_eq!(error.to_string(), text, "{mode:?}");
        assert_eq!(finish_of(stream).await, Some(expected), "{mode:?}");
        assert_eq!(rig.engine.stats().blocks_used, 0);
        let log = rig.stop();
        assert_eq!(log.0.lock().unwrap().steps, 2 + then);
    }
}

#[tokio::test]
async fn a_reset_finds_the_step_ahead_taken_in() {
    let (rig, gate) = Rig::gated_behind();
    let stream = rig.engine.submit(request(1..10, 4)).unwrap();
    gate.wait_for_step();
    let engine = rig.engine.clone();
    let reset = tokio::spawn(async move { engine.reset_prefix_cache().await });
    // Once its command is in the channel, the next turn answers it.
    tokio::task::yield_now().await;
    gate.end_step(Verdict::Compute);
    // The step that is begun ahead.
    gate.one_step();
    assert!(!soon(reset).await.unwrap(), "blocks are held");
    gate.one_step();
    gate.one_step();
    assert_eq!(finish_of(stream).await, Some(Finish::Length));
    let log = rig.stop();
    assert_eq!(log.0.lock().unwrap().steps, 4);
}

/// Everything at once, many times over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_asked_of_it_ends_clean() {
    let (sleeper, _) = Sleeper::new(true);
    let rig = Rig::start(Box::new(Behind::new(sleeper)));
    let limits = rig.engine.clone();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0_u32..3 {
        let engine = limits.clone();
        tasks.spawn(async move {
            for turn in 0_u32..60 {
                let first = (task * 20 + turn) % 60;
                let max_tokens = 1 + (turn * 7 + task) % 30;
                let submitted = engine.submit(request(first..first + 3 + turn % 9, max_tokens));
                let Ok(mut stream) = submitted else {
                    tokio::task::yield_now().await;
                    continue;
                };
                let mut tokens = Vec::new();
                let leaves_after = (turn % 4 == 1).then_some(turn as usize % 5);
                let mut finish = None;
                while finish.is_none() && leaves_after != Some(tokens.len()) {
                    let update = soon(stream.next()).await.unwrap();
                    tokens.extend(update.token);
                    finish = update.finish;
                }
                let expected = tokens_after(first..first + 3 + turn % 9, tokens.len());
                assert_eq!(tokens, expected);
                if finish == Some(Finish::Length) {
                    assert_eq!(tokens.len(), max_tokens as usize);
                }
            }
        });
    }
    let engine = limits.clone();
    tasks.spawn(async move {
        let modes = [PauseMode::Keep, PauseMode::Wait, PauseMode::Abort];
        for mode in modes.into_iter().cycle().take(30) {
            let level = Some(SleepLevel::KeepWeights);
            assert_eq!(soon(engine.sleep(level, mode)).await, Ok(()));
            assert_eq!(soon(engine.wake()).await, Ok(()));
            soon(engine.reset_prefix_cache()).await;
            assert!(soon(engine.pause(mode, true)).await);
            assert!(soon(engine.resume()).await);
        }
    });
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    soon(limits.idle()).await;
    let stats = limits.stats();
    assert_eq!((stats.running, stats.waiting, stats.blocks_used), (0, 0, 0));
    assert!(limits.is_healthy());
    drop(limits);
    rig.stop();
}
