//! KV events that are held back or lost on demand, for tests of what follows them.

use std::collections::VecDeque;
use std::sync::Arc;

use pointsman_proto::block_hash::BlockDigest;
use pointsman_proto::kv_events::Event;

use crate::faults::{Faults, KvEventsFault};
use crate::worker::EventSink;

/// Batches of KV events that are held back at most; beyond it the oldest are lost, as in a publisher's queue.
const HELD_MAX: usize = 10_000;

/// A sink of KV events that holds them back or loses them when told to.
pub struct FaultyEvents {
    inner: Box<dyn EventSink>,
    faults: Arc<Faults>,
    held: VecDeque<Vec<Event<BlockDigest>>>,
}

impl std::fmt::Debug for FaultyEvents {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = formatter.debug_struct("FaultyEvents");
        debug
            .field("held", &self.held.len())
            .finish_non_exhaustive()
    }
}

impl FaultyEvents {
    /// Passes events on to `inner` as far as `faults` let them.
    pub fn new(inner: Box<dyn EventSink>, faults: Arc<Faults>) -> Self {
        Self {
            inner,
            faults,
            held: VecDeque::new(),
        }
    }
}

impl EventSink for FaultyEvents {
    fn publish(&mut self, events: Vec<Event<BlockDigest>>) {
        match self.faults.kv_events() {
            KvEventsFault::Hold => {
                self.held.push_back(events);
                if self.held.len() > HELD_MAX
                    && let Some(oldest) = self.held.pop_front()
                {
                    self.inner.lose(oldest);
                }
            }
            fault => {
                for held in self.held.drain(..) {
                    self.inner.publish(held);
                }
                if fault == KvEventsFault::Lose {
                    self.inner.lose(events);
                } else {
                    self.inner.publish(events);
                }
            }
        }
    }

    fn lose(&mut self, events: Vec<Event<BlockDigest>>) {
        self.inner.lose(events);
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::faults::{FaultPlan, FaultPlanError};

    fn plan(json: &str) -> Result<FaultPlan, String> {
        json.parse()
            .map_err(|error: FaultPlanError| error.to_string())
    }

    /// Numbers batches as a publisher does.
    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Numbers>>);

    /// The next number, and number and size of each batch.
    type Numbers = (u64, Vec<(u64, usize)>);

    impl EventSink for Seen {
        fn publish(&mut self, events: Vec<Event<BlockDigest>>) {
            let mut seen = self.0.lock();
            let number = seen.0;
            seen.1.push((number, events.len()));
            seen.0 += 1;
        }

        fn lose(&mut self, _: Vec<Event<BlockDigest>>) {
            self.0.lock().0 += 1;
        }
    }

    #[test]
    fn events_are_held_and_then_published_in_order() {
        let (seen, faults) = (Seen::default(), Arc::new(Faults::default()));
        let mut sink = FaultyEvents::new(Box::new(seen.clone()), Arc::clone(&faults));
        let batch = |size| vec![Event::AllBlocksCleared; size];
        sink.publish(batch(1));
        faults.set(plan(r#"{"kv_events": "hold"}"#).unwrap());
        sink.publish(batch(2));
        sink.publish(batch(3));
        assert_eq!(seen.0.lock().1, [(0, 1)]);
        faults.set(FaultPlan::default());
        sink.publish(batch(4));
        assert_eq!(seen.0.lock().1, [(0, 1), (1, 2), (2, 3), (3, 4)]);
    }

    #[test]
    fn lost_events_leave_a_gap_in_the_numbers() {
        let (seen, faults) = (Seen::default(), Arc::new(Faults::default()));
        let mut sink = FaultyEvents::new(Box::new(seen.clone()), Arc::clone(&faults));
        sink.publish(vec![Event::AllBlocksCleared]);
        faults.set(plan(r#"{"kv_events": "lose"}"#).unwrap());
        sink.publish(vec![Event::AllBlocksCleared]);
        faults.set(FaultPlan::default());
        sink.publish(vec![Event::AllBlocksCleared]);
        assert_eq!(seen.0.lock().1, [(0, 1), (2, 1)]);
    }

    #[test]
    fn held_events_have_a_bound() {
        let seen = Seen::default();
        let faults = Faults::new(plan(r#"{"kv_events": "hold"}"#).unwrap());
        let mut sink = FaultyEvents::new(Box::new(seen.clone()), Arc::new(faults));
        for _ in 0..HELD_MAX + 3 {
            sink.publish(vec![Event::AllBlocksCleared]);
        }
        assert_eq!(sink.held.len(), HELD_MAX);
        assert_eq!(
            seen.0.lock().0,
            3,
            "the oldest took their numbers with them"
        );
    }
}
