//! The engine thread's loop.
//!
//! One turn: take commands (parked on the channel while nothing is alive), end the requests whose readers left, form a
//! step, compute it, tell everyone. Gauges are published twice a turn, before a step that may take long and after
//! it. Observers hear of a step before clients do, so a client that has its answer finds it in the metrics.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use tokio::sync::{mpsc, watch};
use tracing::{debug, error, info};

use super::handle::{ClosedBy, Command, Shared, SharedStats};
use super::progress::Progress;
use super::{EngineHandle, EventSink, Observer, RequestWatch};
use crate::backend::{Backend, BackendError, KvLayout, Step, StepOutput};
use crate::scheduler::{
    ConfigError, Finish, Outcome, Prepared, RequestReport, Scheduler, SchedulerConfig,
    SequenceNumber, TokenUpdate,
};

/// Commands besides the submissions of live requests that may be on their way; a further one waits for its turn.
const CONTROL_COMMANDS: usize = 16;

/// Why the engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A limit makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The backend does not have the memory.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The operating system refused the thread.
    #[error("engine thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Starts the engine thread. It runs until every handle is dropped and every request has ended.
///
/// # Errors
/// See [`StartError`]. KV memory is taken before this returns, so whoever starts listening afterwards can serve.
pub fn start(
    config: SchedulerConfig,
    mut backend: Box<dyn Backend>,
    sink: Box<dyn EventSink>,
    observer: Box<dyn Observer>,
) -> Result<(EngineHandle, std::thread::JoinHandle<()>), StartError> {
    let layout = KvLayout {
        block_size: config.block_size,
        blocks: config.blocks,
        host_blocks: config.host_blocks,
    };
    config.check()?;
    // What does not fit is refused before books are kept of it.
    backend.allocate(&layout)?;
    let scheduler = Scheduler::new(config)?;
    let limits = scheduler.queue_limits();
    let shared = Arc::new(Shared {
        intake: scheduler.intake(),
        limits,
        live: AtomicUsize::new(0),
        draining: AtomicBool::new(false),
        tickets: AtomicU64::new(0),
        abort_below: AtomicU64::new(0),
        healthy: AtomicBool::new(true),
        stats: SharedStats::default(),
        idle: watch::Sender::new(()),
        progress: Progress::new(),
    });
    let (sender, commands) = mpsc::channel(limits.live_max() + CONTROL_COMMANDS);
    let engine = Engine {
        scheduler,
        backend,
        sink,
        observer,
        commands,
        shared: Arc::clone(&shared),
        clients: FxHashMap::default(),
        started: Instant::now(),
        step: Step::default(),
        output: StepOutput::default(),
        outcome: Outcome::default(),
        leaving: Vec::new(),
    };
    let thread = std::thread::Builder::new().name("engine".to_owned());
    let thread = thread.spawn(move || engine.run())?;
    Ok((EngineHandle::new(sender, shared), thread))
}

/// Everything the thread owns.
struct Engine {
    scheduler: Scheduler,
    backend: Box<dyn Backend>,
    sink: Box<dyn EventSink>,
    observer: Box<dyn Observer>,
    commands: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    /// One for each request in the scheduler.
    clients: FxHashMap<SequenceNumber, Client>,
    started: Instant,
    step: Step,
    output: StepOutput,
    outcome: Outcome,
    /// Requests to end in this turn; kept for its memory.
    leaving: Vec<(SequenceNumber, Finish)>,
}

struct Client {
    updates: mpsc::Sender<TokenUpdate>,
    closed: Arc<ClosedBy>,
    ticket: u64,
    watch: Option<Arc<dyn RequestWatch>>,
}

impl Engine {
    fn run(mut self) {
        let _unhealthy_on_panic = HealthGuard(Arc::clone(&self.shared));
        self.publish_events();
        self.publish_gauges();
        while self.take_commands() {
            self.shared.progress.note();
            self.end_leaving();
            self.step();
            self.publish_events();
            self.publish_gauges();
        }
        info!("engine thread ended");
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Takes all commands that are there; waits for one when nothing is alive. False when all handles are gone.
    fn take_commands(&mut self) -> bool {
        if self.scheduler.is_empty() {
            match self.commands.blocking_recv() {
                Some(command) => self.take_command(command),
                None => return false,
            }
        }
        while let Ok(command) = self.commands.try_recv() {
            self.take_command(command);
        }
        true
    }

    fn take_command(&mut self, command: Command) {
        match command {
            Command::Submit {
                request,
                updates,
                closed,
                ticket,
                watch,
            } => {
                let client = Client {
                    updates,
                    closed,
                    ticket,
                    watch,
                };
                self.take_request(*request, client);
            }
            Command::ResetPrefixCache(reply) => {
                let done = self.scheduler.reset_prefix_cache();
                info!(done, "prefix cache reset");
                // The reset is published before its caller hears of it.
                self.publish_events();
                if reply.send(done).is_err() {
                    debug!("nobody waits for the prefix cache reset");
                }
            }
        }
    }

    fn take_request(&mut self, request: Prepared, client: Client) {
        let now = self.now();
        let number = self.scheduler.add(request, now);
        self.clients.insert(number, client);
    }

    /// Ends the requests whose readers are gone, those that are to be aborted, and all of them once the backend has
    /// failed.
    fn end_leaving(&mut self) {
        let healthy = self.shared.healthy.load(Ordering::Acquire);
        let abort_below = self.shared.abort_below.load(Ordering::Acquire);
        for (number, client) in &self.clients {
            let finish = if !healthy {
                Finish::Error("the engine is unhealthy".to_owned())
            } else if client.ticket < abort_below {
                Finish::Abort
            } else if client.updates.is_closed() {
                client.closed.finish()
            } else {
                continue;
            };
            self.leaving.push((*number, finish));
        }
        self.end();
    }

    /// Ends the requests in `leaving`. Their clients hear of it once everything else shows it.
    fn end(&mut self) {
        if self.leaving.is_empty() {
            return;
        }
        let now = self.now();
        let mut updates = std::mem::take(&mut self.outcome.updates);
        for (number, finish) in self.leaving.drain(..) {
            if let Some((update, report)) = self.scheduler.abort(number, finish, now) {
                self.observer.request_finished(&report);
                tell_watch(&self.clients, &report);
                updates.push((number, update));
            }
        }
        self.publish_gauges();
        for (number, update) in updates.drain(..) {
            self.deliver(number, update);
        }
        self.outcome.updates = updates;
    }

    fn step(&mut self) {
        let started_at = self.now();
        if !self.scheduler.schedule(started_at, &mut self.step) {
            return;
        }
        self.publish_gauges();
        if let Err(reason) = self.forward() {
            self.fail(&reason);
            return;
        }
        let finished_at = self.now();
        let mut outcome = std::mem::take(&mut self.outcome);
        self.scheduler
            .complete(&mut self.output, finished_at, &mut outcome);
        outcome.report.started_at = started_at;
        self.shared.stats.store(&outcome.report.stats);
        self.publish_events();
        self.observer.step(&outcome.report);
        for report in &outcome.finished {
            self.observer.request_finished(report);
            tell_watch(&self.clients, report);
        }
        for (number, update) in outcome.updates.drain(..) {
            self.deliver(number, update);
        }
        self.outcome = outcome;
    }

    /// Computes the step. A panic in a backend must not take the process with it: `/health` is what tells the outside.
    fn forward(&mut self) -> Result<(), String> {
        self.output.clear();
        let (backend, step, output) = (&mut self.backend, &self.step, &mut self.output);
        let computed = catch_unwind(AssertUnwindSafe(|| backend.forward(step, output)));
        match computed {
            Err(panic) => Err(format!("the backend panicked: {}", panic_text(&*panic))),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(())) if output.sampled.len() != step.samples.len() => Err(format!(
                "the backend sampled {} tokens of {}",
                output.sampled.len(),
                step.samples.len()
            )),
            Ok(Ok(())) => Ok(()),
        }
    }

    /// The device's state is unknown: ends every request, and refuses further ones.
    fn fail(&mut self, reason: &str) {
        error!(reason, "backend failed");
        self.shared.healthy.store(false, Ordering::Release);
        let error = Finish::Error(reason.to_owned());
        self.leaving
            .extend(self.clients.keys().map(|number| (*number, error.clone())));
        self.end();
    }

    /// Sends an update. The channel has room for all a request can get; a reader that left is dealt with in the next
    /// turn. A request that ends gives its place back first, so that its client can submit the next one at once.
    fn deliver(&mut self, number: SequenceNumber, update: TokenUpdate) {
        if update.finish.is_none() {
            if let Some(client) = self.clients.get(&number) {
                send(client, update);
            }
            return;
        }
        if let Some(client) = self.clients.remove(&number) {
            self.shared.release_live();
            send(&client, update);
        }
    }

    fn publish_events(&mut self) {
        let events = self.scheduler.take_events();
        if !events.is_empty() {
            self.sink.publish(events);
        }
    }

    fn publish_gauges(&mut self) {
        let stats = self.scheduler.stats();
        self.shared.stats.store(&stats);
        self.observer.gauges(&stats);
    }
}

/// Marks the engine unhealthy when its thread ends by a panic of its own.
struct HealthGuard(Arc<Shared>);

impl Drop for HealthGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.healthy.store(false, Ordering::Release);
        }
    }
}

fn tell_watch(clients: &FxHashMap<SequenceNumber, Client>, report: &RequestReport) {
    let client = clients.get(&report.number);
    if let Some(watch) = client.and_then(|client| client.watch.as_ref()) {
        watch.ended(report);
    }
}

fn send(client: &Client, update: TokenUpdate) {
    if let Err(mpsc::error::TrySendError::Full(update)) = client.updates.try_send(update) {
        error!(
            ?update,
            "a request got more updates than its channel was made for"
        );
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
