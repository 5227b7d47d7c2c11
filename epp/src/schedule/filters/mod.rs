//! Filters: each narrows the candidates by one criterion.

pub mod healthy;

pub use healthy::HealthyFilter;
