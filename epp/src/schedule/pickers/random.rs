//! `random-picker`: any candidate, each equally likely, whatever its score.

use smallvec::SmallVec;

use super::super::plugin::{Context, Maker, Picker};
use super::{Parameters, draw, take_first};
use crate::config::plugins::{self, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "random-picker";

/// The plugin type.
pub const MAKER: Maker<dyn Picker> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Picker,
        stage: Stage::Beta,
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        Ok(Box::new(RandomPicker::from(plugins::read::<Parameters>(
            given,
        )?)))
    },
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct RandomPicker {
    endpoints: usize,
}

impl Default for RandomPicker {
    fn default() -> Self {
        Parameters::default().into()
    }
}

impl From<Parameters> for RandomPicker {
    fn from(parameters: Parameters) -> Self {
        Self {
            endpoints: parameters.endpoints(),
        }
    }
}

impl Picker for RandomPicker {
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
        _totals: &[f32],
        count: usize,
        chosen: &mut SmallVec<[usize; 4]>,
    ) -> &'static str {
        take_first(candidates, count, chosen, |left, right| {
            draw(context, candidates[left]).cmp(&draw(context, candidates[right]))
        });
        "drawn"
    }
}
