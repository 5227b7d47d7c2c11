//! The events that take everything out again, the block stored last first, 16 to an event.

use super::{Change, Event, Workload};
use crate::reference::Reference;

/// Adds the removal of all that is held after the last stage, and returns it.
pub fn teardown(workload: &mut Workload) -> Vec<Event> {
    let mut reference = Reference::new(workload.workers);
    let stored: Vec<Event> = workload
        .stages
        .iter()
        .flat_map(|stage| &stage.events)
        .inspect(|event| reference.apply(workload, event))
        .filter(|event| event.stored() > 0)
        .cloned()
        .collect();
    let mut removals = Vec::new();
    for event in stored.into_iter().rev() {
        let Change::Store { blocks, .. } = &event.change else {
            continue;
        };
        let held: Vec<_> = workload
            .ids(blocks)
            .iter()
            .rev()
            .copied()
            .filter(|id| reference.holds(event.worker, *id))
            .collect();
        if held.is_empty() {
            continue;
        }
        let removal = Event {
            worker: event.worker,
            change: Change::Remove {
                blocks: workload.push_ids(&held),
            },
        };
        reference.apply(workload, &removal);
        removals.push(removal);
    }
    removals
}
