//! The engine thread's loop.
//!
//! One turn: take commands (parked on the channel while nothing is alive), end the requests whose readers left, form a
//! step, compute it, tell everyone. Gauges are published twice a turn, before a step that may take long and after
//! it. Observers hear of a step before clients do, so a client that has its answer finds it in the metrics.
//!
//! With a backend that can take it, the next step is formed and begun before the present one is waited for, so that the
//! device goes on while the rest of the turn is done here. A request that comes, or leaves, in the meantime is seen one
//! step later. Every command but a submission finds nothing under way, as it would without.

use std::collections::VecDeque;
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
        begun: VecDeque::with_capacity(2),
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
    /// How many samples each step asked for that is begun and not finished, in their order; at most two.
    begun: VecDeque<usize>,
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

    /// Takes all commands that are there; waits for one when there is nothing to compute, and nothing under way. False
    /// when all handles are gone.
    fn take_commands(&mut self) -> bool {
        if !self.scheduler.has_work() && self.begun.is_empty() {
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
        if !matches!(command, Command::Submit { .. }) {
            self.finish_all();
        }
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

    /// Finishes one step. Where the backend can take it, the one after it is begun by then.
    fn step(&mut self) {
        let under_way = !self.begun.is_empty() || self.begin(Scheduler::schedule);
        if !under_way {
            return;
        }
        if self.backend.info().ahead {
            self.begin(Scheduler::schedule_ahead);
        }
        self.finish_one();
    }

    /// Forms a step by `schedule`, and begins it. Whether there is one.
    fn begin(&mut self, schedule: fn(&mut Scheduler, Duration, &mut Step) -> bool) -> bool {
        let now = self.now();
        if !schedule(&mut self.scheduler, now, &mut self.step) {
            return false;
        }
        self.publish_gauges();
        self.begun.push_back(self.step.samples.len());
        let (backend, step) = (&mut self.backend, &self.step);
        if let Err(reason) = guarded(|| backend.begin(step)) {
            self.fail(&reason);
        }
        true
    }

    /// Waits for everything that is under way, and takes it in.
    fn finish_all(&mut self) {
        while !self.begun.is_empty() {
            self.finish_one();
        }
    }

    /// Waits for the step that was begun first, takes in what it brought, and tells everyone.
    fn finish_one(&mut self) {
        let Some(samples) = self.begun.pop_front() else {
            return;
        };
        if let Err(reason) = self.finish(samples) {
            self.fail(&reason);
            return;
        }
        let finished_at = self.now();
        let mut outcome = std::mem::take(&mut self.outcome);
        self.scheduler
            .complete(&mut self.output, finished_at, &mut outcome);
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

    /// Waits for the step that was begun first, which asked for so many samples.
    fn finish(&mut self, samples: usize) -> Result<(), String> {
        self.output.clear();
        let (backend, output) = (&mut self.backend, &mut self.output);
        guarded(|| backend.finish(output))?;
        match output.sampled.len() {
            sampled if sampled != samples => {
                Err(format!("the backend sampled {sampled} tokens of {samples}"))
            }
            _ => Ok(()),
        }
    }

    /// The device's state is unknown: ends every request, and refuses further ones.
    pub(super) fn fail(&mut self, reason: &str) {
        error!(reason, "backend failed");
        // Nobody waits for what is under way.
        self.begun.clear();
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

/// Calls the backend. A panic in it must not take the process with it: `/health` is what tells the outside.
fn guarded(call: impl FnOnce() -> Result<(), BackendError>) -> Result<(), String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Err(panic) => Err(format!("the backend panicked: {}", panic_text(&*panic))),
        Ok(done) => done.map_err(|error| error.to_string()),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
