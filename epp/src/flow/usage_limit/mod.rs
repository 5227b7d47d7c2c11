//! Up to which saturation each priority may be dispatched.
//!
//! A policy gives every band a ceiling; a band is dispatched while the saturation is below its
//! ceiling and waits otherwise. Ceilings hold requests back, they never refuse them.

pub mod fixed;
pub mod holdback;
pub mod soft_reflective;

use serde_json::Value;

use super::registry::FlowPluginError;

/// A usage-limit policy.
#[derive(Clone, PartialEq, Debug)]
pub enum UsageLimit {
    Fixed(fixed::Parameters),
    Holdback(holdback::Parameters),
    SoftReflective(soft_reflective::SoftReflective),
}

impl Default for UsageLimit {
    fn default() -> Self {
        Self::Fixed(fixed::Parameters::default())
    }
}

impl UsageLimit {
    /// Makes the policy of a plugin type.
    pub fn make(type_name: &str, parameters: &Value) -> Result<Self, FlowPluginError> {
        match type_name {
            fixed::TYPE_NAME => {
                FlowPluginError::read(fixed::TYPE_NAME, parameters).map(Self::Fixed)
            }
            holdback::TYPE_NAME => {
                FlowPluginError::read(holdback::TYPE_NAME, parameters).map(Self::Holdback)
            }
            soft_reflective::TYPE_NAME => FlowPluginError::read::<soft_reflective::Parameters>(
                soft_reflective::TYPE_NAME,
                parameters,
            )
            .map(|_| Self::SoftReflective(soft_reflective::SoftReflective::default())),
            other => Err(FlowPluginError::unknown("usage-limit policy", other)),
        }
    }

    /// The plugin type's name.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Fixed(_) => fixed::TYPE_NAME,
            Self::Holdback(_) => holdback::TYPE_NAME,
            Self::SoftReflective(_) => soft_reflective::TYPE_NAME,
        }
    }

    /// Writes one ceiling per priority. `priorities` are those of all bands, the highest first.
    /// Each call is one chance to dispatch: a policy may open a band for one call in several.
    pub fn ceilings(&mut self, saturation: f64, priorities: &[i32], ceilings: &mut Vec<f64>) {
        ceilings.clear();
        match self {
            Self::Fixed(policy) => ceilings.resize(priorities.len(), policy.threshold),
            Self::Holdback(policy) => policy.ceilings(priorities, ceilings),
            Self::SoftReflective(policy) => policy.ceilings(saturation, priorities.len(), ceilings),
        }
    }
}
