//! Misbehaviour on demand, for tests of whatever steers a fleet: what is to go wrong, and when.
//!
//! Each decision is drawn from the plan's seed and a count (the third request, the second stream), never from a
//! clock, so a test that sends the same requests in the same order sees the same failures. Setting a plan starts the
//! counts again. The HTTP side is in `crate::api`, the events' side in
//! [`FaultyEvents`](crate::export::kv_events::FaultyEvents), slow steps in the simulated backend.

use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::sample::philox::philox4x32;

/// The longest delay of a metrics page.
const METRICS_DELAY_MS_MAX: u64 = 600_000;

/// Steps at most this many times as slow, and at least its reciprocal.
const SLOW_STEPS_MAX: f64 = 10_000.0;

/// What goes wrong. The default is nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FaultPlan {
    /// Root of all draws.
    pub seed: u64,
    /// Requests that are not taken.
    pub refuse: Option<Refuse>,
    /// Streams whose connection breaks in the middle.
    pub die: Option<Die>,
    /// The metrics page comes this much later.
    pub metrics_delay_ms: u64,
    /// The metrics page stays what it was when it was first asked for under this plan.
    pub metrics_frozen: bool,
    /// What happens to KV events.
    pub kv_events: KvEventsFault,
    /// Steps take this many times as long.
    pub slow_steps: f64,
    /// Each n-th look at `/health` finds the worker unwell: 1 is always, 2 every other time, 0 never.
    pub unhealthy_every: u32,
}

/// How requests are refused.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refuse {
    /// Of each request, 0 to 1.
    pub probability: f64,
    /// In which way.
    #[serde(default)]
    pub how: RefuseHow,
}

/// What a refused client sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefuseHow {
    /// A 503 in the form of an overloaded worker.
    #[default]
    Unavailable,
    /// A connection that closes without an answer.
    Disconnect,
}

/// How streams break.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Die {
    /// Events that still arrive.
    pub after_events: u32,
    /// Of each stream, 0 to 1.
    #[serde(default = "always")]
    pub probability: f64,
}

/// What happens to KV events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvEventsFault {
    /// Nothing.
    #[default]
    None,
    /// They are held back, and published in their order with the first batch after the plan changes.
    Hold,
    /// They are lost, and their numbers with them: subscribers see a gap.
    Lose,
}

/// A plan that cannot be followed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultPlanError {
    /// Not JSON, or not of this shape.
    #[error("{0}")]
    Json(String),
    /// A value out of its range.
    #[error("{field} is {value}; it must be between {min} and {max}")]
    Range {
        field: &'static str,
        value: String,
        min: String,
        max: String,
    },
}

fn always() -> f64 {
    1.0
}

impl Default for FaultPlan {
    fn default() -> Self {
        Self {
            seed: 0,
            refuse: None,
            die: None,
            metrics_delay_ms: 0,
            metrics_frozen: false,
            kv_events: KvEventsFault::None,
            slow_steps: 1.0,
            unhealthy_every: 0,
        }
    }
}

impl FromStr for FaultPlan {
    type Err = FaultPlanError;

    fn from_str(json: &str) -> Result<Self, FaultPlanError> {
        Self::parse(json.as_bytes())
    }
}

impl FaultPlan {
    /// Reads and checks a JSON object; what it leaves out does not go wrong.
    ///
    /// # Errors
    /// Names the field that is unknown or out of range.
    pub fn parse(json: &[u8]) -> Result<Self, FaultPlanError> {
        // An array of the fields' values would do for serde.
        if json.trim_ascii_start().first() != Some(&b'{') {
            return Err(FaultPlanError::Json("expected a JSON object".to_owned()));
        }
        let plan: Self = serde_json::from_slice(json)
            .map_err(|error| FaultPlanError::Json(error.to_string()))?;
        let probability = |field, value| range(field, value, 0.0, 1.0);
        if let Some(refuse) = &plan.refuse {
            probability("refuse.probability", refuse.probability)?;
        }
        if let Some(die) = &plan.die {
            probability("die.probability", die.probability)?;
        }
        let (least, most) = (1.0 / SLOW_STEPS_MAX, SLOW_STEPS_MAX);
        range("slow_steps", plan.slow_steps, least, most)?;
        let (delay, most) = (plan.metrics_delay_ms as f64, METRICS_DELAY_MS_MAX as f64);
        range("metrics_delay_ms", delay, 0.0, most)?;
        Ok(plan)
    }
}

fn range(field: &'static str, value: f64, min: f64, max: f64) -> Result<(), FaultPlanError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(FaultPlanError::Range {
        field,
        value: value.to_string(),
        min: min.to_string(),
        max: max.to_string(),
    })
}

/// The plan in force, shared by all that follow it.
#[derive(Debug)]
pub struct Faults {
    state: Mutex<State>,
    /// Bits of [`FaultPlan::slow_steps`], which the step path reads without a lock.
    step_factor: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    plan: FaultPlan,
    requests: u32,
    streams: u32,
    health: u32,
    /// The frozen metrics page.
    page: Option<bytes::Bytes>,
}

impl Default for Faults {
    fn default() -> Self {
        Self::new(FaultPlan::default())
    }
}

impl Faults {
    /// Follows `plan`.
    pub fn new(plan: FaultPlan) -> Self {
        Self {
            step_factor: AtomicU64::new(plan.slow_steps.to_bits()),
            state: Mutex::new(State {
                plan,
                ..State::default()
            }),
        }
    }

    /// Follows `plan` from here on, with all counts at zero.
    pub fn set(&self, plan: FaultPlan) {
        let bits = plan.slow_steps.to_bits();
        *self.state.lock() = State {
            plan,
            ..State::default()
        };
        self.step_factor.store(bits, Ordering::Release);
    }

    /// The plan in force.
    pub fn plan(&self) -> FaultPlan {
        self.state.lock().plan.clone()
    }

    /// How many times as long steps take.
    pub fn step_factor(&self) -> f64 {
        f64::from_bits(self.step_factor.load(Ordering::Acquire))
    }

    /// Whether the next request is to be refused.
    pub(crate) fn refuse(&self) -> Option<RefuseHow> {
        let mut state = self.state.lock();
        let refuse = state.plan.refuse?;
        state.requests = state.requests.wrapping_add(1);
        let hit = draw(state.plan.seed, 1, state.requests) < refuse.probability;
        hit.then_some(refuse.how)
    }

    /// After how many events the next stream breaks.
    pub(crate) fn die(&self) -> Option<u32> {
        let mut state = self.state.lock();
        let die = state.plan.die?;
        state.streams = state.streams.wrapping_add(1);
        let hit = draw(state.plan.seed, 2, state.streams) < die.probability;
        hit.then_some(die.after_events)
    }

    /// Whether this look at the worker's health finds it unwell.
    pub(crate) fn unhealthy(&self) -> bool {
        let mut state = self.state.lock();
        let every = state.plan.unhealthy_every;
        if every == 0 {
            return false;
        }
        state.health = state.health.wrapping_add(1);
        state.health.is_multiple_of(every)
    }

    /// The page to show instead of `page`: the first one under this plan if it freezes them, and `page` otherwise.
    pub(crate) fn page(&self, page: bytes::Bytes) -> bytes::Bytes {
        let mut state = self.state.lock();
        if !state.plan.metrics_frozen {
            return page;
        }
        state.page.get_or_insert(page).clone()
    }

    pub(crate) fn kv_events(&self) -> KvEventsFault {
        self.state.lock().plan.kv_events
    }
}

/// A number in 0..1 for the `count`-th decision of a kind.
fn draw(seed: u64, kind: u32, count: u32) -> f64 {
    let key = [seed as u32, (seed >> 32) as u32];
    f64::from(philox4x32([count, kind, 0, 0], key)[0]) / f64::from(u32::MAX) * (1.0 - f64::EPSILON)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(json: &str) -> Result<FaultPlan, String> {
        json.parse()
            .map_err(|error: FaultPlanError| error.to_string())
    }

    #[test]
    fn a_plan_is_strict_json() {
        assert_eq!(plan("{}").unwrap(), FaultPlan::default());
        let full = plan(
            r#"{"seed": 3, "refuse": {"probability": 0.5, "how": "disconnect"},
                "die": {"after_events": 4}, "metrics_delay_ms": 20, "metrics_frozen": true,
                "kv_events": "hold", "slow_steps": 2.5, "unhealthy_every": 2}"#,
        )
        .unwrap();
        assert!(
            full.die.unwrap().probability >= 1.0,
            "always, unless it says otherwise"
        );
        let written = serde_json::to_string(&full).unwrap();
        assert_eq!(plan(&written).unwrap(), full, "what is shown can be set");
        assert!(plan(r#"{"refuze": {}}"#).unwrap_err().contains("refuze"));
        let too_much = plan(r#"{"refuse": {"probability": 1.5}}"#).unwrap_err();
        assert_eq!(
            too_much,
            "refuse.probability is 1.5; it must be between 0 and 1"
        );
        for wrong in [
            r#"{"slow_steps": 0}"#,
            r#"{"metrics_delay_ms": 600001}"#,
            r#"{"die": {"after_events": 1, "probability": -0.1}}"#,
            r#"{"kv_events": "late"}"#,
            "[]",
        ] {
            assert!(plan(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn draws_repeat_from_the_seed_and_match_the_probability() {
        let faults = |seed| {
            let json = format!(r#"{{"seed": {seed}, "refuse": {{"probability": 0.3}}}}"#);
            Faults::new(plan(&json).unwrap())
        };
        let drawn = |faults: &Faults| -> Vec<bool> {
            (0..2000).map(|_| faults.refuse().is_some()).collect()
        };
        let (first, second) = (faults(1), faults(1));
        let once = drawn(&first);
        assert_eq!(once, drawn(&second));
        assert_ne!(once, drawn(&faults(2)));
        first.set(first.plan());
        assert_eq!(once, drawn(&first), "setting a plan starts it again");
        let hits = once.iter().filter(|hit| **hit).count();
        assert!((520..680).contains(&hits), "{hits} of 2000");
    }

    #[test]
    fn certain_things_happen_always_and_impossible_ones_never() {
        let certain = Faults::new(plan(r#"{"die": {"after_events": 7}}"#).unwrap());
        let never = plan(r#"{"die": {"after_events": 7, "probability": 0}}"#).unwrap();
        let never = Faults::new(never);
        for _ in 0..1000 {
            assert_eq!((certain.die(), never.die()), (Some(7), None));
        }
    }

    #[test]
    fn health_flaps_by_the_count_of_looks() {
        let faults = Faults::new(plan(r#"{"unhealthy_every": 3}"#).unwrap());
        let looks: Vec<bool> = (0..6).map(|_| faults.unhealthy()).collect();
        assert_eq!(looks, [false, false, true, false, false, true]);
        faults.set(FaultPlan::default());
        assert!(!faults.unhealthy());
    }

    #[test]
    fn a_frozen_page_is_the_first_one_of_its_plan() {
        let faults = Faults::default();
        let page = |text: &'static str| faults.page(bytes::Bytes::from_static(text.as_bytes()));
        assert_eq!(page("a"), "a");
        faults.set(plan(r#"{"metrics_frozen": true}"#).unwrap());
        assert_eq!((page("b"), page("c")), ("b".into(), "b".into()));
        faults.set(FaultPlan::default());
        assert_eq!(page("d"), "d");
    }
}
