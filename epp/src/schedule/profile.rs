//! A scheduling profile: which filters, which scorers with which weights, and one picker; and how
//! it runs over the eligible endpoints.

use std::sync::Arc;

use super::decision::{NoEndpoint, ProfileRun, ScorerScores};
use super::filters::HealthyFilter;
use super::pickers::MaxScorePicker;
use super::plugin::{Context, Filter, Meter, Picker, Scorer, metered};
use super::scorers::{KvCacheUtilizationScorer, PrefixCacheScorer, QueueScorer};

/// The name of the one profile where none is configured.
pub const DEFAULT_PROFILE: &str = "default";

/// A scorer and how much it counts.
#[derive(Debug)]
pub struct WeightedScorer {
    pub scorer: Arc<dyn Scorer>,
    pub weight: f32,
}

/// An ordered set of plugins. Plugins are shared: a configuration may refer to one from several
/// profiles, and it keeps one state.
#[derive(Debug)]
pub struct Profile {
    pub name: Arc<str>,
    pub filters: Vec<Arc<dyn Filter>>,
    pub scorers: Vec<WeightedScorer>,
    pub picker: Arc<dyn Picker>,
    /// Endpoints returned beyond the first, for gateways that retry along a list. Gateways that
    /// take a single destination need 0.
    pub fallback_endpoints: usize,
}

impl Profile {
    /// A profile of only a picker.
    pub fn new(name: &str, picker: Arc<dyn Picker>) -> Self {
        Self {
            name: Arc::from(name),
            filters: Vec::new(),
            scorers: Vec::new(),
            picker,
            fallback_endpoints: 0,
        }
    }

    /// The field's policy without configuration: queue 2, KV usage 2, prefix 3, highest score wins.
    /// Endpoints that do not answer are kept out by our own filter.
    pub fn field_default() -> Self {
        Self::new(DEFAULT_PROFILE, Arc::new(MaxScorePicker::default()))
            .with_filter(Arc::new(HealthyFilter::default()))
            .with_scorer(Arc::new(QueueScorer::default()), 2.0)
            .with_scorer(Arc::new(KvCacheUtilizationScorer::default()), 2.0)
            .with_scorer(Arc::new(PrefixCacheScorer::default()), 3.0)
    }

    /// Adds a filter after those present.
    #[must_use]
    pub fn with_filter(mut self, filter: Arc<dyn Filter>) -> Self {
        self.filters.push(filter);
        self
    }

    /// Adds a scorer. Weights are not normalised: the field adds weighted scores as they are.
    #[must_use]
    pub fn with_scorer(mut self, scorer: Arc<dyn Scorer>, weight: f32) -> Self {
        self.scorers.push(WeightedScorer { scorer, weight });
        self
    }

    /// Returns this many endpoints beyond the first.
    #[must_use]
    pub fn with_fallback_endpoints(mut self, count: usize) -> Self {
        self.fallback_endpoints = count;
        self
    }

    /// How many endpoints a run of this profile holds at most.
    pub fn endpoints(&self) -> usize {
        self.picker.endpoints().max(1 + self.fallback_endpoints)
    }

    /// Filters, scores and picks among the eligible positions. A failed run holds no endpoints and
    /// says why.
    pub(super) fn run(
        &self,
        context: &Context<'_>,
        eligible: &[usize],
        run: &mut ProfileRun,
        meter: Option<&dyn Meter>,
    ) {
        run.candidates.extend_from_slice(eligible);
        for filter in &self.filters {
            let name = filter.type_name();
            let candidates = &mut run.candidates;
            metered(meter, "Filter", name, || filter.filter(context, candidates));
            if run.candidates.is_empty() {
                run.reason = filter.type_name();
                return;
            }
        }
        for weighted in &self.scorers {
            if let Some(filter) = weighted.scorer.as_filter() {
                filter.filter(context, &mut run.candidates);
                if run.candidates.is_empty() {
                    run.reason = filter.type_name();
                    return;
                }
            }
        }
        self.score(context, run, meter);
        let ProfileRun {
            candidates,
            totals,
            endpoints,
            ..
        } = run;
        let picker = &self.picker;
        run.reason = metered(meter, "Picker", picker.type_name(), || {
            picker.pick(context, candidates, totals, self.endpoints(), endpoints)
        });
        for filter in &self.filters {
            filter.picked(context, &run.endpoints);
        }
        for weighted in &self.scorers {
            weighted.scorer.picked(context, &run.endpoints);
        }
    }

    /// Adds what the plugins of this profile want the client to be told about its pick.
    pub(super) fn response_headers(
        &self,
        context: &Context<'_>,
        endpoints: &[usize],
        headers: &mut Vec<(String, String)>,
    ) {
        for filter in &self.filters {
            filter.response_headers(context, endpoints, headers);
        }
        for weighted in &self.scorers {
            weighted
                .scorer
                .response_headers(context, endpoints, headers);
        }
    }

    fn score(&self, context: &Context<'_>, run: &mut ProfileRun, meter: Option<&dyn Meter>) {
        let ProfileRun {
            candidates,
            scores,
            totals,
            ..
        } = run;
        totals.resize(candidates.len(), 0.0);
        scores.resize_with(self.scorers.len(), ScorerScores::default);
        for (weighted, out) in self.scorers.iter().zip(scores) {
            out.scorer = weighted.scorer.type_name();
            out.weight = weighted.weight;
            out.values.clear();
            out.values.resize(candidates.len(), 0.0);
            let (name, values) = (out.scorer, &mut out.values);
            metered(meter, "Scorer", name, || {
                weighted.scorer.score(context, candidates, values);
            });
            for (value, total) in out.values.iter_mut().zip(totals.iter_mut()) {
                *value = clamp(*value);
                *total += *value * weighted.weight;
            }
        }
    }
}

fn clamp(value: f32) -> f32 {
    if value.is_nan() {
        0.0
    } else {
        value.clamp(0.0, 1.0)
    }
}

impl ProfileRun {
    /// Why the run picked nothing; `None` where it did.
    pub fn failure(&self) -> Option<NoEndpoint> {
        self.endpoints
            .is_empty()
            .then_some(NoEndpoint::FiltersExcludeAll)
    }
}
