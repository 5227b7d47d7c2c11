//! `soft-reflective-ceiling-policy`: lower bands are slowed down as the pool fills, not shut off.
//!
//! The band of rank `i` among `N` reflects the saturation at `1 - i * saturation / (N - 1)`. Below
//! that it is open; from there on it is open for one call in `round(saturation / (1 - saturation))`,
//! which grows with the saturation; at a saturation of 1 it is closed. The highest band is always
//! open, up to a full pool.

use crate::config::plugins::{self, NoParameters, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "soft-reflective-ceiling-policy";

/// It has no parameters.
pub type Parameters = NoParameters;

/// The plugin type.
pub const PLUGIN: PluginType = PluginType {
    name: TYPE_NAME,
    kind: PluginKind::UsageLimit,
    stage: Stage::Alpha,
    check: plugins::check::<Parameters>,
};

/// The policy with its counts of calls, one per rank.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct SoftReflective {
    /// Calls since the band was last open.
    calls: Vec<u64>,
}

impl SoftReflective {
    pub(super) fn ceilings(&mut self, saturation: f64, bands: usize, ceilings: &mut Vec<f64>) {
        self.calls.resize(bands, 0);
        let last = bands.saturating_sub(1).max(1) as f64;
        for (rank, calls) in self.calls.iter_mut().enumerate() {
            let reflected = 1.0 - rank as f64 * saturation / last;
            let open = if rank == 0 || saturation < reflected {
                true
            } else if saturation >= 1.0 {
                false
            } else {
                *calls += 1;
                *calls as f64 >= (saturation / (1.0 - saturation)).round()
            };
            if open {
                *calls = 0;
            }
            ceilings.push(if open { 1.0 } else { 0.0 });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each of three bands is open in 12 calls.
    fn open_in_12(saturation: f64) -> [usize; 3] {
        let mut policy = SoftReflective::default();
        let mut open = [0; 3];
        for _ in 0..12 {
            let mut ceilings = Vec::new();
            policy.ceilings(saturation, 3, &mut ceilings);
            for (count, ceiling) in open.iter_mut().zip(ceilings) {
                *count += usize::from(ceiling > 0.5);
            }
        }
        open
    }

    #[test]
    fn lower_bands_are_slowed_down_first_and_stopped_last() {
        assert_eq!(open_in_12(0.3), [12, 12, 12]);
        // The lowest reflects at 1 - s and is open once in s / (1 - s) calls.
        assert_eq!(open_in_12(0.62), [12, 12, 6]);
        assert_eq!(open_in_12(0.75), [12, 4, 4]);
        assert_eq!(open_in_12(1.0), [12, 0, 0]);
    }
}
