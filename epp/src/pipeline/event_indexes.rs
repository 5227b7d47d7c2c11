//! Hands the engines' KV events to the indexes.
//!
//! The precise index takes them all. The approximate one works without events, and hears only of
//! what makes its picks void: an engine that emptied its cache, as it does when it starts over, and
//! an endpoint that left. Lost events are no such thing; they are when the picks are needed.

use std::sync::Arc;

use pointsman_proto::kv_events::Event;

use crate::fleet::kv_events::{BlockSink, EventSource};
use crate::fleet::{EndpointId, Generation};
use crate::index::PrefixIndex;
use crate::index::approximate::ApproximateIndex;

/// Both indexes, as the event subscribers see them.
#[derive(Debug)]
pub struct EventIndexes {
    pub precise: Arc<PrefixIndex>,
    pub approximate: Arc<ApproximateIndex>,
}

impl BlockSink for EventIndexes {
    fn apply(&self, source: EventSource, model: &str, event: &Event) {
        BlockSink::apply(self.precise.as_ref(), source, model, event);
        if matches!(event, Event::AllBlocksCleared) {
            self.approximate.forget(source.endpoint, source.generation);
        }
    }

    fn followed(&self, source: EventSource) {
        self.precise.followed(source);
    }

    fn clear(&self, source: EventSource) {
        BlockSink::clear(self.precise.as_ref(), source);
    }

    fn forget(&self, endpoint: EndpointId, generation: Generation) {
        BlockSink::forget(self.precise.as_ref(), endpoint, generation);
        self.approximate.forget(endpoint, generation);
    }
}
