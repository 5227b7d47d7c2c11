//! Traces over OTLP: one span for each request and one within it for the pick.
//!
//! Tracing is on when the environment names a collector, as the field has it; then the usual OTEL
//! variables decide how much is sampled, and whatever a request's own `traceparent` says comes
//! first. Spans wait in a queue of [`QUEUE_MAX`] and go out in batches on a thread of their own; a
//! collector that does not keep up costs spans, never requests. Without tracing there is no
//! [`Spans`], and nothing is paid.

use std::fmt;
use std::time::{Duration, SystemTime};

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{
    Span as _, SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, Span,
};

/// Ended spans that wait to be sent; those that come when it is full are dropped.
pub const QUEUE_MAX: usize = 2048;

const BATCH_MAX: usize = 512;
const BATCH_DELAY: Duration = Duration::from_secs(5);

/// What the service is called where `OTEL_SERVICE_NAME` does not say.
const SERVICE_NAME: &str = "epp";

/// Longer `tracestate` headers are dropped, as the standard allows.
const TRACE_STATE_BYTES_MAX: usize = 512;

/// Where spans go and which.
#[derive(Clone, PartialEq, Debug)]
pub struct TraceSettings {
    /// The collector's gRPC address, such as `http://collector:4317`.
    pub endpoint: String,
    pub service_name: String,
    pub sampling: Sampling,
}

/// Which requests without a sampled parent are traced.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sampling {
    /// Share of them, 0 to 1.
    pub ratio: f64,
    /// Whether the decision of a request's own `traceparent` holds instead.
    pub follows_parent: bool,
}

/// What is wrong with the tracing variables.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TraceSettingsError {
    #[error("OTEL_TRACES_SAMPLER={0} is no sampler")]
    Sampler(String),
    #[error("OTEL_TRACES_SAMPLER_ARG={0} is no share from 0 to 1")]
    Share(String),
}

impl TraceSettings {
    /// Reads the OTEL variables; `None` when they name no collector.
    pub fn read(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, TraceSettingsError> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let endpoint = set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
            .or_else(|| set("OTEL_EXPORTER_OTLP_ENDPOINT"));
        let Some(endpoint) = endpoint else {
            return Ok(None);
        };
        let sampler = set("OTEL_TRACES_SAMPLER");
        let ratio = match set("OTEL_TRACES_SAMPLER_ARG") {
            None => 1.0,
            Some(text) => text
                .trim()
                .parse()
                .ok()
                .filter(|share| (0.0..=1.0).contains(share))
                .ok_or(TraceSettingsError::Share(text))?,
        };
        let (ratio, follows_parent) = match sampler.as_deref().map(str::trim) {
            None | Some("parentbased_always_on") => (1.0, true),
            Some("parentbased_always_off") => (0.0, true),
            Some("parentbased_traceidratio") => (ratio, true),
            Some("always_on") => (1.0, false),
            Some("always_off") => (0.0, false),
            Some("traceidratio") => (ratio, false),
            Some(other) => return Err(TraceSettingsError::Sampler(other.to_owned())),
        };
        Ok(Some(Self {
            endpoint,
            service_name: set("OTEL_SERVICE_NAME").unwrap_or_else(|| SERVICE_NAME.to_owned()),
            sampling: Sampling {
                ratio,
                follows_parent,
            },
        }))
    }
}

/// Starts spans and sends ended ones. Clones send over the same connection.
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

/// The headers of one request that say which trace it belongs to.
struct TraceHeaders<'a> {
    parent: &'a str,
    state: Option<&'a str>,
}

impl Extractor for TraceHeaders<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => Some(self.parent),
            "tracestate" => self.state,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

impl Spans {
    /// Connects on first use. To be called within a tokio runtime.
    pub fn start(settings: &TraceSettings) -> Result<Self, ExporterBuildError> {
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(&settings.endpoint)
            .build()?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_MAX)
            .with_max_export_batch_size(BATCH_MAX)
            .with_scheduled_delay(BATCH_DELAY)
            .build();
        let processor = BatchSpanProcessor::builder(exporter)
            .with_batch_config(batches)
            .build();
        let resource = Resource::builder()
            .with_service_name(settings.service_name.clone())
            .build();
        let builder = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_resource(resource);
        let ratio = Sampler::TraceIdRatioBased(settings.sampling.ratio);
        let provider = if settings.sampling.follows_parent {
            builder
                .with_sampler(Sampler::ParentBased(Box::new(ratio)))
                .build()
        } else {
            builder.with_sampler(ratio).build()
        };
        let tracer = provider.tracer("pointsman");
        Ok(Self { provider, tracer })
    }

    /// The span of a request that carried these headers. `None` where nobody will ask for it: the
    /// request is not sampled and belongs to no trace.
    pub fn begin(
        &self,
        traceparent: Option<&str>,
        tracestate: Option<&str>,
        start: SystemTime,
    ) -> Option<RequestSpan> {
        let parent = traceparent.map_or_else(Context::new, |parent| {
            let state = tracestate.filter(|state| state.len() <= TRACE_STATE_BYTES_MAX);
            let headers = TraceHeaders { parent, state };
            TraceContextPropagator::new().extract_with_context(&Context::new(), &headers)
        });
        let belongs = parent.span().span_context().is_valid();
        let span = self
            .tracer
            .span_builder("gateway.request")
            .with_kind(SpanKind::Server)
            .with_start_time(start)
            .start_with_context(&self.tracer, &parent);
        (belongs || span.is_recording()).then(|| RequestSpan {
            tracer: self.tracer.clone(),
            span,
        })
    }

    /// Sends what waits and stops. It blocks until the collector answered or the time is up.
    pub fn shutdown(&self, within: Duration) {
        if let Err(error) = self.provider.shutdown_with_timeout(within) {
            tracing::warn!(%error, "the last spans may be lost");
        }
    }
}

/// The open span of one request. Dropping it ends it then.
pub struct RequestSpan {
    tracer: SdkTracer,
    span: Span,
}

impl fmt::Debug for RequestSpan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.traceparent())
    }
}

/// What the pick of one request was.
#[derive(Clone, Copy, Debug, Default)]
pub struct PickAttributes<'a> {
    pub model: &'a str,
    pub target_model: &'a str,
    /// Empty when nobody was picked.
    pub endpoint: &'a str,
    pub prompt_tokens: u32,
    pub cached_tokens: u32,
    pub candidates: usize,
    /// Why the endpoint won, or why nobody was picked.
    pub reason: &'a str,
    pub refused: bool,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct EndAttributes<'a> {
    pub model: &'a str,
    pub target_model: &'a str,
    pub endpoint: &'a str,
    /// HTTP status of the response; 0 where none was seen.
    pub status: u16,
    pub prompt_tokens: Option<u64>,
    pub cached_tokens: Option<u64>,
}

impl RequestSpan {
    /// The header that makes the worker's spans children of this one.
    pub fn traceparent(&self) -> String {
        let context = self.context();
        format!(
            "00-{}-{}-{:02x}",
            context.trace_id(),
            context.span_id(),
            context.trace_flags().to_u8()
        )
    }

    /// What else the trace carries along; empty for nothing.
    pub fn tracestate(&self) -> String {
        self.context().trace_state().header()
    }

    /// Adds the span of the pick.
    pub fn orchestration(
        &self,
        start: SystemTime,
        end: SystemTime,
        attributes: &PickAttributes<'_>,
    ) {
        if !self.span.is_recording() {
            return;
        }
        let parent = Context::new().with_remote_span_context(self.context().clone());
        let mut span = self
            .tracer
            .span_builder("gateway.request_orchestration")
            .with_kind(SpanKind::Internal)
            .with_start_time(start)
            .with_attributes([
                text("gen_ai.request.model", attributes.model),
                text("llm_d.target_model", attributes.target_model),
                text("llm_d.endpoint", attributes.endpoint),
                number("llm_d.prompt_tokens", u64::from(attributes.prompt_tokens)),
                number("llm_d.cached_tokens", u64::from(attributes.cached_tokens)),
                number("llm_d.candidates", attributes.candidates as u64),
                text("llm_d.reason", attributes.reason),
            ])
            .start_with_context(&self.tracer, &parent);
        if attributes.refused {
            span.set_status(Status::error(attributes.reason.to_owned()));
        }
        span.end_with_timestamp(end);
    }

    /// Ends the span.
    pub fn end(mut self, end: SystemTime, attributes: &EndAttributes<'_>) {
        if !self.span.is_recording() {
            return;
        }
        self.span.set_attributes([
            text("gen_ai.request.model", attributes.model),
            text("llm_d.target_model", attributes.target_model),
            text("llm_d.endpoint", attributes.endpoint),
            number("http.response.status_code", u64::from(attributes.status)),
        ]);
        let tokens = [
            ("gen_ai.usage.input_tokens", attributes.prompt_tokens),
            ("llm_d.cached_tokens", attributes.cached_tokens),
        ];
        for (name, tokens) in tokens {
            if let Some(tokens) = tokens {
                self.span.set_attribute(number(name, tokens));
            }
        }
        if attributes.status >= 500 {
            self.span.set_status(Status::error("the worker failed"));
        }
        self.span.end_with_timestamp(end);
    }

    fn context(&self) -> &SpanContext {
        self.span.span_context()
    }
}

fn text(name: &'static str, value: &str) -> KeyValue {
    KeyValue::new(name, value.to_owned())
}

fn number(name: &'static str, value: u64) -> KeyValue {
    KeyValue::new(name, value.min(i64::MAX as u64) as i64)
}

#[cfg(test)]
mod tests;
