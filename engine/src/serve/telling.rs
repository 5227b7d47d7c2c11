//! The parts that tell of single requests: the task that writes their records, and the spans it sends.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{info, warn};

use super::ServeError;
use crate::export::metrics::MetricsPage;
use crate::export::requests::RequestRecords;
use crate::export::spans::{Spans, TraceSettings};
use crate::flags::Flags;

/// Nothing of it is there where neither lines nor spans are wanted.
#[derive(Debug, Default)]
pub(super) struct Telling {
    pub(super) records: Option<RequestRecords>,
    task: Option<JoinHandle<()>>,
    spans: Option<Spans>,
}

impl Telling {
    pub(super) fn start(flags: &Flags, page: &MetricsPage) -> Result<Self, ServeError> {
        let flag = flags.fleet.otlp_traces_endpoint.as_deref();
        let settings = TraceSettings::read(flag, |name| std::env::var(name).ok())?;
        let spans = settings.as_ref().map(Spans::start).transpose()?;
        if let Some(settings) = &settings {
            info!(endpoint = settings.endpoint, "spans");
        }
        let lines = flags.fleet.enable_log_requests;
        if !lines && spans.is_none() {
            return Ok(Self::default());
        }
        let lost = page.request_records_lost();
        let (records, task) = RequestRecords::start(lines, spans.clone(), lost);
        Ok(Self {
            records: Some(records),
            task: Some(task),
            spans,
        })
    }

    /// Writes and sends what is there; to be called when nobody else holds the records any more.
    pub(super) async fn finish(self, within: Duration) {
        drop(self.records);
        if let Some(task) = self.task
            && timeout(within, task).await.is_err()
        {
            warn!("the last requests may not be told of");
        }
        let Some(spans) = self.spans else { return };
        // It blocks, and so does its thread if the collector does not answer.
        let sent = tokio::task::spawn_blocking(move || spans.shutdown(within));
        if timeout(within, sent).await.is_err() {
            warn!("the last spans may be lost");
        }
    }
}
