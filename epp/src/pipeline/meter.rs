//! Times the plugins of a pick. Only one pick in some is timed: two readings of the clock around
//! each plugin would cost as much as most plugins do.

use super::Shared;
use crate::schedule::Meter;

/// Records into the metrics of the process.
pub(super) struct PluginMeter<'a> {
    shared: &'a Shared,
}

impl<'a> PluginMeter<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        Self { shared }
    }
}

impl Meter for PluginMeter<'_> {
    fn now_us(&self) -> u64 {
        self.shared.clock.now_us()
    }

    fn took(&self, extension_point: &'static str, type_name: &'static str, took_us: u64) {
        let series = self
            .shared
            .metrics
            .plugin(extension_point, type_name, type_name);
        series.record(took_us as f64 / 1e6);
    }
}
