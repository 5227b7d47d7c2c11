//! Admission: whether a request may be scheduled now, given how full the pool is; and where it
//! waits until it may.
//!
//! [`saturation`](mod@saturation) turns a snapshot into a reading of the pool. The [`controller`]
//! holds what waits and decides on each reading what goes: a pure state machine over the policies
//! of [`fairness`], [`ordering`], [`usage_limit`] and [`eviction`], as [`settings`] makes them from
//! a configuration. The [`gate`] is the shell around it that requests wait at. With flow control
//! switched off the gate follows the rule of [`admission`] and nothing waits.
//!
//! What becomes of a request, and how a refused one is answered, is in [`outcome`]; [`view`] and
//! [`gate::FlowEvents`] are for whoever counts and shows it.

pub mod admission;
pub mod controller;
pub mod eviction;
pub mod fairness;
pub mod gate;
pub mod ordering;
pub mod outcome;
pub mod registry;
pub mod saturation;
pub mod settings;
pub mod usage_limit;
pub mod view;

pub use admission::{Refused, admit};
pub use fairness::Fairness;
pub use gate::{FlowEvents, FlowRequest, Gate, Permit};
pub use ordering::Ordering;
pub use outcome::{Cause, FlowRefusal, Outcome};
pub use registry::PLUGIN_TYPES;
pub use saturation::{Saturation, SaturationDetector, Stages, UtilizationDetector, saturation};
pub use settings::{FlowSettings, SettingsError, saturation_detector};
pub use usage_limit::UsageLimit;
pub use view::FlowView;
