//! Picks endpoints for a request: filters narrow the fleet, scorers rate what is left, a picker
//! chooses.
//!
//! `subset hint → handler → profile: filters → scorers (clamped to 0..1, weighted, summed) → picker`
//!
//! Everything is pure. A plugin sees a snapshot, the request and the time as values, and randomness
//! comes from a seed in the request, so the same inputs give the same decision in production, in a
//! test and in a simulated fleet. A plugin is one file with its parameters and its tests; adding
//! one touches that file and one line of [`registry`].

pub mod admitters;
pub mod build;
pub mod by_member;
pub mod deciders;
pub mod decision;
pub mod expected;
pub mod filters;
pub mod handlers;
pub mod latency;
pub mod pickers;
pub mod plugin;
pub mod profile;
pub mod recent;
pub mod registry;
pub mod scheduler;
pub mod scorers;
pub mod session;
pub mod signal;
pub mod subset;
pub mod topology;

pub use build::{BuildError, build};
pub use decision::{Decision, NoEndpoint, ProfileRun, ScorerScores, Stages};
pub use plugin::{
    Context, Filter, Headers, Maker, MediaItem, Meter, NoHeaders, Picker, Request, Scorer,
};
pub use profile::Profile;
pub use registry::{Plugin, PluginError, plugin_types};
pub use scheduler::Scheduler;
pub use subset::SubsetEntry;

#[cfg(test)]
mod fixtures;
