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
        let Some(first) = first(context, candidates, totals) else {
            return "";
        };
        chosen.push(first.position);
        take_first(
            candidates,
            count.saturating_sub(1),
            chosen,
            |left, right| {
                let key = |place: usize| key(context, candidates[place]);
                totals[right]
                    .total_cmp(&totals[left])
                    .then_with(|| key(left).cmp(&key(right)))
            },
        );
        match first {
            _ if candidates.len() == 1 => "only candidate",
            First { tied: 1, .. } => "highest score",
            First {
                tied_in_flight: 1, ..
            } => "equal scores, fewest requests in flight",
            First { .. } => "equal scores and requests in flight, drawn",
        }
    }
}

/// The order among candidates of one total.
fn key(context: &Context<'_>, position: usize) -> (u32, Reverse<u64>) {
    let in_flight = context.live(position).in_flight_requests;
    (in_flight, Reverse(draw(context, position)))
}

/// The first choice, and how narrow it was.
struct First {
    position: usize,
    /// Candidates with the highest total.
    tied: usize,
    /// Of those, the ones with as few requests in flight.
    tied_in_flight: usize,
}

/// Two passes without a draw for those who cannot win: most picks want one endpoint of many.
fn first(context: &Context<'_>, candidates: &[usize], totals: &[f32]) -> Option<First> {
    let best = totals.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut first: Option<(First, (u32, Reverse<u64>))> = None;
    for (position, total) in candidates.iter().zip(totals) {
        if *total < best {
            continue;
        }
        let position = *position;
        let own = key(context, position);
        let fresh = |tied| First {
            position,
            tied,
            tied_in_flight: 1,
        };
        first = Some(match first {
            None => (fresh(1), own),
            Some((held, held_key)) if own.0 < held_key.0 => (fresh(held.tied + 1), own),
            Some((held, held_key)) => {
                let wins = own < held_key;
                let next = First {
                    position: if wins { position } else { held.position },
                    tied: held.tied + 1,
                    tied_in_flight: held.tied_in_flight + usize::from(own.0 == held_key.0),
                };
                (next, if wins { own } else { held_key })
            }
        });
    }
    first.map(|(first, _)| first)
}
