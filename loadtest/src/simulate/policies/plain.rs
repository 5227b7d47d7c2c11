//! What people run without a picker: they look at no prompt.

use super::{Formula, Knowledge, View};
use crate::workload::tokens::mix;

/// One after the other, as a Kubernetes Service or Envoy's ROUND_ROBIN.
#[derive(Debug, Default)]
pub struct RoundRobin {
    next: usize,
}

/// By lot.
#[derive(Debug)]
pub struct Random;

/// The less busy of two drawn by lot, as Envoy's LEAST_REQUEST with its default of two choices.
#[derive(Debug)]
pub struct LeastRequest;

/// Every request of a conversation to the same worker, by rendezvous hashing (Thaler, Ravishankar 1998).
#[derive(Debug)]
pub struct SessionHash;

impl Formula for RoundRobin {
    fn choose(&mut self, view: &View<'_>) -> Option<usize> {
        let candidates: Vec<usize> = view.candidates().collect();
        self.next = self.next.wrapping_add(1);
        let place = self.next.checked_rem(candidates.len())?;
        candidates.get(place).copied()
    }

    fn knowledge(&self) -> Knowledge {
        Knowledge::default()
    }
}

impl Formula for Random {
    fn choose(&mut self, view: &View<'_>) -> Option<usize> {
        view.lowest(|_| 0.0)
    }

    fn knowledge(&self) -> Knowledge {
        Knowledge::default()
    }
}

impl Formula for LeastRequest {
    fn choose(&mut self, view: &View<'_>) -> Option<usize> {
        let first = view.lowest(|_| 0.0)?;
        // The second lot is drawn with another salt, among the others.
        let other = |at: usize| {
            if at == first {
                f64::INFINITY
            } else {
                (mix(view.asked.seed ^ 0x5eed ^ at as u64) >> 11) as f64
            }
        };
        let second = view.lowest(other)?;
        let load = |at: usize| view.own(at).requests;
        Some(if load(second) < load(first) {
            second
        } else {
            first
        })
    }

    fn knowledge(&self) -> Knowledge {
        Knowledge::default()
    }
}

impl Formula for SessionHash {
    fn choose(&mut self, view: &View<'_>) -> Option<usize> {
        let session = mix(view.asked.session);
        view.lowest(|at| {
            let id = view
                .snapshot
                .members
                .get(at)
                .map_or(0, |member| member.id.0);
            (mix(session ^ u64::from(id)) >> 11) as f64
        })
    }

    fn knowledge(&self) -> Knowledge {
        Knowledge::default()
    }
}
