//! The engine thread from its handle: submitting, leaving, draining, and a backend that fails.

mod ahead;
mod pausing;

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pointsman_proto::block_hash::BlockDigest;
use pointsman_proto::kv_events::{EngineHash, Event};

use super::*;
use crate::backend::testing::{Behind, HashBackend};
use crate::backend::{Backend, BackendError, BackendInfo, KvLayout, Step, StepOutput};
use crate::kv::HashRecipe;
use crate::scheduler::{Finish, NewRequest, SchedulerConfig, TokenUpdate};

/// Bounds every wait, so that a lost wake-up fails a test rather than hanging it.
const DEADLINE: Duration = Duration::from_secs(20);

fn config() -> SchedulerConfig {
    SchedulerConfig {
        block_size: 4,
        blocks: 65,
        max_num_seqs: 2,
        max_num_batched_tokens: 64,
        max_num_queued: 1,
        max_model_len: 64,
        vocab_size: 97,
        prefix_cache: Some(HashRecipe::sha256_cbor("vllm-none-hash")),
        kv_events: true,
        eos_token_ids: vec![],
        seed: 1,
        ..SchedulerConfig::default()
    }
}

fn request(prompt: std::ops::Range<u32>, max_tokens: u32) -> NewRequest {
    NewRequest::new("test", prompt.collect(), SamplingParams::greedy(max_tokens))
}

/// A backend that says when a step began and waits for leave to end it.
struct Gated {
    inner: HashBackend,
    began: SyncSender<()>,
    leave: Receiver<Verdict>,
}

enum Verdict {
    Compute,
    Fail,
    Panic,
}

impl Backend for Gated {
    fn info(&self) -> &BackendInfo {
        self.inner.info()
    }

    fn allocate(&mut self, layout: &KvLayout) -> Result<(), BackendError> {
        self.inner.allocate(layout)
    }

    fn begin(&mut self, step: &Step) -> Result<(), BackendError> {
        self.began.send(()).unwrap();
        match self.leave.recv_timeout(DEADLINE).unwrap() {
            Verdict::Compute => self.inner.begin(step),
            Verdict::Fail => Err(BackendError::Step("the device fell off".to_owned())),
            Verdict::Panic => panic!("index out of bounds"),
        }
    }

    fn finish(&mut self, out: &mut StepOutput) -> Result<(), BackendError> {
        self.inner.finish(out)
    }
}

/// Everything that was observed.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    events: Vec<Event>,
    finished: Vec<RequestReport>,
    steps: usize,
    gauges: usize,
}

impl EventSink for Log {
    fn publish(&mut self, events: Vec<Event<BlockDigest>>) {
        assert!(!events.is_empty());
        let events = events
            .into_iter()
            .map(|event| event.map_hashes(|digest| EngineHash::from(&digest)));
        self.0.lock().unwrap().events.extend(events);
    }
}

impl Observer for Log {
    fn gauges(&mut self, _: &Stats) {
        self.0.lock().unwrap().gauges += 1;
    }

    fn step(&mut self, report: &StepReport) {
        assert!(report.finished_at >= report.started_at);
        self.0.lock().unwrap().steps += 1;
    }

    fn request_finished(&mut self, report: &RequestReport) {
        self.0.lock().unwrap().finished.push(report.clone());
    }
}

struct Rig {
    engine: EngineHandle,
    thread: std::thread::JoinHandle<()>,
    log: Log,
}

impl Rig {
    fn start(backend: Box<dyn Backend>) -> Self {
        let log = Log::default();
        let (sink, observer) = (Box::new(log.clone()), Box::new(log.clone()));
        let (engine, thread) = start(config(), backend, sink, observer).unwrap();
        Self {
            engine,
            thread,
            log,
        }
    }

    fn free_running() -> Self {
        Self::start(Box::new(HashBackend::new(97)))
    }

    fn gated() -> (Self, Gate) {
        let (gated, gate) = gate();
        (Self::start(Box::new(gated)), gate)
    }

    /// A backend behind the host, at whose gate each step is waited for; the one after it is begun by then.
    fn gated_behind() -> (Self, Gate) {
        let (gated, gate) = gate();
        (Self::start(Box::new(Behind::new(gated))), gate)
    }

    /// Drops the handle, and waits for the thread to end by itself.
    fn stop(self) -> Log {
        drop(self.engine);
        self.thread.join().unwrap();
        self.log
    }
}

fn gate() -> (Gated, Gate) {
    let (began, began_receiver) = sync_channel(0);
    let (leave_sender, leave) = sync_channel(0);
    let gated = Gated {
        inner: HashBackend::new(97),
        began,
        leave,
    };
    let gate = Gate {
        began: began_receiver,
        leave: leave_sender,
    };
    (gated, gate)
}

struct Gate {
    began: Receiver<()>,
    leave: SyncSender<Verdict>,
}

impl Gate {
    fn wait_for_step(&self) {
        self.began.recv_timeout(DEADLINE).unwrap();
    }

    fn end_step(&self, verdict: Verdict) {
        self.leave.send(verdict).unwrap();
    }

    fn one_step(&self) {
        self.wait_for_step();
        self.end_step(Verdict::Compute);
    }
}

fn all(mut stream: RequestStream) -> Vec<TokenUpdate> {
    std::iter::from_fn(|| stream.blocking_next()).collect()
}

#[test]
fn tokens_stream_until_the_finish() {
    let rig = Rig::free_running();
    let updates = all(rig.engine.submit(request(1..10, 5)).unwrap());
    assert_eq!(updates.len(), 5);
    assert!(updates[..4].iter().all(|update| update.finish.is_none()));
    assert_eq!(updates[4].finish, Some(Finish::Length));
    let again = all(rig.engine.submit(request(1..10, 5)).unwrap());
    assert_eq!(again[0].cached_tokens, 8);
    let tokens = |updates: &[TokenUpdate]| updates.iter().map(|u| u.token).collect::<Vec<_>>();
    assert_eq!(tokens(&again), tokens(&updates));
    let stats = rig.engine.stats();
    assert_eq!(
        (stats.generated_tokens, stats.running, stats.blocks_used),
        (10, 0, 0)
    );
    assert!(rig.engine.is_idle());
    let log = rig.stop();
    let seen = log.0.lock().unwrap();
    assert_eq!(seen.events[0], Event::AllBlocksCleared);
    assert_eq!((seen.finished.len(), seen.steps), (2, 10));
}

#[test]
fn an_idle_engine_does_nothing() {
    let rig = Rig::free_running();
    all(rig.engine.submit(request(1..3, 1)).unwrap());
    let log = rig.stop();
    // One at the start; one before and one after the only step. A loop that spins would have far more, and one
    // turn is the wake-up that ends the thread.
    assert_eq!(log.0.lock().unwrap().gauges, 3);
}

#[test]
fn a_dropped_stream_frees_its_blocks_before_the_next_step() {
    let (rig, gate) = Rig::gated();
    let gone = rig.engine.submit(request(1..30, 10)).unwrap();
    let stays = rig.engine.submit(request(1..3, 2)).unwrap();
    gate.wait_for_step();
    drop(gone);
    gate.end_step(Verdict::Compute);
    gate.wait_for_step();
    let stats = rig.engine.stats();
    assert_eq!((stats.running, stats.blocks_used), (1, 1));
    gate.end_step(Verdict::Compute);
    // The second submission may have missed the first step.
    let drained = std::thread::spawn(move || all(stays));
    while !drained.is_finished() {
        if gate.began.try_recv().is_ok() {
            gate.end_step(Verdict::Compute);
        }
    }
    assert_eq!(drained.join().unwrap().len(), 2);
    let log = rig.stop();
    let finishes: Vec<_> = log
        .0
        .lock()
        .unwrap()
        .finished
        .iter()
        .map(|r| r.finish.clone())
        .collect();
    assert_eq!(finishes, [Finish::Abort, Finish::Length]);
}

#[test]
fn a_stop_string_counts_as_stop() {
    let (rig, gate) = Rig::gated();
    let stream = rig.engine.submit(request(1..5, 10)).unwrap();
    gate.one_step();
    gate.wait_for_step();
    stream.stop();
    gate.end_step(Verdict::Compute);
    let log = rig.stop();
    let seen = log.0.lock().unwrap();
    assert_eq!(seen.finished[0].finish, Finish::Stop { token: None });
}

#[test]
fn a_full_queue_refuses_and_recovers() {
    let (rig, gate) = Rig::gated();
    let submit = || rig.engine.submit(request(1..5, 1));
    let accepted: Vec<_> = (0..3).map(|_| submit().unwrap()).collect();
    assert_eq!(
        submit().unwrap_err(),
        SubmitError::QueueFull {
            bound: QueueBound::Requests,
            limit: 1,
            retry_after: Duration::from_secs(1),
        }
    );
    assert_eq!(rig.engine.live_requests(), 3);
    let waiting = std::thread::spawn(move || accepted.into_iter().map(all).collect::<Vec<_>>());
    while !waiting.is_finished() {
        if gate.began.try_recv().is_ok() {
            gate.end_step(Verdict::Compute);
        }
    }
    let finished = waiting.join().unwrap();
    assert!(finished.iter().all(|updates| updates.len() == 1));
    let next = submit().unwrap();
    gate.one_step();
    assert_eq!(all(next).len(), 1);
    rig.stop();
}

#[test]
fn refused_requests_leave_no_trace() {
    let rig = Rig::free_running();
    let error = rig.engine.submit(request(0..0, 1)).unwrap_err();
    assert_eq!(error.to_string(), "the prompt is empty");
    assert!(rig.engine.submit(request(0..96, 1)).is_err());
    assert!(rig.engine.is_idle());
    rig.stop();
}

#[tokio::test]
async fn draining_finishes_what_runs_and_takes_nothing_new() {
    let (rig, gate) = Rig::gated();
    let stream = rig.engine.submit(request(1..5, 2)).unwrap();
    gate.wait_for_step();
    rig.engine.drain();
    assert_eq!(
        rig.engine.submit(request(1..5, 2)).unwrap_err(),
        SubmitError::Draining
    );
    let engine = rig.engine.clone();
    let idle = tokio::spawn(async move { engine.idle().await });
    assert!(!rig.engine.is_idle());
    gate.end_step(Verdict::Compute);
    gate.one_step();
    tokio::time::timeout(DEADLINE, idle).await.unwrap().unwrap();
    let updates = tokio::task::spawn_blocking(move || all(stream))
        .await
        .unwrap();
    assert_eq!(updates.last().unwrap().finish, Some(Finish::Length));
    rig.stop();
}

#[test]
fn abort_all_ends_everything_so_far() {
    let (rig, gate) = Rig::gated();
    let streams = [(); 3].map(|()| rig.engine.submit(request(1..5, 20)).unwrap());
    gate.wait_for_step();
    rig.engine.abort_all();
    gate.end_step(Verdict::Compute);
    for stream in streams {
        assert_eq!(all(stream).last().unwrap().finish, Some(Finish::Abort));
    }
    assert!(rig.engine.is_idle());
    let later = rig.engine.submit(request(1..5, 1)).unwrap();
    gate.one_step();
    assert_eq!(
        all(later)[0].finish,
        Some(Finish::Length),
        "later requests are not touched"
    );
    rig.stop();
}

/// Whether a step fails alone or with another one begun behind it.
#[test]
fn a_failing_backend_ends_requests_and_not_the_process() {
    for start in [Rig::gated, Rig::gated_behind] {
        for (verdict, text) in [
            (Verdict::Fail, "step: the device fell off"),
            (Verdict::Panic, "the backend panicked: index out of bounds"),
        ] {
            let (rig, gate) = start();
            let stream = rig.engine.submit(request(1..5, 20)).unwrap();
            gate.one_step();
            gate.wait_for_step();
            gate.end_step(verdict);
            let updates = all(stream);
            assert_eq!(updates.len(), 2);
            assert_eq!(updates[1].finish, Some(Finish::Error(text.to_owned())));
            assert!(!rig.engine.is_healthy());
            assert_eq!(
                rig.engine.submit(request(1..5, 1)).unwrap_err(),
                SubmitError::Unhealthy
            );
            assert_eq!(rig.engine.stats().blocks_used, 0);
            assert!(rig.engine.is_idle());
            rig.stop();
        }
    }
}

#[tokio::test]
async fn the_prefix_cache_is_reset_only_when_idle() {
    let (rig, gate) = Rig::gated();
    let stream = rig.engine.submit(request(1..10, 2)).unwrap();
    gate.wait_for_step();
    let engine = rig.engine.clone();
    let reset = tokio::spawn(async move { engine.reset_prefix_cache().await });
    // Once its command is in the channel, the next turn answers it.
    tokio::task::yield_now().await;
    gate.end_step(Verdict::Compute);
    gate.wait_for_step();
    assert!(
        !tokio::time::timeout(DEADLINE, reset)
            .await
            .unwrap()
            .unwrap()
    );
    gate.end_step(Verdict::Compute);
    tokio::task::spawn_blocking(move || all(stream))
        .await
        .unwrap();
    assert!(rig.engine.reset_prefix_cache().await);
    let log = rig.stop();
    let seen = log.0.lock().unwrap();
    assert_eq!(seen.events.last(), Some(&Event::AllBlocksCleared));
}
