//! When requests arrive: the times of a workload changed, its prompts left alone.
//!
//! What arrives is the first request of a conversation; its follow-ups come when answers are there, so they move with
//! it and keep their distances. A rate is of all requests together: conversations of four turns start at a quarter of
//! it.

use std::time::Duration;

use rand_distr::{Distribution, Exp1};

use super::generate::random;
use super::{PlannedRequest, Workload};

/// The number of the random stream that gaps between arrivals are drawn from.
pub(super) const ARRIVALS_STREAM: u64 = u64::MAX;

impl Workload {
    /// The same requests `factor` times as fast: 2.0 halves all times. Pauses within conversations stay, because they
    /// are people's and tools' own.
    #[must_use]
    pub fn faster(mut self, factor: f64) -> Self {
        if factor.is_finite() && factor > 0.0 {
            for request in &mut self.requests {
                request.at = scaled(request.at, 1.0 / factor);
            }
        }
        self
    }

    /// The same requests as a Poisson process of `rate` a second on average.
    #[must_use]
    pub fn with_poisson_arrivals(self, rate: f64, seed: u64) -> Self {
        let gaps = PoissonGaps::new(self.start_rate(rate), seed);
        self.with_starts(gaps)
    }

    /// The same requests at even steps, `rate` a second.
    #[must_use]
    pub fn with_fixed_arrivals(self, rate: f64) -> Self {
        let gap = seconds(1.0 / self.start_rate(rate));
        self.with_starts(std::iter::once(Duration::ZERO).chain(std::iter::repeat(gap)))
    }

    /// The same requests, each at least `gap` after the one before it: a trace whose clock ticks seldom has many at the same
    /// instant, which no sender can keep. Requests that follow an answer are left alone.
    #[must_use]
    pub fn apart(mut self, gap: Duration) -> Self {
        let mut free = Duration::ZERO;
        for request in self.requests.iter_mut().filter(|one| one.after.is_none()) {
            request.at = request.at.max(free);
            free = request.at.saturating_add(gap);
        }
        self.sorted()
    }

    /// How many conversations a second have to start for `rate` requests a second.
    fn start_rate(&self, rate: f64) -> f64 {
        let starts = self.requests.iter().filter(|one| one.after.is_none());
        rate * starts.count() as f64 / self.requests.len().max(1) as f64
    }

    fn with_starts(mut self, mut gaps: impl Iterator<Item = Duration>) -> Self {
        let old: Vec<Duration> = self.requests.iter().map(|one| one.at).collect();
        let mut clock = Duration::ZERO;
        for index in 0..self.requests.len() {
            let after = self.requests.get(index).and_then(|one| one.after);
            let at = match after {
                None => {
                    clock = clock.saturating_add(gaps.next().unwrap_or_default());
                    clock
                }
                Some(after) => {
                    let old_at = |place: usize| old.get(place).copied().unwrap_or_default();
                    let distance = old_at(index).saturating_sub(old_at(after.request));
                    let moved = self.requests.get(after.request).map(|one| one.at);
                    moved.unwrap_or_default().saturating_add(distance)
                }
            };
            if let Some(request) = self.requests.get_mut(index) {
                request.at = at;
            }
        }
        self.sorted()
    }

    /// Puts the requests in the order of their times. A predecessor is never later than what follows it, and the order
    /// of equal times stays, so it remains the earlier one.
    fn sorted(mut self) -> Self {
        let mut order: Vec<usize> = (0..self.requests.len()).collect();
        order.sort_by_key(|&old| self.requests.get(old).map(|one| one.at));
        let mut places = vec![0; order.len()];
        for (new, &old) in order.iter().enumerate() {
            if let Some(place) = places.get_mut(old) {
                *place = new;
            }
        }
        let mut sorted: Vec<(usize, PlannedRequest)> = Vec::with_capacity(order.len());
        for (old, mut request) in self.requests.drain(..).enumerate() {
            let place = |old: usize| places.get(old).copied().unwrap_or(old);
            if let Some(after) = &mut request.after {
                after.request = place(after.request);
            }
            sorted.push((place(old), request));
        }
        sorted.sort_by_key(|(new, _)| *new);
        self.requests = sorted.into_iter().map(|(_, request)| request).collect();
        self
    }
}

/// Exponential gaps, without end.
#[derive(Debug)]
pub(super) struct PoissonGaps {
    rate: f64,
    random: rand_pcg::Pcg64,
}

impl PoissonGaps {
    pub(super) fn new(rate: f64, seed: u64) -> Self {
        Self {
            rate,
            random: random(seed, ARRIVALS_STREAM),
        }
    }
}

impl Iterator for PoissonGaps {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let unit: f64 = Exp1.sample(&mut self.random);
        Some(seconds(unit / self.rate))
    }
}

/// Seconds as a duration; what is none (a rate of 0, say) is the longest.
pub(super) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

fn scaled(time: Duration, factor: f64) -> Duration {
    seconds(time.as_secs_f64() * factor)
}

#[cfg(test)]
mod tests {
    use super::super::{After, Segment};
    use super::*;

    fn request(at_ms: u64, session: u64, after: Option<usize>) -> PlannedRequest {
        PlannedRequest {
            at: Duration::from_millis(at_ms),
            prompt: vec![],
            answer: Segment { id: 0, tokens: 1 },
            session,
            tenant: 0,
            after: after.map(|request| After {
                request,
                pause: Duration::from_millis(100),
            }),
        }
    }

    fn workload() -> Workload {
        let requests = vec![
            request(0, 1, None),
            request(10, 2, None),
            request(100, 1, Some(0)),
            request(300, 3, None),
        ];
        Workload {
            name: "test".to_owned(),
            requests,
        }
    }

    #[test]
    fn twice_as_fast_halves_the_times() {
        let times: Vec<_> = workload()
            .faster(2.0)
            .requests
            .iter()
            .map(|one| one.at)
            .collect();
        assert_eq!(times, [0, 5, 50, 150].map(Duration::from_millis));
    }

    #[test]
    fn requests_of_one_instant_are_sent_one_after_another() {
        let requests = [0, 0, 0, 12, 40].map(|at| request(at, 1, None)).to_vec();
        let workload = Workload {
            name: String::new(),
            requests,
        };
        let at = |gap| -> Vec<u128> {
            let apart = workload.clone().apart(Duration::from_millis(gap));
            let times = apart.requests.iter().map(|one| one.at.as_millis());
            times.collect()
        };
        assert_eq!(at(5), [0, 5, 10, 15, 40]);
        assert_eq!(at(0), [0, 0, 0, 12, 40]);
    }

    #[test]
    fn fixed_arrivals_are_even_and_follow_ups_move_along() {
        // Three of four requests start a conversation: at 4 a second one starts each third of a second.
        let workload = workload().with_fixed_arrivals(4.0);
        let sessions: Vec<_> = workload.requests.iter().map(|one| one.session).collect();
        assert_eq!(sessions, [1, 1, 2, 3]);
        let at: Vec<_> = workload
            .requests
            .iter()
            .map(|one| one.at.as_millis())
            .collect();
        assert_eq!(at, [0, 100, 333, 666]);
        let after: Vec<_> = workload
            .requests
            .iter()
            .map(|one| one.after.map(|one| one.request))
            .collect();
        assert_eq!(after, [None, Some(0), None, None]);
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_the_spread() {
        let requests = (0..20_000).map(|_| request(0, 1, None)).collect();
        let workload = Workload {
            name: String::new(),
            requests,
        }
        .with_poisson_arrivals(50.0, 7);
        let gaps: Vec<f64> = workload
            .requests
            .windows(2)
            .map(|pair| pair[1].at.as_secs_f64() - pair[0].at.as_secs_f64())
            .collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean * 50.0 - 1.0).abs() < 0.03, "{mean}");
        // An exponential distribution spreads as far as its mean.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05, "{variance}");
    }
}
