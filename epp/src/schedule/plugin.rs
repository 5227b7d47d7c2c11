//! What a scheduling plugin is: three traits, each called once per request for all candidates
//! together.
//!
//! Candidates are positions in the snapshot. Working on the batch lets a scorer normalise over the
//! candidates, as the field's min-max scorers do, and costs one virtual call a plugin instead of
//! one an endpoint.

use std::fmt::Debug;
use std::sync::Arc;

use serde_json::Value;
use smallvec::SmallVec;

use super::expected::Estimates;
use super::latency::Predictions;
use super::subset::SubsetEntry;
use crate::config::plugins::{ParameterError, PluginType};
use crate::fleet::{Adapters, Endpoint, Live, Matches, Snapshot};

/// The headers of a request, looked up by lower-case name.
pub trait Headers: Debug {
    fn get(&self, name: &str) -> Option<&str>;
}

/// A request without headers.
#[derive(Clone, Copy, Debug)]
pub struct NoHeaders;

impl Headers for NoHeaders {
    fn get(&self, _: &str) -> Option<&str> {
        None
    }
}

/// An image, audio or video of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MediaItem {
    /// `image`, `audio` or `video`.
    pub modality: &'static str,
    /// XXH3-128 of its URL or data.
    pub hash: u128,
    /// Length of its URL or data as the client sent it.
    pub bytes: u32,
}

/// What the scheduler has to know about a request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The model that the worker is asked for, after a rewrite; the adapter's name where it is one.
    pub model: &'a str,
    /// Higher is more urgent; below 0 may be shed.
    pub priority: i32,
    pub headers: &'a dyn Headers,
    pub media: &'a [MediaItem],
    /// The client's bound on the answer, in tokens.
    pub max_output_tokens: Option<u32>,
    /// The client's target for the time to first token.
    pub slo_ttft_ms: Option<f64>,
    /// The client's target for the time per output token.
    pub slo_tpot_ms: Option<f64>,
    /// Length of the prompt in tokens; 0 where it is unknown.
    pub prompt_tokens: u32,
    /// Which endpoints hold how much of the prompt.
    pub matches: &'a Matches,
    /// The latencies that are expected of each endpoint; `None` where nobody predicts.
    pub predictions: Option<&'a Predictions>,
    /// What each endpoint is expected to cost; `None` where nobody estimates.
    pub estimates: Option<&'a Estimates>,
    /// The proxy's subset hint; `None` = the whole pool, an empty list = nothing is eligible.
    pub subset: Option<&'a [SubsetEntry]>,
    /// Snapshot position of the endpoint that an earlier profile picked for this very request, for
    /// plugins that look for a neighbour of it; `None` in the first profile.
    pub peer: Option<usize>,
    /// Seed of every random choice made for this request.
    pub tie_seed: u64,
}

impl<'a> Request<'a> {
    /// A request of which nothing but its model and its matches is known.
    pub fn new(model: &'a str, matches: &'a Matches) -> Self {
        Self {
            model,
            priority: 0,
            headers: &NoHeaders,
            media: &[],
            max_output_tokens: None,
            slo_ttft_ms: None,
            slo_tpot_ms: None,
            prompt_tokens: 0,
            matches,
            predictions: None,
            estimates: None,
            subset: None,
            peer: None,
            tie_seed: 0,
        }
    }
}

/// The inputs of one decision.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub snapshot: &'a Snapshot,
    pub request: &'a Request<'a>,
    /// Milliseconds of epp's monotonic clock, the one that stamps the snapshot.
    pub now_ms: u64,
}

impl<'a> Context<'a> {
    /// The member at a snapshot position. Positions come from the candidates, which are within the
    /// snapshot.
    pub fn member(&self, position: usize) -> &'a Arc<Endpoint> {
        &self.snapshot.members[position]
    }

    /// The LoRA adapters at a snapshot position; `None` where nothing is known of them.
    pub fn adapters(&self, position: usize) -> Option<&'a Adapters> {
        self.snapshot.adapters.get(position).map(|known| &**known)
    }

    /// The signals at a snapshot position.
    pub fn live(&self, position: usize) -> &'a Live {
        &self.snapshot.live[position]
    }
}

/// Times plugins, for a pick that is measured.
pub trait Meter {
    /// A clock in microseconds.
    fn now_us(&self) -> u64;
    /// One plugin ran for so long. `extension_point` is the field's word for its kind.
    fn took(&self, extension_point: &'static str, type_name: &'static str, took_us: u64);
}

/// Runs a plugin, timed where the pick is measured.
pub(super) fn metered<R>(
    meter: Option<&dyn Meter>,
    extension_point: &'static str,
    type_name: &'static str,
    run: impl FnOnce() -> R,
) -> R {
    let Some(meter) = meter else {
        return run();
    };
    let from_us = meter.now_us();
    let result = run();
    let took_us = meter.now_us().saturating_sub(from_us);
    meter.took(extension_point, type_name, took_us);
    result
}

/// A plugin type of this room, and how one is made from its parameters.
#[derive(Debug)]
pub struct Maker<T: ?Sized + 'static> {
    pub plugin: PluginType,
    /// Parameters are an object, or null for the defaults.
    pub make: fn(&Value) -> Result<Box<T>, ParameterError>,
}

/// Narrows the candidates.
pub trait Filter: Send + Sync + Debug {
    /// The field's plugin type name.
    fn type_name(&self) -> &'static str;
    /// Removes candidates, keeping the order of the rest.
    fn filter(&self, context: &Context<'_>, candidates: &mut Vec<usize>);
    /// Told after a successful pick of a profile that holds this plugin. `endpoints` are snapshot
    /// positions, best first, and not empty. What a plugin keeps from it is bounded.
    fn picked(&self, _context: &Context<'_>, _endpoints: &[usize]) {}
    /// Adds headers for the client to the response, as lower-case names and values. `endpoints` are
    /// those of the pick.
    fn response_headers(
        &self,
        _context: &Context<'_>,
        _endpoints: &[usize],
        _headers: &mut Vec<(String, String)>,
    ) {
    }
}

/// Rates each candidate from 0, worst, to 1, best.
pub trait Scorer: Send + Sync + Debug {
    /// The field's plugin type name.
    fn type_name(&self) -> &'static str;
    /// Writes one value per candidate, in their order. `scores` has their length; values outside 0
    /// to 1 are clamped by the caller, and what is not a number counts as 0.
    fn score(&self, context: &Context<'_>, candidates: &[usize], scores: &mut [f32]);
    /// The filter that this scorer is as well, for the types that the field registers as both. It
    /// runs after the profile's own filters and before the scorers.
    fn as_filter(&self) -> Option<&dyn Filter> {
        None
    }
    /// As [`Filter::picked`].
    fn picked(&self, _context: &Context<'_>, _endpoints: &[usize]) {}
    /// As [`Filter::response_headers`].
    fn response_headers(
        &self,
        _context: &Context<'_>,
        _endpoints: &[usize],
        _headers: &mut Vec<(String, String)>,
    ) {
    }
}

/// Chooses among scored candidates.
pub trait Picker: Send + Sync + Debug {
    /// The field's plugin type name.
    fn type_name(&self) -> &'static str;
    /// How many endpoints this picker is configured to return.
    fn endpoints(&self) -> usize;
    /// Appends up to `count` distinct candidates to `chosen`, best first, and says why the first
    /// one won. `totals` are in the order of `candidates`, which is not empty.
    fn pick(
        &self,
        context: &Context<'_>,
        candidates: &[usize],
        totals: &[f32],
        count: usize,
        chosen: &mut SmallVec<[usize; 4]>,
    ) -> &'static str;
}
