//! What is told of single requests: a line of the log and a span, once a request has ended.
//!
//! The engine thread hands over what it knows of an ended request and goes on; a task writes. The way to the task is
//! a queue of [`QUEUE_MAX`]: if it is full, the record is dropped and counted, and no request waits for it. Where
//! neither lines nor spans are wanted there is no [`RequestRecords`], and nothing is paid.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::info;

use super::metrics::Counter;
use super::spans::Spans;
use crate::scheduler::Finish;
use crate::worker::{RequestReport, RequestWatch};

/// Ended requests that wait to be written; those that end when it is full are not told of.
const QUEUE_MAX: usize = 4096;

/// What is known of a request before it runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct About {
    /// The id that its answer carries.
    pub id: Arc<str>,
    /// The model's name in the answer.
    pub model: String,
    /// The session the client says it belongs to.
    pub session: Option<String>,
    /// W3C trace context: the span that caused the request.
    pub traceparent: Option<String>,
    /// W3C trace context: what else the trace carries along.
    pub tracestate: Option<String>,
    /// The data-parallel rank that runs it.
    pub rank: u32,
    /// Choices asked for.
    pub choices: u32,
    /// The temperature in force.
    pub temperature: f32,
    /// The top-p in force.
    pub top_p: f32,
}

/// A request that ended.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub(super) about: Arc<About>,
    pub(super) report: RequestReport,
    /// The wall clock at its end.
    pub(super) at: SystemTime,
}

/// Takes the records. Clones write through the same task.
#[derive(Clone, Debug)]
pub struct RequestRecords {
    sender: mpsc::Sender<Ended>,
    lost: Counter,
}

impl RequestRecords {
    /// Starts the task, which ends when all clones and all watches are gone. `lines` says whether requests are logged;
    /// `lost` counts records that were dropped. To be called within a tokio runtime.
    pub fn start(lines: bool, spans: Option<Spans>, lost: Counter) -> (Self, JoinHandle<()>) {
        let (sender, mut ended) = mpsc::channel::<Ended>(QUEUE_MAX);
        let task = tokio::spawn(async move {
            while let Some(ended) = ended.recv().await {
                if lines {
                    ended.log();
                }
                if let Some(spans) = &spans {
                    spans.record(&ended);
                }
            }
        });
        (Self { sender, lost }, task)
    }

    /// What one request is to be submitted with.
    pub fn watch(&self, about: About) -> Arc<dyn RequestWatch> {
        Arc::new(Watch {
            about: Arc::new(about),
            records: self.clone(),
        })
    }
}

#[derive(Debug)]
struct Watch {
    about: Arc<About>,
    records: RequestRecords,
}

impl RequestWatch for Watch {
    fn ended(&self, report: &RequestReport) {
        let ended = Ended {
            about: Arc::clone(&self.about),
            report: report.clone(),
            at: SystemTime::now(),
        };
        if self.records.sender.try_send(ended).is_err() {
            self.records.lost.increment(1);
        }
    }
}

impl Ended {
    /// The fields are part of the log's contract: they are always there, but for those that have no value.
    fn log(&self) {
        let (about, report) = (&*self.about, &self.report);
        let phases = report.phases();
        info!(
            id = &*about.id,
            session = about.session,
            model = about.model,
            rank = about.rank,
            finish = finish_reason(&report.finish),
            prompt_tokens = report.prompt_tokens,
            cached_tokens = report.cached_tokens,
            generated_tokens = report.generated_tokens,
            max_tokens = report.max_tokens,
            preemptions = report.preemptions,
            queue_ms = phases.queue.map(milliseconds),
            prefill_ms = phases.prefill.map(milliseconds),
            decode_ms = phases.decode.map(milliseconds),
            total_ms = milliseconds(report.finished_at.saturating_sub(report.arrived_at)),
            error = match &report.finish {
                Finish::Error(reason) => Some(reason.as_str()),
                _ => None,
            },
            "request ended"
        );
    }
}

/// The reason's name, as in the metrics.
pub(super) fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::Stop { .. } => "stop",
        Finish::Length => "length",
        Finish::Abort | Finish::Deadline => "abort",
        Finish::Error(_) => "error",
    }
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
