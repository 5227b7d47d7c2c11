//! Flow control: requests wait at their replica's gate, which looks whenever something changed there and when time is up.

use std::time::Duration;

use pointsman_epp::flow::controller::Decision;

use super::{News, World};
use crate::simulate::gate::Arrival;
use crate::simulate::replica::Replica;
use crate::workload::tokens::mix;

impl World<'_> {
    /// A request comes to its replica's gate.
    pub(super) fn wait(&mut self, number: u32, replica: usize) {
        let Some(planned) = self.workload.requests.get(number as usize) else {
            return;
        };
        let arrival = Arrival {
            request: number,
            prompt_tokens: planned.prompt_tokens(),
            tenant: planned.tenant,
        };
        let (now, mut decisions) = (self.now, std::mem::take(&mut self.decisions));
        let gate = self.replicas.get_mut(replica);
        let is_queued = gate.is_some_and(|gate| gate.enqueue(arrival, now, &mut decisions));
        self.decisions = decisions;
        self.carry_out(replica);
        if is_queued {
            self.look(replica);
        } else {
            self.close(number);
        }
    }

    /// Something changed that a request's replica knows of.
    pub(super) fn look_for(&mut self, request: u32) {
        if let Some(replica) = self.replica_of.get(request as usize) {
            self.look(*replica as usize);
        }
    }

    /// Has a replica's gate look at the pool; nothing where there is none.
    pub(super) fn look(&mut self, replica: usize) {
        let (now, mut decisions) = (self.now, std::mem::take(&mut self.decisions));
        let Some(gate) = self
            .replicas
            .get_mut(replica)
            .filter(|gate| gate.has_gate())
        else {
            self.decisions = decisions;
            return;
        };
        gate.look(now, &mut decisions);
        self.decisions = decisions;
        self.carry_out(replica);
        self.look_later(replica);
    }

    fn carry_out(&mut self, replica: usize) {
        // Whoever goes changes nothing that others of the same decision wait for.
        for decision in std::mem::take(&mut self.decisions) {
            match decision {
                Decision::Dispatch { ticket, .. } => {
                    let seed = mix(self.options.seed ^ ticket);
                    self.place(ticket as u32, replica, seed);
                }
                Decision::Refuse { ticket, .. } => self.close(ticket as u32),
                // Only requests of a priority below 0 are evicted, and there are none.
                Decision::Evict { .. } => {}
            }
        }
    }

    fn look_later(&mut self, replica: usize) {
        let gate = self.replicas.get(replica);
        let Some(at) = gate.and_then(Replica::next_deadline) else {
            return;
        };
        let at = at.max(self.now + Duration::from_millis(1));
        if let Some(due) = self.look_due.get_mut(replica)
            && due.is_none_or(|due| at < due)
        {
            *due = Some(at);
            self.at(at, News::Looks(replica));
        }
    }
}
