//! What is expected of each endpoint for one request: a reusable buffer in the order of the snapshot.

/// One endpoint.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Estimate {
    /// Seconds of work that it has to do before it begins with this prompt.
    pub ahead_s: f64,
    /// Seconds for the part of this prompt that it does not hold.
    pub own_s: f64,
    /// What the pick costs all told, in seconds: see [`super::model`]. Lower is better.
    pub cost_s: f64,
}

impl Estimate {
    /// The expected time to first token.
    pub fn ttft_s(&self) -> f64 {
        self.ahead_s + self.own_s
    }
}

/// The estimates for one request, in the order of the snapshot.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Estimates {
    entries: Vec<Estimate>,
}

impl Estimates {
    /// What is expected at a snapshot position; `None` where nothing was estimated.
    pub fn get(&self, position: usize) -> Option<&Estimate> {
        self.entries.get(position)
    }

    /// Forgets everything and keeps the buffer.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Adds the estimate of the next position.
    pub fn push(&mut self, estimate: Estimate) {
        self.entries.push(estimate);
    }
}
