//! One task per endpoint, started and ended as the membership changes.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;

use super::endpoint::{Endpoint, EndpointId};
use super::shell::Fleet;

/// What follows the fleet with a task per endpoint.
pub(super) trait PerEndpoint {
    /// Starts the task of an endpoint.
    fn start(&self, endpoint: Arc<Endpoint>) -> AbortOnDropHandle<()>;
    /// Whether the running task of `old` serves `new` as well.
    fn serves(&self, old: &Endpoint, new: &Endpoint) -> bool;
    /// Called once the task of an endpoint has ended for good.
    fn ended(&self, endpoint: &Endpoint);
}

/// Keeps the tasks in step with the membership until the future is dropped, which ends them all.
pub(super) async fn follow(fleet: &Fleet, work: &impl PerEndpoint) {
    let mut membership = fleet.membership();
    let mut running: HashMap<EndpointId, (Arc<Endpoint>, AbortOnDropHandle<()>)> = HashMap::new();
    loop {
        let members = Arc::clone(&membership.borrow_and_update());
        let ending: Vec<EndpointId> = running
            .iter()
            .filter(|(_, (endpoint, _))| {
                !members
                    .iter()
                    .any(|member| member.id == endpoint.id && work.serves(endpoint, member))
            })
            .map(|(id, _)| *id)
            .collect();
        for id in ending {
            if let Some((endpoint, task)) = running.remove(&id) {
                task.abort();
                // Waited for, so that nothing of the old task happens after `ended`. An aborted
                // task ends with an error, which is what was asked of it.
                let _ = task.await;
                work.ended(&endpoint);
            }
        }
        for member in members.iter() {
            running
                .entry(member.id)
                .or_insert_with(|| (Arc::clone(member), work.start(Arc::clone(member))));
        }
        if membership.changed().await.is_err() {
            return;
        }
    }
}
