//! The model of a fleet: two lines an endpoint, and two for all of them together.
//!
//! Every observation teaches its endpoint's line and the common one. An endpoint that has not been
//! seen is predicted by the common line, so it is neither favoured nor avoided; its own line starts
//! there and holds on to it for the first observations. And what is known of one endpoint fades
//! towards the common line while others are observed: an endpoint that was avoided for one bad
//! moment is tried again.

use super::line::Line;
use super::predictions::{Features, Prediction, Predictions, Targets};
use crate::fleet::members::ENDPOINTS_MAX;
use crate::fleet::{EndpointId, Generation, Snapshot};

use super::super::plugin::Request;

/// Tokens that are one unit of a line's `x`, so that usual values are around 1.
const TOKENS_UNIT: f64 = 4_096.0;
/// The same for requests in the batch.
const BATCH_UNIT: f64 = 32.0;
/// The common lines' start, in milliseconds: prefill at some 16,000 tokens a second, and a batch of
/// 32 that takes half again as long as a single request. Used for nothing but to start from.
const TTFT_START: (f64, f64) = (50.0, 257.0);
const TPOT_START: (f64, f64) = (20.0, 10.0);
/// Observations after which the common line is believed.
const KNOWN: u32 = 10;
/// Observations of others, times the endpoints seen, after which half of what is known of an
/// endpoint is forgotten.
const HALF_LIFE: f64 = 128.0;

/// What the operator chose about predictions.
#[derive(Clone, PartialEq, Debug)]
pub struct LatencyOptions {
    /// The target for the time per output token is multiplied by it before it is compared.
    pub slo_buffer_factor: f64,
    /// Whether answers are streamed. Otherwise nobody sees the time per output token, and it counts
    /// nowhere.
    pub streaming: bool,
    /// The label whose value `prefill` marks endpoints that generate no tokens; empty = none.
    pub role_label: String,
    /// Whether to predict at all, or only to learn.
    pub predict: bool,
}

impl Default for LatencyOptions {
    fn default() -> Self {
        Self {
            slo_buffer_factor: 1.0,
            streaming: false,
            role_label: String::new(),
            predict: true,
        }
    }
}

/// The model. It grows with the endpoint numbers seen, up to the fleet's own bound.
#[derive(Debug)]
pub struct LatencyModel {
    options: LatencyOptions,
    ttft: Common,
    tpot: Common,
    /// By endpoint number.
    slots: Vec<Slot>,
    /// Endpoint numbers that were observed at least once.
    seen: u32,
}

/// A line for all endpoints together.
#[derive(Debug)]
struct Common {
    line: Line,
    /// Observations so far.
    clock: u64,
}

/// The lines of one endpoint number.
#[derive(Clone, Copy, Default, Debug)]
struct Slot {
    /// 0 = never observed.
    generation: u32,
    ttft: Option<Own>,
    tpot: Option<Own>,
}

/// A line of one endpoint.
#[derive(Clone, Copy, Debug)]
struct Own {
    line: Line,
    /// The common clock when it was last observed.
    at: u64,
}

#[derive(Clone, Copy)]
enum Latency {
    Ttft,
    Tpot,
}

impl Default for LatencyModel {
    fn default() -> Self {
        Self::new(LatencyOptions::default())
    }
}

impl LatencyModel {
    /// A model that knows nothing.
    pub fn new(options: LatencyOptions) -> Self {
        let common = |(intercept, slope)| Common {
            line: Line::guessed(intercept, slope),
            clock: 0,
        };
        Self {
            options,
            ttft: common(TTFT_START),
            tpot: common(TPOT_START),
            slots: Vec::new(),
            seen: 0,
        }
    }

    /// Learns that the first token came after `seconds`. `features` are those of the prediction.
    /// False where that is no observation: a value that is none, or an earlier generation.
    pub fn observe_ttft(
        &mut self,
        endpoint: EndpointId,
        generation: Generation,
        features: &Features,
        seconds: f64,
    ) -> bool {
        let x = f64::from(features.tokens_ahead) / TOKENS_UNIT;
        self.observe(Latency::Ttft, endpoint, generation, x, seconds)
    }

    /// Learns that each token after the first took `seconds`.
    pub fn observe_tpot(
        &mut self,
        endpoint: EndpointId,
        generation: Generation,
        features: &Features,
        seconds: f64,
    ) -> bool {
        let x = f64::from(features.batch) / BATCH_UNIT;
        self.observe(Latency::Tpot, endpoint, generation, x, seconds)
    }

    /// Predicts for every endpoint of the snapshot. `out` stays empty until enough was seen, and
    /// allocates only when the fleet grew.
    pub fn predict(&self, snapshot: &Snapshot, request: &Request<'_>, out: &mut Predictions) {
        out.clear();
        if !self.options.predict || self.ttft.line.observations() < KNOWN {
            return;
        }
        let targets = Targets::new(request.slo_ttft_ms, request.slo_tpot_ms);
        let has_tpot = self.options.streaming && self.tpot.line.observations() >= KNOWN;
        for (member, live) in snapshot.members.iter().zip(&snapshot.live) {
            let cached = request.matches.tokens(member.id, member.generation);
            let features = Features::of(live, request.prompt_tokens, cached);
            let slot = self
                .slots
                .get(member.id.index())
                .filter(|slot| slot.generation == member.generation.0);
            let own = |latency: Latency| slot.and_then(|slot| slot.own(latency));
            let tokens = f64::from(features.tokens_ahead) / TOKENS_UNIT;
            let ttft = self.at(&self.ttft, own(Latency::Ttft), tokens);
            let batch = f64::from(features.batch) / BATCH_UNIT;
            let tpot = self.at(&self.tpot, own(Latency::Tpot), batch);
            let role_label = &self.options.role_label;
            let generates = role_label.is_empty()
                || member
                    .spec
                    .labels
                    .get(role_label)
                    .is_none_or(|role| role != "prefill");
            let headroom = self.headroom(&targets, ttft, tpot, has_tpot && generates);
            out.push(Prediction {
                features,
                ttft_ms: ttft as f32,
                tpot_ms: tpot as f32,
                ttft_headroom_ms: headroom.0 as f32,
                tpot_headroom_ms: headroom.1 as f32,
            });
        }
    }

    fn observe(
        &mut self,
        latency: Latency,
        endpoint: EndpointId,
        generation: Generation,
        x: f64,
        seconds: f64,
    ) -> bool {
        if endpoint.index() >= ENDPOINTS_MAX {
            return false;
        }
        if self.slots.len() <= endpoint.index() {
            self.slots.resize(endpoint.index() + 1, Slot::default());
        }
        let common = match latency {
            Latency::Ttft => &mut self.ttft,
            Latency::Tpot => &mut self.tpot,
        };
        let Some(slot) = self.slots.get_mut(endpoint.index()) else {
            return false;
        };
        if generation.0 < slot.generation {
            return false;
        }
        let start = if common.line.observations() < KNOWN {
            let (intercept, slope) = common.line.parameters();
            Line::guessed(intercept, slope)
        } else {
            common.line.continued()
        };
        let y = seconds * 1_000.0;
        if !common.line.observe(x, y) {
            return false;
        }
        common.clock += 1;
        if slot.generation < generation.0 {
            self.seen += u32::from(slot.generation == 0);
            *slot = Slot {
                generation: generation.0,
                ..Slot::default()
            };
        }
        let own = match latency {
            Latency::Ttft => &mut slot.ttft,
            Latency::Tpot => &mut slot.tpot,
        };
        let mut line = own.map_or(start, |own| own.line);
        line.observe(x, y);
        *own = Some(Own {
            line,
            at: common.clock,
        });
        true
    }

    /// The endpoint's own value, faded towards the common one by what was seen since.
    fn at(&self, common: &Common, own: Option<&Own>, x: f64) -> f64 {
        let pooled = common.line.at(x);
        let Some(own) = own else {
            return pooled;
        };
        let since = common.clock.saturating_sub(own.at) as f64;
        let half_lives = since / (HALF_LIFE * f64::from(self.seen.max(1)));
        pooled + (own.line.at(x) - pooled) * (-half_lives).exp2()
    }

    fn headroom(&self, targets: &Targets, ttft: f64, tpot: f64, has_tpot: bool) -> (f64, f64) {
        let is_free = !targets.any();
        let of = |target: Option<f64>, predicted: f64| match target {
            Some(target) => target - predicted,
            None if is_free => -predicted,
            None => 0.0,
        };
        let buffered = targets
            .tpot_ms
            .map(|target| target * self.options.slo_buffer_factor);
        let tpot = if has_tpot { of(buffered, tpot) } else { 0.0 };
        (of(targets.ttft_ms, ttft), tpot)
    }
}

impl Slot {
    fn own(&self, latency: Latency) -> Option<&Own> {
        match latency {
            Latency::Ttft => self.ttft.as_ref(),
            Latency::Tpot => self.tpot.as_ref(),
        }
    }
}

#[cfg(test)]
mod tests;
