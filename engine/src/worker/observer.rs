//! Who listens to the engine thread: one sink for KV events, one observer of its work.

use pointsman_proto::kv_events::Event;

use crate::scheduler::{RequestReport, Stats, StepReport};

/// Takes the KV events of a step.
pub trait EventSink: Send {
    /// Called on the engine thread, once for each step that changed the prefix cache and once at the start, with at
    /// least one event. It must not block: the next step waits for it.
    fn publish(&mut self, events: Vec<Event>);

    /// The step's events are to get lost on their way: a sink that numbers batches skips a number.
    fn lose(&mut self, _events: Vec<Event>) {}
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
