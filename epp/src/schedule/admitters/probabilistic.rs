//! `probabilistic-admitter`: refuses sheddable requests ever more often as the pool fills up.
//!
//! ```text
//! saturation  = mean over the candidates of max(waiting / queueDepthThreshold, KV usage / kvCacheUtilThreshold)
//! probability = min(1, k · saturation ^ power)
//! ```
//!
//! Requests from priority 0 on are always admitted. With the defaults one in two is refused at a
//! saturation of 0.28 and all from 0.32 on. An endpoint whose page was never read counts as full.

use serde::{Deserialize, Serialize};

use super::super::latency::draw;
use super::super::plugin::{Context, Maker};
use super::Admitter;
use crate::config::plugins::{self, ParameterError, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "probabilistic-admitter";

/// Makes this plugin's draws its own.
const SALT: u64 = 0x6164_6d69_7474_6572;

/// The field's parameters.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    pub queue_depth_threshold: u32,
    pub kv_cache_util_threshold: f64,
    pub power: f64,
    pub k: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            queue_depth_threshold: 5,
            kv_cache_util_threshold: 0.8,
            power: 5.0,
            k: 300.0,
        }
    }
}

impl plugins::Parameters for Parameters {
    fn validate(&self) -> Result<(), ParameterError> {
        for (field, value) in [
            ("queueDepthThreshold", f64::from(self.queue_depth_threshold)),
            ("kvCacheUtilThreshold", self.kv_cache_util_threshold),
            ("power", self.power),
            ("k", self.k),
        ] {
            if !value.is_finite() || value <= 0.0 {
                let reason = format!("must be more than 0, not {value}");
                return Err(ParameterError::new(field, reason));
            }
        }
        Ok(())
    }
}

/// The plugin type.
pub const MAKER: Maker<dyn Admitter> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Admitter,
        stage: Stage::Beta,
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        let parameters = plugins::read::<Parameters>(given)?;
        Ok(Box::new(ProbabilisticAdmitter { parameters }))
    },
};

/// See the module.
#[derive(Clone, Copy, Default, Debug)]
pub struct ProbabilisticAdmitter {
    parameters: Parameters,
}

impl Admitter for ProbabilisticAdmitter {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn admit(&self, context: &Context<'_>, candidates: &[usize]) -> Result<(), String> {
        if context.request.priority >= 0 || candidates.is_empty() {
            return Ok(());
        }
        let saturation = self.saturation(context, candidates);
        let probability = self.probability(saturation);
        if draw(context, SALT) < probability {
            return Err(format!(
                "the pool is busy: at a saturation of {saturation:.3}, {:.0} % of sheddable \
                 requests are refused",
                probability * 100.0
            ));
        }
        Ok(())
    }
}

impl ProbabilisticAdmitter {
    fn saturation(&self, context: &Context<'_>, candidates: &[usize]) -> f64 {
        let of = |at: &usize| {
            let live = context.live(*at);
            if live.scraped_at_ms == 0 {
                return 1.0;
            }
            let queue = f64::from(live.waiting) / f64::from(self.parameters.queue_depth_threshold);
            let usage = f64::from(live.kv_usage) / self.parameters.kv_cache_util_threshold;
            queue.max(usage)
        };
        candidates.iter().map(of).sum::<f64>() / candidates.len() as f64
    }

    fn probability(&self, saturation: f64) -> f64 {
        (saturation.powf(self.parameters.power) * self.parameters.k).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::fixtures::{request, snapshot};
    use super::*;
    use crate::fleet::{Live, Matches};

    fn read(waiting: u32, kv_usage: f32) -> Live {
        Live {
            waiting,
            kv_usage,
            scraped_at_ms: 1,
            ..Live::default()
        }
    }

    fn answer(live: &[Live], priority: i32, seed: u64) -> Result<(), String> {
        let snapshot = snapshot(live);
        let matches = Matches::default();
        let mut request = request(0, &matches, seed);
        request.priority = priority;
        let context = Context {
            snapshot: &snapshot,
            request: &request,
            now_ms: 0,
        };
        let candidates: Vec<usize> = (0..live.len()).collect();
        ProbabilisticAdmitter::default().admit(&context, &candidates)
    }

    fn refused(live: &[Live]) -> usize {
        (0..1_000)
            .filter(|seed| answer(live, -1, *seed).is_err())
            .count()
    }

    #[test]
    fn more_is_refused_the_fuller_the_pool_is() {
        assert_eq!(refused(&[read(0, 0.0)]), 0);
        // Saturation 0.25: 300 · 0.25⁵ = 0.293.
        let some = refused(&[read(0, 0.4), read(0, 0.0)]);
        assert!((240..350).contains(&some), "{some}");
        assert_eq!(refused(&[read(2, 0.0)]), 1_000);
        assert_eq!(refused(&[Live::default()]), 1_000, "never read");
        let message = answer(&[read(5, 0.0)], -1, 1).unwrap_err();
        assert!(
            message.contains("1.000") && message.contains("100 %"),
            "{message}"
        );
    }

    #[test]
    fn requests_that_are_not_sheddable_are_admitted() {
        assert!(answer(&[read(500, 1.0)], 0, 1).is_ok());
        assert!(answer(&[], -1, 1).is_ok());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (field, value) in [
            ("queueDepthThreshold", 0),
            ("kvCacheUtilThreshold", 0),
            ("power", -1),
            ("k", 0),
        ] {
            let error = (MAKER.make)(&json!({ field: value })).unwrap_err();
            assert_eq!(error.path, field);
        }
    }
}
