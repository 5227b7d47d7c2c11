//! Whether the endpoints of the start have been looked at.
//!
//! Until then every endpoint looks idle and empty, and the first requests would all be sent blindly.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::super::endpoint::{Endpoint, EndpointId, Generation};

/// The endpoints that are still waited for. Its size is bounded by the fleet's at the start.
#[derive(Debug)]
pub(super) struct FirstPages {
    pending: Mutex<HashSet<(EndpointId, Generation)>>,
    done: watch::Sender<bool>,
}

impl Default for FirstPages {
    fn default() -> Self {
        Self {
            pending: Mutex::default(),
            done: watch::Sender::new(false),
        }
    }
}

impl FirstPages {
    pub(super) fn subscribe(&self) -> watch::Receiver<bool> {
        self.done.subscribe()
    }

    /// Waits for these. For none, there is nothing to wait for.
    pub(super) fn begin(&self, members: &[Arc<Endpoint>]) {
        let mut pending = self.pending.lock();
        pending.extend(members.iter().map(|member| (member.id, member.generation)));
        if pending.is_empty() {
            self.done.send_replace(true);
        }
    }

    /// An endpoint was read, failed or left.
    pub(super) fn seen(&self, endpoint: &Endpoint) {
        if *self.done.borrow() {
            return;
        }
        let mut pending = self.pending.lock();
        if pending.remove(&(endpoint.id, endpoint.generation)) && pending.is_empty() {
            self.done.send_replace(true);
        }
    }

    /// Waits no longer.
    pub(super) fn give_up(&self) {
        self.pending.lock().clear();
        self.done.send_replace(true);
    }
}
