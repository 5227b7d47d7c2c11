//! What the model says about one request: a reusable buffer in the order of the snapshot.

use crate::fleet::Live;

/// What a prediction is made from, and what the observation that follows has to come with.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Features {
    /// Tokens to be prefilled before the first token of this request can come: those of requests
    /// that wait there, and its own that are not cached.
    pub tokens_ahead: f32,
    /// Requests that will share the batch, this one included.
    pub batch: f32,
}

impl Features {
    /// The features of a request of `prompt_tokens` at an endpoint that holds `cached_tokens` of
    /// them.
    ///
    /// Nobody says how much of what was sent there is still to be prefilled, so it is estimated: the
    /// requests that have not started are those of the worker's queue, or those of ours in flight
    /// that its batch has no room for, whichever is more; each is as long as the mean of ours there.
    pub fn of(live: &Live, prompt_tokens: u32, cached_tokens: u32) -> Self {
        let own = prompt_tokens.saturating_sub(cached_tokens);
        let beyond_the_batch = live.in_flight_requests.saturating_sub(live.running);
        let not_started = live.waiting.max(beyond_the_batch);
        let mean = match live.in_flight_requests {
            0 => f64::from(prompt_tokens),
            requests => f64::from(live.in_flight_tokens) / f64::from(requests),
        };
        let ahead = f64::from(not_started) * mean + f64::from(own);
        let there = live.running.saturating_add(live.waiting);
        let batch = there.max(live.in_flight_requests).saturating_add(1);
        Self {
            tokens_ahead: ahead as f32,
            batch: batch as f32,
        }
    }
}

/// The client's targets, in milliseconds; `None` where there is none.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Targets {
    pub ttft_ms: Option<f64>,
    pub tpot_ms: Option<f64>,
}

impl Targets {
    /// The targets that are numbers above 0.
    pub fn new(ttft_ms: Option<f64>, tpot_ms: Option<f64>) -> Self {
        let usable = |target: &f64| target.is_finite() && *target > 0.0;
        Self {
            ttft_ms: ttft_ms.filter(usable),
            tpot_ms: tpot_ms.filter(usable),
        }
    }

    /// Whether there is a target at all.
    pub fn any(&self) -> bool {
        self.ttft_ms.is_some() || self.tpot_ms.is_some()
    }
}

/// What is expected of one endpoint.
///
/// Headroom is the target minus the prediction. Without any target it is minus the prediction, so
/// that the least deficit is the lowest latency, as in the field. With one target of the two, the
/// other latency has a headroom of 0: what nobody asked for cannot be missed. (The field counts it
/// as missed everywhere.)
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Prediction {
    pub features: Features,
    pub ttft_ms: f32,
    pub tpot_ms: f32,
    pub ttft_headroom_ms: f32,
    pub tpot_headroom_ms: f32,
}

impl Prediction {
    /// Whether neither latency is beyond its target.
    pub fn meets_targets(&self) -> bool {
        self.ttft_headroom_ms >= 0.0 && self.tpot_headroom_ms >= 0.0
    }
}

/// The predictions for one request, in the order of the snapshot; empty while nothing is known.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Predictions {
    entries: Vec<Prediction>,
}

impl Predictions {
    /// What is expected at a snapshot position; `None` while nothing is known.
    pub fn get(&self, position: usize) -> Option<&Prediction> {
        self.entries.get(position)
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets everything and keeps the buffer.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Takes the prediction for the next position.
    pub fn push(&mut self, prediction: Prediction) {
        self.entries.push(prediction);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_ahead_are_those_that_wait_and_the_uncached_own() {
        let features = |live: Live| Features::of(&live, 1_000, 400);
        let idle = features(Live::default());
        assert_eq!((idle.tokens_ahead, idle.batch), (600.0, 1.0));
        let ours = Live {
            running: 2,
            in_flight_requests: 5,
            in_flight_tokens: 500,
            ..Live::default()
        };
        // Three of five have not started, at a hundred tokens each.
        let seen = features(ours);
        assert_eq!((seen.tokens_ahead, seen.batch), (900.0, 6.0));
        let foreign = Live {
            waiting: 4,
            running: 8,
            ..Live::default()
        };
        let seen = features(foreign);
        assert_eq!((seen.tokens_ahead, seen.batch), (4_600.0, 13.0));
        let full = Features::of(&Live::default(), 100, 400);
        assert!(full.tokens_ahead.abs() < f32::EPSILON);
    }

    #[test]
    fn targets_that_are_none_are_dropped() {
        let targets = Targets::new(Some(f64::NAN), Some(-1.0));
        assert!(!targets.any());
        assert!(Targets::new(Some(0.0), Some(5.0)).any());
    }
}
