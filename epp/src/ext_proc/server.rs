//! The gRPC shell around the machine: one task per stream.
//!
//! The task reads a message, lets the machine advance, and performs the actions in order. While a
//! decision is under way it goes on reading, because the end of the inbound stream is the only sign
//! that the client went away, and it holds the one deadline there is: Envoy applies none in full
//! duplex. Answers go through a channel of [`OUTBOUND_MESSAGES`]; when Envoy reads slowly the task
//! waits there and so stops reading, which is the back-pressure that bounds what one stream can
//! hold. What all streams together hold of request bodies is bounded by [`HeldBytes`].
//!
//! The gRPC status of the inbound stream says nothing about the request: Envoy resets streams that
//! went well.

mod task;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_server::ExternalProcessor;
use envoy_types::pb::envoy::service::ext_proc::v3::{ProcessingRequest, ProcessingResponse};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Response, Status, Streaming};

use super::authority::PoolHint;
use super::decider::Decider;
use super::held::HeldBytes;
use super::leases::Leases;
use super::machine::Watch;
use crate::clock::Clock;
use crate::observe::Gauge;
use task::StreamTask;

/// Answers that wait for Envoy to read them; the stream's task waits when there are so many.
const OUTBOUND_MESSAGES: usize = 16;

/// Bounds of the streams.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// A request body past this is answered 413.
    pub max_request_body_bytes: usize,
    /// A body that would make all bodies held together larger than this is answered 503.
    pub max_held_bytes: usize,
    /// A decision that takes longer is answered 503.
    pub decision_timeout: Duration,
}

/// Called at the end of a stream with its code and how long it lasted: what
/// `--enable-grpc-stream-metrics` counts.
pub type StreamEnded = Arc<dyn Fn(Code, Duration) + Send + Sync>;

/// What the streams are made of.
pub struct Parts<D: Decider> {
    pub decider: Arc<D>,
    pub limits: StreamLimits,
    /// How responses are watched.
    pub watch: Watch,
    /// The exchanges that run without a stream.
    pub leases: Arc<Leases<D::Exchange>>,
    pub clock: Clock,
    /// Open streams.
    pub streams_in_flight: Gauge,
    pub stream_ended: Option<StreamEnded>,
}

impl<D: Decider> fmt::Debug for Parts<D> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Parts")
            .field("limits", &self.limits)
            .field("watch", &self.watch)
            .finish_non_exhaustive()
    }
}

/// The ext_proc service.
#[derive(Debug)]
pub struct Processor<D: Decider> {
    parts: Arc<Parts<D>>,
    held: Arc<HeldBytes>,
    tasks: TaskTracker,
}

impl<D: Decider> Clone for Processor<D> {
    fn clone(&self) -> Self {
        Self {
            parts: Arc::clone(&self.parts),
            held: Arc::clone(&self.held),
            tasks: self.tasks.clone(),
        }
    }
}

impl<D: Decider> Processor<D> {
    pub fn new(parts: Parts<D>) -> Self {
        Self {
            held: HeldBytes::new(parts.limits.max_held_bytes),
            parts: Arc::new(parts),
            tasks: TaskTracker::new(),
        }
    }

    /// The exchanges that run without a stream.
    pub fn leases(&self) -> &Arc<Leases<D::Exchange>> {
        &self.parts.leases
    }

    /// What the streams hold of request bodies.
    pub fn held_bytes(&self) -> &Arc<HeldBytes> {
        &self.held
    }

    /// Comes back when the last stream has ended, once no more are opened.
    pub async fn idle(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[tonic::async_trait]
impl<D: Decider> ExternalProcessor for Processor<D> {
    type ProcessStream = ReceiverStream<Result<ProcessingResponse, Status>>;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Self::ProcessStream>, Status> {
        let (sender, receiver) = mpsc::channel(OUTBOUND_MESSAGES);
        let pool = Arc::new(PoolHint::of(&request));
        let task = StreamTask::new(
            request.into_inner(),
            sender,
            Arc::clone(&self.parts),
            self.held.share(),
            pool,
        );
        self.tasks.spawn(task.run());
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
