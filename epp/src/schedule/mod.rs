//! Picks endpoints for a request: filters narrow the fleet, scorers rate what is left, a picker
//! chooses.
//!
//! `subset hint → filters → scorers (clamped to 0..1, weighted, summed) → picker → decision`
//!
//! Everything is pure. A plugin sees a snapshot, the request and the time as values, and randomness
//! comes from a seed in the request, so the same inputs give the same decision in production, in a
//! test and in a simulated fleet. A plugin is one file with its parameters and its tests; adding
//! one touches that file and one line of [`registry`].

pub mod admitters;
pub mod decision;
pub mod filters;
pub mod latency;
pub mod pickers;
pub mod plugin;
pub mod profile;
pub mod registry;
pub mod scorers;
pub mod subset;

pub use decision::{Decision, NoEndpoint, ScorerScores, pick, pick_into};
pub use plugin::{Context, Filter, Headers, Maker, MediaItem, NoHeaders, Picker, Request, Scorer};
pub use profile::Profile;
pub use registry::{Plugin, PluginError};
pub use subset::SubsetEntry;

#[cfg(test)]
mod fixtures;
