//! AIBrix's `prefix-cache` routing, from its published rules and defaults.
//!
//! Where the busiest worker has more than 8 requests more than the idlest one, the idlest gets the request. Else the
//! workers are gone through by match, longest first, and of equals the idler first; the first whose requests are at most
//! the mean and one standard deviation gets it; if none is, or nothing matches, the idlest.

use super::{Formula, Knowledge, View};

const IMBALANCE: u32 = 8;

/// See the module.
#[derive(Debug)]
pub struct Aibrix;

impl Formula for Aibrix {
    fn choose(&mut self, view: &View<'_>) -> Option<usize> {
        let load = |at: usize| view.own(at).requests;
        let loads: Vec<u32> = view.candidates().map(load).collect();
        let (least, most) = (loads.iter().min()?, loads.iter().max()?);
        let idlest = || view.lowest(|at| f64::from(load(at)));
        if most - least > IMBALANCE {
            return idlest();
        }
        let count = loads.len() as f64;
        let mean = loads.iter().map(|load| f64::from(*load)).sum::<f64>() / count;
        let squares = loads.iter().map(|load| (f64::from(*load) - mean).powi(2));
        let limit = mean + (squares.sum::<f64>() / count).sqrt();
        let matching = |at: usize| view.cached(at) > 0 && f64::from(load(at)) <= limit;
        if !view.candidates().any(matching) {
            return idlest();
        }
        view.lowest(|at| {
            if matching(at) {
                f64::from(load(at)) - f64::from(view.cached(at)) * 1e6
            } else {
                f64::INFINITY
            }
        })
    }

    fn knowledge(&self) -> Knowledge {
        Knowledge {
            picks: true,
            ..Knowledge::default()
        }
    }
}
