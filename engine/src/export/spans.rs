//! A span of each request over OTLP, with the name and the attributes that vLLM gives it.
//!
//! Tracing is on when a flag or the environment names a collector; the usual OTEL variables decide how much is
//! sampled, and the decision in a request's own `traceparent` comes first. A span is made when its request has ended,
//! from the engine's own times, so nothing is open while a request runs. Spans wait in a queue of [`QUEUE_MAX`] and
//! go out in batches on a thread of their own; a collector that does not keep up costs spans, never requests.

use std::fmt;
use std::time::Duration;

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Span as _, SpanKind, Status, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider,
};

use super::requests::{About, Ended, finish_reason};
use crate::scheduler::Finish;

/// Ended spans that wait to be sent; those that come when it is full are dropped.
const QUEUE_MAX: usize = 2048;
const BATCH_MAX: usize = 512;
const BATCH_DELAY: Duration = Duration::from_secs(5);

/// What the service is called where `OTEL_SERVICE_NAME` does not say.
const SERVICE_NAME: &str = "pointsman-engine";

/// Longer `tracestate` headers are dropped, as the standard allows.
const TRACE_STATE_BYTES_MAX: usize = 512;

/// Where spans go and which.
#[derive(Clone, PartialEq, Debug)]
pub struct TraceSettings {
    /// The collector's gRPC address, such as `http://collector:4317`.
    pub endpoint: String,
    /// What the service is called.
    pub service_name: String,
    /// Share of the requests without a traced parent that are traced, 0 to 1.
    pub ratio: f64,
    /// Whether the decision of a request's own `traceparent` holds instead.
    pub follows_parent: bool,
}

/// Why there can be no spans.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// A sampler that the OTEL variables do not know.
    #[error("OTEL_TRACES_SAMPLER={0} is no sampler")]
    Sampler(String),
    /// A sampler's argument that is no share.
    #[error("OTEL_TRACES_SAMPLER_ARG={0} is no share from 0 to 1")]
    Share(String),
    /// The collector's address.
    #[error("cannot send spans to {endpoint}: {reason}")]
    Endpoint {
        /// As it was given.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl TraceSettings {
    /// From the flag's value, if any, and the OTEL variables; none where nothing names a collector.
    ///
    /// # Errors
    /// When a variable that matters has a value that makes no sense.
    pub fn read(
        flag: Option<&str>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, TraceError> {
        let set = |name: &str| {
            let value = variable(name)?.trim().to_owned();
            (!value.is_empty()).then_some(value)
        };
        let endpoint = flag
            .map(str::to_owned)
            .or_else(|| set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))
            .or_else(|| set("OTEL_EXPORTER_OTLP_ENDPOINT"));
        let Some(endpoint) = endpoint else {
            return Ok(None);
        };
        let share = || match set("OTEL_TRACES_SAMPLER_ARG") {
            None => Ok(1.0),
            Some(text) => match text.parse() {
                Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
                _ => Err(TraceError::Share(text)),
            },
        };
        let sampler = set("OTEL_TRACES_SAMPLER");
        let (ratio, follows_parent) = match sampler.as_deref() {
            None | Some("parentbased_always_on") => (1.0, true),
            Some("parentbased_always_off") => (0.0, true),
            Some("parentbased_traceidratio") => (share()?, true),
            Some("always_on") => (1.0, false),
            Some("always_off") => (0.0, false),
            Some("traceidratio") => (share()?, false),
            Some(other) => return Err(TraceError::Sampler(other.to_owned())),
        };
        Ok(Some(Self {
            endpoint,
            service_name: set("OTEL_SERVICE_NAME").unwrap_or_else(|| SERVICE_NAME.to_owned()),
            ratio,
            follows_parent,
        }))
    }
}

/// Sends spans. Clones send over the same connection.
#[derive(Clone)]
pub struct Spans {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl fmt::Debug for Spans {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Spans").finish_non_exhaustive()
    }
}

impl Spans {
    /// Connects on first use. To be called within a tokio runtime.
    ///
    /// # Errors
    /// When the collector's address is none.
    pub fn start(settings: &TraceSettings) -> Result<Self, TraceError> {
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(&settings.endpoint)
            .build()
            .map_err(|error| TraceError::Endpoint {
                endpoint: settings.endpoint.clone(),
                reason: error.to_string(),
            })?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_MAX)
            .with_max_export_batch_size(BATCH_MAX)
            .with_scheduled_delay(BATCH_DELAY)
            .build();
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches);
        let resource = Resource::builder().with_service_name(settings.service_name.clone());
        let ratio = Sampler::TraceIdRatioBased(settings.ratio);
        let sampler = if settings.follows_parent {
            Sampler::ParentBased(Box::new(ratio))
        } else {
            ratio
        };
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor.build())
            .with_resource(resource.build())
            .with_sampler(sampler)
            .build();
        let tracer = provider.tracer("pointsman");
        Ok(Self { provider, tracer })
    }

    /// Sends what waits and stops. It blocks until the collector answered or the time is up.
    pub fn shutdown(&self, within: Duration) {
        if let Err(error) = self.provider.shutdown_with_timeout(within) {
            tracing::warn!(%error, "the last spans may be lost");
        }
    }

    /// The span of a request that ended.
    pub(super) fn record(&self, ended: &Ended) {
        let (about, report) = (&*ended.about, &ended.report);
        let took = report.finished_at.saturating_sub(report.arrived_at);
        let mut span = self
            .tracer
            .span_builder("llm_request")
            .with_kind(SpanKind::Server)
            .with_start_time(ended.at.checked_sub(took).unwrap_or(ended.at))
            .start_with_context(&self.tracer, &parent(about));
        if !span.is_recording() {
            return;
        }
        span.set_attributes(request_attributes(ended));
        span.set_attributes(latencies(ended));
        if let Finish::Error(reason) = &report.finish {
            span.set_status(Status::error(reason.clone()));
        }
        span.end_with_timestamp(ended.at);
    }
}

/// The trace and the span that the request came with; an empty context where it brought none.
fn parent(about: &About) -> Context {
    match about.traceparent {
        None => Context::new(),
        Some(_) => TraceContextPropagator::new().extract_with_context(&Context::new(), about),
    }
}

impl Extractor for About {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.traceparent.as_deref(),
            "tracestate" => {
                let state = self.tracestate.as_deref();
                state.filter(|state| state.len() <= TRACE_STATE_BYTES_MAX)
            }
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

fn request_attributes(ended: &Ended) -> Vec<KeyValue> {
    let (about, report) = (&*ended.about, &ended.report);
    let number = |name, value: u32| KeyValue::new(name, i64::from(value));
    let mut attributes = vec![
        KeyValue::new("gen_ai.request.id", about.id.to_string()),
        KeyValue::new("gen_ai.response.model", about.model.clone()),
        number("gen_ai.request.n", about.choices),
        number("gen_ai.request.max_tokens", report.max_tokens),
        KeyValue::new("gen_ai.request.temperature", f64::from(about.temperature)),
        KeyValue::new("gen_ai.request.top_p", f64::from(about.top_p)),
        number("gen_ai.usage.prompt_tokens", report.prompt_tokens),
        number("gen_ai.usage.completion_tokens", report.generated_tokens),
        number("gen_ai.usage.cached_tokens", report.cached_tokens),
        KeyValue::new(
            "gen_ai.response.finish_reason",
            finish_reason(&report.finish),
        ),
        number("pointsman.data_parallel_rank", about.rank),
        number("pointsman.preemptions", report.preemptions),
    ];
    if let Some(session) = &about.session {
        attributes.push(KeyValue::new("session.id", session.clone()));
    }
    attributes
}

/// In seconds. A phase that the request did not complete has none.
fn latencies(ended: &Ended) -> impl Iterator<Item = KeyValue> {
    let report = &ended.report;
    let phases = report.phases();
    let first = phases.queue.zip(phases.prefill);
    let inference = phases.prefill.zip(phases.decode);
    let named = [
        ("gen_ai.latency.time_in_queue", phases.queue),
        (
            "gen_ai.latency.time_to_first_token",
            first.map(|(queue, prefill)| queue + prefill),
        ),
        (
            "gen_ai.latency.e2e",
            Some(report.finished_at.saturating_sub(report.arrived_at)),
        ),
        ("gen_ai.latency.time_in_model_prefill", phases.prefill),
        ("gen_ai.latency.time_in_model_decode", phases.decode),
        (
            "gen_ai.latency.time_in_model_inference",
            inference.map(|(prefill, decode)| prefill + decode),
        ),
    ];
    named
        .into_iter()
        .filter_map(|(name, time)| Some(KeyValue::new(name, time?.as_secs_f64())))
}

#[cfg(test)]
mod tests;
