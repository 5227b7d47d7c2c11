//! Filters: each narrows the candidates by one criterion.

pub mod healthy;

pub use healthy::HealthyFilter;

use super::plugin::{Filter, Maker};

/// Every filter.
pub const MAKERS: &[Maker<dyn Filter>] = &[healthy::MAKER];
