//! Pausing, sleeping and waking from the handle, and the bounds on the queue.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::backend::SleepLevel;

/// A backend that counts how often it slept and woke, and refuses level 2.
pub(super) struct Sleeper {
    inner: HashBackend,
    layout: KvLayout,
    slept: Arc<AtomicU32>,
    wakes: bool,
}

impl Backend for Sleeper {
    fn info(&self) -> &BackendInfo {
        self.inner.info()
    }

    fn allocate(&mut self, layout: &KvLayout) -> Result<(), BackendError> {
        self.layout = *layout;
        self.inner.allocate(layout)
    }

    fn begin(&mut self, step: &Step) -> Result<(), BackendError> {
        assert_eq!(
            self.slept.load(Ordering::Acquire) % 2,
            0,
            "a step while asleep"
        );
        self.inner.begin(step)
    }

    fn finish(&mut self, out: &mut StepOutput) -> Result<(), BackendError> {
        self.inner.finish(out)
    }

    fn sleep(&mut self, level: SleepLevel) -> Result<(), BackendError> {
        if level == SleepLevel::DiscardAll {
            return Err(self.no_sleep(level));
        }
        self.slept.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn wake(&mut self) -> Result<(), BackendError> {
        if !self.wakes {
            return Err(BackendError::Step("the memory is gone".to_owned()));
        }
        self.slept.fetch_add(1, Ordering::AcqRel);
        self.inner.allocate(&self.layout)
    }
}

impl Sleeper {
    pub(super) fn new(wakes: bool) -> (Self, Arc<AtomicU32>) {
        let slept = Arc::new(AtomicU32::new(0));
        let layout = KvLayout {
            block_size: 1,
            blocks: 1,
            host_blocks: 0,
        };
        let backend = Self {
            inner: HashBackend::new(97),
            layout,
            slept: Arc::clone(&slept),
            wakes,
        };
        (backend, slept)
    }
}

fn sleeper(wakes: bool) -> (Rig, Arc<AtomicU32>) {
    let (backend, slept) = Sleeper::new(wakes);
    (Rig::start(Box::new(backend)), slept)
}

pub(super) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap()
}

pub(super) async fn finish_of(mut stream: RequestStream) -> Option<Finish> {
    let mut finish = None;
    while let Some(update) = soon(stream.next()).await {
        finish = update.finish;
    }
    finish
}

#[tokio::test]
async fn submissions_wait_while_the_engine_is_paused() {
    let rig = Rig::free_running();
    assert!(soon(rig.engine.pause(PauseMode::Abort, false)).await);
    assert!(rig.engine.is_paused());
    let mut stream = rig.engine.submit(request(1..5, 3)).unwrap();
    // The answer to a later command shows that the request was taken and not run.
    assert!(soon(rig.engine.reset_prefix_cache()).await);
    let stats = rig.engine.stats();
    assert_eq!(
        (stats.running, stats.waiting, stats.waiting_deferred),
        (0, 1, 1)
    );
    assert_eq!(stats.queued_tokens, 4);
    assert!(soon(rig.engine.resume()).await);
    assert!(soon(stream.next()).await.is_some());
    assert_eq!(finish_of(stream).await, Some(Finish::Length));
    assert!(!rig.engine.is_paused());
    rig.stop();
}

#[tokio::test]
async fn the_modes_of_a_pause_end_finish_or_keep_what_runs() {
    for (mode, expected) in [
        (PauseMode::Abort, Finish::Abort),
        (PauseMode::Wait, Finish::Length),
        (PauseMode::Keep, Finish::Length),
    ] {
        let (rig, gate) = Rig::gated();
        let stream = rig.engine.submit(request(1..5, 3)).unwrap();
        gate.wait_for_step();
        let engine = rig.engine.clone();
        let paused = tokio::spawn(async move { engine.pause(mode, true).await });
        // Once its command is in the channel, the turn after this step takes it.
        tokio::task::yield_now().await;
        gate.end_step(Verdict::Compute);
        if mode == PauseMode::Wait {
            gate.one_step();
            gate.one_step();
        }
        assert!(soon(paused).await.unwrap());
        if mode == PauseMode::Keep {
            let stats = rig.engine.stats();
            assert_eq!((stats.waiting, stats.blocks_used), (1, 0));
            assert!(soon(rig.engine.resume()).await);
            gate.one_step();
            gate.one_step();
        }
        assert_eq!(finish_of(stream).await, Some(expected), "{mode:?}");
        rig.stop();
    }
}

#[tokio::test]
async fn a_reader_that_leaves_a_paused_engine_is_noticed() {
    let rig = Rig::free_running();
    assert!(soon(rig.engine.pause(PauseMode::Keep, false)).await);
    let stream = rig.engine.submit(request(1..5, 3)).unwrap();
    drop(stream);
    soon(rig.engine.idle()).await;
    assert_eq!(rig.engine.stats().waiting, 0);
    rig.stop();
}

#[tokio::test]
async fn a_deadline_passes_even_while_paused() {
    let rig = Rig::free_running();
    assert!(soon(rig.engine.pause(PauseMode::Keep, false)).await);
    let stream = rig.engine.submit(NewRequest {
        deadline: Some(Duration::from_millis(1)),
        ..request(1..5, 3)
    });
    assert_eq!(finish_of(stream.unwrap()).await, Some(Finish::Deadline));
    rig.stop();
}

#[tokio::test]
async fn a_sleeping_engine_computes_nothing_until_it_wakes() {
    let (rig, slept) = sleeper(true);
    let warm = rig.engine.submit(request(1..10, 1)).unwrap();
    assert_eq!(finish_of(warm).await, Some(Finish::Length));
    let level = Some(SleepLevel::KeepWeights);
    assert_eq!(
        soon(rig.engine.sleep(level, PauseMode::Abort)).await,
        Ok(())
    );
    assert_eq!(
        (rig.engine.sleep_level(), slept.load(Ordering::Acquire)),
        (1, 1)
    );
    assert_eq!(rig.engine.stats().sleep_level, 1);
    assert!(!soon(rig.engine.resume()).await, "it has to be woken");
    let again = soon(rig.engine.sleep(level, PauseMode::Abort)).await;
    assert_eq!(again, Err(SleepError::Asleep));
    let mut stream = rig.engine.submit(request(1..10, 2)).unwrap();
    assert_eq!(soon(rig.engine.wake()).await, Ok(()));
    assert_eq!(
        (rig.engine.sleep_level(), slept.load(Ordering::Acquire)),
        (0, 2)
    );
    let first = soon(stream.next()).await.unwrap();
    assert_eq!(first.cached_tokens, 0, "the KV memory was given back");
    assert_eq!(finish_of(stream).await, Some(Finish::Length));
    let log = rig.stop();
    let seen = log.0.lock().unwrap();
    let cleared = seen
        .events
        .iter()
        .filter(|e| **e == Event::AllBlocksCleared);
    assert_eq!(cleared.count(), 2);
}

#[tokio::test]
async fn a_backend_that_cannot_sleep_goes_on() {
    let (rig, _) = sleeper(true);
    let slept = rig
        .engine
        .sleep(Some(SleepLevel::DiscardAll), PauseMode::Wait);
    let error = soon(slept).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the hash backend cannot sleep at level 2"
    );
    assert!(!rig.engine.is_paused());
    let stream = rig.engine.submit(request(1..10, 2)).unwrap();
    assert_eq!(finish_of(stream).await, Some(Finish::Length));
    assert_eq!(soon(rig.engine.sleep(None, PauseMode::Wait)).await, Ok(()));
    assert!(rig.engine.is_paused(), "level 0 is a pause");
    assert_eq!(soon(rig.engine.wake()).await, Ok(()));
    assert!(!rig.engine.is_paused());
    rig.stop();
}

#[tokio::test]
async fn a_backend_that_does_not_wake_makes_the_engine_unhealthy() {
    let (rig, _) = sleeper(false);
    let level = Some(SleepLevel::KeepWeights);
    assert_eq!(soon(rig.engine.sleep(level, PauseMode::Keep)).await, Ok(()));
    let stream = rig.engine.submit(request(1..10, 2)).unwrap();
    let error = soon(rig.engine.wake()).await.unwrap_err();
    assert_eq!(error.to_string(), "step: the memory is gone");
    assert!(!rig.engine.is_healthy());
    assert!(matches!(finish_of(stream).await, Some(Finish::Error(_))));
    rig.stop();
}

#[tokio::test]
async fn a_resume_drops_a_pause_that_has_not_taken_hold() {
    let (rig, gate) = Rig::gated();
    let stream = rig.engine.submit(request(1..5, 3)).unwrap();
    gate.wait_for_step();
    let engine = rig.engine.clone();
    let paused = tokio::spawn(async move { engine.pause(PauseMode::Wait, true).await });
    tokio::task::yield_now().await;
    let engine = rig.engine.clone();
    let resumed = tokio::spawn(async move { engine.resume().await });
    tokio::task::yield_now().await;
    gate.end_step(Verdict::Compute);
    gate.wait_for_step();
    assert!(!soon(paused).await.unwrap());
    assert!(soon(resumed).await.unwrap());
    gate.end_step(Verdict::Compute);
    gate.one_step();
    assert_eq!(finish_of(stream).await, Some(Finish::Length));
    rig.stop();
}

#[tokio::test]
async fn tokens_that_wait_bound_the_queue() {
    let log = Log::default();
    let (sink, observer) = (Box::new(log.clone()), Box::new(log.clone()));
    let limits = SchedulerConfig {
        max_num_queued: 100,
        max_num_queued_tokens: Some(20),
        ..config()
    };
    let backend = Box::new(HashBackend::new(97));
    let (engine, thread) = start(limits, backend, sink, observer).unwrap();
    assert!(soon(engine.pause(PauseMode::Keep, false)).await);
    let mut streams = vec![engine.submit(request(1..20, 1)).unwrap()];
    // 19 tokens wait: one more prompt may come, and goes beyond the bound.
    streams.push(engine.submit(request(1..20, 1)).unwrap());
    let full = engine.submit(request(1..3, 1)).unwrap_err();
    assert_eq!(full.to_string(), "20 prompt tokens are waiting already");
    assert!(matches!(
        full,
        SubmitError::QueueFull {
            bound: QueueBound::Tokens,
            limit: 20,
            ..
        }
    ));
    assert_eq!(engine.live_requests(), 2, "a refusal takes no place");
    assert!(soon(engine.resume()).await);
    for stream in streams {
        assert_eq!(finish_of(stream).await, Some(Finish::Length));
    }
    let stream = engine.submit(request(1..30, 1)).unwrap();
    assert_eq!(finish_of(stream).await, Some(Finish::Length));
    drop(engine);
    thread.join().unwrap();
}
