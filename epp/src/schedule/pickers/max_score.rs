//! `max-score-picker`: the highest total wins.
//!
//! Equal totals are common, above all on an idle fleet, and sending them all to the first endpoint
//! would pile up a burst there before the next scrape shows it. So ties go to the endpoint with
//! fewer requests of ours in flight, which is known at once, and what is still tied then is drawn
//! from the request's seed.

use std::cmp::Reverse;

use smallvec::SmallVec;

use super::super::plugin::{Context, Maker, Picker};
use super::{Parameters, draw, take_first};
use crate::config::plugins::{self, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "max-score-picker";

/// The plugin type.
pub const MAKER: Maker<dyn Picker> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Picker,
        stage: Stage::Beta,
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        Ok(Box::new(MaxScorePicker::from(plugins::read::<Parameters>(
            given,
        )?)))
    },
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct MaxScorePicker {
    endpoints: usize,
}

impl Default for MaxScorePicker {
    fn default() -> Self {
        Parameters::default().into()
    }
}

impl From<Parameters> for MaxScorePicker {
    fn from(parameters: Parameters) -> Self {
        Self {
            endpoints: parameters.endpoints(),
        }
    }
}

impl Picker for MaxScorePicker {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn endpoints(&self) -> usize {
        self.endpoints
    }

    fn pick(
        &self,
        context: &Context<'_>,
        candidates: &[usize],
        totals: &[f32],
        count: usize,
        chosen: &mut SmallVec<[usize; 4]>,
    ) -> &'static str {
        take_first(candidates, count, chosen, |left, right| {
            let key = |place: usize| {
                let position = candidates[place];
                let in_flight = context.live(position).in_flight_requests;
                (in_flight, Reverse(draw(context, position)))
            };
            totals[right]
                .total_cmp(&totals[left])
                .then_with(|| key(left).cmp(&key(right)))
        });
        reason(context, candidates, totals, chosen)
    }
}

fn reason(
    context: &Context<'_>,
    candidates: &[usize],
    totals: &[f32],
    chosen: &[usize],
) -> &'static str {
    if candidates.len() == 1 {
        return "only candidate";
    }
    let best = totals.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let tied = || {
        candidates
            .iter()
            .zip(totals)
            .filter(|(_, total)| **total >= best)
            .map(|(position, _)| context.live(*position).in_flight_requests)
    };
    let least = chosen
        .first()
        .map_or(0, |position| context.live(*position).in_flight_requests);
    if tied().count() == 1 {
        "highest score"
    } else if tied().filter(|in_flight| *in_flight == least).count() == 1 {
        "equal scores, fewest requests in flight"
    } else {
        "equal scores and requests in flight, drawn"
    }
}
