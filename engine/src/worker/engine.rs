//! The engine thread's loop.
//!
//! One turn: take commands (parked on the channel while nothing is alive), end the requests whose readers left, form a
//! step, compute it, tell everyone. Gauges are published twice a turn, before a step that may take long and after
//! it. Observers hear of a step before clients do, so a client that has its answer finds it in the metrics.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tracing::{error, info};

use super::command::{Command, Quiet};
use super::handle::ClosedBy;
use super::pause::tell;
use super::shared::Shared;
use super::{EngineHandle, EventSink, Observer, RequestWatch};
use crate::backend::{Backend, BackendError, KvLayout, SleepLevel, Step, StepOutput};
use crate::scheduler::{
    ConfigError, Finish, Outcome, Prepared, RequestReport, Scheduler, SchedulerConfig,
    SequenceNumber, Stats, TokenUpdate,
};

/// Commands besides the submissions of live requests that may be on their way; a further one waits for its turn.
const CONTROL_COMMANDS: usize = 16;

/// While the engine is paused with requests alive, it looks at least this often whether their readers left or their
/// deadlines passed.
const PAUSED_TURN: Duration = Duration::from_millis(50);

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
    let shared = Arc::new(Shared::new(scheduler.intake(), limits));
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
        quiet: Vec::new(),
        asleep: None,
        timer: tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?,
    };
    let thread = std::thread::Builder::new().name("engine".to_owned());
    let thread = thread.spawn(move || engine.run())?;
    Ok((EngineHandle::new(sender, shared), thread))
}

/// Everything the thread owns.
pub(super) struct Engine {
    pub(super) scheduler: Scheduler,
    pub(super) backend: Box<dyn Backend>,
    sink: Box<dyn EventSink>,
    observer: Box<dyn Observer>,
    commands: mpsc::Receiver<Command>,
    pub(super) shared: Arc<Shared>,
    /// One for each request in the scheduler.
    pub(super) clients: FxHashMap<SequenceNumber, Client>,
    started: Instant,
    step: Step,
    output: StepOutput,
    outcome: Outcome,
    /// Requests to end in this turn; kept for its memory.
    pub(super) leaving: Vec<(SequenceNumber, Finish)>,
    /// What to do once nothing runs; at most [`CONTROL_COMMANDS`].
    pub(super) quiet: Vec<Quiet>,
    /// The level at which the backend sleeps.
    pub(super) asleep: Option<SleepLevel>,
    /// Bounds the waits of a paused engine.
    timer: Runtime,
}

pub(super) struct Client {
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
            self.settle();
            self.step();
            self.settle();
            self.publish_events();
            self.publish_gauges();
        }
        info!("engine thread ended");
    }

    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Takes all commands that are there; waits for one when there is nothing to compute. False when all handles are
    /// gone.
    fn take_commands(&mut self) -> bool {
        if !self.scheduler.has_work() {
            match self.wait() {
                Wait::Command(command) => self.take_command(command),
                Wait::Over => {}
                Wait::Closed => return false,
            }
        }
        while let Ok(command) = self.commands.try_recv() {
            self.take_command(command);
        }
        true
    }

    /// Waits for a command: for ever while no request is alive, for a while if some are, but paused.
    fn wait(&mut self) -> Wait {
        let command = if self.scheduler.is_empty() {
            self.commands.blocking_recv()
        } else {
            let commands = &mut self.commands;
            let waited = self
                .timer
                .block_on(async { tokio::time::timeout(PAUSED_TURN, commands.recv()).await });
            let Ok(command) = waited else {
                return Wait::Over;
            };
            command
        };
        command.map_or(Wait::Closed, Wait::Command)
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
            Command::ResetPrefixCache {
                preempt_running,
                reply,
            } => {
                // The reset is published before its caller hears of it.
                let done = if preempt_running {
                    self.clear_cache()
                } else {
                    self.scheduler.reset_prefix_cache()
                };
                self.publish_events();
                info!(done, "prefix cache reset");
                tell(reply, done);
            }
            // One too many goes unanswered, which its asker sees.
            Command::Pause { .. } if self.quiet.len() >= CONTROL_COMMANDS => {}
            Command::Pause { mode, then } => self.pause(mode, then),
            Command::Resume(reply) => {
                let done = self.resume();
                tell(reply, done);
            }
            Command::Wake(reply) => {
                let done = self.wake();
                tell(reply, done);
            }
        }
    }

    fn take_request(&mut self, request: Prepared, client: Client) {
        let now = self.now();
        let tokens = request.prompt_tokens();
        let number = self.scheduler.add(request, now);
        self.clients.insert(number, client);
        // In this order; see `Ticket::take`.
        self.store_stats();
        self.shared.release_arriving(tokens);
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
        let now = self.now();
        while let Some(number) = self.scheduler.expired(now) {
            self.leaving.push((number, Finish::Deadline));
        }
        self.end();
    }

    /// Ends the requests in `leaving`; whoever is in it twice ends once. Their clients hear of it once everything else shows it.
    pub(super) fn end(&mut self) {
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
        outcome.report.stats.sleep_level = self.shared.sleep_level();
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
    pub(super) fn fail(&mut self, reason: &str) {
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

    pub(super) fn publish_events(&mut self) {
        let events = self.scheduler.take_events();
        if !events.is_empty() {
            self.sink.publish(events);
        }
    }

    pub(super) fn publish_gauges(&mut self) {
        let stats = self.store_stats();
        self.observer.gauges(&stats);
    }

    fn store_stats(&self) -> Stats {
        let stats = Stats {
            sleep_level: self.shared.sleep_level(),
            ..self.scheduler.stats()
        };
        self.shared.stats.store(&stats);
        stats
    }
}

/// How a wait for a command ended.
enum Wait {
    Command(Command),
    /// With none, for now.
    Over,
    /// All handles are gone.
    Closed,
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
