//! The endpoint picker.
//!
//! `ext_proc → request → tokens → index → flow → schedule`
//!
//! One request travels these rooms in this order, and [`pipeline`] walks it. A room imports only
//! what lies under it: the fleet's values, the configuration's types, the wire formats of
//! `pointsman_proto`, the clock and the metrics.

pub mod pipeline;

pub mod ext_proc;

pub mod request;

pub mod tokens;

pub mod index;

pub mod flow;

pub mod schedule;

pub mod fleet;

pub mod config;

pub mod observe;

pub mod clock;
