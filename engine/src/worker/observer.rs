//! Who listens to the engine thread: one sink for KV events, one observer of its work.

use std::fmt::Debug;

use pointsman_proto::block_hash::BlockDigest;
use pointsman_proto::kv_events::Event;

use crate::scheduler::{RequestReport, Stats, StepReport};

/// Takes the KV events of a step.
pub trait EventSink: Send {
    /// Called on the engine thread, once for each step that changed the prefix cache and once at the start, with at
    /// least one event. Blocks are known by their whole digests. It must not block: the next step waits for it.
    fn publish(&mut self, events: Vec<Event<BlockDigest>>);

    /// The step's events are to get lost on their way: a sink that numbers batches skips a number.
    fn lose(&mut self, _events: Vec<Event<BlockDigest>>) {}
}

/// Watches the engine's work. Every method is called on the engine thread and must not block.
pub trait Observer: Send {
    /// The engine's gauges, after every turn of the loop that may have changed them.
    fn gauges(&mut self, stats: &Stats);
    /// A step was computed.
    fn step(&mut self, report: &StepReport);
    /// A request ended, in whichever way.
    fn request_finished(&mut self, report: &RequestReport);
}

/// Hears of the end of the one request that it was submitted with; for what is told of single requests, such as
/// spans and log lines.
pub trait RequestWatch: Debug + Send + Sync {
    /// Called on the engine thread, whichever way the request ended, before its client hears of it. It must not
    /// block.
    fn ended(&self, report: &RequestReport);
}
