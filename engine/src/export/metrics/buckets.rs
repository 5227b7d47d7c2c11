//! Upper bounds of the histograms.
//!
//! Those of vLLM's series are vLLM's to the digit, because dashboards and autoscalers add histograms up over workers
//! of both kinds. Its token latencies start at 10 ms, which a small model or a fast device stays below, so the same
//! samples are counted once more in [`FINE_BUCKETS`] under names of our own.

pub(super) const FIRST_TOKEN_BUCKETS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
pub(super) const TOKEN_GAP_BUCKETS: [f64; 19] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
pub(super) const REQUEST_TIME_BUCKETS: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
pub(super) const STEP_TOKENS_BUCKETS: [f64; 13] = [
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
];
pub(super) const PREEMPTIONS_BUCKETS: [f64; 7] = [1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0];
pub(super) const CHOICES_BUCKETS: [f64; 5] = [1.0, 2.0, 5.0, 10.0, 20.0];

/// Of the HTTP durations without labels, as prometheus-fastapi-instrumentator has them.
pub(super) const HTTP_FINE_BUCKETS: [f64; 21] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0,
    7.5, 10.0, 30.0, 60.0,
];
/// Of the HTTP durations by handler.
pub(super) const HTTP_BUCKETS: [f64; 3] = [0.1, 0.5, 1.0];

/// Our own, from 50 µs to a minute.
pub(super) const FINE_BUCKETS: [f64; 22] = [
    0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01,
    0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 10.0, 60.0,
];

/// 1, 2, 5, 10, 20, 50, … up to `limit`; at least 1.
pub(super) fn one_two_five(limit: f64) -> Vec<f64> {
    let mut bounds = vec![1.0];
    let mut decade = 1.0;
    loop {
        for bound in [decade * 2.0, decade * 5.0, decade * 10.0] {
            if bound > limit {
                return bounds;
            }
            bounds.push(bound);
        }
        decade *= 10.0;
    }
}
